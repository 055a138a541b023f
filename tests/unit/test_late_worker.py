"""The worker that finds late segments, with a real intake, index and tree; tests/system/test_late.py has an agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.agent import make_hour
from tests.support.journal import Journal
from tests.support.waiting import wait_for
from tests.unit.test_late import HASH, HOUR, OTHER, TAKEDOWN
from tombsync.audit import Event
from tombsync.index import Reader, SegmentRows, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour
from tombsync.plan import Breaker
from tombsync.takedown.worker import MOST_NAMES, LateSegments
from tombsync.timeline import time_text
from tombsync.tree import Takedown, Tree, end_takedown, write_takedown
from tombsync.work import Beats, Driver, Flush, Mailbox

LATE = f"45:52.000000-2.0-full-{OTHER}"
STICKY = replace(TAKEDOWN, sticky=True)


class Node:
    """A tree, an index, the intake, and the worker; what is seen of the tree is handed over by the test."""

    def __init__(self, base: Path) -> None:
        self.root = base / "segments"
        self.state_dir = base / "state"
        self.state_dir.mkdir()
        make_hour(self.root, HOUR.path, segments=0)
        self.tree = Tree(str(self.root))
        self.identity = self.tree.adopt()
        self.journal = Journal()
        self.metrics = Metrics()
        self.mailbox = Mailbox()
        self.path = index_path(str(self.state_dir))
        self.writer = Writer(self.path)
        self.reader = Reader(self.path)
        self.believed = True
        self.late = self.make_late()
        self.intake = Intake(
            tree=self.tree, writer=self.writer, mailbox=self.mailbox, audit=self.journal.audit, metrics=self.metrics,
            on_news=lambda _: None, watch_answers=lambda: False, breaker=Breaker(1),
            on_segments=lambda hour, names: self.late.note(hour, names),  # noqa: PLW0108 (another may take its place)
        )  # fmt: skip

    def make_late(self) -> LateSegments:
        return LateSegments(
            tree=self.tree, identity=self.identity, state_dir=str(self.state_dir), index_path=self.path,
            mailbox=self.mailbox, audit=self.journal.audit, metrics=self.metrics, believed=lambda: self.believed,
        )  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        """The worker finds by itself, in the time of a `with` block; each time it is a new one."""
        self.late = self.make_late()
        driver = Driver(self.late, Beats(), lambda: None)
        driver.start()
        try:
            yield
        finally:
            driver.stop()
            assert driver.join(20.0)
            self.late.close()
        if driver.failure is not None:
            raise driver.failure

    def take_down(self, takedown: Takedown) -> None:
        with self.tree.open_root() as fd:
            write_takedown(fd, takedown)

    def end(self, id: str) -> None:
        with self.tree.open_root() as fd:
            end_takedown(fd, id, "ada")

    def arrive(self, stem: str, hour: Hour = HOUR) -> str:
        """A file, and a row of it; the path."""
        make_hour(self.root, hour.path, segments=0)
        (self.root / hour.path / f"{stem}.ts").write_bytes(b"data")
        self.add(hour, f"{stem}.ts")
        return f"{hour.path}/{stem}"

    def add(self, hour: Hour, name: str) -> None:
        """A row alone; it is committed when this returns."""
        flush = Flush()
        self.mailbox.put_bulk(SegmentRows(hour, add=[name], watched=True))
        self.mailbox.put_bulk(flush)
        assert flush.done.wait(20.0)

    def told(self) -> list[str]:
        """The segments that the journal has got as late."""
        return [fields["TOMBSYNC_SEGMENT"] for fields in self.journal.so_far(Event.TWIN_OF_HIDDEN)]

    def placed(self, path: str) -> bool:
        return (self.root / f"{path}.tombstone").exists()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    driver = Driver(node.intake, Beats(), node.mailbox.close)
    driver.start()
    yield node
    driver.stop()
    assert driver.join(20.0)
    assert driver.failure is None
    node.reader.close()
    node.writer.close()
    assert node.journal.audit.close() == 0


def test_one_that_arrives_is_hidden_before_it_has_a_tombstone(node: Node) -> None:
    node.take_down(STICKY)
    with node.running():
        path = node.arrive(LATE)
        wait_for(lambda: node.placed(path), "its tombstone")
        assert node.reader.listing(HOUR) == []
    (find,) = node.journal.records(Event.TWIN_OF_HIDDEN)
    (hidden,) = node.journal.records(Event.HIDDEN)
    assert find["TOMBSYNC_SEGMENT"] == hidden["TOMBSYNC_SEGMENT"] == path
    assert hidden["TOMBSYNC_SOURCE"] == "takedown"
    assert (node.root / f"{path}.tombstone").stat().st_size == 0


def test_a_name_next_to_a_marked_one_across_the_border_of_an_hour(node: Node) -> None:
    """The marked one starts with the hour and carries the span, its twin 0.4 ms before that, in the hour before."""
    start_us = HOUR.number * 3_600_000_000
    node.take_down(replace(STICKY, start_us=start_us + 1_500_000, end_us=start_us + 1_600_000, hashes=()))
    first = node.arrive(f"00:00.000000-2.0-full-{OTHER}")
    with node.running():
        wait_for(lambda: node.placed(first), "the first")
        before = node.arrive(f"59:59.999600-1.0-partial-{HASH}", HOUR._replace(number=HOUR.number - 1))
        wait_for(lambda: node.placed(before), "its twin")
    assert [fields["TOMBSYNC_WHY"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == ["carries", "next-to"]


def test_where_twins_were_excluded_what_was_there_before_did_not_arrive(node: Node) -> None:
    before = node.arrive(LATE)
    ctime_ns = (node.root / f"{before}.ts").stat().st_ctime_ns
    epoch_us = 719_163 * 24 * 3_600_000_000  # days from 0001-01-01 to 1970-01-01, and the one of `toordinal`
    made_at = time_text(ctime_ns // 1000 + 1 + epoch_us)
    node.take_down(replace(STICKY, twins=False, created_at=made_at))
    with node.running():
        later = node.arrive(f"45:53.000000-2.0-full-{OTHER}")
        wait_for(lambda: node.placed(later), "the one that arrived")
    assert not node.placed(before)
    assert [fields["TOMBSYNC_SEGMENT"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == [later]


def now_text() -> str:
    return datetime.now(UTC).isoformat()


def test_what_was_there_is_left_to_whoever_made_the_takedown(node: Node) -> None:
    """It is about to mark that, with a reason, while the worker looks already."""
    there = node.arrive(LATE)
    node.take_down(replace(STICKY, created_at=now_text()))
    with node.running():
        came = node.arrive(f"45:53.000000-2.0-full-{OTHER}")
        wait_for(lambda: node.placed(came), "the tombstone of the one that arrived")
    assert [fields["TOMBSYNC_SEGMENT"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == [came]
    assert not node.placed(there)


def test_what_is_left_unmarked_after_a_while_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombsync.takedown.worker.LEFT_TO_MARK_S", 0.5)
    there = node.arrive(LATE)
    node.take_down(replace(STICKY, created_at=now_text()))
    with node.running():
        wait_for(lambda: node.placed(there), "its tombstone")
    assert [fields["TOMBSYNC_SEGMENT"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == [there]


def test_more_than_can_wait_are_found_by_looking_through_their_hours(node: Node) -> None:
    node.take_down(STICKY)
    with node.running():
        first = node.arrive(LATE)
        wait_for(lambda: node.placed(first), "the takedown to be followed")
        node.believed = False  # it takes nothing from the queue now
        node.late.note(HOUR, ["x.ts"] * MOST_NAMES)
        path = node.arrive(f"45:53.000000-2.0-full-{OTHER}")  # for which there is no room
        assert not node.placed(path)
        node.believed = True
        wait_for(lambda: node.placed(path), "the one that had no room")


def test_one_that_is_gone_again_or_has_its_tombstone_already_is_not_told(node: Node) -> None:
    node.take_down(STICKY)
    with node.running():
        node.add(HOUR, f"{LATE}.ts")  # a row, and no file
        touched = f"45:53.000000-2.0-full-{OTHER}"
        (node.root / HOUR.path / f"{touched}.tombstone").touch()  # which the watcher is about to tell
        node.arrive(touched)
        last = node.arrive(f"45:54.000000-2.0-full-{OTHER}")
        wait_for(lambda: node.placed(last), "the last")
    assert [fields["TOMBSYNC_SEGMENT"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == [last]


def test_a_directory_of_records_that_cannot_be_read_ends_no_takedown(node: Node) -> None:
    node.take_down(STICKY)
    with node.running():
        first = node.arrive(LATE)
        wait_for(lambda: node.placed(first), "the takedown to be followed")
        records = node.root / ".tombsync/takedowns"
        records.rename(records.with_name("away"))
        records.symlink_to("away")
        wait_for(lambda: node.journal.so_far(Event.TAKEDOWN_UNREADABLE), "it to be told")
        path = node.arrive(f"45:53.000000-2.0-full-{OTHER}")
        wait_for(lambda: node.placed(path), "the next")
    assert len(node.journal.records(Event.TAKEDOWN_UNREADABLE)) == 1


def test_what_was_told_is_forgotten_with_the_end(node: Node) -> None:
    told = node.state_dir / "late-told"
    told.write_bytes(b'["k7mq3", "cut sho')  # by a kill
    node.take_down(TAKEDOWN)
    node.take_down(replace(TAKEDOWN, id="other", start_us=TAKEDOWN.end_us, end_us=TAKEDOWN.end_us + 1_000_000))
    with node.running():
        path = node.arrive(LATE)
        other = node.arrive(f"45:56.000000-2.0-full-{OTHER}")
        wait_for(lambda: set(node.told()) == {path, other}, "both to be told")
    with node.running():
        again = node.arrive(f"45:53.000000-1.0-full-{OTHER}")
        wait_for(lambda: again in node.told(), "the next to be told")
    assert len(node.journal.records(Event.TWIN_OF_HIDDEN)) == 3
    node.end("k7mq3")
    with node.running():
        wait_for(lambda: b"k7mq3" not in told.read_bytes(), "it to be forgotten")
    assert b"other" in told.read_bytes()


def test_a_state_directory_that_takes_nothing_does_not_end_it(node: Node) -> None:
    os.mkdir(node.state_dir / "late-told")
    node.take_down(STICKY)
    with node.running():
        path = node.arrive(LATE)
        wait_for(lambda: node.placed(path), "its tombstone")
    assert [fields["TOMBSYNC_SEGMENT"] for fields in node.journal.records(Event.TWIN_OF_HIDDEN)] == [path]

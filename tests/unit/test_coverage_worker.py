"""The worker, turn by turn: what it judges, when it looks again, and when it does nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.index import HOUR, NEXT_HOUR, add, drop, hide, query, stem_of
from tombsync.coverage.worker import ALL_INTERVAL_S, REST_S, CoverageWorker
from tombsync.index import HourListed, SegmentRows, Writer
from tombsync.tree import Tree
from tombsync.work import BULK_REFUSED_ABOVE_ROWS, Flush, Mailbox

NAMES = [f"{stem_of(second)}.ts" for second in range(0, 3600, 2)]


class Node:
    """An index, and a worker beside it whose turns a test makes."""

    def __init__(self, base: Path) -> None:
        self.writer = Writer(str(base / "index.sqlite"))
        self.mailbox = Mailbox()
        self.believed = self.may_begin = True
        (base / "segments").mkdir()
        self.worker = CoverageWorker(
            tree=Tree(str(base / "segments")),
            index_path=self.writer.path,
            mailbox=self.mailbox,
            believed=lambda: self.believed,
            may_begin=lambda: self.may_begin,
        )

    def write(self) -> None:
        """What the intake does with what it is given."""
        while batches := self.mailbox.take(0):
            self.writer.apply(batches)  # type: ignore[arg-type] # nobody sees a tombstone here

    def turns(self, now: float) -> int:
        """Turns at that time until everything is done; how many hours were judged."""
        before = self.worker.judged_total
        self.worker.wake()
        while True:
            self.worker.loop(now)
            self.write()
            if self.worker._pass is None:
                return self.worker.judged_total - before


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.worker.close()
    node.writer.close()


def settle(node: Node, *hours: object) -> None:
    node.writer.apply([HourListed(hour, 1, b"x", 1, settled=True, edits=0) for hour in hours])  # type: ignore[arg-type]


def test_nothing_is_judged_before_the_index_is_known(node: Node) -> None:
    add(node.writer, HOUR, *NAMES[:3])
    node.may_begin = False
    assert node.turns(time.monotonic()) == 0
    node.may_begin, node.believed = True, False
    assert node.turns(time.monotonic()) == 0
    node.believed = True
    assert node.turns(time.monotonic()) == 1
    assert query(node.writer.path, "SELECT covered_us FROM coverage") == [(6_000_000,)]


def test_totals_are_told_when_they_are_kept(node: Node) -> None:
    add(node.writer, HOUR, *NAMES[:3])
    add(node.writer, NEXT_HOUR, *NAMES[:2])
    hide(node.writer, NEXT_HOUR, stem_of(0))
    assert node.turns(time.monotonic()) == 2
    (totals,) = node.worker.totals.values()
    assert (totals.hours, totals.covered_us, totals.tombstoned_us) == (2, 8_000_000, 2_000_000)
    assert totals.hole_us == 2 * 3_600_000_000 - 10_000_000
    assert list(node.worker.totals) == [("desertbus", "source")]


def test_only_what_changed_is_judged_again(node: Node) -> None:
    now = time.monotonic()
    for hour in (HOUR, NEXT_HOUR):
        add(node.writer, hour, *NAMES[:3])
    settle(node, HOUR, NEXT_HOUR)
    assert node.turns(now) == 2
    later = now + REST_S
    assert node.turns(later) == 0
    hide(node.writer, HOUR, stem_of(0))
    assert node.turns(later + REST_S) == 1
    assert query(node.writer.path, "SELECT tombstoned_us FROM coverage ORDER BY hour") == [(2_000_000,), (0,)]


def test_an_hour_that_changes_all_the_time_rests_in_between(node: Node) -> None:
    now = time.monotonic()
    assert node.turns(now) == 0  # all were looked at: from now on those that changed
    judged = []
    for second in range(0, 60, 6):
        add(node.writer, HOUR, NAMES[second], watched=True)
        judged.append(node.turns(now + 10 + second))
    assert judged == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert node.turns(now + 10 + 54 + REST_S) == 1


def test_an_hour_in_which_something_was_hidden_does_not_rest(node: Node) -> None:
    now = time.monotonic()
    assert node.turns(now) == 0
    add(node.writer, HOUR, *NAMES[:2], watched=True)
    assert node.turns(now + 10) == 1
    add(node.writer, HOUR, NAMES[2], watched=True)
    assert node.turns(now + 16) == 0
    hide(node.writer, HOUR, stem_of(0))
    assert node.turns(now + 22) == 1
    assert query(node.writer.path, "SELECT tombstoned_us FROM coverage") == [(2_000_000,)]


def test_what_settled_between_two_looks_is_found_later(node: Node) -> None:
    now = time.monotonic()
    add(node.writer, HOUR, *NAMES[:3])
    settle(node, HOUR)
    assert node.turns(now) == 1
    drop(node.writer, HOUR, NAMES[0])
    settle(node, HOUR)
    assert node.turns(now + REST_S) == 0
    assert node.turns(now + 2 * ALL_INTERVAL_S) == 1


def test_a_border_is_judged_from_both_sides(node: Node) -> None:
    """The hour after it is known, and due again for what now reaches into it, at the latest when all are looked at."""
    now = time.monotonic()
    add(node.writer, NEXT_HOUR, *NAMES[1:])
    add(node.writer, HOUR, *NAMES[:-1])
    settle(node, HOUR, NEXT_HOUR)
    assert node.turns(now) == 2
    add(node.writer, HOUR, NAMES[-1], watched=True)  # from 3598.608 to 3600.608
    assert node.turns(now + REST_S) == 1
    assert node.turns(now + 2 * ALL_INTERVAL_S) == 1
    assert query(node.writer.path, "SELECT span_us - covered_us FROM coverage ORDER BY hour") == [
        (608_000,),
        (2_000_000,),  # until 2.608 there is only what reaches in, 0.608 s
    ]


def test_a_writer_that_is_far_behind_is_not_waited_for(node: Node) -> None:
    now = time.monotonic()
    add(node.writer, HOUR, *NAMES[:3])
    add(node.writer, NEXT_HOUR, *NAMES[:3])
    node.mailbox.put_bulk(_Much())
    node.worker.loop(now)
    assert node.worker.judged_total == 1  # and not kept
    assert node.worker._pass is None
    node.mailbox.take(0)
    assert node.turns(now + 2 * ALL_INTERVAL_S) == 2


class _Much(Flush):
    rows = BULK_REFUSED_ABOVE_ROWS


def test_sizes_decide_where_they_have_to(tmp_path: Path, node: Node) -> None:
    """Of two partial ones of one instant the larger is served, however long it claims to be."""
    directory = tmp_path / "segments" / HOUR.path
    directory.mkdir(parents=True)
    long, large = (f"00:00.000000-{length}-partial-{'a' * 42}A.ts" for length in ("4.0", "2.0"))
    (directory / long).write_bytes(b"1")
    (directory / large).write_bytes(b"22")
    node.writer.apply([SegmentRows(HOUR, add=[long, large])])
    assert node.turns(time.monotonic()) == 1
    assert query(node.writer.path, "SELECT covered_us, overlaps FROM coverage") == [(2_000_000, 1)]

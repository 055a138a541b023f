"""The watcher on a real tree: what the kernel tells arrives in the index, whatever comes, goes or is moved.

`Watching` is the watcher with the index behind it and no rescan, so that nothing repairs what it misses; what needs the
whole agent runs it as a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem
from tests.support.sshd import Sshd
from tests.support.trees import disk, hour_of, listed, marked, need_user_namespace
from tests.support.waiting import wait_for
from tombsync.audit import Audit, Record
from tombsync.index import Reader, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour, hour_number, hour_text
from tombsync.plan import Breaker
from tombsync.tree import Tree
from tombsync.watch import Watch
from tombsync.work import Beats, Driver, Mailbox

HOUR = "desertbus/source/2019-11-13T02"
FENCE = "fence/source/2000-01-01T00"
FIRST_HOUR = hour_number("2019-11-13T02")


class Records:
    """A sink that keeps what was recorded."""

    def __init__(self) -> None:
        self.fields: list[dict[str, str]] = []

    def send(self, record: Record) -> None:
        self.fields.append(record.fields)

    def close(self) -> None:
        pass

    def of(self, event: str) -> list[dict[str, str]]:
        return [fields for fields in list(self.fields) if fields["TOMBSYNC_EVENT"] == event]


class Watching:
    """The watcher, the intake and the index on `base/segments`, without any rescan."""

    def __init__(self, base: Path, *, tree: Callable[[str], Tree] = Tree) -> None:
        self.root = base / "segments"
        self.fence = self.root / FENCE
        self.fence.mkdir(parents=True)
        self.tree = tree(str(self.root))
        self.identity = self.tree.adopt()
        self.records = Records()
        self.disturbed: list[Hour] = []
        self.rescans = 0
        self.root_disturbed = threading.Event()
        self.died: list[BaseException] = []
        self.path = index_path(str(base))
        self._fences = 0

    def __enter__(self) -> Watching:
        self._writer = Writer(self.path)
        self.mailbox, self.metrics, self.beats = Mailbox(), Metrics(), Beats()
        self._audit = Audit("node-a", self.records)
        self._audit.start()
        intake = Intake(
            tree=self.tree,
            writer=self._writer,
            mailbox=self.mailbox,
            audit=self._audit,
            metrics=self.metrics,
            on_news=lambda _: None,
            watch_answers=lambda: True,
            breaker=Breaker(1_000_000),
        )
        self.watch = Watch(
            tree=self.tree,
            identity=self.identity,
            mailbox=self.mailbox,
            audit=self._audit,
            metrics=self.metrics,
            beats=self.beats,
            on_death=self.died.append,
            on_missed=self._count_rescan,
            on_disturbed=self.disturbed.append,
            on_root_disturbed=self.root_disturbed.set,
        )
        self._intake = Driver(intake, self.beats, lambda: None)
        self._intake.start()
        self.watch.start()
        wait_for(self.watch.walked.is_set, "the watcher to have walked the tree")
        return self

    def _count_rescan(self) -> None:
        self.rescans += 1

    def __exit__(self, *_: object) -> None:
        stopped = self.watch.stop(10)
        self.mailbox.close()
        self._intake.stop()
        stopped = self._intake.join(10) and stopped
        self._audit.close()
        self._writer.close()
        assert stopped
        assert not self._intake.failure

    def settle(self) -> None:
        """Return when everything that happened in the tree so far was taken up, but for what is left to a walk.

        A segment goes the longest way, through each queue in its turn: what came before it was handed over before it.
        (A mark would not do, as marks overtake everything else.) Of two segments the second is told apart from the
        first, after all that came with the first was handed over.
        """
        for _ in range(2):
            self._fences += 1
            name = f"fence-{self._fences}.ts"
            (self.fence / name).touch()
            wait_for(lambda name=name: name in self.listing(self.fence), "a segment to be listed")  # type: ignore[misc]

    def hides(self, directory: Path, stem: str) -> bool:
        reader = Reader(self.path)
        try:
            return reader.marker(marked(directory, stem)) is not None
        finally:
            reader.close()

    def listing(self, directory: Path, *, tombstones: bool = False) -> list[str]:
        reader = Reader(self.path)
        try:
            return reader.listing(hour_of(directory), tombstones=tombstones)
        finally:
            reader.close()

    def assert_true(self, *directories: Path) -> None:
        """The index lists these hours as the archive does, and names the same tombstones."""
        self.settle()
        for directory in directories:
            assert self.listing(directory) == listed(directory)
            assert self.listing(directory, tombstones=True) == listed(directory, tombstones=True)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    with Watching(tmp_path) as running:
        yield running


def idle(agent: AgentProcess) -> AgentProcess:
    """An agent whose first rescans are over; where its tree was empty: what is hidden now, the watcher has seen."""
    wait_for(lambda: completed(agent, "full"), "the first full rescan")
    return agent


def settled(agent: AgentProcess, kind: str = "full") -> AgentProcess:
    """An agent that has also listed once more what its last rescan of a kind left unsettled, as is due 2 s after it.

    What is hidden from now on, the watcher has seen. There must have been hours that were not known before.
    """
    wait_for(lambda: completed(agent, "settle") > completed(agent, kind) > 0, "the hours to be settled")
    return agent


def completed(agent: AgentProcess, kind: str) -> float:
    """When a rescan of this kind last ended, as Unix time; 0 where none has yet."""
    return agent.metric("rescan_last_completed_timestamp_seconds", kind=kind)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as running:
        yield idle(running)


def markers(agent: AgentProcess) -> dict[str, str]:
    """Every hidden stem by its path, and who saw it first."""
    reader = agent.reader()
    try:
        return {row.marked.path: row.source for row in reader.marker_rows(limit=1 << 30)}
    finally:
        reader.close()


# -- tombstones come --------------------------------------------------------------------------------------------------


def test_a_directory_made_with_a_tombstone_in_it_at_once_is_never_missed(agent: AgentProcess) -> None:
    made = set()
    for number in range(1000):
        # Every third has a channel of its own, every third a quality, every third only an hour.
        channel, quality = f"channel{number // 3}", f"quality{(number % 3 + 1) // 2}"
        directory = agent.root / channel / quality / hour_text(FIRST_HOUR + number)
        directory.mkdir(parents=True)
        (directory / f"{segment_stem()}.tombstone").touch()
        made.add(f"{channel}/{quality}/{directory.name}/{segment_stem()}")

    wait_for(lambda: agent.metric("tombstones") == 1000, "all of them to be hidden")
    assert markers(agent) == dict.fromkeys(made, "watch")
    assert agent.metric("missed_by_watch_total") == 0


def test_files_renamed_into_place_are_seen(watching: Watching, tmp_path: Path) -> None:
    hour = make_hour(watching.root, HOUR, segments=0)
    stem, other = segment_stem(0), segment_stem(2)
    (hour / f".{stem}.ts.temp").write_bytes(b"segment")  # as the archive's downloader does
    (hour / f".{stem}.ts.temp").rename(hour / f"{stem}.ts")
    outside = tmp_path / "outside.ts"
    outside.write_bytes(b"segment")
    outside.rename(hour / f"{other}.ts")
    watching.assert_true(hour)
    assert watching.listing(hour) == [f"{stem}.ts", f"{other}.ts"]

    (tmp_path / "mark").touch()
    (tmp_path / "mark").rename(hour / f"{stem}.tombstone")
    (hour / ".mark").touch()
    (hour / ".mark").rename(hour / f"{other}.tombstone")
    watching.assert_true(hour)
    assert watching.listing(hour) == []


def test_what_is_no_regular_file_hides_here_and_is_told_to_nobody(tmp_path: Path) -> None:
    stems = [segment_stem(2 * number) for number in range(4)]
    with Sshd() as peer:
        theirs = make_hour(peer.root, HOUR)
        with AgentProcess(tmp_path, peers=[peer_table("node-b", peer)]) as agent:
            hour = make_hour(agent.root, HOUR, segments=4)
            (hour / f"{stems[0]}.tombstone").mkdir()
            (hour / f"{stems[1]}.tombstone").symlink_to("nowhere")
            os.mkfifo(hour / f"{stems[2]}.tombstone")
            wait_for(lambda: agent.metric("tombstones") == 3, "all three to be hidden")
            (hour / f"{stems[3]}.tombstone").touch()
            wait_for((theirs / f"{stems[3]}.tombstone").exists, "the regular one to arrive")

            wait_for(lambda: agent.listing(hour_of(hour)) == [], "everything to be hidden")
            assert [name for name in os.listdir(theirs) if name.endswith(".tombstone")] == [f"{stems[3]}.tombstone"]
            assert [agent.states(f"{HOUR}/{stem}") for stem in stems[:3]] == [{}, {}, {}]
            wait_for(lambda: len(agent.records("not-regular")) == 3, "it to be told")
            assert {record["TOMBSYNC_SEGMENT"] for record in agent.records("not-regular")} == {
                f"{HOUR}/{stem}" for stem in stems[:3]
            }


WEIRD = ("two\nlines", "tab\there", "bell\x07", "\udcff\udcfe not utf-8", "\x1b[31mred", "ein schöner Tag", "a b")


def test_weird_names_are_hidden_exactly_and_told_in_one_line_each(agent: AgentProcess) -> None:
    hour = make_hour(agent.root, HOUR, segments=0)
    for stem in WEIRD:
        (hour / f"{stem}.ts").write_bytes(b"segment")
        (hour / f"{stem}.json").write_bytes(b"{}")
        (hour / f"{stem} stays.ts").write_bytes(b"segment")
    wait_for(lambda: agent.listing(hour_of(hour)) == listed(hour), "all of them to be listed")
    assert len(agent.listing(hour_of(hour))) == 3 * len(WEIRD)

    for stem in WEIRD:
        (hour / f"{stem}.tombstone").touch()
    wait_for(lambda: agent.metric("tombstones") == len(WEIRD), "all of them to be hidden")
    assert all(agent.hides(marked(hour, stem)) for stem in WEIRD)
    assert agent.listing(hour_of(hour)) == listed(hour) == sorted(f"{stem} stays.ts" for stem in WEIRD)
    assert agent.listing(hour_of(hour), tombstones=True) == listed(hour, tombstones=True)

    wait_for(lambda: len(agent.records("hidden")) >= len(WEIRD), "the journal to tell")
    text = agent.log.read_text(encoding="ascii")  # every byte that is no printable ASCII is escaped, by JSON or by us
    lines = [line for line in text.splitlines() if '"TOMBSYNC_EVENT": "hidden"' in line]
    assert len(lines) == len(WEIRD)
    shown = {record["TOMBSYNC_SEGMENT"].removeprefix(f"{HOUR}/") for record in agent.records("hidden")}
    assert shown == {
        "two\\nlines", "tab\\there", "bell\\x07", "\\xff\\xfe not utf-8", "\\x1b[31mred", "ein schöner Tag", "a b"
    }  # fmt: skip


def test_a_channel_of_a_weird_name_breaks_no_listing_and_no_scrape(agent: AgentProcess) -> None:
    hours = [make_hour(agent.root, f"{name}/{name}/2019-11-13T02") for name in WEIRD]
    for hour in hours:
        (hour / f"{segment_stem()}.tombstone").touch()
    for hour in hours:
        wait_for(lambda hour=hour: agent.hides(marked(hour, segment_stem())), "it to be hidden")  # type: ignore[misc]
        wait_for(lambda hour=hour: agent.listing(hour_of(hour)) == listed(hour), "it to be listed")  # type: ignore[misc]
    assert agent.get("/metrics")[0] == 200
    assert agent.metric("segments", channel="\\\\xff\\\\xfe not utf-8", state="visible") == 2


# -- segments come and go ---------------------------------------------------------------------------------------------


def test_segments_made_renamed_and_removed_keep_the_index_true(watching: Watching) -> None:
    hour, other = make_hour(watching.root, HOUR), make_hour(watching.root, "desertbus/480p/2019-11-13T02")
    watching.assert_true(hour, other)
    (hour / f"{segment_stem(0)}.ts").rename(hour / f"{segment_stem(100)}.ts")
    (hour / f"{segment_stem(2)}.ts").rename(other / f"{segment_stem(200)}.ts")
    (hour / f"{segment_stem(4)}.ts").unlink()
    (hour / f"{segment_stem(4)}.json").write_bytes(b"{}")
    watching.assert_true(hour, other)
    assert watching.listing(hour) == [f"{segment_stem(4)}.json", f"{segment_stem(100)}.ts"]


def test_the_index_is_true_after_any_order_of_changes(watching: Watching) -> None:
    """Few names and many changes, so that most of them meet a name that came or went a moment ago."""
    dice = random.Random(20191113)
    hours = [make_hour(watching.root, f"desertbus/source/{hour_text(FIRST_HOUR + n)}", segments=0) for n in range(3)]
    names = [f"{prefix}s{n}{kind}" for n in range(4) for kind in (".ts", ".json") for prefix in ("", ".")]

    def some_path() -> Path:
        return dice.choice(hours) / dice.choice(names)

    for _ in range(20):
        for _ in range(200):
            path = some_path()
            try:
                match dice.randrange(3):
                    case 0:
                        path.touch()
                    case 1:
                        path.unlink()
                    case _:
                        path.rename(some_path())
            except FileNotFoundError:
                pass
        watching.assert_true(*hours)


def test_names_with_a_dot_in_front_are_never_listed_and_hide_nothing(watching: Watching) -> None:
    hour = make_hour(watching.root, HOUR, segments=1)
    stem = segment_stem(0)
    for name in (f".{stem}.ts", f".{stem}.json", f".{stem}.tombstone", ".ts", ".json", ".tombstone"):
        (hour / name).touch()
    watching.assert_true(hour)
    assert watching.listing(hour, tombstones=True) == [f"{stem}.ts"]


def test_a_mistaken_name_in_a_new_directory_is_told_once(watching: Watching) -> None:
    """What is made between the watch and the listing of a new directory, both tell of."""
    made = set()
    for number in range(40):
        hour = make_hour(watching.root, f"desertbus/source/{hour_text(FIRST_HOUR + number)}", segments=0)
        for second in range(100):
            (hour / f"{segment_stem(second)}.ts.tombstone").touch()
            made.add(f"desertbus/source/{hour.name}/{segment_stem(second)}.ts.tombstone")
    watching.settle()
    wait_for(lambda: len(watching.records.of("mistaken-name")) >= len(made), "all of them to be told")
    told = [fields["MESSAGE"].split()[0] for fields in watching.records.of("mistaken-name")]
    assert sorted(told) == sorted(made)


@pytest.mark.parametrize("extension", [".ts", ".json", ".tombstone"])
def test_a_mistaken_name_hides_nothing_and_the_right_one_is_told(watching: Watching, extension: str) -> None:
    hour = make_hour(watching.root, HOUR, segments=1)
    stem = segment_stem(0)
    (hour / f"{stem}{extension}.tombstone").touch()
    watching.settle()
    assert not watching.hides(hour, stem)
    assert watching.listing(hour) == [f"{stem}.ts"]
    (told,) = wait_for(lambda: watching.records.of("mistaken-name"), "it to be told")
    assert told["MESSAGE"].endswith(f"the tombstone of that segment is {stem}.tombstone")
    assert told["TOMBSYNC_HOUR"] == "2019-11-13T02"


# -- directories come, go and move ------------------------------------------------------------------------------------


def fill(directory: Path, *, segments: int = 3) -> Path:
    """An hour directory with some segments, one of them marked."""
    directory.mkdir(parents=True)
    for number in range(segments):
        (directory / f"{segment_stem(2 * number)}.ts").write_bytes(b"segment")
    (directory / f"{segment_stem(0)}.tombstone").touch()
    return directory


def test_an_hour_that_is_moved_in_is_taken_up_whole(watching: Watching, tmp_path: Path) -> None:
    hour = watching.root / HOUR
    hour.parent.mkdir(parents=True)
    fill(tmp_path / "outside").rename(hour)
    watching.assert_true(hour)
    assert len(watching.listing(hour)) == 2

    (hour / f"{segment_stem(2)}.tombstone").touch()  # and is watched
    watching.assert_true(hour)
    assert len(watching.listing(hour)) == 1


def test_what_happens_in_an_hour_that_was_moved_away_is_not_believed(watching: Watching, tmp_path: Path) -> None:
    hour = fill(watching.root / HOUR)
    watching.assert_true(hour)
    outside = tmp_path / "outside"
    hour.rename(outside)
    (outside / f"{segment_stem(2)}.tombstone").touch()
    (outside / "later.ts").touch()
    watching.settle()
    assert hour_of(hour) in watching.disturbed
    (outside / f"{segment_stem(4)}.tombstone").touch()
    watching.settle()
    assert [watching.hides(hour, segment_stem(second)) for second in (0, 2, 4)] == [True, False, False]
    assert "later.ts" not in watching.listing(hour)


def test_an_hour_that_is_renamed_speaks_for_its_new_name_only(watching: Watching) -> None:
    old, new = fill(watching.root / HOUR), watching.root / "desertbus/source/2019-11-13T05"
    watching.assert_true(old)
    old.rename(new)
    (new / f"{segment_stem(2)}.tombstone").touch()
    watching.assert_true(new)
    assert hour_of(old) in watching.disturbed  # the rescan looks, and drops its rows
    assert not watching.hides(old, segment_stem(2))
    (new / f"{segment_stem(4)}.tombstone").touch()
    watching.assert_true(new)
    assert not watching.hides(old, segment_stem(4))


def test_an_hour_moved_out_and_made_again_is_the_new_directory(watching: Watching, tmp_path: Path) -> None:
    """In quick succession, as this once ended the thread of the stock emitter."""
    hour = watching.root / HOUR
    hour.mkdir(parents=True)
    watching.settle()  # or a watcher that is late knows nothing of the first one, and of its going
    for number in range(100):
        outside = tmp_path / f"outside{number}"
        hour.rename(outside)
        hour.mkdir()
        (outside / f"outside{number}.tombstone").touch()
        (hour / f"inside{number}.tombstone").touch()
        (hour / f"inside{number}.ts").touch()
    watching.settle()
    assert watching.hides(hour, "inside99")
    assert not any(watching.hides(hour, f"outside{number}") for number in range(100))
    assert hour_of(hour) in watching.disturbed
    assert watching.watch.watches == 7  # ROOT, and twice CHANNEL, QUALITY and HOUR
    (hour / "later.tombstone").touch()
    watching.settle()
    assert watching.hides(hour, "later")


@pytest.mark.parametrize("level", ["desertbus", "desertbus/source"])
def test_a_channel_or_quality_that_is_moved_away_and_back(watching: Watching, tmp_path: Path, level: str) -> None:
    hours = [fill(watching.root / f"desertbus/source/{hour_text(FIRST_HOUR + n)}") for n in range(3)]
    other = fill(watching.root / "desertbus2/source/2019-11-13T02")
    watching.assert_true(*hours, other)
    watches = watching.watch.watches
    rescans = watching.rescans

    (watching.root / level).rename(tmp_path / "outside")
    for path in (tmp_path / "outside").rglob("2019*"):
        (path / f"{segment_stem(2)}.tombstone").touch()
    watching.settle()
    assert not any(watching.hides(hour, segment_stem(2)) for hour in hours)
    assert watching.rescans > rescans or {hour_of(hour) for hour in hours} <= set(watching.disturbed), (
        "their rows would stay"
    )
    assert watching.watch.watches == watches - (5 if level == "desertbus" else 4)

    (tmp_path / "outside").rename(watching.root / level)
    watching.assert_true(*hours, other)
    assert watching.watch.watches == watches
    for hour in hours:
        (hour / f"{segment_stem(4)}.tombstone").touch()
    watching.assert_true(*hours, other)
    assert all(watching.hides(hour, segment_stem(second)) for hour in hours for second in (2, 4))


@pytest.mark.parametrize("count", [3, 100])  # taken up at once, or in steps
@pytest.mark.parametrize("level", ["desertbus", "desertbus/source"])
def test_a_channel_or_quality_that_is_renamed(watching: Watching, level: str, count: int) -> None:
    hours = [fill(watching.root / f"desertbus/source/{hour_text(FIRST_HOUR + n)}") for n in range(count)]
    # A watcher that is late finds more of them at once than it takes up at once: the rest is left to a walk.
    wait_for(lambda: [watching.listing(hour) for hour in hours] == [listed(hour) for hour in hours], "their rows")
    watching.assert_true(*hours)
    watches, rescans = watching.watch.watches, watching.rescans

    (watching.root / level).rename(watching.root / f"{level}2")
    renamed = [watching.root / f"{level}2" / hour.relative_to(watching.root / level) for hour in hours]
    for hour in renamed:
        (hour / f"{segment_stem(2)}.tombstone").touch()
    # The count is the old one also before the rename is seen, and the walk goes on in steps after settle().
    watching.settle()
    wait_for(lambda: watching.watch.watches == watches, "all of it to be watched again")
    wait_for(lambda: [watching.listing(hour) for hour in renamed] == [listed(hour) for hour in renamed], "their rows")
    watching.assert_true(*renamed)
    assert not any(watching.hides(hour, segment_stem(2)) for hour in hours)
    assert watching.rescans > rescans or {hour_of(hour) for hour in hours} <= set(watching.disturbed), (
        "their rows would stay"
    )


def test_an_hour_that_is_removed_with_all_its_files(watching: Watching) -> None:
    hour = fill(watching.root / HOUR)
    watching.assert_true(hour)
    watches = watching.watch.watches
    shutil.rmtree(hour)
    watching.settle()
    assert watching.watch.watches == watches - 1
    assert watching.listing(hour) == []
    assert hour_of(hour) in watching.disturbed
    fill(hour)
    watching.assert_true(hour)
    assert watching.watch.watches == watches


def test_a_tombstone_that_is_removed_or_renamed_is_looked_after(watching: Watching) -> None:
    hour = fill(watching.root / HOUR)
    watching.assert_true(hour)
    (hour / f"{segment_stem(0)}.tombstone").rename(hour / f"{segment_stem(2)}.tombstone")
    watching.settle()
    assert watching.disturbed == [hour_of(hour)]
    assert watching.hides(hour, segment_stem(0)) and watching.hides(hour, segment_stem(2))
    (hour / f"{segment_stem(2)}.tombstone").unlink()
    watching.settle()
    assert watching.disturbed == [hour_of(hour)] * 2


def test_a_channel_that_was_empty_at_the_start_is_watched(tmp_path: Path) -> None:
    (tmp_path / "segments/desertbus").mkdir(parents=True)
    (tmp_path / "segments/desertbus2/source").mkdir(parents=True)
    with Watching(tmp_path) as watching:
        hours = [fill(watching.root / HOUR), fill(watching.root / "desertbus2/source/2019-11-13T02")]
        watching.assert_true(*hours)


def test_what_is_made_while_the_tree_is_walked_is_watched(tmp_path: Path) -> None:
    """Right after each listing, directories appear: a walk that watches a directory after it listed it misses them."""
    root = tmp_path / "segments"
    made: list[Path] = []

    class Growing(Tree):
        @contextlib.contextmanager
        def open_believed(self, identity: str) -> Iterator[int]:
            with super().open_believed(identity) as root_fd:
                yield root_fd
            number = len(made)
            if number < 20:
                for path in ("desertbus/source", f"desertbus/quality{number}", "channel/source")[: 2 + (not number)]:
                    made.append(root / path / hour_text(FIRST_HOUR + 1 + number))
                    made[-1].mkdir(parents=True)

    make_hour(root, HOUR)
    with Watching(tmp_path, tree=Growing) as watching:
        watching.settle()
        assert len(made) >= 20
        for hour in made:
            (hour / f"{segment_stem()}.tombstone").touch()
        watching.settle()
        assert [hour for hour in made if not watching.hides(hour, segment_stem())] == []


def test_a_year_that_is_moved_in_does_not_keep_a_fresh_tombstone_waiting(watching: Watching, tmp_path: Path) -> None:
    """The hours of a place that appears at once are taken up in small steps, between which the queue is read."""
    hour = make_hour(watching.root, "live/source/2019-11-13T02")
    watching.assert_true(hour)
    count = 600
    for number in range(count):
        directory = tmp_path / "outside" / hour_text(FIRST_HOUR - number)
        directory.mkdir(parents=True)
        for second in range(20):
            (directory / f"{second}.ts").touch()
    before = watching.watch.watches
    (watching.root / "desertbus").mkdir()
    (tmp_path / "outside").rename(watching.root / "desertbus/source")

    meanwhile: set[int] = set()  # how many directories were watched when a fresh tombstone was hidden
    while watching.watch.watches < before + count + 2:
        stem = f"fresh{len(meanwhile)}"
        (hour / f"{stem}.tombstone").touch()
        wait_for(lambda stem=stem: watching.hides(hour, stem), "a fresh one to be hidden")  # type: ignore[misc]
        meanwhile.add(watching.watch.watches)
    assert len([watches for watches in meanwhile if before + 2 < watches < before + count + 2]) >= 3

    first, last = (watching.root / "desertbus/source" / hour_text(FIRST_HOUR - n) for n in (0, count - 1))
    wait_for(lambda: len(watching.listing(last)) == 20, "the year to be taken up")
    watching.assert_true(first, last, hour)


def test_rows_of_what_was_moved_away_go_and_come_back_with_it(agent: AgentProcess, tmp_path: Path) -> None:
    """The whole agent: the watcher tells, a rescan looks. The marks themselves are kept for a minute."""
    hours = [fill(agent.root / f"desertbus/source/{hour_text(FIRST_HOUR + n)}") for n in range(3)]

    def is_true() -> bool:
        return all(agent.listing(hour_of(hour)) == listed(hour) for hour in hours)

    wait_for(is_true, "the index to be true")
    for path in (hours[0], agent.root / "desertbus/source", agent.root / "desertbus"):
        path.rename(tmp_path / "outside")
        wait_for(is_true, f"the rows of {path.name} to go")
        assert all(agent.hides(marked(hour, segment_stem(0))) for hour in hours)
        (tmp_path / "outside").rename(path)
        wait_for(is_true, f"the rows of {path.name} to come back")
        assert len(agent.listing(hour_of(hours[0]))) == 2


# -- the kernel's limits ----------------------------------------------------------------------------------------------


def test_an_overflow_is_told_repaired_and_costs_no_watch(agent: AgentProcess) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        queue = int(file.read())
    hour = make_hour(agent.root, HOUR)
    wait_for(lambda: agent.listing(hour_of(hour)) == listed(hour), "the hour to be taken up")
    before, rescanned = agent.watched(), completed(agent, "interval")

    agent.signal(signal.SIGSTOP)
    for number in range(queue + 500):
        os.close(os.open(hour / f"{number}.ts", os.O_CREAT | os.O_WRONLY))
    (hour / "1.tombstone").touch()
    new = [
        make_hour(agent.root, f"{place}/2019-11-13T09") for place in ("desertbus/source", "desertbus/new", "new/new")
    ]
    for directory in new:
        (directory / f"{segment_stem(0)}.tombstone").touch()
    agent.signal(signal.SIGCONT)

    wait_for(lambda: agent.metric("watch_overflows_total") == 1, "the overflow to be counted")
    assert wait_for(lambda: agent.records("overflow"), "the overflow to be told")
    for directory in (hour, *new):
        wait_for(lambda d=directory: agent.listing(hour_of(d)) == listed(d), "the index to be true")  # type: ignore[misc]
    assert agent.hides(marked(hour, "1"))
    assert agent.watched() >= before
    inodes = {directory.stat().st_ino for directory in new}
    wait_for(lambda: inodes <= {inode for _, inode in agent.watched()}, "the new directories to be watched")

    # The repair's rescans could be the first to see what is marked during them.
    wait_for(lambda: completed(agent, "interval") > rescanned, "the repair's rescan")
    settled(agent, "interval")
    for directory in (hour, *new):
        (directory / "afterwards.tombstone").touch()
    paths = {f"{'/'.join(directory.parts[-3:])}/afterwards" for directory in (hour, *new)}
    wait_for(lambda: paths <= markers(agent).keys(), "marks after the overflow to be hidden")
    assert {source for path, source in markers(agent).items() if path in paths} == {"watch"}
    assert agent.metric("watch_overflows_total") == 1


def test_at_the_limit_of_watches_the_newest_hours_keep_theirs(tmp_path: Path) -> None:
    limit = 10  # ROOT, CHANNEL and QUALITY, and seven hours
    lower = f'echo {limit} >/proc/sys/user/max_inotify_watches && exec "$@"'
    agent = AgentProcess(tmp_path, prefix=[*need_user_namespace(), "sh", "-c", lower, "sh"])
    hours = [make_hour(agent.root, f"desertbus/source/{hour_text(FIRST_HOUR + n)}") for n in range(12)]
    with agent:
        settled(agent)

        def watched() -> set[str]:
            inodes = {inode for _, inode in agent.watched()}
            return {hour.name for hour in hours if hour.stat().st_ino in inodes}

        assert watched() == {hour.name for hour in hours[-7:]}
        assert agent.metric("watches") == len(agent.watched()) == limit
        assert agent.metric("watch_errors_total") == 1
        (told,) = wait_for(lambda: agent.records("watch-limit"), "the limit to be told")
        assert f"no more than {limit} directories" in told["MESSAGE"]
        assert "fs.inotify.max_user_watches" in told["MESSAGE"]

        for hour in hours:
            (hour / f"{segment_stem(0)}.tombstone").touch()
        wait_for(lambda: len(markers(agent)) >= 7, "the newest to be hidden")
        assert markers(agent) == {f"desertbus/source/{hour.name}/{segment_stem(0)}": "watch" for hour in hours[-7:]}
        agent.run("rescan")
        assert len(markers(agent)) == 12
        wait_for(lambda: agent.metric("missed_by_watch_total") == 5, "the missed ones to be counted")

        # A new hour takes the place of the oldest one, however often.
        for number in range(12, 15):
            hours.append(make_hour(agent.root, f"desertbus/source/{hour_text(FIRST_HOUR + number)}"))
            (hours[-1] / f"{segment_stem(0)}.tombstone").touch()
            path = f"desertbus/source/{hours[-1].name}/{segment_stem(0)}"
            wait_for(lambda path=path: agent.hidden(path), "a mark in the new hour to be hidden")  # type: ignore[misc]
            assert markers(agent)[path] == "watch"
            assert watched() == {hour.name for hour in hours[-7:]}
        assert len(agent.records("watch-limit")) == 1
        for hour in hours:
            wait_for(lambda hour=hour: agent.listing(hour_of(hour)) == listed(hour), "it to be listed")  # type: ignore[misc]


# -- what else is in ROOT ---------------------------------------------------------------------------------------------


def state_of(directory: Path) -> dict[str, tuple[int, int, int]]:
    """All that is below a directory, with what would tell a change."""
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_mode)
    return found


def test_other_things_in_root_cost_no_watch_per_file_and_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "segments"
    hour = make_hour(root, HOUR)
    maps = root / "coverage-maps"
    maps.mkdir()
    for number in range(1000):
        (maps / f"{number}.tombstone").touch()
    emotes = root / "emotes/x/y"
    emotes.mkdir(parents=True)
    (emotes / "z.tombstone").touch()
    (root / "file.tombstone").touch()
    (root / "desertbus/source/notes").mkdir()
    (root / "desertbus/source/notes/x.tombstone").touch()
    (root / "desertbus/source/2019-13-13T02").mkdir()
    for hidden in (".hidden/source", "desertbus/.hidden"):
        (root / hidden / "2019-11-13T02").mkdir(parents=True)
        (root / hidden / "2019-11-13T02/x.tombstone").touch()
    deep = hour / "2019-11-13T03"
    deep.mkdir()
    (deep / "x.tombstone").touch()
    alone = [maps, emotes, root / ".hidden", root / "desertbus/.hidden", root / "desertbus/source/notes", deep]
    before = [state_of(directory) for directory in alone]

    with AgentProcess(tmp_path) as agent:
        idle(agent)
        wanted = [root, root / "desertbus", root / "desertbus/source", hour, maps, root / "emotes", root / "emotes/x"]
        assert {inode for _, inode in agent.watched()} == {directory.stat().st_ino for directory in wanted}
        for directory in alone:
            (directory / "another.tombstone").touch()
            (directory / "2019-11-13T05").mkdir()
            (directory / "2019-11-13T05/x.tombstone").touch()
        after = [state_of(directory) for directory in alone]
        agent.run("rescan", "--full")
        (hour / f"{segment_stem(0)}.tombstone").touch()
        wait_for(lambda: agent.metric("tombstones"), "a mark to be hidden")
        assert list(markers(agent)) == [f"{HOUR}/{segment_stem(0)}"]
        assert [state_of(directory) for directory in alone] == after
        assert before != after  # it is noticed
        assert sorted(os.listdir(root)) == [
            ".hidden",
            ".tombsync",
            "coverage-maps",
            "desertbus",
            "emotes",
            "file.tombstone",
        ]
        (own,) = os.listdir(root / ".tombsync")
        assert own.startswith("root-")


def test_symlinks_below_root_are_not_followed(agent: AgentProcess, tmp_path: Path) -> None:
    outside = make_hour(tmp_path / "outside", HOUR)
    hour = make_hour(agent.root, "real/source/2019-11-13T02")
    links = {
        agent.root / "desertbus": tmp_path / "outside/desertbus",
        agent.root / "real/linked": tmp_path / "outside/desertbus/source",
        agent.root / "real/source/2019-11-13T03": outside,
    }
    for link, target in links.items():
        link.symlink_to(target)
    (outside / f"{segment_stem(0)}.tombstone").touch()
    agent.run("rescan", "--full")
    (outside / f"{segment_stem(2)}.tombstone").touch()
    (hour / f"{segment_stem(0)}.tombstone").touch()
    wait_for(lambda: agent.metric("tombstones"), "a mark to be hidden")
    agent.run("rescan", "--full")
    assert list(markers(agent)) == [f"real/source/2019-11-13T02/{segment_stem(0)}"]
    assert outside.stat().st_ino not in {inode for _, inode in agent.watched()}

    # A real directory in the place of the link is taken up.
    (agent.root / "real/source/2019-11-13T03").unlink()
    fill(agent.root / "real/source/2019-11-13T03")
    wait_for(lambda: agent.hidden(f"real/source/2019-11-13T03/{segment_stem(0)}"), "its mark to be hidden")


def test_a_symlinked_root_is_resolved_once(tmp_path: Path) -> None:
    hour = make_hour(tmp_path / "disk", HOUR)
    (tmp_path / "link").symlink_to("disk")
    with AgentProcess(tmp_path, root=tmp_path / "link") as agent:
        settled(agent)
        (hour / f"{segment_stem(0)}.tombstone").touch()
        wait_for(lambda: agent.hidden(f"{HOUR}/{segment_stem(0)}"), "a mark to be hidden")
        # The link now leads elsewhere: the tree that was taken up is still the one that is watched.
        make_hour(tmp_path / "elsewhere", HOUR)
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("elsewhere")
        (tmp_path / "elsewhere" / HOUR / f"{segment_stem(4)}.tombstone").touch()
        (hour / f"{segment_stem(2)}.tombstone").touch()
        wait_for(lambda: agent.hidden(f"{HOUR}/{segment_stem(2)}"), "another mark to be hidden")
        rescanned = completed(agent, "full")
        agent.signal(signal.SIGUSR2)
        wait_for(lambda: completed(agent, "full") > rescanned, "a rescan")
        assert not agent.hidden(f"{HOUR}/{segment_stem(4)}")
        assert markers(agent) == dict.fromkeys((f"{HOUR}/{segment_stem(0)}", f"{HOUR}/{segment_stem(2)}"), "watch")


# -- the tree goes, the watcher fails ---------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_tree_that_is_not_the_known_one_is_not_watched(tmp_path: Path) -> None:
    """So many watches go with an unmounted tree that the queue overflows; the walk after it meets what is there now."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        hours = int(file.read()) // 2 + 500  # each tells of its end twice
    with disk(tmp_path / "image", megabytes=64 + hours // 128) as mounted:  # 8 KiB each
        agent = AgentProcess(tmp_path)
        stray = make_hour(agent.root, HOUR)  # in the bare mount point
        mounted.mount(agent.root)
        for number in range(hours):
            (agent.root / "desertbus/source" / hour_text(FIRST_HOUR - number)).mkdir(parents=True)
        with agent:
            idle(agent)
            assert len(agent.watched()) > hours
            agent.signal(signal.SIGSTOP)
            mounted.take_away()
            agent.signal(signal.SIGCONT)

            wait_for(lambda: agent.metric("watch_overflows_total"), "the overflow")
            wait_for(lambda: agent.records("root-lost"), "the loss to be told")
            (stray / f"{segment_stem(0)}.tombstone").touch()
            for _ in range(2):  # turns of the watcher, the walk among them
                begun = time.monotonic()
                wait_for(lambda b=begun: agent.metric("worker_beat_age_seconds", worker="watch") < time.monotonic() - b)  # type: ignore[misc]
            assert agent.watched() == set()
            assert not agent.hides(marked(stray, segment_stem(0)))
            assert agent.metric("tombstones") == 0


FAILING_EMITTER = """
import threading
from watchdog.observers.api import EventEmitter
from tombsync.cli.main import main
from tombsync.daemon import agent

class FailingTree(agent.Tree):
    def open_believed(self, identity):
        if isinstance(threading.current_thread(), EventEmitter):
            raise RuntimeError("the emitter fails")
        return super().open_believed(identity)

agent.Tree = FailingTree
main()
"""

FAILING_HANDLER = """
from tombsync.cli.main import main
from tombsync.daemon import agent, crew
from tombsync.index import SegmentRows

class FailingMailbox(agent.Mailbox):
    def offer_bulk(self, batch):
        if isinstance(batch, SegmentRows):
            raise RuntimeError("the handler fails")
        return super().offer_bulk(batch)

agent.Mailbox = FailingMailbox
crew.STALLED_AFTER_S = 12.0  # more than any turn takes here: of the watcher, which has the longest, up to 6 s
main()
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [(FAILING_EMITTER, "died: RuntimeError: the emitter fails"), (FAILING_HANDLER, "no turn ended for")],
    ids=["emitter", "handler"],
)
def test_a_watcher_that_fails_ends_the_process(tmp_path: Path, program: str, reason: str) -> None:
    """Neither lives on blind: the emitter's failure is told at once, the dispatcher's silence is missed."""
    agent = AgentProcess(tmp_path, program=[sys.executable, "-c", program])
    hour = make_hour(agent.root, HOUR)
    with agent.ending():
        agent.start(ready=False)
        if program is FAILING_HANDLER:
            wait_for(agent.is_ready, "the agent to be ready")
            (hour / f"{segment_stem(100)}.ts").touch()
        assert agent.wait() == 1
        (told,) = agent.records("worker-died")
        assert told["TOMBSYNC_WORKER"] == "watch"
        assert reason in told["MESSAGE"]
        assert "tombsync: the worker watch died: " in agent.log.read_text()

"""The rescan over a real tree and a real index, driven turn by turn, its batches written in between by a real intake.

Time is the test's own: it goes on by itself just enough for one step a turn, and in leaps where a test says so.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.index import ODD_NAMES, assert_counts_are_true
from tests.support.journal import Journal
from tests.support.trees import disk, hour_of, listed, need_root
from tombsync.audit import Event
from tombsync.index import DeliveryOutcomes, HourListed, HourRow, Outcome, Reader, SegmentRows, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour, Marked
from tombsync.plan import Breaker, State
from tombsync.rescan import Rescan, RescanKind
from tombsync.tree import Tree
from tombsync.work import Batch, Mailbox, Sighting, Source

INTERVAL_S = 300.0
FULL_INTERVAL_S = 86_400.0
MISTAKES = (".ts.tombstone", ".json.tombstone")  # hide nothing
MOST_TURNS = 2_000  # a rescan of a tree as small as these ends long before


class Clock:
    """Stands for the module `time`."""

    STEP_S = 0.015  # of each look: a turn, which lasts 0.02 s, makes one step of its rescan

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        self.now += self.STEP_S
        return self.now

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def time(self) -> float:
        return time.time()

    def time_ns(self) -> int:
        return time.time_ns()


class PromptMailbox(Mailbox):
    """Never waits for work, and remembers what was taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.is_empty = False

    def take(self, timeout_s: float) -> list[Sighting] | list[Batch]:
        taken = super().take(0.0)
        self.is_empty = not taken
        self.batches += [item for item in taken if not isinstance(item, Sighting)]
        return taken


class CountingReader(Reader):
    """Counts the queries that read the rows of an hour."""

    rows_read = 0

    def segments(self, hour: Hour) -> set[str]:
        CountingReader.rows_read += 1
        return super().segments(hour)


class Bench:
    """A node's rescan and what it works with, below one directory."""

    def __init__(self, base: Path, clock: Clock, journal: Journal) -> None:
        self.root = base / "segments"
        self.root.mkdir(exist_ok=True)
        (base / "state").mkdir(exist_ok=True)
        self.path = index_path(str(base / "state"))
        self.clock = clock
        self.journal = journal
        self.tree = Tree(str(self.root))
        self.identity = self.tree.adopt()
        self.believed = self.may_begin = True
        self.accept_lost = False
        self.held_back: set[int] = set()
        self.missed = 0
        self.open()

    def open(self) -> None:
        """Start the process."""
        self.writer = Writer(self.path)
        self.reader = Reader(self.path)
        self.mailbox = PromptMailbox()
        self.metrics = Metrics()
        self.rescan = Rescan(
            tree=self.tree,
            identity=self.identity,
            index_path=self.path,
            mailbox=self.mailbox,
            audit=self.journal.audit,
            metrics=self.metrics,
            interval_s=INTERVAL_S,
            full_interval_s=FULL_INTERVAL_S,
            first_pass=(self.writer.fact("pass") or 0) + 1,
            believed=lambda: self.believed,
            may_begin=lambda: self.may_begin,
            on_missed=self._on_missed,
            accept_lost=self._accept_lost,
            held_back=lambda marker: marker in self.held_back,
        )
        self.intake = Intake(
            tree=self.tree,
            writer=self.writer,
            mailbox=self.mailbox,
            audit=self.journal.audit,
            metrics=self.metrics,
            on_news=lambda _: None,
            watch_answers=self.rescan.first_done.is_set,
            breaker=Breaker(1_000_000),
        )

    def close(self) -> None:
        """End the process; what is in the mailbox is lost, as it would be."""
        assert_counts_are_true(self.path, self.writer.tally)
        self.rescan.close()
        self.reader.close()
        self.writer.close()

    def restart(self) -> None:
        """Another process."""
        self.close()
        self.open()

    def _on_missed(self) -> None:
        self.missed += 1

    def _accept_lost(self) -> bool:
        accepted, self.accept_lost = self.accept_lost, False
        return accepted

    # -- the tree ------------------------------------------------------------------------------------------------------

    def make(self, hour: str, *names: str) -> Path:
        """Files in an hour directory, which is made where it is not there."""
        directory = self.root / hour
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            (directory / name).touch()
        return directory

    # -- time ----------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One turn of the rescan, which does not wait."""
        self.rescan.wake()
        self.rescan.loop(self.clock.now)

    def write(self) -> None:
        """Let the intake write all that it was given."""
        self.intake.loop(0.0)
        while not self.mailbox.is_empty:
            self.intake.loop(0.0)

    def ended(self, kind: RescanKind) -> int:
        """How many rescans of this kind have ended."""
        value = self.metrics.registry.get_sample_value("tombsync_rescan_seconds_count", {"kind": kind.value})
        return int(value or 0)

    def finish(self, kind: RescanKind) -> None:
        """Go on until a rescan of this kind ends."""
        before = self.ended(kind)
        for _ in range(MOST_TURNS):
            self.turn()
            self.write()
            if self.ended(kind) > before:
                return
        raise AssertionError(f"no {kind} rescan ended")

    def run(self, kind: RescanKind) -> None:
        """Have a rescan of this kind now."""
        self.rescan.request(kind)
        self.finish(kind)

    def settle(self) -> None:
        """Let two seconds pass, and with them the rescan that comes then."""
        self.clock.now += 2.0
        self.finish(RescanKind.SETTLE)

    def start(self) -> None:
        """What every process begins with, until everything has settled."""
        self.finish(RescanKind.INTERVAL)
        self.finish(RescanKind.FULL)
        self.settle()
        self.mailbox.batches.clear()
        CountingReader.rows_read = 0

    def visit(self, *directories: Path) -> None:
        """As when the watcher saw something go in these hours."""
        for directory in directories:
            self.rescan.request_hour(hour_of(directory))
        self.pass_time(1.1)

    def pass_time(self, seconds: float) -> None:
        """Leap, and let happen what was due meanwhile."""
        self.clock.now += seconds
        for _ in range(10):
            self.turn()
            self.write()

    def await_settled(self, *directories: Path) -> None:
        """Let rescans come and go until these hours' listings count."""
        for _ in range(3):
            self.run(RescanKind.INTERVAL)
            if all(self.settled(directory) for directory in directories):
                return
            self.settle()
        assert all(self.settled(directory) for directory in directories)

    # -- what is known -------------------------------------------------------------------------------------------------

    def row(self, directory: Path) -> HourRow | None:
        """The index's row of an hour."""
        return self.reader.hour_row(hour_of(directory))

    def settled(self, directory: Path) -> bool:
        """Whether an hour's listing counts."""
        row = self.row(directory)
        assert row is not None
        return bool(row.settled)

    def listing(self, directory: Path) -> list[str]:
        """What the index lists of an hour."""
        return self.reader.listing(hour_of(directory))

    def assert_true(self, *directories: Path) -> None:
        """The index lists what the archive's own listing service does."""
        for directory in directories:
            assert self.listing(directory) == listed(directory)
            hour = hour_of(directory)
            there = [name for name in listed(directory, tombstones=True) if not name.endswith(MISTAKES)]
            assert self.reader.listing(hour, tombstones=True) == there

    def hidden(self, directory: Path) -> set[str]:
        """The stems that are hidden in an hour."""
        return set(self.reader.markers(hour_of(directory)))

    def batches(self, kind: type[Batch], directory: Path) -> list[Batch]:
        """What was written of one hour since the start."""
        hour = hour_of(directory)
        return [b for b in self.mailbox.batches if isinstance(b, kind) and getattr(b, "hour", None) == hour]


A = "desertbus/source/2019-11-13T02"
B = "desertbus/source/2019-11-13T03"
C = "desertbus/chat/2019-11-13T02"
D = "other/480p/2019-11-14T00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tombsync.rescan.worker.time", clock)
    monkeypatch.setattr("tombsync.rescan.hours.time", clock)
    monkeypatch.setattr("tombsync.rescan.worker.Reader", CountingReader)
    return clock


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal() as journal:
        yield journal


@pytest.fixture
def bench(tmp_path: Path, clock: Clock, journal: Journal) -> Iterator[Bench]:
    with closing(Bench(tmp_path, clock, journal)) as bench:
        yield bench


# -- a first index -----------------------------------------------------------------------------------------------------


def test_a_new_index_becomes_the_tree(bench: Bench) -> None:
    hours = [
        bench.make(A, "one.ts", "two.ts", "two.tombstone", "three.json", ".hidden.ts", "other", "four.ts.tombstone"),
        bench.make(B, *(f"{number:03d}.ts" for number in range(450))),
        bench.make(C, "one.json", "one.tombstone", "one.ts"),
        bench.make(D),
    ]
    bench.make("desertbus/source/not-an-hour", "one.ts")
    bench.make("desertbus/source/.2019-11-13T04", "one.ts")
    (bench.root / "desertbus/source/2019-11-13T05").symlink_to("2019-11-13T02")
    assert not bench.rescan.first_done.is_set()
    bench.finish(RescanKind.INTERVAL)
    assert bench.rescan.first_done.is_set()
    bench.assert_true(*hours)
    assert bench.listing(hours[0]) == ["one.ts", "three.json"]
    assert bench.hidden(hours[0]) == {"two"}
    assert bench.reader.totals()[0] == 4
    assert set(bench.reader.places()) == {("desertbus", "source"), ("desertbus", "chat"), ("other", "480p")}
    (record,) = bench.journal.records(Event.RESCAN_COMPLETED)
    assert record["TOMBSYNC_KIND"] == "interval"
    assert {record["TOMBSYNC_SOURCE"] for record in bench.journal.records(Event.HIDDEN)} == {"rescan"}
    assert bench.missed == 0  # nobody watched yet
    assert bench.metrics.registry.get_sample_value("tombsync_missed_by_watch_total") == 0


def test_links_to_directories_are_not_followed_and_told_once(bench: Bench) -> None:
    outside = bench.root.parent / "outside"
    (outside / "480p" / "2019-11-13T02").mkdir(parents=True)
    bench.make(A, "one.ts")
    (bench.root / "linked").symlink_to(outside)
    (bench.root / "desertbus" / "480p").symlink_to(outside / "480p")
    (bench.root / "desertbus/source/2019-11-13T09").symlink_to("2019-11-13T02")
    (bench.root / "desertbus/source/thumbnails").symlink_to(outside)  # no name of an hour
    (bench.root / "a-link-to-a-file").symlink_to(A + "/one.ts")
    (bench.root / "loop").symlink_to("loop")  # nothing asks where a link leads
    (bench.root / "desertbus" / "loop").symlink_to("loop")
    (bench.root / "desertbus" / "source" / "2019-11-13T10").symlink_to("2019-11-13T10")
    for kind in (RescanKind.INTERVAL, RescanKind.FULL, RescanKind.INTERVAL):
        bench.run(kind)
    told = [record["MESSAGE"].split(" is a link")[0] for record in bench.journal.records(Event.LINK_NOT_FOLLOWED)]
    places = ["desertbus/480p", "desertbus/loop", "desertbus/source/2019-11-13T09", "desertbus/source/2019-11-13T10"]
    assert sorted(told) == ["a-link-to-a-file", *places, "linked", "loop"]
    assert bench.rescan.unreadable == dict.fromkeys(("interval", "full"), 0)
    assert set(bench.reader.places()) == {("desertbus", "source")}


def test_a_file_in_the_place_of_a_directory_is_found_although_no_name_changed(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    directory = bench.make(A, "one.ts", "odd\n.ts", "odd\n.tombstone")
    (directory / "one.tombstone").mkdir()
    bench.start()
    assert bench.reader.marker_rows(limit=10)[0].pushable is False
    (directory / "one.tombstone").rmdir()
    bench.run(RescanKind.INTERVAL)
    assert len(bench.reader.unpushable(below=None, limit=10)) == 2  # it is nothing yet
    (directory / "one.tombstone").touch()
    bench.run(RescanKind.INTERVAL)
    (row,) = bench.reader.unpushable(below=None, limit=10)
    assert row.marked.stem == "odd\n"
    newest = bench.reader.marker_rows(limit=1)[0]
    assert (newest.marked.stem, newest.pushable) == ("one", True)
    assert [d.state for d in bench.reader.deliveries(newest.marker)] == [State.PENDING]
    assert bench.hidden(directory) == {"one", "odd\n"}


def test_an_empty_tree_is_done_as_well(bench: Bench) -> None:
    bench.finish(RescanKind.INTERVAL)
    bench.finish(RescanKind.FULL)
    assert bench.rescan.first_done.is_set()
    assert bench.reader.totals() == (0, 0, 0, 0)


def test_names_of_whatever_bytes(bench: Bench) -> None:
    names = [f"{name}{ending}" for name in ODD_NAMES for ending in (".ts", ".json")]
    hours = [bench.make(f"{channel}/{channel}/2019-11-13T02", *names) for channel in ODD_NAMES]
    for directory in hours:
        (directory / f"{ODD_NAMES[0]}.tombstone").touch()
        (directory / f"{ODD_NAMES[1]}.tombstone").touch()
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(*hours)
    assert all(bench.hidden(directory) == set(ODD_NAMES[:2]) for directory in hours)
    bench.finish(RescanKind.FULL)
    bench.settle()
    assert all(bench.settled(directory) for directory in hours)
    (hours[0] / f"{ODD_NAMES[1]}.tombstone").unlink()
    (hours[0] / names[-1]).unlink()
    bench.run(RescanKind.INTERVAL)
    assert bench.hidden(hours[0]) == set(ODD_NAMES[:2])
    bench.pass_time(60.1)
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(*hours)


def test_nothing_begins_before_the_watcher_is_in_place(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.may_begin = False
    for _ in range(5):
        bench.turn()
        bench.write()
    assert bench.row(directory) is None
    bench.may_begin = True
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(directory)


def test_its_progress_can_be_read(bench: Bench) -> None:
    for number in range(5):
        bench.make(f"desertbus/source/2019-11-13T0{number}", "one.ts")
    seen = []
    while not bench.rescan.first_done.is_set():
        bench.turn()
        bench.write()
        if bench.rescan.progress is not None:
            seen.append((bench.rescan.progress.done, bench.rescan.progress.total))
            assert bench.rescan.progress.kind is RescanKind.INTERVAL
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {5}
    assert seen[0][0] == 0
    assert seen[-1][0] == 5
    assert bench.rescan.progress is None
    bench.write()
    assert bench.reader.fact("rescan_kind") is None
    assert bench.reader.fact("rescan_total") == 5
    assert bench.reader.fact("rescan_interval_ns") == pytest.approx(time.time_ns(), abs=600e9)
    assert bench.reader.fact("rescan_interval_s") > 0
    assert set(bench.rescan.completed) == {"interval"}


# -- what has not changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RescanKind.INTERVAL, RescanKind.FULL])
def test_an_hour_that_has_not_changed_costs_no_query_of_its_rows(kind: RescanKind, bench: Bench) -> None:
    hours = [bench.make(A, "one.ts", "two.tombstone"), bench.make(B, "one.ts"), bench.make(C)]
    bench.start()
    assert all(bench.settled(directory) for directory in hours)
    rows = [bench.row(directory) for directory in hours]
    bench.run(kind)
    assert CountingReader.rows_read == 0
    assert not any(bench.batches(what, directory) for what in (HourListed, SegmentRows) for directory in hours)
    assert [bench.row(directory) for directory in hours] == rows
    bench.make(B, "two.ts")
    bench.run(kind)
    assert CountingReader.rows_read == 1
    bench.assert_true(*hours)


def test_a_directory_that_was_only_touched_is_known_by_its_digest(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.start()
    os.utime(directory, ns=(5, 5))
    bench.run(RescanKind.INTERVAL)
    assert CountingReader.rows_read == 0
    row = bench.row(directory)
    assert row is not None
    assert (row.mtime_ns, row.settled) == (5, 0)
    bench.settle()
    assert bench.settled(directory)
    assert CountingReader.rows_read == 0


def test_a_full_rescan_sees_what_left_no_trace_in_the_times(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.start()
    before = directory.stat().st_mtime_ns
    (directory / "two.ts").touch()
    os.utime(directory, ns=(before, before))
    bench.run(RescanKind.INTERVAL)
    assert bench.listing(directory) == ["one.ts"]
    bench.run(RescanKind.FULL)
    bench.assert_true(directory)


def test_rescans_come_again_by_themselves(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.start()
    bench.make(A, "two.ts")
    bench.pass_time(INTERVAL_S - 10)
    bench.clock.now += 11
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(directory)
    full = bench.ended(RescanKind.FULL)
    bench.clock.now += FULL_INTERVAL_S
    bench.finish(RescanKind.FULL)
    assert bench.ended(RescanKind.FULL) == full + 1


# -- what counts as settled --------------------------------------------------------------------------------------------


def test_a_listing_counts_after_a_second_one_two_seconds_later(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.finish(RescanKind.INTERVAL)
    assert not bench.settled(directory)
    bench.finish(RescanKind.FULL)  # at once: a second listing, and too early
    assert not bench.settled(directory)
    bench.run(RescanKind.INTERVAL)
    assert not bench.settled(directory)
    bench.settle()
    assert bench.settled(directory)


def test_a_change_in_the_same_tick_of_the_clock_is_found(bench: Bench) -> None:
    """A directory's mtime can be the same before and after a change that comes right after a listing."""
    directory = bench.make(A, "one.ts")
    before = directory.stat().st_mtime_ns
    bench.finish(RescanKind.INTERVAL)
    bench.finish(RescanKind.FULL)
    bench.assert_true(directory)
    (directory / "two.ts").touch()
    (directory / "one.tombstone").touch()
    os.utime(directory, ns=(before, before))
    bench.settle()
    bench.assert_true(directory)
    assert not bench.settled(directory)  # this listing is a first one, too
    bench.await_settled(directory)
    bench.assert_true(directory)


def test_an_hour_that_changes_all_the_time_never_settles(bench: Bench) -> None:
    directory = bench.make(A, "one.ts")
    bench.start()
    for number in range(3):
        bench.make(A, f"{number}.ts")
        bench.clock.now += 2.0
        bench.run(RescanKind.INTERVAL)
        assert not bench.settled(directory)
        bench.assert_true(directory)


@pytest.mark.parametrize("between", ["segment", "tombstone"])
def test_what_the_watcher_tells_between_listing_and_commit_is_not_lost(between: str, bench: Bench) -> None:
    """The listing was made before that change, and is written after it."""
    directory = bench.make(A, "one.ts")
    bench.start()
    (directory / "two.ts").touch()
    bench.rescan.request(RescanKind.INTERVAL)
    for _ in range(MOST_TURNS):  # listed, and not written
        bench.turn()
        if bench.rescan.progress is not None and bench.rescan.progress.done == 1:
            break
    listing = list(bench.mailbox.batches)
    assert not any(isinstance(batch, HourListed) for batch in listing)
    hour = hour_of(directory)
    before = directory.stat().st_mtime_ns
    if between == "segment":
        (directory / "three.ts").touch()
        bench.writer.apply([SegmentRows(hour, add=["three.ts"], watched=True)])
    else:
        (directory / "one.tombstone").touch()
        bench.mailbox.put_sightings([Sighting(Marked(hour, "one"), Source.WATCH, 0)])
    os.utime(directory, ns=(before, before))
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(directory)
    row = bench.row(directory)
    assert row is not None
    assert (row.digest, row.settled) == (None, 0)
    bench.await_settled(directory)
    bench.assert_true(directory)


# -- tombstones and segments that the watcher missed -------------------------------------------------------------------


def test_a_tombstone_that_nobody_told_of_is_found(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.json", "two.ts")
    bench.start()
    assert bench.missed == 0
    (directory / "one.tombstone").touch()
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(directory)
    assert bench.listing(directory) == ["two.ts"]
    (record,) = bench.journal.records(Event.HIDDEN)
    assert (record["TOMBSYNC_SOURCE"], record["TOMBSYNC_SEGMENT"]) == ("rescan", f"{A}/one")
    row = bench.row(directory)
    assert row is not None
    assert row.digest  # its own sighting does not make this listing void
    assert bench.missed == 1
    bench.await_settled(directory)


def test_a_tombstone_and_its_data_that_come_together_are_never_visible(bench: Bench) -> None:
    bench.make(B, "one.ts")
    bench.start()
    directory = bench.make(A, "one.ts", "one.tombstone", *(f"{number:03d}.ts" for number in range(450)))
    bench.rescan.request(RescanKind.INTERVAL)
    for _ in range(MOST_TURNS):
        bench.turn()
        bench.intake.loop(0.0)
        assert "one.ts" not in bench.listing(directory)
        if bench.listing(directory) == listed(directory):
            break
    bench.assert_true(directory)


def test_segments_that_went_are_dropped(bench: Bench) -> None:
    directory = bench.make(A, *(f"{number:03d}.ts" for number in range(450)), "000.tombstone")
    bench.start()
    for number in range(1, 440):
        (directory / f"{number:03d}.ts").unlink()
    (directory / "445.ts").rename(directory / "445.json")
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(directory)
    assert bench.reader.totals()[1:] == (11, 1, 1)
    assert bench.hidden(directory) == {"000"}


def test_one_hour_is_looked_at_when_something_went_there(bench: Bench) -> None:
    changed, other = bench.make(A, "one.ts", "two.ts"), bench.make(B, "one.ts")
    bench.start()
    (changed / "one.ts").unlink()
    (other / "one.ts").unlink()
    bench.visit(changed)
    bench.assert_true(changed)
    assert bench.listing(other) == ["one.ts"]


def test_an_hour_is_not_looked_at_while_it_is_being_removed(bench: Bench) -> None:
    """`rm -r` raises an event a file: one look, a second after the first of them."""
    directory = bench.make(A, "one.ts", "two.ts")
    bench.start()
    bench.rescan.request_hour(hour_of(directory))
    (directory / "one.ts").unlink()
    bench.pass_time(0.5)
    bench.rescan.request_hour(hour_of(directory))
    assert bench.listing(directory) == ["one.ts", "two.ts"]
    (directory / "two.ts").unlink()
    bench.pass_time(0.6)
    assert bench.listing(directory) == []


def test_a_mistaken_name_is_told_once(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.ts.tombstone", "two.json.tombstone", "a\nb.ts.tombstone")
    bench.start()
    bench.make(A, "three.ts")
    bench.run(RescanKind.INTERVAL)
    bench.visit(directory)
    bench.assert_true(directory)
    assert "one.ts" in bench.listing(directory)
    records = bench.journal.records(Event.MISTAKEN_NAME)
    assert len(records) == 3
    assert any("one.tombstone" in record["MESSAGE"] for record in records)
    assert not any("\n" in record["MESSAGE"] for record in records)
    assert {record["TOMBSYNC_HOUR"] for record in records} == {"2019-11-13T02"}


def test_the_watcher_is_told_of_an_hour_that_it_did_not_tell_of(bench: Bench) -> None:
    bench.make(A, "one.ts")
    bench.start()
    bench.run(RescanKind.INTERVAL)
    assert bench.missed == 0
    bench.make(B, "one.ts")
    bench.run(RescanKind.INTERVAL)
    assert bench.missed > 0


# -- tombstones that vanish --------------------------------------------------------------------------------------------


def restored(bench: Bench) -> float:
    return bench.metrics.registry.get_sample_value("tombsync_restored_total") or 0.0


def test_a_vanished_tombstone_keeps_hiding_and_is_put_back_after_a_minute(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone", "two.ts", "two.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    for waited_s in (1, 30, 28.5):
        bench.pass_time(waited_s)
        assert not (directory / "one.tombstone").exists()
        assert bench.listing(directory) == []
    bench.run(RescanKind.INTERVAL)  # another look does not make it earlier
    assert not (directory / "one.tombstone").exists()
    bench.pass_time(1.5)
    assert (directory / "one.tombstone").read_bytes() == b""
    assert restored(bench) == 1
    (record,) = bench.journal.records(Event.RESTORED)
    assert record["TOMBSYNC_SEGMENT"] == f"{A}/one"
    assert record["TOMBSYNC_SOURCE"] == "rescan"
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(directory)
    assert len(bench.journal.records(Event.HIDDEN)) == 2
    bench.await_settled(directory)


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_directory_or_link_that_vanishes_goes_on_hiding_and_is_not_put_back_as_a_file(
    kind: str, bench: Bench
) -> None:
    """As a file it would go to every peer."""
    bench.writer.sync_peers({"node-b": "tree://b"})
    directory = bench.make(A, "one.ts", "two.ts", "two.tombstone")
    path = directory / "one.tombstone"
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("one.ts")
    bench.start()
    if kind == "directory":
        path.rmdir()
    else:
        path.unlink()
    (directory / "two.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(61)
    bench.run(RescanKind.FULL)
    assert sorted(os.listdir(directory)) == ["one.ts", "two.tombstone", "two.ts"]
    assert bench.listing(directory) == []
    bench.await_settled(directory)
    path.touch()
    bench.run(RescanKind.INTERVAL)
    assert bench.reader.unpushable(below=None, limit=1) == []


def test_each_one_that_vanishes_has_a_minute_of_its_own(bench: Bench) -> None:
    directory = bench.make(A, "one.tombstone", "two.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(40)
    (directory / "two.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(25)
    assert os.listdir(directory) == ["one.tombstone"]
    bench.pass_time(40)
    assert sorted(os.listdir(directory)) == ["one.tombstone", "two.tombstone"]
    assert restored(bench) == 2


def test_one_that_comes_back_by_itself_begins_a_new_minute(bench: Bench) -> None:
    directory = bench.make(A, "one.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(40)
    (directory / "one.tombstone").touch()
    bench.visit(directory)
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(40)
    assert os.listdir(directory) == []
    bench.pass_time(25)
    assert os.listdir(directory) == ["one.tombstone"]
    assert restored(bench) == 1


def test_an_hour_that_is_removed_file_by_file_takes_its_tombstones_along(bench: Bench) -> None:
    """`rm -r` within the minute: nothing is put back in its way."""
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    (directory / "one.ts").unlink()
    directory.rmdir()
    bench.visit(directory)
    bench.pass_time(30)
    assert bench.hidden(directory) == {"one"}
    bench.pass_time(31)
    assert bench.row(directory) is None
    assert not directory.exists()
    assert restored(bench) == 0


def test_a_vanished_one_that_cannot_be_put_back_is_told_and_tried_again(
    base_of_nobody: Path, clock: Clock, journal: Journal
) -> None:
    with closing(Bench(base_of_nobody, clock, journal)) as bench:
        directory = bench.make(A, "one.ts", "one.tombstone")
        bench.start()
        (directory / "one.tombstone").unlink()
        directory.chmod(0o555)
        bench.visit(directory)
        bench.pass_time(60.1)
        assert len(bench.journal.records(Event.TREE_REFUSED)) == 1
        assert bench.listing(directory) == []
        directory.chmod(0o755)
        bench.pass_time(60.1)
        assert (directory / "one.tombstone").exists()
        assert restored(bench) == 1


def test_what_a_person_may_be_taking_back_is_not_put_back_meanwhile(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    row = bench.reader.marker(Marked(hour_of(directory), "one"))
    assert row is not None
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    bench.held_back.add(row.marker)
    bench.pass_time(61)
    assert not (directory / "one.tombstone").exists()
    bench.held_back.clear()
    bench.pass_time(61)
    assert (directory / "one.tombstone").exists()


def test_what_was_taken_back_since_its_rows_were_read_is_not_marked_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    hour = hour_of(directory)
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    read = Reader.markers

    def and_then_taken_back(reader: Reader, asked: Hour) -> dict[str, bool]:
        found = read(reader, asked)
        with bench.writer.transaction():
            bench.writer.forget_markers(hour, ["one"], "0")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "markers", and_then_taken_back)
        bench.pass_time(61)
    assert os.listdir(directory) == ["one.ts"]
    assert restored(bench) == 0
    bench.await_settled(directory)
    assert bench.listing(directory) == ["one.ts"]


def test_a_restart_begins_the_minute_anew(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    bench.pass_time(50)
    bench.restart()
    bench.start()
    bench.pass_time(40)
    assert not (directory / "one.tombstone").exists()
    assert bench.listing(directory) == []
    bench.pass_time(25)
    assert (directory / "one.tombstone").exists()


# -- hours that go -----------------------------------------------------------------------------------------------------


def remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.mark.parametrize("told", [False, True])
def test_an_hour_that_is_gone_is_forgotten_after_a_minute(told: bool, bench: Bench) -> None:
    directory, other = bench.make(A, "one.ts", "one.tombstone", "two.ts"), bench.make(B, "one.ts", "one.tombstone")
    bench.start()
    remove(directory)
    if told:
        bench.visit(directory)
    else:
        bench.run(RescanKind.INTERVAL)
    assert bench.listing(directory) == []
    assert bench.hidden(directory) == {"one"}
    bench.pass_time(55)
    assert bench.hidden(directory) == {"one"}
    bench.run(RescanKind.INTERVAL)
    assert bench.hidden(directory) == {"one"}
    bench.pass_time(6)
    assert bench.hidden(directory) == set()
    assert bench.row(directory) is None
    (record,) = bench.journal.records(Event.HOUR_GONE)
    assert (record["TOMBSYNC_HOUR"], record["TOMBSYNC_COUNT"]) == ("2019-11-13T02", "1")
    bench.assert_true(directory, other)
    assert bench.reader.totals() == (1, 1, 1, 1)
    bench.run(RescanKind.FULL)
    assert len(bench.journal.records(Event.HOUR_GONE)) == 1
    assert restored(bench) == 0


def test_an_hour_without_tombstones_goes_at_once(bench: Bench) -> None:
    directory, empty = bench.make(A, *(f"{number:03d}.ts" for number in range(450))), bench.make(B)
    bench.start()
    remove(directory)
    remove(empty)
    bench.run(RescanKind.INTERVAL)
    assert (bench.row(directory), bench.row(empty)) == (None, None)
    assert bench.journal.records(Event.HOUR_GONE) == []


def test_tombstones_with_open_deliveries_outlive_their_hour(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    directory = bench.make(A, "one.ts", "one.tombstone", "two.ts", "two.tombstone")
    bench.start()
    two, one = bench.reader.due(1, limit=10)
    assert (one.marked.stem, two.marked.stem) == ("one", "two")

    def confirm(marker: int) -> None:
        bench.writer.apply([DeliveryOutcomes(1, [Outcome(marker, State.CONFIRMED, 1)], lambda changed: None)])

    confirm(one.marker)
    remove(directory)
    bench.run(RescanKind.INTERVAL)
    bench.pass_time(60.1)
    assert bench.hidden(directory) == {"two"}
    bench.make(A, "one.ts", "two.ts")  # the archive brings the hour back, without its tombstones
    bench.run(RescanKind.INTERVAL)
    assert bench.listing(directory) == ["one.ts"]
    remove(directory)
    bench.run(RescanKind.INTERVAL)
    confirm(two.marker)
    bench.pass_time(60.1)
    assert bench.hidden(directory) == set()
    assert bench.row(directory) is None
    assert len(bench.journal.records(Event.HOUR_GONE)) == 2


def test_tombstones_with_open_deliveries_go_once_they_are_confirmed(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    directory = bench.make(A, "one.tombstone")
    bench.start()
    remove(directory)
    bench.run(RescanKind.INTERVAL)
    (due,) = bench.reader.due(1, limit=10)
    bench.pass_time(61)
    bench.run(RescanKind.INTERVAL)
    bench.pass_time(61)
    assert bench.hidden(directory) == {"one"}
    bench.writer.apply([DeliveryOutcomes(1, [Outcome(due.marker, State.CONFIRMED, 1)], lambda changed: None)])
    bench.run(RescanKind.INTERVAL)
    bench.pass_time(61)
    assert bench.row(directory) is None


@pytest.mark.parametrize("times", [1, 2])
def test_an_hour_that_is_moved_away_and_back_is_whole_again(times: int, bench: Bench) -> None:
    """Its mtime and its entries are as they were: nothing but the index's own memory says that it was gone."""
    directory = bench.make(A, "one.ts", "one.tombstone", "two.ts")
    bench.start()
    for _ in range(times):
        directory.rename(bench.root / "kept")
        bench.visit(directory)
        assert bench.listing(directory) == []
        assert bench.hidden(directory) == {"one"}
        bench.pass_time(20)
        (bench.root / "kept").rename(directory)
        bench.run(RescanKind.INTERVAL)
        bench.assert_true(directory)
    bench.pass_time(61)
    bench.assert_true(directory)
    assert bench.hidden(directory) == {"one"}


def test_an_hour_that_returns_after_it_was_forgotten_is_found_anew(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone", "two.ts")
    bench.start()
    directory.rename(bench.root / "kept")
    bench.visit(directory)
    bench.pass_time(61)
    assert bench.row(directory) is None
    (bench.root / "kept").rename(directory)
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(directory)
    assert bench.hidden(directory) == {"one"}


def test_each_time_that_an_hour_goes_it_has_a_minute(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    directory.rename(bench.root / "kept")
    bench.visit(directory)
    bench.pass_time(20)
    (bench.root / "kept").rename(directory)
    bench.visit(directory)
    bench.pass_time(100)
    directory.rename(bench.root / "kept")
    bench.visit(directory)
    bench.pass_time(50)
    assert bench.hidden(directory) == {"one"}
    bench.pass_time(11)
    assert bench.hidden(directory) == set()


def test_an_hour_that_begins_while_a_rescan_runs_is_not_taken_for_gone(bench: Bench) -> None:
    """Its directory came after the rescan looked which there are; the watcher told of it."""
    bench.make(A, "one.ts")
    bench.start()
    bench.rescan.request(RescanKind.FULL)
    bench.turn()
    bench.turn()
    directory = bench.make(B, "new.ts", "old.ts", "old.tombstone")
    hour = hour_of(directory)
    bench.mailbox.put_sightings([Sighting(Marked(hour, "old"), Source.WATCH, 0)])
    assert bench.mailbox.offer_bulk(SegmentRows(hour, add=["new.ts", "old.ts"], watched=True))
    bench.write()
    bench.finish(RescanKind.FULL)
    bench.assert_true(directory)
    bench.pass_time(61)
    bench.assert_true(directory)


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_what_takes_an_hours_place_is_no_hour(what: str, bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    directory.rename(bench.root / "kept")
    if what == "a file":
        directory.touch()
    else:
        directory.symlink_to(bench.root / "kept")
    bench.run(RescanKind.INTERVAL)
    assert bench.listing(directory) == []
    bench.pass_time(61)
    assert bench.row(directory) is None
    assert sorted(os.listdir(bench.root / "kept")) == ["one.tombstone", "one.ts"]


@pytest.mark.parametrize("level", ["desertbus", "desertbus/source"])
def test_a_channel_or_quality_that_is_removed_goes_like_its_hours(level: str, bench: Bench) -> None:
    hours = [bench.make(A, "one.ts", "one.tombstone"), bench.make(B, "one.ts")]
    other = bench.make(D, "one.ts", "one.tombstone")
    bench.start()
    (bench.root / level).rename(bench.root.with_name("removed"))
    bench.run(RescanKind.INTERVAL)
    assert [bench.listing(directory) for directory in hours] == [[], []]
    bench.pass_time(61)
    assert [bench.row(directory) for directory in hours] == [None, None]
    bench.assert_true(other)
    assert bench.journal.records(Event.PLACE_LOST) == []


def test_many_hours_are_compared_in_parts(bench: Bench) -> None:
    """More than one query of the index holds, some of them gone and some new, in every part."""
    numbers = [(day, hour) for day in range(1, 29) for hour in range(24)]
    hours = [bench.make(f"desertbus/source/2019-11-{day:02d}T{hour:02d}", f"{hour}.ts") for day, hour in numbers[::2]]
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(*hours)
    for directory in hours[::7]:
        remove(directory)
    new = [bench.make(f"desertbus/source/2019-11-{day:02d}T{hour:02d}", "new.ts") for day, hour in numbers[1::14]]
    bench.run(RescanKind.INTERVAL)
    bench.assert_true(*hours, *new)
    assert bench.reader.totals()[0] == len(hours) - len(hours[::7]) + len(new)


# -- a tree that is not the known one ----------------------------------------------------------------------------------


def snapshot(bench: Bench) -> tuple[object, ...]:
    """All that the index says."""
    places = bench.reader.places()
    rows = [bench.reader.hour_rows(key, below=None, least=0) for key, _ in places.values()]
    return places, rows, bench.reader.totals(), bench.reader.marker_rows(limit=100)


def lose_root(bench: Bench) -> Callable[[], None]:
    """Another, empty tree is in its place; returns how to put it back."""
    kept = bench.root.with_name("kept")
    bench.root.rename(kept)
    bench.root.mkdir()

    def put_back() -> None:
        bench.root.rmdir()
        kept.rename(bench.root)

    return put_back


@pytest.mark.parametrize("guard_knows", [False, True])
@pytest.mark.parametrize("kind", [RescanKind.INTERVAL, RescanKind.FULL])
def test_nothing_changes_while_the_root_is_not_believed(kind: RescanKind, guard_knows: bool, bench: Bench) -> None:
    hours = [bench.make(A, "one.ts", "one.tombstone"), bench.make(B, "one.ts")]
    bench.start()
    before = snapshot(bench)
    put_back = lose_root(bench)
    bench.believed = not guard_knows
    bench.rescan.request(kind)
    for directory in hours:
        bench.rescan.request_hour(hour_of(directory))
    for _ in range(20):
        bench.clock.now += 30
        bench.turn()
        bench.write()
    assert snapshot(bench) == before
    assert bench.ended(kind) == 1
    assert os.listdir(bench.root) == []
    put_back()
    bench.believed = True
    bench.finish(kind)
    bench.assert_true(*hours)


def test_nothing_begins_while_the_guard_does_not_believe_the_root(bench: Bench) -> None:
    """Also where the tree looks right by now: a new process takes it up."""
    directory = bench.make(A, "one.ts")
    bench.start()
    before = snapshot(bench)
    bench.make(A, "two.ts")
    bench.believed = False
    bench.rescan.request(RescanKind.FULL)
    bench.visit(directory)
    bench.pass_time(61)
    assert snapshot(bench) == before
    bench.believed = True
    bench.finish(RescanKind.FULL)
    bench.assert_true(directory)


def test_a_root_that_goes_in_the_middle_of_a_rescan_changes_nothing_more(bench: Bench) -> None:
    hours = [bench.make(f"desertbus/source/2019-11-13T{number:02d}", "one.ts", "one.tombstone") for number in range(10)]
    bench.start()
    before = snapshot(bench)
    bench.rescan.request(RescanKind.FULL)
    for _ in range(6):
        bench.turn()
        bench.write()
    assert bench.rescan.progress is not None
    put_back = lose_root(bench)
    for _ in range(20):
        bench.clock.now += 30
        bench.turn()
        bench.write()
    assert snapshot(bench) == before
    put_back()
    bench.finish(RescanKind.FULL)
    bench.assert_true(*hours)


def test_a_vanished_tombstone_is_not_put_into_another_tree(bench: Bench) -> None:
    directory = bench.make(A, "one.ts", "one.tombstone")
    bench.start()
    (directory / "one.tombstone").unlink()
    bench.visit(directory)
    kept = bench.root.with_name("kept")
    bench.root.rename(kept)
    other = bench.make(A, "one.ts")
    for _ in range(5):
        bench.clock.now += 30
        bench.turn()
        bench.write()
    assert os.listdir(other) == ["one.ts"]
    assert os.listdir(kept / A) == ["one.ts"]
    assert restored(bench) == 0
    assert bench.hidden(directory) == {"one"}


# -- places that are unmounted or cannot be read -----------------------------------------------------------------------


def test_an_unmounted_place_keeps_its_rows(bench: Bench, tmp_path: Path) -> None:
    need_root()
    (bench.root / "desertbus/source").mkdir(parents=True)
    with disk(tmp_path / "image") as volume:
        volume.mount(bench.root / "desertbus/source")
        directory, other = bench.make(A, "one.ts", "one.tombstone", "two.ts"), bench.make(D, "one.ts")
        bench.start()
        assert bench.reader.places()["desertbus", "source"][1] is True
        assert bench.reader.places()["other", "480p"][1] is False
        before = snapshot(bench)
        assert volume.unmount().returncode == 0
        bench.visit(directory)  # the watcher is told of each directory that the mount took along
        bench.run(RescanKind.INTERVAL)
        bench.pass_time(61)
        bench.visit(directory)
        bench.run(RescanKind.FULL)
        bench.pass_time(61)
        assert snapshot(bench) == before
        assert bench.listing(directory) == ["two.ts"]
        (record,) = bench.journal.records(Event.PLACE_LOST)
        assert "desertbus/source" in record["MESSAGE"]
        assert os.listdir(bench.root / "desertbus/source") == []
        bench.restart()
        bench.finish(RescanKind.INTERVAL)
        bench.finish(RescanKind.FULL)
        assert snapshot(bench) == before
        missed = bench.missed
        volume.mount(bench.root / "desertbus/source")
        bench.make(A, "three.ts")
        bench.run(RescanKind.INTERVAL)
        bench.assert_true(directory, other)
        assert bench.missed > missed  # its watches went with the mount


def test_a_place_whose_mount_point_went_too_keeps_its_rows(bench: Bench, tmp_path: Path) -> None:
    need_root()
    (bench.root / "desertbus").mkdir()
    with disk(tmp_path / "image") as volume:
        volume.mount(bench.root / "desertbus")
        directory = bench.make(A, "one.ts", "one.tombstone", "two.ts")
        bench.start()
        before = snapshot(bench)
        assert volume.unmount().returncode == 0
        (bench.root / "desertbus").rmdir()
        bench.visit(directory)
        bench.run(RescanKind.INTERVAL)
        bench.pass_time(61)
        assert snapshot(bench) == before


def test_an_unmounted_place_goes_when_a_person_says_so(bench: Bench, tmp_path: Path) -> None:
    need_root()
    (bench.root / "desertbus/source").mkdir(parents=True)
    with disk(tmp_path / "image") as volume:
        volume.mount(bench.root / "desertbus/source")
        directory, other = bench.make(A, "one.ts", "one.tombstone"), bench.make(D, "one.ts", "one.tombstone")
        bench.start()
        assert volume.unmount().returncode == 0
        bench.run(RescanKind.INTERVAL)
        assert bench.hidden(directory) == {"one"}
        bench.accept_lost = True
        bench.run(RescanKind.INTERVAL)
        bench.pass_time(61)
        bench.run(RescanKind.INTERVAL)
        assert bench.row(directory) is None
        bench.assert_true(directory, other)
        assert bench.hidden(other) == {"one"}


def test_a_mounted_place_that_is_emptied_goes_like_any_other(bench: Bench, tmp_path: Path) -> None:
    need_root()
    (bench.root / "desertbus/source").mkdir(parents=True)
    with disk(tmp_path / "image") as volume:
        volume.mount(bench.root / "desertbus/source")
        directory = bench.make(A, "one.ts", "one.tombstone")
        bench.start()
        remove(directory)
        bench.run(RescanKind.INTERVAL)
        bench.pass_time(61)
        assert bench.row(directory) is None


@pytest.fixture
def base_of_nobody(tmp_path: Path) -> Iterator[Path]:
    """A directory where permissions bind: for root that means to be somebody else for a while."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, -1)
        os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("level", ["desertbus", "desertbus/source", A])
def test_what_cannot_be_read_keeps_its_rows(level: str, base_of_nobody: Path, clock: Clock, journal: Journal) -> None:
    with closing(Bench(base_of_nobody, clock, journal)) as bench:
        directory, other = bench.make(A, "one.ts", "one.tombstone", "two.ts"), bench.make(D, "one.ts")
        bench.start()
        before = snapshot(bench)
        closed = bench.root / level
        closed.chmod(0)
        try:
            bench.visit(directory)
            bench.run(RescanKind.INTERVAL)
            bench.run(RescanKind.FULL)
            bench.pass_time(61)
            bench.run(RescanKind.INTERVAL)
            assert snapshot(bench) == before
            assert bench.journal.records(Event.HOUR_GONE) == []
        finally:
            closed.chmod(0o755)
        bench.make(A, "three.ts")
        bench.run(RescanKind.INTERVAL)
        bench.assert_true(directory, other)


# -- the end and the next start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 24, 3))
@pytest.mark.parametrize("written", [False, True])
def test_a_restart_in_the_middle_of_a_first_index(turns: int, written: bool, bench: Bench) -> None:
    hours = [bench.make(f"desertbus/source/2019-11-13T{number:02d}", f"{number}.ts", "one.ts") for number in range(10)]
    for directory in hours:
        (directory / "one.tombstone").touch()
    for _ in range(turns):
        bench.turn()
        if written:
            bench.write()
    bench.restart()
    for directory in hours[::3]:
        (directory / "late.ts").touch()
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(*hours)
    assert not any(bench.settled(directory) for directory in hours)
    bench.finish(RescanKind.FULL)
    bench.settle()
    assert all(bench.settled(directory) for directory in hours)


def test_a_listing_of_an_earlier_process_settles_nothing(bench: Bench) -> None:
    """Whatever the clock did meanwhile: both listings have to be this process's own."""
    directory = bench.make(A, "one.ts")
    bench.finish(RescanKind.INTERVAL)
    bench.restart()
    bench.clock.now += 1_000.0
    bench.finish(RescanKind.INTERVAL)
    assert not bench.settled(directory)
    bench.finish(RescanKind.FULL)
    bench.settle()
    assert bench.settled(directory)


def test_a_listing_of_an_earlier_process_counts_beside_no_later_one(bench: Bench) -> None:
    """The watcher had another hour looked at before the first rescan began."""
    directory, other = bench.make(A, "one.ts"), bench.make(B, "one.ts")
    bench.finish(RescanKind.INTERVAL)
    bench.restart()
    bench.may_begin = False
    bench.rescan.request_hour(hour_of(other))
    bench.clock.now += 1.1
    bench.may_begin = True
    bench.turn()
    bench.write()
    assert bench.ended(RescanKind.INTERVAL) == 0
    bench.clock.now += 2.1
    bench.finish(RescanKind.INTERVAL)
    assert bench.settled(other)
    assert not bench.settled(directory)


def test_what_changed_while_no_agent_ran_is_found(bench: Bench) -> None:
    hours = [bench.make(A, "one.ts", "two.ts"), bench.make(B, "one.ts", "one.tombstone")]
    bench.start()
    bench.restart()
    (hours[0] / "one.tombstone").touch()
    (hours[0] / "two.ts").unlink()
    hours.append(bench.make(C, "one.json", "one.tombstone"))
    bench.finish(RescanKind.INTERVAL)
    bench.assert_true(*hours)
    assert bench.metrics.registry.get_sample_value("tombsync_missed_by_watch_total") == 0


def test_a_kill_between_rows_and_listing_leaves_no_hour_wrongly_known(bench: Bench) -> None:
    """A file that came is in the index; before its hour counts as listed the process ends, and the file goes again."""
    directory = bench.make(A, "one.ts")
    bench.start()
    before = directory.stat().st_mtime_ns
    (directory / "two.ts").touch()
    bench.writer.apply([SegmentRows(hour_of(directory), add=["two.ts"])])
    (directory / "two.ts").unlink()
    os.utime(directory, ns=(before, before))
    bench.restart()
    bench.finish(RescanKind.INTERVAL)
    bench.finish(RescanKind.FULL)
    bench.assert_true(directory)


def test_one_that_never_had_a_turn_is_closed_too(tmp_path: Path, clock: Clock, journal: Journal) -> None:
    bench = Bench(tmp_path, clock, journal)
    bench.close()

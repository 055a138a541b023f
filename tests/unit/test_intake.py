"""The intake with a real index, tree and journal, driven turn by turn."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent import perhaps_told_before
from tests.support.index import NOW_NS, add, assert_counts_are_true, database, stem_of
from tests.support.journal import Journal
from tests.support.programs import need
from tests.support.trees import need_root
from tests.support.waiting import wait_for
from tombsync import precedence
from tombsync.audit import QUEUE_RECORDS, Event, Record
from tombsync.errors import IndexDamaged
from tombsync.index import (
    DeliveryOutcomes,
    Due,
    Facts,
    MarkersForgotten,
    Outcome,
    Reader,
    SegmentRows,
    Writer,
    index_path,
)
from tombsync.intake import MISSED_AFTER_S, Intake, owner_name
from tombsync.metrics import Metrics
from tombsync.names import Hour, Marked, hour_number
from tombsync.plan import Breaker, State
from tombsync.tree import Tree
from tombsync.work import TRANSACTION_ROWS, Beats, Driver, Flush, Mailbox, Sight, Sighting, Source

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
WAIT_S = 20.0


class Bench:
    """An intake and all that it works with, below one directory."""

    def __init__(self, base: Path, state: Path, journal: Journal) -> None:
        self.root = base / "segments"
        self.hour = self.root / HOUR.path
        self.hour.mkdir(parents=True)
        self.path = index_path(str(state))
        self.writer = Writer(self.path)
        self.reader = Reader(self.path)
        self.mailbox = Mailbox()
        self.metrics = Metrics()
        self.journal = journal
        self.watch_answers = False
        self.breaker = Breaker(1_000_000)
        self.hidden_when_woken: list[int] = []  # tombstones that another process could see when the pushers were woken
        self.holds_changed: list[list[Due]] = []  # what was held for the first peer, each time that it was told
        self.intake = self.make(Tree(str(self.root)))

    def make(self, tree: Tree) -> Intake:
        """Another intake in its place."""
        self.intake = Intake(
            tree=tree,
            writer=self.writer,
            mailbox=self.mailbox,
            audit=self.journal.audit,
            metrics=self.metrics,
            on_news=lambda _: self.hidden_when_woken.append(self.reader.totals()[3]),
            watch_answers=lambda: self.watch_answers,
            breaker=self.breaker,
            on_holds_changed=lambda: self.holds_changed.append(self.reader.held(1, below=None, limit=100)),
        )
        return self.intake

    def touch(self, *stems: str) -> None:
        """Make tombstones, as a person does."""
        for stem in stems:
            (self.hour / f"{stem}.tombstone").touch()

    def see(self, *stems: str, source: Source = Source.WATCH, read_ns: int | None = None) -> None:
        """Tell the intake of tombstones, and let it work."""
        read_ns = time.monotonic_ns() if read_ns is None else read_ns
        self.mailbox.put_sightings([Sighting(Marked(HOUR, stem), source, read_ns) for stem in stems])
        self.turn()

    def turn(self, *, later_s: float = 0.0) -> None:
        """One turn, at a later time if wanted; one with nothing to write does not wait."""
        if later_s:
            self.mailbox.put_urgent(Flush())
        self.intake.loop(time.monotonic() + later_s)

    def metric(self, name: str, **labels: str) -> float:
        """One sample; 0 where there is none."""
        return self.metrics.registry.get_sample_value(f"tombsync_{name}", labels) or 0.0

    def hidden_stems(self) -> set[str]:
        """What a reader says is hidden."""
        return set(self.reader.markers(HOUR))

    def close(self) -> None:
        """Give all up."""
        assert_counts_are_true(self.path, self.writer.tally)
        self.reader.close()
        self.writer.close()


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal() as journal:
        yield journal


@pytest.fixture
def bench(tmp_path: Path, journal: Journal) -> Iterator[Bench]:
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path, tmp_path / "state", journal)
    yield bench
    bench.close()


# -- hiding ------------------------------------------------------------------------------------------------------------


def test_a_tombstone_is_hidden_told_and_counted(bench: Bench) -> None:
    add(bench.writer, HOUR, "one.ts", "two.ts")
    bench.touch("one")
    before_ns = time.monotonic_ns()
    bench.see("one", read_ns=before_ns)
    spent_s = (time.monotonic_ns() - before_ns) / 1e9
    assert bench.reader.listing(HOUR) == ["two.ts"]
    assert bench.hidden_when_woken == [1]
    (record,) = bench.journal.records()
    assert record["MESSAGE_ID"] == Event.HIDDEN.message_id
    assert record["TOMBSYNC_SEGMENT"] == f"{HOUR.path}/one"
    assert (record["TOMBSYNC_CHANNEL"], record["TOMBSYNC_QUALITY"]) == ("desertbus", "source")
    assert record["TOMBSYNC_HOUR"] == "2019-11-13T02"
    assert record["TOMBSYNC_SOURCE"] == "watch"
    assert record["TOMBSYNC_ACTOR"] == pwd.getpwuid(os.geteuid()).pw_name
    assert 0 < float(record["TOMBSYNC_ELAPSED_MS"]) <= spent_s * 1e3
    assert bench.metric("hide_seconds_count", source="watch") == 1
    assert bench.metric("hide_seconds_sum", source="watch") == pytest.approx(
        float(record["TOMBSYNC_ELAPSED_MS"]) / 1e3, abs=1e-6
    )


def test_a_second_sighting_is_told_to_nobody(bench: Bench) -> None:
    bench.touch("one")
    for source in (Source.WATCH, Source.RESCAN, Source.WATCH):
        bench.see("one", source=source)
    assert bench.hidden_when_woken == [1]
    assert len(bench.journal.records()) == 1
    assert bench.metric("hide_seconds_count", source="watch") == 1
    assert bench.metric("hide_seconds_count", source="rescan") == 0


def test_what_an_inbox_brought_and_is_forgotten_is_hidden_when_a_person_marks_it_again(bench: Bench) -> None:
    """The watcher may owe an event of the placing for ever, where the tombstone stood in the tree already."""
    bench.see("one", source=Source.INBOX)
    forgotten: list[str] = []
    bench.mailbox.put_urgent(MarkersForgotten(HOUR, ["one"], forgotten.extend))
    bench.turn()
    assert (forgotten, bench.hidden_stems()) == (["one"], set())
    bench.touch("one")
    bench.see("one")
    assert bench.hidden_stems() == {"one"}
    assert len(bench.hidden_when_woken) == 2


def test_an_event_of_what_an_inbox_brought_is_missed_no_second_time(bench: Bench) -> None:
    bench.watch_answers = True
    bench.see("one", "two", source=Source.INBOX)
    bench.touch("one", "two")
    bench.see("one", "two")  # of the placing
    bench.mailbox.put_urgent(MarkersForgotten(HOUR, ["one"], lambda _: None))
    bench.turn()
    bench.see("two", "one")  # by hand
    assert bench.hidden_stems() == {"one", "two"}
    assert len(bench.journal.records()) == 3


def test_many_are_hidden_a_transaction_at_a_time(bench: Bench) -> None:
    stems = [stem_of(number) for number in range(TRANSACTION_ROWS + 50)]
    bench.touch(*stems)
    bench.see(*stems)
    assert bench.hidden_stems() == set(stems[:TRANSACTION_ROWS])
    bench.turn()
    assert bench.hidden_stems() == set(stems)
    assert bench.hidden_when_woken == [TRANSACTION_ROWS, len(stems)]
    records = bench.journal.records(Event.HIDDEN)
    assert [record["TOMBSYNC_SEGMENT"] for record in records] == [f"{HOUR.path}/{stem}" for stem in stems]
    assert bench.metric("hide_seconds_count", source="watch") == len(stems)


def test_hides_have_precedence_until_the_last_that_waits_is_committed(bench: Bench) -> None:
    precedence.claim(precedence.HIDE)
    bench.see(*(f"s{number}" for number in range(TRANSACTION_ROWS + 1)))
    assert precedence._claims
    bench.turn()
    assert not precedence._claims


def test_of_many_only_the_new_ones_are_told(bench: Bench) -> None:
    bench.touch("one", "two", "three")
    bench.see("one", "two")
    bench.see("two", "three", "one")
    records = bench.journal.records(Event.HIDDEN)
    assert [record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in records] == ["one", "two", "three"]
    assert bench.hidden_when_woken == [2, 3]


@pytest.mark.parametrize("source", [Source.RESCAN, Source.INBOX, Source.COMMAND])
def test_what_was_not_watched_is_as_old_as_its_file(source: Source, bench: Bench) -> None:
    bench.touch("one")
    created_ns = (bench.hour / "one.tombstone").lstat().st_ctime_ns
    wait_for(lambda: time.time_ns() > created_ns + 50_000_000, "the tombstone to have an age")
    bench.see("one", source=source)
    (record,) = bench.journal.records()
    assert record["TOMBSYNC_SOURCE"] == source.value
    assert 50.0 <= float(record["TOMBSYNC_ELAPSED_MS"]) <= (time.time_ns() - created_ns) / 1e6
    assert bench.metric("hide_seconds_count", source=source.value) == 1
    assert bench.metric("hide_seconds_sum", source=source.value) >= 0.05


def test_a_tombstone_that_is_gone_again_hides_all_the_same(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    bench.see("one", source=Source.RESCAN)
    assert bench.hidden_stems() == {"one"}
    (record,) = bench.journal.records()
    assert "TOMBSYNC_ACTOR" not in record
    assert float(record["TOMBSYNC_ELAPSED_MS"]) > 0
    assert len(bench.reader.due(bench.writer.peer_ids()["node-b"], limit=10)) == 1


def test_a_clock_that_was_set_back_gives_no_negative_age(bench: Bench) -> None:
    class FromTheFuture(Tree):
        def sight(self, marked: Marked) -> Sight:
            return Sight(regular=True, owner_uid=0, ctime_ns=time.time_ns() + 3_600 * 10**9)

    bench.make(FromTheFuture(str(bench.root)))
    bench.see("one", source=Source.RESCAN)
    assert bench.journal.records()[0]["TOMBSYNC_ELAPSED_MS"] == "0.000"


@pytest.mark.parametrize("watch_answers", [False, True])
@pytest.mark.parametrize("source", list(Source))
def test_a_rescan_that_saw_it_first_counts_against_the_watcher(
    source: Source, watch_answers: bool, bench: Bench
) -> None:
    bench.watch_answers = watch_answers
    bench.touch("one", "two")
    bench.see("one", "two", source=source)
    bench.see("one", source=Source.RESCAN)
    assert bench.metric("missed_by_watch_total") == 0  # an event can still come
    bench.turn(later_s=MISSED_AFTER_S)
    assert bench.metric("missed_by_watch_total") == (2 if watch_answers and source is Source.RESCAN else 0)
    bench.turn(later_s=MISSED_AFTER_S)
    assert bench.metric("missed_by_watch_total") == (2 if watch_answers and source is Source.RESCAN else 0)


def test_an_event_that_comes_right_after_the_rescan_is_no_miss(bench: Bench) -> None:
    bench.watch_answers = True
    bench.touch("one", "two")
    bench.see("one", "two", source=Source.RESCAN)
    bench.see("one", source=Source.WATCH)
    bench.turn(later_s=MISSED_AFTER_S)
    assert bench.metric("missed_by_watch_total") == 1


def test_one_rescan_and_its_event_in_one_transaction_are_no_miss(bench: Bench) -> None:
    bench.watch_answers = True
    bench.touch("one")
    seen_ns = time.monotonic_ns()
    bench.mailbox.put_sightings(
        [Sighting(Marked(HOUR, "one"), source, seen_ns) for source in (Source.RESCAN, Source.WATCH)]
    )
    bench.turn()
    bench.turn(later_s=MISSED_AFTER_S)
    assert bench.metric("missed_by_watch_total") == 0


def test_a_directory_that_is_gone_again_is_not_taken_for_a_file(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    seen_ns = time.monotonic_ns()
    bench.mailbox.put_sightings([Sighting(Marked(HOUR, "one"), Source.WATCH, seen_ns, directory=True)])
    bench.mailbox.put_sightings([Sighting(Marked(HOUR, "two"), Source.WATCH, seen_ns)])
    bench.turn()
    assert [(row.marked.stem, row.pushable) for row in bench.reader.marker_rows(limit=2)] == [
        ("two", True),
        ("one", False),
    ]
    assert bench.hidden_stems() == {"one", "two"}


def test_a_disk_that_fails_right_after_the_commit_keeps_no_news_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(bench.writer, HOUR, "one.ts")
    bench.touch("one")

    def fails(hidden: object) -> None:
        failure = sqlite3.OperationalError("disk I/O error")
        failure.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(bench.writer, "_count", fails)
        bench.see("one")
    assert len(bench.journal.records()) == 1
    assert bench.hidden_when_woken == [1]
    bench.touch("two")
    bench.touch("three")
    bench.see("two", "three")  # the counts are right again: see Bench.close


def test_a_file_in_the_place_of_a_directory_wakes_the_pushers_and_is_not_hidden_again(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    path = bench.hour / "one.tombstone"
    path.mkdir()
    bench.see("one")
    wakes = len(bench.hidden_when_woken)
    path.rmdir()
    path.touch()
    bench.see("one")
    assert len(bench.hidden_when_woken) == wakes + 1
    assert len([r for r in bench.journal.records() if r["TOMBSYNC_EVENT"] == "hidden"]) == 1


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_file_hides_and_is_warned_of(kind: str, bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    path = bench.hour / "one.tombstone"
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("one.ts")
        case _:
            os.mkfifo(path)
    bench.see("one")
    assert bench.hidden_stems() == {"one"}
    hidden, warned = bench.journal.records()
    assert hidden["MESSAGE_ID"] == Event.HIDDEN.message_id
    assert warned["MESSAGE_ID"] == Event.NOT_REGULAR.message_id
    assert warned["TOMBSYNC_SEGMENT"] == f"{HOUR.path}/one"
    assert bench.reader.due(bench.writer.peer_ids()["node-b"], limit=10) == []


def test_a_name_that_no_peer_is_sent_is_told_as_one_line(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    bench.touch("a\nb")
    bench.see("a\nb", source=Source.RESCAN)
    assert bench.hidden_stems() == {"a\nb"}
    hidden, rejected = bench.journal.records()
    assert rejected["MESSAGE_ID"] == Event.REJECTED.message_id
    assert rejected["TOMBSYNC_SOURCE"] == "rescan"
    assert rejected["TOMBSYNC_SEGMENT"] == hidden["TOMBSYNC_SEGMENT"] == f"{HOUR.path}/a\\nb"
    assert "control character" in rejected["MESSAGE"]
    assert not any("\n" in value for record in (hidden, rejected) for value in record.values())
    assert bench.metric("rejected_total", source="rescan", reason="unsafe-name") == 1
    assert bench.reader.due(bench.writer.peer_ids()["node-b"], limit=10) == []


def test_the_owner_of_the_file_is_told(bench: Bench) -> None:
    need_root()
    bench.touch("one", "two")
    os.chown(bench.hour / "one.tombstone", 4_000_000, -1)
    bench.see("one", "two")
    assert [record["TOMBSYNC_ACTOR"] for record in bench.journal.records()] == ["4000000", "root"]


def test_the_name_of_an_account() -> None:
    assert owner_name(0) == pwd.getpwuid(0).pw_name
    assert owner_name(4_000_000) == "4000000"
    assert owner_name(None) is None


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_are_written_and_told(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    bench.touch("one")
    bench.see("one")
    (due,) = bench.reader.due(1, limit=10)
    told: list[list[State]] = []
    outcome = Outcome(due.marker, State.CONFIRMED, NOW_NS)
    bench.mailbox.put_bulk(SegmentRows(HOUR, add=["one.ts", "two.ts"]))
    bench.mailbox.put_urgent(Facts({"pass": 3}))
    bench.mailbox.put_urgent(
        DeliveryOutcomes(1, [outcome], lambda changed: told.append([before for _, before in changed]))
    )
    bench.turn()
    assert told == [[State.PENDING]]
    assert bench.reader.fact("pass") == 3
    assert bench.reader.segments(HOUR) == set()
    bench.turn()
    assert bench.reader.listing(HOUR) == ["two.ts"]
    assert bench.hidden_when_woken == [1]


def test_markers_overtake_what_a_rescan_hands_over(bench: Bench) -> None:
    for number in range(3):
        bench.mailbox.put_bulk(SegmentRows(HOUR, add=[f"{name}-{number}.ts" for name in range(TRANSACTION_ROWS)]))
    bench.turn()
    bench.see("late")
    assert bench.hidden_stems() == {"late"}
    assert len(bench.reader.segments(HOUR)) == TRANSACTION_ROWS


# -- a state directory that takes nothing ------------------------------------------------------------------------------


class FullDisk:
    """Where the index lives, and how it is filled and emptied again."""

    def __init__(self, state: Path, fill: Callable[[], None], empty: Callable[[], None]) -> None:
        self.state = state
        self.fill = fill
        self.empty = empty


@contextlib.contextmanager
def small_disk(state: Path) -> Iterator[FullDisk]:
    """A file system of 400 KiB."""
    need_root()
    subprocess.run([need("mount"), "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(state)], check=True)
    ballast = state / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))

    try:
        yield FullDisk(state, fill, lambda: ballast.unlink(missing_ok=True))
    finally:
        subprocess.run([need("umount"), "--lazy", str(state)], check=True)


@contextlib.contextmanager
def limited_files(state: Path) -> Iterator[FullDisk]:
    """The same without root: the kernel lets no file of this process grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        log = state / "index.sqlite-wal"
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, before[1]))

    def empty() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        yield FullDisk(state, fill, empty)
    finally:
        empty()


@pytest.fixture(params=[small_disk, limited_files])
def full_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FullDisk]:
    state = tmp_path / "full"
    state.mkdir()
    with request.param(state) as disk:
        yield disk


@pytest.fixture
def full(tmp_path: Path, journal: Journal, full_disk: FullDisk) -> Iterator[Bench]:
    """An intake whose index cannot be written any more, and which does not wait between two tries."""
    bench = Bench(tmp_path, full_disk.state, journal)
    add(bench.writer, HOUR, "one.ts", "two.ts", "three.ts")
    bench.intake.wake()
    full_disk.fill()
    yield bench
    full_disk.empty()
    bench.close()


def test_what_cannot_be_hidden_now_is_tried_until_it_can(full: Bench, full_disk: FullDisk) -> None:
    full.touch("one", "two")
    full.see("one")
    for tries in range(1, 4):
        assert full.metric("index_retries_total") == tries
        assert full.reader.listing(HOUR) == ["one.ts", "three.ts", "two.ts"]
        full.turn()
    full.see("two")
    (refused,) = full.journal.records()  # told once, not each time
    assert refused["MESSAGE_ID"] == Event.STATE_REFUSED.message_id
    assert full.path in refused["MESSAGE"]
    assert full.hidden_when_woken == []
    full_disk.empty()
    full.turn()
    assert full.reader.listing(HOUR) == ["three.ts", "two.ts"]
    full.turn()
    assert full.reader.listing(HOUR) == ["three.ts"]
    assert full.hidden_when_woken == [1, 2]
    records = full.journal.records(Event.HIDDEN)
    assert [record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in records] == ["one", "two"]
    assert full.metric("hide_seconds_count", source="watch") == 2
    full_disk.fill()
    full.see("three")
    full.see("three")
    assert len(full.journal.records(Event.STATE_REFUSED)) == 2  # a new refusal, told anew


def test_many_that_cannot_be_hidden_are_all_hidden_later(full: Bench, full_disk: FullDisk) -> None:
    stems = [stem_of(number) for number in range(50)]
    full.see(*stems)
    full.turn()
    assert full.hidden_stems() == set()
    assert full.writer.tally.markers == 0
    full_disk.empty()
    full.turn()
    assert full.hidden_stems() == set(stems)
    assert len(full.journal.records(Event.HIDDEN)) == len(stems)


def test_batches_that_cannot_be_written_are_kept_in_their_order(full: Bench, full_disk: FullDisk) -> None:
    full.mailbox.put_urgent(Facts({"first": 1, "both": 1}))
    full.turn()
    full.mailbox.put_urgent(Facts({"second": 2, "both": 2}))
    full.mailbox.put_sightings([Sighting(Marked(HOUR, "one"), Source.WATCH, 0)])
    full.turn()
    assert full.metric("index_retries_total") == 2
    full_disk.empty()
    full.turn()
    assert (full.reader.fact("first"), full.reader.fact("second")) == (1, None)
    full.turn()
    assert full.hidden_stems() == {"one"}
    full.turn()
    assert (full.reader.fact("second"), full.reader.fact("both")) == (2, 2)


# -- damage, and the end -----------------------------------------------------------------------------------------------


def test_damage_ends_the_worker(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path, tmp_path / "state", journal)
    for number in range(0, 3_000, 200):
        add(bench.writer, HOUR, *(f"{stem_of(second)}.ts" for second in range(number, number + 200)))
    bench.reader.close()
    bench.writer.close()
    size = Path(bench.path).stat().st_size
    with open(bench.path, "r+b") as file:
        file.seek(size // 4096 // 2 * 4096)
        file.write(b"\xa5" * 4096 * 10)
    bench.writer, bench.reader = Writer(bench.path), Reader(bench.path)
    bench.make(Tree(str(bench.root)))
    died = threading.Event()
    driver = Driver(bench.intake, Beats(), died.set)
    bench.mailbox.put_bulk(SegmentRows(HOUR, add=[f"{stem_of(second)}.json" for second in range(0, 3_000, 20)]))
    driver.start()
    assert died.wait(WAIT_S)
    assert driver.join(WAIT_S)
    assert isinstance(driver.failure, IndexDamaged)
    bench.reader.close()
    bench.writer.close()


def test_it_ends_when_it_is_told_to(bench: Bench) -> None:
    driver = Driver(bench.intake, Beats(), lambda: None)
    driver.start()
    bench.mailbox.put_sightings([Sighting(Marked(HOUR, "one"), Source.WATCH, time.monotonic_ns())])
    wait_for(lambda: bench.hidden_stems() == {"one"}, "the tombstone to be hidden")
    driver.stop()
    assert driver.join(WAIT_S)
    assert driver.failure is None


def test_it_ends_while_the_index_takes_nothing(full: Bench) -> None:
    driver = Driver(full.make(Tree(str(full.root))), Beats(), lambda: None)
    driver.start()
    full.mailbox.put_sightings([Sighting(Marked(HOUR, "one"), Source.WATCH, time.monotonic_ns())])
    wait_for(lambda: full.metric("index_retries_total") > 0, "the index to refuse")
    driver.stop()
    assert driver.join(WAIT_S)
    assert driver.failure is None


# -- a mass of marks ---------------------------------------------------------------------------------------------------


def test_a_mass_that_began_before_a_restart_is_held(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    stems = [stem_of(number) for number in range(5)]
    bench.touch(*stems)
    bench.breaker = Breaker(3)
    bench.make(Tree(str(bench.root)))
    bench.see(*stems[:3])
    assert bench.holds_changed == []
    bench.breaker = Breaker(3)
    bench.make(Tree(str(bench.root)))
    bench.see(stems[3])
    assert len(bench.holds_changed[0]) == 4  # the pushers have the earlier ones in their queues
    bench.see(stems[4])
    assert len(bench.holds_changed) == 1  # and never had this one
    assert len(bench.reader.held(1, below=None, limit=10)) == 5


def test_what_ends_a_hold_is_told_and_wakes_the_pushers(bench: Bench) -> None:
    bench.writer.sync_peers({"node-b": "tree://b"})
    stems = [stem_of(number) for number in range(3)]
    bench.touch(*stems)
    bench.breaker = Breaker(0)
    bench.make(Tree(str(bench.root)))
    bench.see(*stems)
    bench.holds_changed.clear()
    bench.mailbox.put_sightings(
        [Sighting(Marked(HOUR, stem), Source.INBOX, 0, sender="node-c", origin="node-d") for stem in stems[:2]]
    )
    bench.turn()
    assert [[due.marked.stem for due in held] for held in bench.holds_changed] == [[stems[2]]]
    (record,) = bench.journal.records(Event.HOLD_ENDED)
    assert (record["TOMBSYNC_PEER"], record["TOMBSYNC_COUNT"]) == ("node-c", "2")
    assert len(bench.journal.records(Event.HIDDEN)) == 3


# -- what a killed agent could not tell --------------------------------------------------------------------------------


class Refusing(Journal):
    """A journal that can stop to take anything, as a journald that is gone."""

    def __init__(self, capacity: int = QUEUE_RECORDS) -> None:
        self.takes = True
        super().__init__(capacity=capacity)

    def send(self, record: Record) -> None:
        """Raises OSError where it takes nothing."""
        if not self.takes:
            raise OSError(errno.ECONNREFUSED, "nobody listens")
        super().send(record)


def killed(bench: Bench, journal: Journal) -> None:
    """The life ends without a word, and the next one begins with the index as it is and a journal of its own."""
    bench.journal.audit.close(0.0)
    bench.writer.close()
    bench.writer = Writer(bench.path)
    bench.journal = journal
    bench.make(Tree(str(bench.root)))
    bench.turn(later_s=0.001)


def told_again(journal: Journal) -> list[str]:
    """The stems of which it is said that they may have been told before."""
    records = journal.records(Event.HIDDEN)
    return [r["TOMBSYNC_SEGMENT"].rpartition("/")[2] for r in records if perhaps_told_before(r)]


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_was_hidden_and_is_not_in_the_journal_is_told_by_the_next_life(
    at_once: int, tmp_path: Path, journal: Journal
) -> None:
    (tmp_path / "state").mkdir()
    refusing = Refusing()
    bench = Bench(tmp_path, tmp_path / "state", refusing)
    stems = [stem_of(number) for number in range(6)]
    bench.touch(*stems)
    bench.see(*stems[:3])
    assert len(refusing.records(Event.HIDDEN)) == 3
    refusing.takes = False
    for start in range(3, 6, at_once):
        bench.see(*stems[start : start + at_once])
    killed(bench, journal)
    assert told_again(journal) == stems[3:]
    (record, *_) = journal.records(Event.HIDDEN)
    assert record["TOMBSYNC_SOURCE"] == "watch"
    assert record["TOMBSYNC_ACTOR"] == pwd.getpwuid(os.geteuid()).pw_name
    assert record["TOMBSYNC_HIDDEN_AT"] in record["MESSAGE"]
    assert bench.metric("hide_seconds_count", source="watch") == 6  # telling again measures nothing
    bench.close()


def test_what_was_told_again_is_not_told_a_third_time(bench: Bench) -> None:
    bench.touch("one", "two")
    bench.see("one", "two")
    with Journal() as second, Journal() as third:
        killed(bench, second)  # nothing was written since, and so it is not known that the journal has them
        assert told_again(second) == ["one", "two"]
        bench.turn(later_s=0.001)  # any transaction
        killed(bench, third)
        assert told_again(third) == []


def test_after_a_clean_end_nothing_is_told_again(bench: Bench) -> None:
    bench.touch("one", "two")
    bench.see("one")
    bench.see("two")
    bench.intake.close()
    with Journal() as journal:
        killed(bench, journal)
        assert journal.records(Event.HIDDEN) == []


def test_what_the_journal_does_not_take_until_the_end_is_told_again_after_a_clean_end(
    tmp_path: Path, journal: Journal
) -> None:
    (tmp_path / "state").mkdir()
    refusing = Refusing()
    bench = Bench(tmp_path, tmp_path / "state", refusing)
    bench.touch("one")
    refusing.takes = False
    bench.see("one")
    bench.intake.close()
    killed(bench, journal)
    assert told_again(journal) == ["one"]
    bench.close()


def test_more_than_the_journal_has_room_for_is_told_as_it_takes_it(tmp_path: Path, bench: Bench) -> None:
    """And what is hidden meanwhile is told, and is not taken for the end of it."""
    stems = [stem_of(number) for number in range(3 * TRANSACTION_ROWS)]
    bench.touch(*stems, "new")
    bench.see(*stems)
    bench.turn()
    bench.turn()
    small = Refusing(capacity=2 * TRANSACTION_ROWS)
    small.takes = False
    bench.writer.execute("UPDATE marker SET told_up_to = 0")
    bench.writer.execute("UPDATE meta SET value = 0 WHERE key = 'told_up_to'")
    killed(bench, small)  # as if its journal had taken nothing
    bench.see("new")
    assert small.audit.dropped == 0
    with Journal() as journal:
        killed(bench, journal)
        assert told_again(journal) == [*stems, "new"]
    small = Refusing(capacity=2 * TRANSACTION_ROWS)
    bench.writer.execute("UPDATE marker SET told_up_to = 0")
    bench.writer.execute("UPDATE meta SET value = 0 WHERE key = 'told_up_to'")
    killed(bench, small)

    def all_told() -> bool:
        bench.turn(later_s=0.001)
        return len(told_again(small)) == len(stems) + 1

    wait_for(all_told, "all to be told")
    assert small.audit.dropped == 0


def test_what_came_by_an_inbox_and_more_than_one_page_is_told_again(bench: Bench) -> None:
    stems = [stem_of(number) for number in range(TRANSACTION_ROWS + 1)]
    bench.mailbox.put_sightings(
        [Sighting(Marked(HOUR, stem), Source.INBOX, 0, sender="node-b", origin="node-c") for stem in stems]
    )
    bench.turn()
    bench.turn()
    with Journal() as journal:
        killed(bench, journal)
        again = told_again(journal)
        # What the second transaction could know of the first is up to the journal's thread.
        assert again == stems[-len(again) :]
        record = journal.records(Event.HIDDEN)[-1]
        assert record["TOMBSYNC_PEER"] == record["TOMBSYNC_ACTOR"] == "node-b"
        assert record["TOMBSYNC_ORIGIN"] == "node-c"
        assert "TOMBSYNC_ELAPSED_MS" not in record


def test_an_index_of_before_tells_nothing_again(bench: Bench, journal: Journal) -> None:
    bench.touch("one")
    bench.see("one")
    with database(bench.path) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'told_up_to'")
        connection.execute("ALTER TABLE marker DROP COLUMN told_up_to")
        connection.execute("ALTER TABLE peer DROP COLUMN marker_seen")
        connection.execute("DROP TRIGGER hour_goes")
        connection.execute("DROP TABLE coverage")
        connection.execute("PRAGMA user_version = 3")
    with Journal() as second:
        killed(bench, second)
        assert second.records() == []

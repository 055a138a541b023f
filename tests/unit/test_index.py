"""The index as a whole, against a model that is too simple to be wrong: whatever happens in whatever order, the listing
is that of the model, and so is every count."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.index import (
    BAD_UTF8,
    CHAT_HOUR,
    HASH,
    HOUR,
    NEXT_HOUR,
    NO_FILE,
    NOW_NS,
    REGULAR,
    add,
    assert_counts_are_true,
    database,
    seen,
)
from tombsync.index import (
    Checkpointer,
    DeliveryOutcomes,
    Facts,
    HourGone,
    HourListed,
    MarkersForgotten,
    Outcome,
    Reader,
    SegmentRows,
    Writer,
)
from tombsync.names import Hour, Marked, hour_number
from tombsync.plan import KEEP_STATES, State
from tombsync.work import TRANSACTION_ROWS, Source

HOURS = [HOUR, NEXT_HOUR, CHAT_HOUR, Hour(BAD_UTF8, "s", HOUR.number)]
# One of them can never be sent to a peer, and several are nearly the same.
STEMS = ["a", "b", "a.", "A", "ab", "a\n", "\u00e9\U0001f47b", BAD_UTF8, "a.ts"]

hours = st.sampled_from(HOURS)
stems = st.sampled_from(STEMS)
names = st.builds(str.__add__, stems, st.sampled_from([".ts", ".json"]))
some_names = st.lists(names, max_size=8)


class Failing:
    """A batch that cannot be applied."""

    rows = 1

    def apply(self, writer: Writer) -> None:
        raise ZeroDivisionError

    def committed(self) -> None:
        raise AssertionError("it was not")


class IndexAgainstModel(RuleBasedStateMachine):
    """I1 and I3, and that what the metrics count is what there is."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where that can be: it closes and opens the index hundreds of times, each time with a sync.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="tombsync-test-", dir=memory))
        self.path = self.directory / "0.sqlite"
        self.crashes = 0
        self.files: dict[Hour, set[str]] = {hour: set() for hour in HOURS}
        self.markers: dict[Hour, dict[str, bool]] = {hour: {} for hour in HOURS}  # stem -> whether it is sent to peers
        self.deliveries: dict[tuple[str, Hour, str], State] = {}
        self.peers: dict[str, str] = {}
        self.open()

    def open(self) -> None:
        self.writer = Writer(str(self.path))
        self.reader = Reader(str(self.path))

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def teardown(self) -> None:
        self.close()
        with database(self.path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        shutil.rmtree(self.directory)

    # -- segments ------------------------------------------------------------------------------------------------------

    @rule(hour=hours, adds=some_names, drops=some_names, watched=st.booleans())
    def segments_come_and_go(self, hour: Hour, adds: list[str], drops: list[str], watched: bool) -> None:
        self.writer.apply([SegmentRows(hour, add=adds, drop=drops, watched=watched)])
        self.files[hour] |= set(adds)
        self.files[hour] -= set(drops)

    @rule(hour=hours, other=hours, adds=some_names, drops=some_names)
    def many_batches_at_once(self, hour: Hour, other: Hour, adds: list[str], drops: list[str]) -> None:
        self.writer.apply([SegmentRows(hour, add=adds), Facts({"pass": 1}), SegmentRows(other, drop=drops)])
        self.files[hour] |= set(adds)
        self.files[other] -= set(drops)

    @rule(hour=hours, adds=some_names, drops=some_names, forgotten=st.lists(stems))
    def a_transaction_fails(self, hour: Hour, adds: list[str], drops: list[str], forgotten: list[str]) -> None:
        """A full disk, for example: nothing of it has happened."""
        try:
            self.writer.apply(
                [
                    SegmentRows(Hour("new", "place", 24), add=adds),
                    SegmentRows(hour, add=adds, drop=drops, watched=True),
                    MarkersForgotten(hour, forgotten, lambda stems: None),
                    HourGone(hour),
                    Failing(),
                ]
            )
        except ZeroDivisionError:
            pass

    # -- tombstones ----------------------------------------------------------------------------------------------------

    @rule(
        marks=st.lists(st.tuples(hours, stems, st.booleans()), min_size=1, max_size=4),
        source=st.sampled_from(Source),
    )
    def hide(self, marks: list[tuple[Hour, str, bool]], source: Source) -> None:
        sightings = [
            sighting
            for hour, stem, regular in marks
            for sighting in seen(hour, stem, source=source, sight=REGULAR if regular else NO_FILE)
        ]
        expected = []
        for hour, stem, regular in marks:
            pushable = regular and "\n" not in stem
            first = stem not in self.markers[hour]
            due = pushable and not self.markers[hour].get(stem)
            if first or due:
                expected.append((Marked(hour, stem), first, pushable))
            if due:
                self.deliveries.update({(peer, hour, stem): State.PENDING for peer in self.peers})
            self.markers[hour][stem] = pushable or self.markers[hour].get(stem, False)
        news = self.writer.hide(sightings, NOW_NS)
        told = [(hidden.sighting.marked, hidden.first, hidden.pushable) for hidden in news]
        assert sorted(told) == sorted(expected)
        keys = [hidden.marker for hidden in news]
        assert keys == sorted(set(keys))
        markers = {hidden.marker for hidden in news if hidden.pushable}
        assert markers <= {row.marker for row in self.reader.marker_rows(limit=len(news))}  # the newest of all

    @rule(hour=hours, forgotten=st.lists(stems))
    def forget(self, hour: Hour, forgotten: list[str]) -> None:
        told: list[Sequence[str]] = []
        self.writer.apply([MarkersForgotten(hour, forgotten, told.append)])
        expected = [
            stem
            for stem in dict.fromkeys(forgotten)
            if stem in self.markers[hour]
            and not any(self.deliveries.get((peer, hour, stem)) in KEEP_STATES for peer in self.peers)
        ]
        assert told == [expected]
        for stem in expected:
            del self.markers[hour][stem]
            for peer in self.peers:
                self.deliveries.pop((peer, hour, stem), None)

    # -- listings ------------------------------------------------------------------------------------------------------

    @rule(hour=hours, settled=st.booleans(), stale=st.booleans())
    def an_hour_is_listed(self, hour: Hour, settled: bool, stale: bool) -> None:
        before = self.reader.hour_row(hour)
        edits = before.edits if before else 0
        self.writer.apply([HourListed(hour, 7, b"digest", 1, settled=settled, edits=edits + stale)])
        row = self.reader.hour_row(hour)
        assert row is not None
        if not stale:
            assert (row.mtime_ns, row.digest, row.settled, row.edits) == (7, b"digest", settled, edits)
        elif before:
            assert row == before

    @rule(hour=hours)
    def an_hour_is_gone(self, hour: Hour) -> None:
        self.writer.apply([HourGone(hour)])
        kept = bool(self.files[hour] or self.markers[hour])
        assert (self.reader.hour_row(hour) is not None) == kept

    # -- peers ---------------------------------------------------------------------------------------------------------

    @rule(wanted=st.dictionaries(st.sampled_from(["node-b", "node-c"]), st.sampled_from(["here", "there"])))
    def settings_change(self, wanted: dict[str, str]) -> None:
        changed = {name for name in wanted if self.peers.get(name) != wanted[name]}
        gone = {name for name in self.peers if wanted.get(name) != self.peers[name]}
        added, forgotten = self.writer.sync_peers(wanted)
        assert (set(added), set(forgotten)) == (changed, gone)
        self.peers = wanted
        kept = {key: state for key, state in self.deliveries.items() if key[0] in wanted and key[0] not in changed}
        new = {
            (name, hour, stem): State.PENDING
            for name in changed
            for hour in HOURS
            for stem, pushable in self.markers[hour].items()
            if pushable
        }
        self.deliveries = {**kept, **new}

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data(), state=st.sampled_from([state for state in State if state is not State.HELD]))
    def a_peer_answers(self, data: st.DataObject, state: State) -> None:
        peer, hour, stem = key = data.draw(st.sampled_from(sorted(self.deliveries)))
        row = self.reader.marker(Marked(hour, stem))
        assert row is not None
        told: list[Sequence[tuple[Outcome, State]]] = []
        outcome = Outcome(row.marker, state, NOW_NS)
        self.writer.apply([DeliveryOutcomes(self.writer.peer_ids()[peer], [outcome], told.append)])
        before = self.deliveries[key]
        arrived = state in (State.RECEIVED, State.NOT_DURABLE, State.CONFIRMED, State.HOUR_GONE)
        changes = before is not state and (before is not State.HELD or arrived)
        assert told == [[(outcome, before)] if changes else []]
        if changes:
            self.deliveries[key] = state

    # -- the process ---------------------------------------------------------------------------------------------------

    @rule()
    def the_agent_restarts(self) -> None:
        self.close()
        self.open()

    @rule()
    def the_agent_is_killed(self) -> None:
        """What another process finds then is what stands in the files, whatever this one still has in its memory."""
        self.crashes += 1
        after = self.directory / f"{self.crashes}.sqlite"
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{after}{suffix}")
        self.close()
        self.path = after
        self.open()

    @rule()
    def the_log_moves_into_the_file(self) -> None:
        checkpointer = Checkpointer(str(self.path))
        checkpointer.wake()
        checkpointer.loop(0.0)
        checkpointer.close()

    # -- what must hold ------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        assert self.reader.totals() == (0, 0, 0, 0)

    @invariant()
    def listings_are_those_of_the_model(self) -> None:
        for hour in HOURS:
            visible = sorted(name for name in self.files[hour] if name.rpartition(".")[0] not in self.markers[hour])
            assert self.reader.listing(hour) == visible
            tombstones = [f"{stem}.tombstone" for stem in self.markers[hour]]
            assert self.reader.listing(hour, tombstones=True) == sorted([*visible, *tombstones])
            assert self.reader.segments(hour) == self.files[hour]
            assert self.reader.markers(hour) == dict.fromkeys(self.markers[hour], True)

    @invariant()
    def counts_are_true(self) -> None:
        assert_counts_are_true(self.path, self.writer.tally)
        assert self.writer.tally.markers == sum(len(markers) for markers in self.markers.values())
        hidden = [name for hour in HOURS for name in self.files[hour] if name.rpartition(".")[0] in self.markers[hour]]
        assert sum(self.writer.tally.hidden.values()) == len(hidden)
        assert sum(self.writer.tally.files.values()) == sum(len(files) for files in self.files.values())

    @invariant()
    def deliveries_are_those_of_the_model(self) -> None:
        assert set(self.writer.peer_ids()) == set(self.peers)
        found = {
            (delivery.peer, row.marked.hour, row.marked.stem): delivery.state
            for row in self.reader.marker_rows(limit=1_000)
            for delivery in self.reader.deliveries(row.marker)
        }
        assert found == self.deliveries


IndexAgainstModel.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
test_whatever_happens_the_index_is_that_of_the_model = pytest.mark.timeout(300)(IndexAgainstModel.TestCase)


# -- size --------------------------------------------------------------------------------------------------------------


def test_a_segment_costs_at_most_100_bytes(tmp_path: Path) -> None:
    """Of 200,000 as an archive has them: 111 hours of one quality, 1,800 an hour, each with a hash of its own."""
    path = str(tmp_path / "index.sqlite")
    writer = Writer(path)
    first, per_hour, total = hour_number("2019-11-13T02"), 1_800, 200_000
    letters = HASH * 2
    stored = 0
    for number in range((total + per_hour - 1) // per_hour):
        hour = Hour("desertbus", "source", first + number)
        names = [
            f"{second // 60:02d}:{second % 60:02d}.{(number * 7919 + second * 104729) % 1_000_000:06d}-2.0-full-"
            f"{letters[second % 43 :][:38]}{number % 100:02d}{second % 100:02d}M.ts"
            for second in range(0, 3_600, 2)
        ][: total - stored]
        for start in range(0, len(names), TRANSACTION_ROWS):
            add(writer, hour, *names[start : start + TRANSACTION_ROWS])
        stored += len(names)
    assert sum(writer.tally.files.values()) == stored == total
    writer.close()
    assert Path(path).stat().st_size <= 100 * total
    assert [file.name for file in tmp_path.iterdir()] == ["index.sqlite"]

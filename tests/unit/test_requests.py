"""What commands ask of the agent: done once, in small transactions, and not after whoever asked has died."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.support.index import BAD_UTF8, HOUR, NEXT_HOUR, assert_counts_are_true, kill, said, seen, start_python
from tests.support.journal import Journal
from tombsync.audit import Event
from tombsync.daemon import holding, refused_because, reloading, request_release, request_resume, taking_back
from tombsync.daemon.pushers import Pushers
from tombsync.daemon.requests import Requests
from tombsync.index import Reader, Writer, index_path
from tombsync.names import Marked
from tombsync.plan import Breaker, State
from tombsync.work import TRANSACTION_ROWS, Batch, Mailbox

PEERS = {"node-b": "tree://b", "node-c": "tree://c"}


class FakePusher:
    """What a request asks of a pusher; `busy` keeps a withdrawal from ending."""

    def __init__(self) -> None:
        self.looks = 0
        self.busy = False
        self.withdrawals: list[Callable[[], None]] = []

    def look_again(self) -> None:
        self.looks += 1

    def withdraw(self, markers: frozenset[int], done: Callable[[], None]) -> None:
        if self.busy:
            self.withdrawals.append(done)
        else:
            done()


class FakePushers:
    """Those of all peers."""

    def __init__(self, count: int) -> None:
        self.all = tuple(FakePusher() for _ in range(count))

    def look_again(self) -> None:
        for pusher in self.all:
            pusher.look_again()


class Bench:
    """An agent's side of the requests, whose index is written when a test says `work`."""

    def __init__(self, state: Path) -> None:
        self.state = str(state)
        self.path = index_path(self.state)
        self.writer = Writer(self.path)
        self.writer.sync_peers(PEERS)
        self.reader = Reader(self.path)
        self.journal = Journal()
        self.gone: set[str] = set()  # stems whose tombstone does not stand
        self.restart()

    def restart(self) -> None:
        """Another process on the same state."""
        self.mailbox = Mailbox()
        fake = FakePushers(len(PEERS))
        self.pushers, pushers = fake.all, cast("Pushers", fake)
        self.requests = Requests(self.state, self.mailbox, self.journal.audit, pushers, lambda m: m.stem in self.gone)

    def close(self) -> None:
        assert_counts_are_true(self.path, self.writer.tally)
        self.reader.close()
        self.writer.close()
        self.journal.close()

    def hide(self, *stems: str, held: bool = False) -> list[int]:
        news = self.writer.hide(seen(HOUR, *stems), 0, Breaker(0) if held else None)
        return [hidden.marker for hidden in news]

    def take(self) -> None:
        self.requests.take()

    def work(self) -> None:
        """Take what is asked for, and write until nothing is left."""
        self.take()
        while work := cast("list[Batch]", self.mailbox.take(0.0)):
            assert sum(batch.rows for batch in work) <= TRANSACTION_ROWS
            self.writer.apply(work)

    def states(self, marker: int) -> set[State]:
        return {delivery.state for delivery in self.reader.deliveries(marker)}

    def left(self) -> list[str]:
        return os.listdir(f"{self.state}/requests")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


# -- release and resume ------------------------------------------------------------------------------------------------


def test_a_release_of_many_is_told_once_with_all_of_them(bench: Bench) -> None:
    count = 2 * TRANSACTION_ROWS + 1
    markers = bench.hide(*map(str, range(count)), held=True)
    (later,) = bench.hide("later", held=True)
    path = request_release(bench.state, up_to=markers[-1], actor="somebody")
    bench.work()
    assert not os.path.exists(path)
    assert {state for marker in markers for state in bench.states(marker)} == {State.PENDING}
    assert bench.states(later) == {State.HELD}
    (record,) = bench.journal.records(Event.RELEASED)
    assert (record["TOMBSYNC_ACTOR"], record["TOMBSYNC_COUNT"]) == ("somebody", str(count))
    assert [pusher.looks for pusher in bench.pushers] == [1, 1]


def test_a_resume_of_many_is_done_in_small_transactions(bench: Bench) -> None:
    markers = bench.hide(*map(str, range(2 * TRANSACTION_ROWS + 1)), held=True)
    request_resume(bench.state, markers[1:])
    bench.work()
    assert bench.left() == []
    assert bench.states(markers[0]) == {State.HELD}
    assert {state for marker in markers[1:] for state in bench.states(marker)} == {State.PENDING}


# -- holding -----------------------------------------------------------------------------------------------------------


def test_what_is_held_for_a_command_stays_so_as_long_as_that_lives(bench: Bench) -> None:
    one, two = bench.hide("one", "two")
    bench.pushers[1].busy = True
    with holding(bench.state, [one], pending=[one], actor="somebody") as path:
        bench.work()
        assert bench.states(one) == {State.HELD}
        assert os.path.exists(path)  # it may still be on its way
        bench.pushers[1].withdrawals[0]()
        assert not os.path.exists(path)
        bench.work()
        assert bench.requests.holds(one)
        assert not bench.requests.holds(two)
        bench.restart()
        bench.work()
        assert bench.requests.holds(one)
        assert bench.states(one) == {State.HELD}
    bench.work()
    assert not bench.requests.holds(one)
    assert bench.states(one) == {State.HELD}  # the command has said what goes on
    assert bench.left() == []


def test_a_command_that_gives_up_leaves_nothing_behind(bench: Bench) -> None:
    (one,) = bench.hide("one")
    with holding(bench.state, [one], pending=[one], actor="somebody"):
        pass
    bench.work()
    assert bench.states(one) == {State.PENDING}
    bench.pushers[0].busy = True
    with holding(bench.state, [one], pending=[one], actor="somebody"):
        bench.work()
    bench.pushers[0].withdrawals[0]()
    assert bench.left() == []


DYING = """
import sys
from tombsync.daemon import holding, taking_back
with holding(sys.argv[1], [1, 2], pending=[2], actor="somebody"):
    print("held", flush=True)
    sys.stdin.readline()
    with taking_back(sys.argv[1], [1, 2], actor="somebody", reason=""):
        print("asked", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("when", ["before it is done", "held", "asked to take back"])
def test_what_a_killed_command_held_goes_on_and_nothing_is_taken_back(when: str, restart: bool, bench: Bench) -> None:
    (one,) = bench.hide("one", held=True)
    (two,) = bench.hide("two")
    bench.gone |= {"one", "two"}
    process = start_python(DYING, bench.state)
    assert said(process) == "held"
    if when != "before it is done":
        bench.work()
        assert bench.states(two) == {State.HELD}
    if when == "asked to take back":
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert said(process) == "asked"
    kill(process)
    if restart:
        bench.restart()
    bench.work()
    bench.work()
    assert bench.left() == []
    assert (bench.states(one), bench.states(two)) == ({State.HELD}, {State.PENDING})
    failed = bench.journal.records(Event.UNMARK_FAILED)
    assert [record["TOMBSYNC_COUNT"] for record in failed] == ([] if when == "before it is done" else ["1"])
    assert bench.journal.records(Event.UNMARKED) == []


# -- taking back -------------------------------------------------------------------------------------------------------


def test_what_is_taken_back_is_recorded_when_it_is_forgotten(bench: Bench) -> None:
    markers = bench.hide("gone", "came back", "released", held=True)
    bench.gone |= {"gone", "released"}
    request_resume(bench.state, [markers[2]])
    bench.work()
    with taking_back(bench.state, markers, actor="somebody", reason="a slip") as path:
        bench.take()
        assert bench.journal.records(Event.UNMARKED) == []
        bench.work()
        assert not os.path.exists(path)
    assert set(bench.reader.markers(HOUR)) == {"came back", "released"}
    (record,) = bench.journal.records(Event.UNMARKED)
    assert record["TOMBSYNC_SEGMENT"] == f"{HOUR.path}/gone"
    assert (record["TOMBSYNC_ACTOR"], record["TOMBSYNC_REASON"]) == ("somebody", "a slip")
    failed = bench.journal.records(Event.UNMARK_FAILED)
    assert {record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in failed} == {"came back", "released"}


def test_names_of_whatever_bytes_are_taken_back_with_the_others(bench: Bench) -> None:
    stems = ["one", "a\nb", BAD_UTF8]
    markers = bench.hide(*stems, held=True)
    news = bench.writer.hide(seen(NEXT_HOUR, *stems), 0, Breaker(0))
    bench.gone |= set(stems)
    with taking_back(bench.state, [*markers, *(hidden.marker for hidden in news)], actor="somebody", reason=""):
        bench.work()
    assert bench.reader.totals()[3] == 0
    assert len(bench.journal.records(Event.UNMARKED)) == 6


def test_whoever_gave_up_waiting_has_nothing_taken_back_later(bench: Bench) -> None:
    (one,) = bench.hide("one", held=True)
    bench.gone.add("one")
    with taking_back(bench.state, [one], actor="somebody", reason=""):
        pass
    bench.work()
    assert bench.reader.marker(Marked(HOUR, "one"))
    with taking_back(bench.state, [one], actor="somebody", reason=""):
        bench.take()  # the agent has read it, and its index is written only after
    bench.work()
    assert bench.reader.marker(Marked(HOUR, "one"))
    assert bench.journal.records(Event.UNMARKED) == []


def test_what_cannot_be_read_is_left_alone(bench: Bench) -> None:
    request_resume(bench.state, [])
    bench.work()
    for name in ("hold-1.json", "hold-2.json.lease", "resume-3.json"):
        Path(bench.state, "requests", name).write_text(json.dumps({"kind": "nonsense"}))
    bench.work()
    bench.work()
    assert len(bench.left()) == 3


# -- reload ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["", "a change of root takes a restart"])
def test_whoever_asks_for_a_reload_learns_what_came_of_it(bench: Bench, reason: str) -> None:
    with reloading(bench.state) as path:
        bench.take()
        bench.take()
        assert bench.requests.take_reloads() == [path]
        assert os.path.exists(path)
        bench.requests.answer([path], reason)
        assert not os.path.exists(path)
        assert refused_because(path) == reason
    assert bench.left() == []
    assert bench.requests.take_reloads() == []


def test_a_reload_that_nobody_waits_for_is_none(bench: Bench) -> None:
    with reloading(bench.state) as path:
        text = Path(path).read_text()
    Path(path).write_text(text)  # as somebody left it who died
    bench.take()
    assert bench.requests.take_reloads() == []
    assert bench.left() == []

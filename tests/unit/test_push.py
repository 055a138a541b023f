"""The pusher, turn by turn, with a peer in memory and a real index; no thread but where stopping is looked at."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.index import HOUR, NO_FILE, hide, seen, stem_of
from tests.support.memory_peer import MemoryPeer, MemorySession
from tests.support.waiting import wait_for
from tombsync import plan, precedence
from tombsync.audit import Audit, Event, StderrSink
from tombsync.errors import HostKeyChanged, PeerError, PeerLost, PeerTimeout, PeerUnreachable
from tombsync.index import DeliveriesHeld, HoldsEnded, PeerVerified, Reader, Writer
from tombsync.metrics import Metrics
from tombsync.names import OWN_DIRECTORY
from tombsync.peers import Connector, Job
from tombsync.plan import Breaker, State
from tombsync.push import FRESH_S, PING_INTERVAL_S, Pusher
from tombsync.push.canary import CANARY_LOST_AFTER_S
from tombsync.work import TRANSACTION_ROWS, Batch, Beats, Driver, Mailbox, Source

VERIFY_S = 3600.0
LONG_S = 1000.0  # longer than any backoff
PLACE = f"{HOUR.channel}/{HOUR.quality}"


class Journal(Audit):
    """Keeps what is recorded."""

    def __init__(self) -> None:
        super().__init__("node-a", StderrSink())
        self.records: list[tuple[Event, str, dict[str, Any]]] = []

    def record(self, event: Event, message: str, **fields: Any) -> int:
        self.records.append((event, message, fields))
        return len(self.records)

    def count(self, event: Event) -> int:
        return sum(1 for found, _, _ in self.records if found is event)


class World:
    """A node with one peer. Its clock stands still but for `later`; the index is written when a test says `commit`."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "index.sqlite")
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text("pinned\n")
        self.writer = Writer(self.path)
        self.writer.sync_peers({"node-b": "tree://b.example/segments"})
        self.key = self.writer.peer_ids()["node-b"]
        self.writer.apply([PeerVerified(self.key, time.time_ns())])  # so that no verify is due
        self.reader = Reader(self.path)
        self.mailbox, self.metrics, self.journal = Mailbox(), Metrics(), Journal()
        self.peer = MemoryPeer("node-b", known_hosts=str(self.known_hosts))
        self.peer.make_directory(PLACE)
        self.believed = True
        self.now = time.monotonic()
        self.hidden = 0
        self.pusher = self.new_pusher()

    def new_pusher(self) -> Pusher:
        return Pusher(
            peer=self.key,
            connector=cast(Connector, self.peer),
            index_path=self.path,
            mailbox=self.mailbox,
            audit=self.journal,
            metrics=self.metrics,
            believed=lambda: self.believed,
            verify_interval_s=VERIFY_S,
        )

    def restart(self) -> None:
        """A new process on the same index."""
        self.pusher.close()
        self.pusher = self.new_pusher()

    def close(self) -> None:
        self.pusher.close()
        self.peer.__exit__()
        self.reader.close()
        self.writer.close()

    # -- what happens -------------------------------------------------------------------------------------------------

    def hide(self, count: int = 1, *, age_s: float = 0.0, wake: bool = True) -> list[int]:
        """Hide segments as the intake does, and wake the pusher; their markers, oldest first."""
        markers = []
        while count:
            some = min(count, TRANSACTION_ROWS)
            stems = [f"{stem_of(number % 3600)}-{number}" for number in range(self.hidden, self.hidden + some)]
            self.hidden += some
            rows = hide(self.writer, HOUR, *stems, now_ns=time.time_ns() - int(age_s * 1e9))
            markers += [row.marker for row in rows]
            count -= some
            if wake:
                self.pusher.offer([row.due() for row in rows])
        return markers

    def turn(self, count: int = 1) -> None:
        """Turns that do not wait, as after a wake."""
        for _ in range(count):
            self.pusher.wake()
            self.pusher.loop(self.now)

    def commit(self) -> None:
        """Write what the pusher has handed over."""
        while work := cast("list[Batch]", self.mailbox.take(0.0)):
            assert all(batch.rows <= TRANSACTION_ROWS for batch in work)
            self.writer.apply(work)

    def later(self, seconds: float) -> None:
        self.now += seconds

    def run(self) -> None:
        """Turns and commits until nothing more is submitted."""
        before = -1
        while before != (before := len(self.peer.submitted) + self.peer.logins) or self.in_flight:
            self.turn(3)
            self.commit()

    def deliver(self, count: int = 1) -> list[int]:
        """Hide segments and have them confirmed."""
        markers = self.hide(count)
        self.run()
        assert self.states(markers) == {State.CONFIRMED}
        return markers

    def up(self) -> bool:
        return self.pusher.up

    # -- what can be seen ---------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[MemorySession]:
        return self.peer.sessions

    @property
    def in_flight(self) -> int:
        return self.sessions[-1].outstanding if self.up() else 0

    @property
    def submitted(self) -> list[int]:
        return [job.marker for job in self.peer.submitted]

    @property
    def placed(self) -> set[str]:
        return {path for path in self.peer.look() if path.endswith(".tombstone")}

    def state(self, marker: int) -> State:
        ((state, *_),) = [
            (delivery.state, row.marker)
            for row in self.reader.marker_rows(below=marker + 1, limit=1)
            for delivery in self.reader.deliveries(row.marker)
        ]
        return state

    def states(self, markers: list[int]) -> set[State]:
        return {self.state(marker) for marker in markers}

    def counts(self) -> dict[State, int]:
        return {state: count for state, count in self.reader.peers()[0].counts.items() if count}

    def jobs_since(self, index: int) -> list[Job]:
        return self.peer.submitted[index:]

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"tombsync_{name}", {"peer": "node-b", **labels}) or 0.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_newest_goes_first(world: World) -> None:
    markers = world.hide(500)
    world.run()
    assert world.submitted == markers[::-1]
    assert world.counts() == {State.CONFIRMED: 500}


def test_a_fresh_one_is_created_at_once_and_an_old_one_asked_for_first(world: World) -> None:
    (old,) = world.hide(age_s=FRESH_S + 1)
    (fresh,) = world.hide()
    world.run()
    assert {job.marker: (job.probe, job.make_hour) for job in world.peer.submitted} == {
        old: (True, True),
        fresh: (False, True),
    }


def test_a_fresh_one_overtakes_a_backlog(world: World) -> None:
    world.peer.window = 8
    world.hide(500, age_s=3600)
    world.turn(5)
    world.peer.answers_a_turn = 0  # the window is full, and stays so
    world.turn(2)
    done = len(world.submitted)
    assert done < 400
    markers = world.hide(3)
    world.turn()
    assert world.submitted[done : done + 3] == markers[::-1]


def test_a_fresh_one_overtakes_a_backlog_that_is_answered_without_a_pause(world: World) -> None:
    world.peer.window, world.peer.answers_a_turn = 8, 4
    world.hide(500, age_s=3600)
    world.turn(2)  # in the next ones there always is an answer
    (fresh,) = world.hide()
    for _ in range(3):
        world.pusher.loop(world.now)
    assert fresh in world.submitted
    assert len(world.submitted) < 100


def test_a_backlog_drains_through_a_small_window(world: World) -> None:
    world.peer.window = 16
    markers = world.hide(5000, age_s=86400)
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers, 1)
    assert world.counts() == {State.CONFIRMED: 5000}
    assert len(world.placed) == 5000
    assert all(job.probe for job in world.peer.submitted)


def test_bursts_larger_than_the_room_for_fresh_ones_lose_nothing(world: World) -> None:
    world.peer.window, world.peer.answers_a_turn = 4, 3
    markers = []
    for count in (1, 50, 400, 70, 33, 32, 31, 200):
        markers += world.hide(count)
        world.turn(2)
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers, 1)
    assert world.counts() == {State.CONFIRMED: len(markers)}
    assert len(world.placed) == len(markers)


def test_what_is_left_of_a_burst_goes_before_an_older_backlog(world: World) -> None:
    world.peer.window, world.peer.answers_a_turn = 4, 2
    world.hide(100, age_s=60)
    world.turn(5)
    done = len(world.submitted)
    burst = world.hide(100)
    world.run()
    assert world.submitted[done : done + 100] == burst[::-1]


# -- nothing twice, nothing lost ---------------------------------------------------------------------------------------


def test_nothing_is_submitted_twice_while_it_is_in_flight(world: World) -> None:
    world.peer.answers_a_turn = 0
    markers = world.hide(50)
    world.turn(5)
    more = world.hide(200)
    world.turn(5)  # MemorySession refuses what is in flight already
    assert set(markers) <= set(world.submitted)
    world.peer.answers_a_turn = 10
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers + more, 1)


def test_nothing_is_submitted_twice_while_its_outcome_is_not_committed(world: World) -> None:
    markers = world.hide(50)
    world.turn(3)
    assert world.in_flight == 0
    assert world.counts() == {State.PENDING: 50}  # as far as the index knows
    world.sessions[-1].lose()
    world.turn()
    world.later(LONG_S)
    world.turn(5)
    assert world.peer.logins == 2
    assert Counter(world.submitted) == dict.fromkeys(markers, 1)
    world.commit()
    world.run()
    assert world.counts() == {State.CONFIRMED: 50}
    assert Counter(world.submitted) == dict.fromkeys(markers, 1)


def test_a_failure_that_is_committed_late_is_tried_again_all_the_same(world: World) -> None:
    """The index's disk was full, say: when the retry was due, the outcome was not yet written."""
    world.peer.full = True
    (marker,) = world.hide()
    world.turn(3)
    world.later(LONG_S)
    world.turn(3)
    assert world.submitted == [marker]
    world.commit()
    assert world.state(marker) is State.PENDING
    world.turn()
    world.peer.full = False
    world.later(LONG_S)
    world.run()
    assert world.state(marker) is State.CONFIRMED


def test_what_a_sweep_found_before_the_wake_came_is_not_taken_again(world: World) -> None:
    world.peer.window = 1
    world.peer.full = True
    (old,) = world.hide()
    world.run()
    world.peer.full = False
    world.later(0.9)
    world.pusher.loop(world.now)  # the last wake is used up
    world.later(2)
    markers = world.hide(20, wake=False)
    world.pusher.loop(world.now)  # the sweep for the old one; it finds the new ones in the index
    assert world.submitted == [old, markers[-1]]
    world.run()
    assert Counter(world.submitted) == {old: 2, **dict.fromkeys(markers, 1)}


def test_a_lost_session_makes_everything_due_again(world: World) -> None:
    world.peer.answers_a_turn = 0
    markers = world.hide(50)
    world.turn(2)
    assert Counter(world.submitted) == dict.fromkeys(markers, 1)
    assert world.up()
    world.sessions[-1].lose()
    world.turn()
    world.commit()
    assert not world.up()
    assert not world.reader.peers()[0].up
    assert world.reader.peers()[0].error == "closed the connection"
    assert world.metric("push_failures_total", reason="lost") == 1
    world.peer.answers_a_turn = 1000
    world.later(LONG_S)
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers, 2)
    assert world.counts() == {State.CONFIRMED: 50}
    assert world.reader.peers()[0].up
    assert not world.reader.peers()[0].error


@pytest.mark.parametrize("call", ["submit", "ping"])
def test_a_session_that_ends_under_any_call_is_given_up(world: World, call: str) -> None:
    world.deliver()
    world.sessions[-1].lose()
    if call == "submit":
        world.hide()
    else:
        world.later(2 * PING_INTERVAL_S)
    world.turn()
    assert not world.up()
    world.later(LONG_S)
    world.run()
    assert set(world.counts()) == {State.CONFIRMED}


actions = st.lists(
    st.one_of(
        st.tuples(st.just("hide"), st.sampled_from([1, 3, 40, 250])),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("later"), st.sampled_from([1, 30, 100, 4000])),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("answer"), st.sampled_from([0, 1, 7, 1000])),
        st.tuples(st.just("full"), st.integers(0, 1)),
        st.tuples(st.just("serve"), st.integers(0, 1)),
        st.tuples(st.just("reach"), st.integers(0, 1)),
        st.tuples(st.just("believe"), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=30,
)


@given(actions, st.sampled_from([1, 8, 64, 900]))
@settings(max_examples=60)
def test_whatever_happens_every_delivery_is_confirmed_when_all_is_well_again(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[str, int]], window: int
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    try:
        world.peer.window = window
        for action, number in happened:
            act(world, action, number)
        for action, number in (("believe", 1), ("reach", 1), ("serve", 1), ("full", 0), ("answer", 1000)):
            act(world, action, number)
        for _ in range(4):  # a lost session is noticed, it is connected again, what failed is asked again
            world.commit()
            world.later(LONG_S)
            world.run()
        assert world.counts() == ({State.CONFIRMED: world.hidden} if world.hidden else {})
        assert len(world.placed) == world.hidden
    finally:
        world.close()


def act(world: World, action: str, number: int) -> None:
    if action == "hide":
        world.hide(number)
    elif action == "turn":
        world.turn(number)
    elif action == "commit":
        world.commit()
    elif action == "later":
        world.later(number)
    elif action == "lose" and world.up():
        world.sessions[-1].lose()
    elif action == "answer":
        world.peer.answers_a_turn = number
    elif action == "full":
        world.peer.full = bool(number)
    elif action == "serve" and number:
        world.peer.make_directory(PLACE)
    elif action == "serve" and not world.placed:  # what the peer holds, this test does not take away from it
        world.peer.remove(PLACE)
    elif action == "reach":
        world.peer.down = None if number else PeerUnreachable("node-b")
    elif action == "believe":
        world.believed = bool(number)
    elif action == "restart":
        world.restart()


# -- answers that are not the last word --------------------------------------------------------------------------------


def test_a_failed_delivery_is_tried_again_after_a_while(world: World) -> None:
    world.peer.full = True
    markers = world.hide(3)
    world.run()
    assert world.counts() == {State.PENDING: 3}
    assert world.metric("push_failures_total", reason="failure") == 3
    world.later(0.9)
    world.turn(3)
    assert len(world.submitted) == 3
    world.peer.full = False
    world.later(0.7)
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers, 2)
    assert world.counts() == {State.CONFIRMED: 3}


def test_what_fails_again_and_again_is_asked_for_less_and_less(world: World) -> None:
    world.peer.full = True
    world.hide()
    for _ in range(12):
        world.later(LONG_S)
        world.run()
    tried = len(world.submitted)
    assert tried >= 12
    world.later(29)  # by now the pause is 30 s at least, and 60 s at most
    world.turn(3)
    assert len(world.submitted) == tried
    world.later(32)
    world.run()
    assert len(world.submitted) > tried


def test_many_failures_of_one_attempt_count_as_one(world: World) -> None:
    world.peer.full = True
    world.peer.answers_a_turn = 1
    world.hide(30)
    world.run()
    world.later(1.6)
    world.run()
    world.later(2.1)
    world.run()
    assert len(world.submitted) == 90


@pytest.mark.parametrize("state", [State.NOT_SERVED, State.REFUSED])
def test_a_peer_that_does_not_serve_a_channel_is_asked_again_each_minute(world: World, state: State) -> None:
    if state is State.NOT_SERVED:
        world.peer.remove(PLACE)
    else:
        world.peer.unwritable.add(PLACE)
    markers = world.hide(3)
    world.run()
    assert world.counts() == {state: 3}
    world.later(59)
    world.turn(3)
    assert len(world.submitted) == 3
    world.later(2)
    world.run()
    assert Counter(world.submitted) == dict.fromkeys(markers, 2)
    assert world.counts() == {state: 3}
    world.peer.make_directory(PLACE)
    world.peer.unwritable.clear()
    world.later(61)
    world.run()
    assert world.counts() == {State.CONFIRMED: 3}
    told = [fields for event, _, fields in world.journal.records if event is Event.UNDELIVERED]
    assert [(fields["state"], fields["was"]) for fields in told] == [(state.word, "pending")] * 3  # not each minute


def test_what_was_confirmed_once_does_not_make_its_hour_again(world: World) -> None:
    (marker,) = world.deliver()
    world.peer.remove(HOUR.path)
    world.peer.make_directory(HOUR.path)
    world.peer.full = True
    world.later(VERIFY_S + 1)
    world.run()
    assert world.state(marker) is State.PENDING
    world.peer.remove(HOUR.path)
    world.peer.full = False
    world.later(LONG_S)
    world.run()
    assert world.state(marker) is State.HOUR_GONE
    assert HOUR.path not in world.peer.look()


def test_a_marker_that_can_be_pushed_only_later_is_pushed_at_once_then(world: World) -> None:
    """A directory had the tombstone's name and made room for a file."""
    hide(world.writer, HOUR, stem_of(1), sight=NO_FILE)
    world.deliver(3)
    (row,) = world.writer.hide(seen(HOUR, stem_of(1)), time.time_ns())
    assert world.state(row.marker) is State.PENDING
    world.pusher.offer([row.due()])
    world.run()
    assert world.state(row.marker) is State.CONFIRMED


# -- the verify --------------------------------------------------------------------------------------------------------


def test_a_verify_asks_for_all_that_was_confirmed_and_places_what_is_missing(world: World) -> None:
    markers = world.deliver(450)
    asked = len(world.submitted)
    missing = sorted(world.placed)[::100]
    for path in missing:
        world.peer.remove(path)
    world.peer.window = 16
    world.later(VERIFY_S - 10)
    world.turn(3)
    assert len(world.submitted) == asked
    before = world.reader.peers()[0].verified_at_ns
    assert before is not None
    world.later(20)
    world.run()
    jobs = world.jobs_since(asked)
    assert Counter(job.marker for job in jobs) == dict.fromkeys(markers, 1)
    assert all(job.probe and job.durable and not job.make_hour for job in jobs)
    assert set(missing) <= world.placed
    restored = [fields["marked"] for event, _, fields in world.journal.records if event is Event.RESTORED]
    assert sorted(marked.tombstone_path for marked in restored) == missing
    assert world.counts() == {State.CONFIRMED: 450}
    after = world.reader.peers()[0].verified_at_ns
    assert after is not None
    assert after > before
    asked = len(world.submitted)
    world.later(VERIFY_S - 10)
    world.turn(3)
    assert len(world.submitted) == asked
    world.later(20)
    world.run()
    assert len(world.submitted) == asked + 450


def test_the_verify_is_not_over_before_its_last_answer(world: World) -> None:
    world.deliver(5)
    before = world.reader.peers()[0].verified_at_ns
    world.peer.answers_a_turn = 0
    world.later(VERIFY_S + 1)
    world.turn(5)
    world.commit()
    assert world.reader.peers()[0].verified_at_ns == before
    world.peer.answers_a_turn = 1
    world.run()
    assert world.reader.peers()[0].verified_at_ns != before


def test_a_verify_that_was_cut_short_begins_again(world: World) -> None:
    markers = world.deliver(300)
    before = world.reader.peers()[0].verified_at_ns
    asked = len(world.submitted)
    world.peer.answers_a_turn = 10
    world.later(VERIFY_S + 1)
    world.turn(3)
    world.sessions[-1].lose()
    world.turn()
    world.commit()
    assert world.reader.peers()[0].verified_at_ns == before
    world.later(LONG_S)
    first = len(world.submitted)
    assert first > asked
    world.run()
    assert {job.marker for job in world.jobs_since(first)} == set(markers)
    assert world.reader.peers()[0].verified_at_ns != before


def test_an_hour_that_is_gone_is_an_answer_and_is_due_again_when_it_returns(world: World) -> None:
    (marker,) = world.deliver()
    world.peer.remove(HOUR.path)
    world.later(VERIFY_S + 1)
    world.run()
    assert world.state(marker) is State.HOUR_GONE
    asked = len(world.submitted)
    world.later(VERIFY_S - 10)
    world.turn(3)
    assert len(world.submitted) == asked
    world.peer.make_directory(HOUR.path)
    world.later(20)
    world.run()
    assert world.state(marker) is State.CONFIRMED
    assert len(world.placed) == 1
    assert world.metric("push_seconds_count") == 1  # of the first delivery alone


def test_what_was_not_durable_is_synced_by_a_verify_where_that_is_possible_now(world: World) -> None:
    world.peer.can_sync = False
    (marker,) = world.hide()
    for state, durable in ((State.NOT_DURABLE, False), (State.CONFIRMED, False), (State.CONFIRMED, True)):
        world.run()
        assert world.state(marker) is state
        assert world.peer.submitted[-1].durable is durable
        world.peer.can_sync = True
        world.later(VERIFY_S + 1)


def test_the_time_of_the_verify_is_remembered(world: World) -> None:
    world.deliver(3)
    world.restart()
    asked = len(world.submitted)
    world.turn(3)
    world.later(VERIFY_S - 60)
    world.turn(3)
    assert len(world.submitted) == asked
    world.later(60)
    world.run()
    assert len(world.submitted) == asked + 3


@pytest.mark.parametrize("ago_s", [None, 2 * VERIFY_S, -86400.0], ids=["never", "long ago", "in the future"])
def test_a_verify_that_is_due_at_the_start(world: World, ago_s: float | None) -> None:
    world.deliver(3)
    world.restart()
    now_ns, interval_ns = time.time_ns(), int(VERIFY_S * 1e9)
    with world.writer.transaction():
        verified_at_ns = None if ago_s is None else now_ns - int(ago_s * 1e9)
        world.writer.execute("UPDATE peer SET verified_at_ns = ?", (verified_at_ns,))
    world.run()
    assert len(world.submitted) == 6
    (row,) = world.reader.peers()
    assert row.verified_at_ns is not None
    assert abs(row.verified_at_ns - now_ns) < interval_ns


def test_a_backlog_goes_before_a_verify(world: World) -> None:
    world.deliver(100)
    world.later(VERIFY_S + 1)
    world.peer.window = 4
    asked = len(world.submitted)
    world.hide(100, age_s=60)
    world.run()
    jobs = world.jobs_since(asked)
    assert [job.make_hour for job in jobs] == [True] * 100 + [False] * (len(jobs) - 100)
    assert len(jobs) >= 200


# -- the peer as a whole -----------------------------------------------------------------------------------------------


def test_a_peer_that_is_down_is_tried_again_with_pauses(world: World) -> None:
    world.peer.down = PeerUnreachable("node-b", "Connection refused")
    world.hide()
    world.turn(5)
    assert world.peer.logins == 1
    world.commit()
    row = world.reader.peers()[0]
    assert (row.up, row.error) == (False, "cannot be reached: Connection refused")
    for logins in range(2, 5):
        world.later(LONG_S)
        world.turn(3)
        assert world.peer.logins == logins
    assert world.metric("push_failures_total", reason="unreachable") == 4
    assert world.journal.count(Event.PEER_DOWN) == 1  # told once
    world.peer.down = PeerTimeout("node-b", "while connecting")
    world.later(LONG_S)
    world.turn()
    assert world.journal.count(Event.PEER_DOWN) == 2  # another reason is news
    world.peer.down = None
    world.later(LONG_S)
    world.run()
    assert world.counts() == {State.CONFIRMED: 1}
    (message,) = [text for event, text, _ in world.journal.records if event is Event.PEER_UP]
    assert message == "node-b is back"


def test_sessions_that_end_at_once_are_failures_in_a_row(world: World) -> None:
    """A login that is taken is no sign of health where nothing works afterwards."""

    def lose() -> None:
        world.sessions[-1].lose()

    world.peer.on_collect = lose
    world.hide()
    logins_at = log_in_for(world, 3600)
    assert all(later - at >= 60 for at, later in pairwise(logins_at) if at - logins_at[0] > 700)
    assert len(logins_at) < 90
    world.peer.on_collect = lambda: None
    world.later(LONG_S)
    world.run()
    assert world.counts() == {State.CONFIRMED: 1}


def test_a_dead_peer_costs_at_most_one_login_a_minute_after_ten_minutes(world: World) -> None:
    world.peer.down = PeerUnreachable("node-b")
    logins_at = log_in_for(world, 3600)
    assert all(later - at >= 60 for at, later in pairwise(logins_at) if at - logins_at[0] > 700)
    assert all(later - at <= 77 for at, later in pairwise(logins_at))
    assert logins_at[1] - logins_at[0] <= 3  # a short fault is healed soon


def log_in_for(world: World, seconds: int) -> list[float]:
    """Let a time pass, a turn each second; when it was tried to log in."""
    logins_at = []
    for _ in range(seconds):
        before = world.peer.logins
        world.turn()
        if world.peer.logins > before:
            logins_at.append(world.now)
        world.later(1)
    return logins_at


def test_a_session_that_stood_for_a_while_makes_a_fresh_start(world: World) -> None:
    world.peer.down = PeerUnreachable("node-b")
    log_in_for(world, 900)
    world.peer.down = None
    world.later(LONG_S)
    world.run()
    assert world.up()
    world.later(120)
    world.sessions[-1].lose()
    world.turn()
    assert not world.up()
    world.later(2)
    world.turn()
    assert world.up()


def test_an_outage_of_hours_is_forgotten_once_the_peer_can_be_reached(world: World) -> None:
    """As of a peer that was off, and whose sshd is restarted a little after its boot."""
    world.peer.down = PeerUnreachable("node-b")
    log_in_for(world, 7200)
    world.peer.down = None
    world.later(LONG_S)
    world.run()
    world.later(5)
    world.sessions[-1].lose()
    world.turn()
    assert not world.up()
    world.later(2)
    world.turn()
    assert world.up()


@pytest.mark.parametrize("session_s", [10, 30, 50])
def test_a_peer_that_does_not_stay_is_waited_for_the_rest_of_a_minute(world: World, session_s: int) -> None:
    logins_at: list[float] = []
    down_s = 0
    for _ in range(3600):
        if world.up() and world.now - logins_at[-1] >= session_s:
            world.sessions[-1].lose()
        before = world.peer.logins
        world.turn()
        if world.peer.logins > before:
            logins_at.append(world.now)
        down_s += not world.up()
        world.later(1)
    gaps = [later - at for at, later in pairwise(logins_at)]
    assert max(gaps) <= 77
    assert all(gap >= 59 for gap in gaps[-20:])  # a login a minute, as with a dead one
    assert down_s / len(logins_at) <= 77 - session_s


@given(st.integers())
def test_no_jitter_lets_a_peer_dead_for_ten_minutes_be_asked_more_than_once_a_minute(seed: int) -> None:
    jitter = random.Random(seed)
    attempts = [0.0]
    while attempts[-1] < 3600:
        attempts.append(attempts[-1] + plan.backoff_s(len(attempts), attempts[-1], random=jitter.random()))
    gaps = [(at, after - at) for at, after in pairwise(attempts)]
    assert all(gap > 59.999 for at, gap in gaps if at >= 600)
    assert all(gap < 75.001 for _, gap in gaps)
    assert sum(1 for at, _ in gaps if at < 600) <= 40


def test_an_idle_session_is_pinged_and_a_dead_one_noticed(world: World) -> None:
    world.deliver()
    world.now = time.monotonic()
    world.turn(3)
    assert world.sessions[-1].pings == 0
    for pings in (1, 2):
        world.later(PING_INTERVAL_S + 1)
        world.turn(3)
        assert world.sessions[-1].pings == pings


@pytest.mark.parametrize("had_it", [True, False])
def test_a_root_marker_that_was_seen_is_missed_by_the_next_life_too(world: World, *, had_it: bool) -> None:
    if had_it:
        world.peer.make_directory(OWN_DIRECTORY)
    world.turn(3)
    world.commit()
    world.restart()
    if had_it:
        world.peer.remove(OWN_DIRECTORY)
    for _ in range(3):
        world.turn(3)
        world.later(CANARY_LOST_AFTER_S / 2)
    world.turn(3)
    assert world.journal.count(Event.CANARY_LOST) == had_it


def test_a_broken_way_is_told_although_nobody_marks_and_whatever_the_session(world: World) -> None:
    world.peer.make_directory(OWN_DIRECTORY)
    world.turn(3)
    assert world.pusher.canary_age_s < LONG_S
    world.peer.remove(OWN_DIRECTORY)
    world.sessions[-1].lose()
    for _ in range(3):
        world.turn(3)
        world.later(CANARY_LOST_AFTER_S / 2)
    world.turn(3)
    assert world.journal.count(Event.CANARY_LOST) == 1
    assert world.up()
    assert world.submitted == []


def change(path: Path) -> None:
    """Another time of the last change, whatever the clock's ticks."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def test_a_changed_host_key_halts_until_a_person_has_changed_known_hosts(world: World) -> None:
    world.peer.down = HostKeyChanged("node-b", "it now shows another")
    world.hide()
    for logins in (1, 2):
        for _ in range(3):
            world.turn()
            world.later(100 * LONG_S)
        assert world.peer.logins == logins
        assert world.journal.count(Event.HOST_KEY_CHANGED) == logins
        change(world.known_hosts)
    world.peer.down = None
    world.run()
    assert world.counts() == {State.CONFIRMED: 1}
    assert world.journal.count(Event.PEER_DOWN) == 0


def test_known_hosts_that_is_corrected_while_we_connect_is_not_overlooked(world: World) -> None:
    world.peer.down = HostKeyChanged("node-b", "it now shows another")
    world.peer.on_connect = lambda: change(world.known_hosts)
    world.turn()
    world.peer.on_connect, world.peer.down = lambda: None, None
    world.later(LONG_S)
    world.turn()
    assert world.peer.logins == 2
    assert world.up()


def test_known_hosts_that_is_missing_for_a_while(world: World) -> None:
    world.peer.down = HostKeyChanged("node-b", "it now shows another")
    world.turn()
    world.known_hosts.unlink()
    world.later(LONG_S)
    world.turn()
    assert world.peer.logins == 2
    world.later(LONG_S)
    world.turn()
    assert world.peer.logins == 2
    world.known_hosts.write_text("corrected\n")
    world.later(LONG_S)
    world.turn()
    assert world.peer.logins == 3


# -- the tree that is not believed -------------------------------------------------------------------------------------


def test_nothing_is_pushed_from_a_tree_that_is_not_believed(world: World) -> None:
    world.believed = False
    world.hide(3)
    world.turn(3)
    assert world.peer.logins == 0
    world.believed = True
    world.run()
    assert world.counts() == {State.CONFIRMED: 3}


def test_what_is_fresh_does_not_stand_back_with_a_backlog(world: World) -> None:
    world.peer.window, world.peer.answers_a_turn = 1000, 0
    world.hide(100, age_s=60)
    world.turn(2)
    assert len(world.submitted) == 100
    world.hide(1)
    waited: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precedence, "give_way", lambda: waited.append(len(world.submitted)))
        world.turn()
    assert waited == [101, 101]


def test_what_was_in_flight_when_the_tree_went_is_still_listened_to(world: World) -> None:
    world.peer.window, world.peer.answers_a_turn = 40, 0
    world.hide(100)
    world.turn(2)
    sent = len(world.submitted)
    assert 0 < sent < 100
    world.believed = False
    world.hide(3)
    world.peer.answers_a_turn = 1000
    for _ in range(3):
        world.turn()
        world.commit()
        world.later(LONG_S)
    assert world.counts() == {State.CONFIRMED: sent, State.PENDING: 103 - sent}
    assert len(world.submitted) == sent
    world.sessions[-1].lose()
    world.turn()
    assert not world.up()
    world.later(LONG_S)
    world.turn(3)
    assert world.peer.logins == 1
    world.believed = True
    world.run()
    assert world.counts() == {State.CONFIRMED: 103}


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_delivery_is_told_and_measured_once(world: World) -> None:
    world.deliver(3)
    world.later(VERIFY_S + 1)
    world.run()
    assert len(world.submitted) == 6
    assert world.metric("push_seconds_count") == 3
    delivered = [(text, fields) for event, text, fields in world.journal.records if event is Event.DELIVERED]
    assert len(delivered) == 3
    for text, fields in delivered:
        assert text == f"node-b holds {fields['marked'].path}"
        assert fields["elapsed_ms"] >= 0.0


def test_nothing_is_told_as_delivered_before_it_is_committed(world: World) -> None:
    world.hide(3)
    world.turn(3)
    assert world.journal.count(Event.DELIVERED) == 0
    world.commit()
    world.turn()
    assert world.journal.count(Event.DELIVERED) == 3


def test_what_was_committed_after_the_last_turn_is_told_at_the_end(world: World) -> None:
    world.hide(3)
    world.turn(3)
    world.commit()
    world.restart()
    assert world.journal.count(Event.DELIVERED) == 3


def test_a_thousand_answers_at_once_are_written_in_small_transactions(world: World) -> None:
    world.peer.window = 1000
    world.hide(1000, age_s=60)
    world.peer.answers_a_turn = 0
    world.turn(20)
    assert world.in_flight == 1000
    world.peer.answers_a_turn = 1000
    world.run()  # `commit` looks at the size of each batch
    assert world.counts() == {State.CONFIRMED: 1000}


# -- stopping ----------------------------------------------------------------------------------------------------------


def running(world: World) -> Driver:
    died = threading.Event()
    driver = Driver(world.pusher, Beats(), died.set)
    driver.start()
    return driver


def held_back(world: World) -> None:
    world.peer.answers_a_turn = 0
    world.hide(10)


def down(world: World) -> None:
    world.peer.down = PeerUnreachable("node-b")


@pytest.mark.parametrize(
    ("prepare", "reached"),
    [
        pytest.param(held_back, lambda world: world.peer.submitted, id="for answers"),
        pytest.param(down, lambda world: world.peer.logins, id="for the next attempt"),
        pytest.param(lambda world: None, lambda world: world.up(), id="for work"),
        pytest.param(lambda world: setattr(world, "believed", False), lambda world: True, id="for the tree"),
    ],
)
def test_stop_ends_a_wait(world: World, prepare: Callable[[World], None], reached: Callable[[World], object]) -> None:
    prepare(world)
    driver = running(world)
    wait_for(lambda: reached(world), "the wait")
    world.pusher.stop()
    driver.stop()
    assert driver.join(10.0)
    assert driver.failure is None
    assert world.peer.aborted.is_set()


def test_stop_ends_an_attempt_to_connect(world: World) -> None:
    connecting = threading.Event()

    def hang() -> None:
        connecting.set()
        assert world.peer.aborted.wait(20.0)

    world.peer.on_connect = hang
    driver = running(world)
    assert connecting.wait(20.0)
    world.pusher.stop()
    driver.stop()
    assert driver.join(10.0)
    assert driver.failure is None
    assert not world.up()
    assert not world.journal.records  # no peer is down because we stop


def test_a_wake_is_enough_for_a_fresh_one_to_be_delivered(world: World) -> None:
    driver = running(world)
    wait_for(world.up, "the session")
    world.hide(3)
    wait_for(lambda: len(world.placed) == 3, "the tombstones", timeout_s=20.0)
    world.pusher.stop()
    driver.stop()
    assert driver.join(10.0)


def test_errors_of_a_stopped_pusher_are_nobodys_business(world: World) -> None:
    failures: list[PeerError] = [PeerLost("node-b"), PeerTimeout("node-b")]
    world.deliver()
    recorded = len(world.journal.records)
    world.pusher.stop()
    for failure in failures:
        world.sessions[-1].lose(failure)
        world.turn()
    assert len(world.journal.records) == recorded
    assert world.metric("push_failures_total", reason="lost") == 0


# -- what is held ------------------------------------------------------------------------------------------------------


def hold(world: World, markers: list[int]) -> None:
    world.writer.apply([DeliveriesHeld(markers, lambda: None)])


@pytest.mark.parametrize("queued_as", ["offer", "backlog"])
def test_what_is_held_while_it_is_queued_is_not_sent(queued_as: str, world: World) -> None:
    world.peer.window = 2
    world.deliver()
    world.peer.answers_a_turn = 0
    if queued_as == "backlog":
        markers = world.hide(100, age_s=FRESH_S + 1, wake=False)
        world.pusher.look_again()
        world.turn(2)
    else:
        markers = world.hide(10)
    on_their_way = set(world.submitted[1:])
    assert 0 < len(on_their_way) < 50 if queued_as == "backlog" else not on_their_way
    hold(world, markers)
    world.pusher.look_again()
    world.peer.answers_a_turn = 1_000_000
    world.run()
    creating = {job.marker for job in world.peer.submitted[1:] if not job.ask_only}
    assert creating == on_their_way
    assert world.states([marker for marker in markers if marker not in on_their_way]) == {State.HELD}
    world.writer.apply([HoldsEnded(markers, lambda _: None)])
    world.pusher.look_again()
    world.run()
    assert world.states(markers) == {State.CONFIRMED}


def test_a_withdrawal_waits_for_what_is_on_its_way_and_keeps_back_the_rest(world: World) -> None:
    """As for `unmark`, which asks the peers only then."""
    world.deliver()
    world.peer.window = 3
    world.peer.answers_a_turn = 0
    markers = world.hide(100, age_s=FRESH_S + 1, wake=False)
    world.pusher.look_again()
    world.turn(2)
    on_their_way = world.submitted[1:]
    assert 0 < len(on_their_way) < 50
    hold(world, markers)
    done: list[int] = []
    world.pusher.withdraw(frozenset(markers), lambda: done.append(len(world.submitted)))
    world.turn(3)
    world.commit()
    assert done == []
    world.peer.answers_a_turn = 1_000_000
    world.turn()
    assert done == []  # answered, and the index does not know it yet
    world.commit()
    world.turn()
    assert len(done) == 1
    assert world.states(on_their_way) == {State.CONFIRMED}
    world.run()
    assert [job.marker for job in world.peer.submitted[1:] if not job.ask_only] == on_their_way
    assert world.states([marker for marker in markers if marker not in on_their_way]) == {State.HELD}


def test_a_withdrawal_ends_with_the_session_that_had_it_on_its_way(world: World) -> None:
    world.deliver()
    world.peer.answers_a_turn = 0
    markers = world.hide(2)
    world.turn(2)
    hold(world, markers)
    done: list[None] = []
    world.pusher.withdraw(frozenset(markers), lambda: done.append(None))
    world.turn()
    assert done == []
    world.sessions[-1].lose()
    world.turn(2)
    assert done == [None]


def test_ten_thousand_old_tombstones_that_the_peer_has_are_not_held_for_long(world: World) -> None:
    """A first start, or a node that a stock backfiller has filled: a mass by its ctimes."""
    breaker, count = Breaker(500), 10_000
    stems = [f"{stem_of(number % 3600)}-{number}" for number in range(count)]
    for stem in stems:
        world.peer.make_file(f"{HOUR.path}/{stem}.tombstone")
    world.peer.window = 1000
    markers = []
    for start in range(0, count, TRANSACTION_ROWS):
        sightings = seen(HOUR, *stems[start : start + TRANSACTION_ROWS], source=Source.RESCAN)
        markers += [hidden.marker for hidden in world.writer.hide(sightings, time.time_ns(), breaker)]
    assert world.counts()[State.HELD] == count
    before = world.peer.look()
    world.pusher._on_holds_ended = world.pusher.look_again
    while world.counts() != {State.CONFIRMED: count}:
        world.turn(3)
        world.commit()
        assert len(world.peer.submitted) <= 3 * count, "asked again and again"
    assert world.peer.look() == before

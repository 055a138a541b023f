"""Asking peers now: all at once, in batches, with a bound, and nothing is believed that was not answered."""

from __future__ import annotations

import importlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.support.index import HOUR, stem_of
from tests.support.memory_peer import MemoryPeer
from tests.support.sessions import target_of
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.errors import HostKeyChanged, PeerError, PeerLost, PeerTimeout, PeerTreeMissing, PeerUnreachable
from tombsync.names import OWN_DIRECTORY, Marked
from tombsync.peers import Answer, Job, Target
from tombsync.plan import State
from tombsync.proof import Heard, Question, ask

WAIT_S = 20.0
MODULE = importlib.import_module("tombsync.proof.ask")  # the package has a function of that name


def question(number: int, *, durable: bool = False) -> Question:
    return Question(number, Marked(HOUR, stem_of(number)), durable)


def questions(count: int) -> list[Question]:
    return [question(number) for number in range(1, count + 1)]


class Peers:
    """Peers in memory, in the place of those that a target leads to."""

    def __init__(self) -> None:
        self._by_target: dict[Target, MemoryPeer] = {}

    def add(self, name: str, *, window: int = 64, stands: Sequence[Question] = ()) -> MemoryPeer:
        """A peer that has the hour, and the tombstones of these questions."""
        peer = MemoryPeer(name, window=window)
        peer.make_directory(HOUR.path)
        for one in stands:
            peer.make_file(one.marked.tombstone_path)
        self._by_target[peer.target] = peer
        return peer

    def connector(self, target: Target) -> MemoryPeer:
        return self._by_target[target]

    def close(self) -> None:
        for peer in self._by_target.values():
            peer.__exit__()


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    peers = Peers()
    monkeypatch.setattr(MODULE, "Connector", peers.connector)
    yield peers
    peers.close()


class Clock:
    """Time that goes on with every answer that is looked for, and not by itself."""

    def __init__(self, peer: MemoryPeer, step_s: float) -> None:
        self.now = 0.0
        peer.on_collect = lambda: self.go_on(step_s)

    def go_on(self, step_s: float) -> None:
        self.now += step_s

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


def ask_one(
    peer: MemoryPeer,
    asked: Sequence[Question],
    *,
    data: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Heard:
    (heard,) = ask({peer.target: asked}, data=data, on_progress=on_progress)
    return heard


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


# -- what is asked and answered ----------------------------------------------------------------------------------------


def test_it_only_asks_and_hears_every_answer(peers: Peers) -> None:
    asked = questions(4)
    peer = peers.add("node-b", stands=asked[:2])
    peer.make_file(f"{asked[2].marked.path}.ts")
    before, begun_ns = peer.look(), time.time_ns()
    heard = ask_one(peer, asked, data=True)
    assert (heard.peer, heard.error) == ("node-b", None)
    assert begun_ns <= heard.asked_at_ns <= time.time_ns()
    assert {marker: (answer.state, answer.data) for marker, answer in heard.answers.items()} == {
        1: (State.CONFIRMED, False),
        2: (State.CONFIRMED, False),
        3: (State.PENDING, True),
        4: (State.PENDING, False),
    }
    assert peer.look() == before
    assert all(job.ask_only and job.ask_data for job in peer.submitted)


@pytest.mark.parametrize("there", [False, True])
def test_it_hears_whether_the_root_marker_stands_there(peers: Peers, there: bool) -> None:
    peer = peers.add("node-b")
    if there:
        peer.make_directory(OWN_DIRECTORY)
    assert ask_one(peer, questions(1)).marker_there is there


def test_what_the_index_knows_goes_with_the_question_and_data_is_asked_for_only_where_wanted(peers: Peers) -> None:
    peer = peers.add("node-b")
    assert ask_one(peer, [question(1, durable=True), question(2)]).answers[1].data is None
    assert peer.submitted == [
        Job(1, question(1).marked, durable=True, ask_only=True),
        Job(2, question(2).marked, ask_only=True),
    ]


def test_many_questions_go_in_batches_as_the_session_has_room(peers: Peers) -> None:
    asked = questions(500)
    peer = peers.add("node-b", window=7, stands=asked[::2])
    peer.answers_a_turn = 3
    in_flight = []
    peer.on_collect = lambda: in_flight.append(peer.sessions[0].outstanding)
    heard = ask_one(peer, asked)
    assert heard.error is None
    assert {marker for marker, answer in heard.answers.items() if answer.state is State.CONFIRMED} == {
        one.marker for one in asked[::2]
    }
    assert len(heard.answers) == 500
    assert max(in_flight) == 7
    assert [job.marker for job in peer.submitted] == [one.marker for one in asked]
    assert peer.logins == 1


def test_all_peers_are_asked_at_once_and_answer_in_the_order_given(peers: Peers) -> None:
    every = [peers.add(f"node-{number}") for number in range(5)]
    together = threading.Barrier(len(every), timeout=WAIT_S)  # nobody is connected before all of them are

    def meet() -> None:
        together.wait()

    for peer in every:
        peer.on_connect = meet
    heard = ask({peer.target: questions(number) for number, peer in enumerate(every)}, data=False)
    assert [(each.peer, len(each.answers), each.error) for each in heard] == [(f"node-{n}", n, None) for n in range(5)]
    assert all(peer.sessions[0].failure is not None for peer in every)  # closed


def test_nobody_to_ask() -> None:
    assert ask({}, data=True) == []


# -- peers that do not answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PeerUnreachable("node-b"), HostKeyChanged("node-b", "it now shows another")])
def test_a_peer_that_cannot_be_asked_says_why_and_is_in_nobodys_way(peers: Peers, error: PeerError) -> None:
    bad, good = peers.add("node-b"), peers.add("node-c")
    bad.down = error
    heard, other = ask({bad.target: questions(3), good.target: questions(3)}, data=False)
    assert heard.error is error
    assert heard.answers == {}
    assert (len(other.answers), other.error) == (3, None)
    assert bad.submitted == []


def test_a_peer_whose_tree_is_not_there_is_not_asked_at_all(peers: Peers) -> None:
    peer = peers.add("node-b")
    peer.remove("")
    heard = ask_one(peer, questions(1))
    assert isinstance(heard.error, PeerTreeMissing)
    assert heard.error.detail == peer.target.path
    assert peer.submitted == []


def test_a_peer_that_dies_in_the_middle_keeps_what_it_said_and_no_more(peers: Peers) -> None:
    asked = questions(10)
    peer = peers.add("node-b", stands=asked)
    peer.answers_a_turn = 2
    turns = itertools.count()
    peer.on_collect = lambda: peer.sessions[0].lose() if next(turns) == 3 else None
    heard = ask_one(peer, asked)
    assert isinstance(heard.error, PeerLost)
    assert heard.answers == {number: Answer(number, State.CONFIRMED) for number in range(1, 7)}


def test_a_silent_peer_is_given_up_after_the_bound(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peers.add("node-b", window=2)
    peer.answers_a_turn = 0
    clock = Clock(peer, step_s=MODULE.STALLED_AFTER_S / 2)
    monkeypatch.setattr(MODULE, "time", clock)
    heard = ask_one(peer, questions(5))
    assert isinstance(heard.error, PeerTimeout)
    assert "5 questions wait" in str(heard.error)  # those that it took, and those that it had no room for
    assert clock.now <= 2 * MODULE.STALLED_AFTER_S


def test_a_slow_peer_has_the_time_that_it_needs(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is for one answer, not for all of them."""
    peer = peers.add("node-b")
    peer.answers_a_turn = 1
    clock = Clock(peer, step_s=MODULE.STALLED_AFTER_S - 1)
    monkeypatch.setattr(MODULE, "time", clock)
    heard = ask_one(peer, questions(20))
    assert (len(heard.answers), heard.error) == (20, None)
    assert clock.now > 10 * MODULE.STALLED_AFTER_S


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_has_not_heard_everything(peers: Peers) -> None:
    def fail() -> None:
        raise RuntimeError("a bug of ours")

    peer = peers.add("node-b")
    peer.on_collect = fail
    heard = ask_one(peer, questions(2))
    assert isinstance(heard.error, PeerLost)
    assert "not everything was answered" in str(heard.error)


# -- progress, and giving up -------------------------------------------------------------------------------------------


def test_progress_is_told_by_the_thread_that_asks(peers: Peers) -> None:
    slow, quick = peers.add("node-b", window=1), peers.add("node-c")
    told: list[tuple[int, int, threading.Thread]] = []
    seen = threading.Event()

    def progress(answered: int, total: int) -> None:
        told.append((answered, total, threading.current_thread()))
        if answered >= 11:  # all of the quick one's, and one more
            seen.set()

    def hold() -> None:
        if len(slow.submitted) == 2:
            assert seen.wait(WAIT_S)

    slow.on_collect = hold
    heard = ask({slow.target: questions(3), quick.target: questions(10)}, data=False, on_progress=progress)
    assert [len(each.answers) for each in heard] == [3, 10]
    answered = [answered for answered, _, _ in told]
    assert answered == sorted(answered)
    assert answered[-1] == 13
    assert {(total, thread) for _, total, thread in told} == {(13, threading.current_thread())}


@pytest.mark.parametrize("phase", ["connecting", "asking"])
def test_whoever_gives_up_lets_go_of_every_peer(peers: Peers, phase: str) -> None:
    """Ctrl-C in the thread that asks, which alone gets it."""
    peer = peers.add("node-b")
    peer.answers_a_turn = 0

    def hang() -> None:
        assert phase == "asking" or peer.aborted.wait(WAIT_S)

    peer.on_connect = hang

    def interrupt(answered: int, total: int) -> None:
        if phase == "connecting" or peer.sessions:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_one(peer, questions(1), on_progress=interrupt)
    assert peer.aborted.is_set()
    wait_for(lambda: "ask-node-b" not in threads(), "its thread to end")
    assert all(session.failure is not None for session in peer.sessions)


# -- real servers ------------------------------------------------------------------------------------------------------


def test_a_real_peer_that_changed_its_host_key_is_told_nothing() -> None:
    with Sshd() as server:
        server.new_host_key()
        (heard,) = ask({target_of(server): questions(3)}, data=True)
        assert isinstance(heard.error, HostKeyChanged)
        assert heard.answers == {}
        assert "Accepted" not in server.log()


def test_a_real_peer_whose_server_is_killed_in_the_middle() -> None:
    with Sshd() as server:
        (server.root / HOUR.path).mkdir(parents=True)
        asked = questions(30_000)

        def kill(answered: int, total: int) -> None:
            if answered:
                server.stop()

        (heard,) = ask({target_of(server): asked}, data=True, on_progress=kill)
        assert isinstance(heard.error, PeerLost)
        assert 0 < len(heard.answers) < len(asked)

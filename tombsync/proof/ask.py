"""All peers at once, one session and one thread each, many jobs in it. Every wait has a bound."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tombsync.errors import PeerError, PeerLost, PeerTimeout, PeerTreeMissing
from tombsync.names import Marked
from tombsync.peers import Answer, Connector, Job, Session, Target

# Without an answer to any job the peer is given up. The session itself gives up a silent server sooner
# (peers.REPLY_TIMEOUT_S); this bounds one that sends, and answers nothing that was asked.
STALLED_AFTER_S = 30.0
_LOOK_S = 0.1  # how often progress is told
_POLL_S = 0.5


class Question(NamedTuple):
    """Whether a tombstone is at a peer. `durable`: the index knows that this very peer confirmed it (see Job).

    `witness`: asked only because, where it is seen, its channel and quality are mounted there.
    """

    marker: int
    marked: Marked
    durable: bool = False
    witness: bool = False


@dataclass
class Heard:
    """What one peer answered, by marker, and why the rest was not answered. `asked_at_ns` is wall time.

    `marker_there`: its tree had its root marker, so what is missing there is not missing with the whole tree.
    Written by the peer's own thread; complete when `ask` returns.
    """

    peer: str
    asked_at_ns: int
    answers: dict[int, Answer] = field(default_factory=dict)
    error: PeerError | None = None
    marker_there: bool = False


class _Asker:
    """Asks one peer, in a thread of its own. `abort` may be called from any thread."""

    def __init__(self, target: Target, questions: Sequence[Question], *, data: bool) -> None:
        self.heard = Heard(target.name, time.time_ns())
        self._target = target
        self._connector = Connector(target)
        self._session: Session | None = None
        self._jobs = deque(Job(q.marker, q.marked, durable=q.durable, ask_only=True, ask_data=data) for q in questions)
        self._aborted = False
        # Not joined at the end of the process: Ctrl-C must not wait for a peer.
        self.thread = threading.Thread(target=self._run, name=f"ask-{target.name}", daemon=True)

    def abort(self) -> None:
        """Let go of the peer, in whatever phase."""
        self._aborted = True
        self._connector.abort()
        if (session := self._session) is not None:
            session.close()

    def _run(self) -> None:
        heard = self.heard
        try:
            session = self._connector.connect()
        except PeerError as exc:
            heard.error = exc
            return
        self._session = session
        try:
            if self._aborted:
                raise PeerLost(self._target.name, "stopping")
            if not session.root_there:  # not mounted there: no answer about an hour or a channel would mean anything
                raise PeerTreeMissing(self._target.name, self._target.path)
            heard.marker_there = session.marker_there
            self._exchange(session)
        except PeerError as exc:
            heard.error = exc
        finally:
            session.close()

    def _exchange(self, session: Session) -> None:
        jobs, answers = self._jobs, self.heard.answers
        answered_at = time.monotonic()
        while jobs or session.outstanding:
            if room := session.room(len(jobs)):
                session.submit([jobs.popleft() for _ in range(min(room, len(jobs)))])
            else:
                _wait(session)
            now = time.monotonic()
            if fresh := session.collect(now):
                answered_at = now
                answers.update((answer.marker, answer) for answer in fresh)
            elif now - answered_at > STALLED_AFTER_S:
                raise PeerTimeout(self._target.name, f"{len(jobs) + session.outstanding} questions wait")


def _wait(session: Session) -> None:
    poller = select.poll()
    poller.register(session.fileno(), select.POLLIN)
    poller.poll(min(_POLL_S, session.due_in_s()) * 1000 + 1)


def ask(
    questions: Mapping[Target, Sequence[Question]],
    *,
    data: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Heard]:
    """Ask each peer its questions, all peers at once; what each said, in the order given.

    `data`: ask also whether data of each stem is there. `on_progress`: answers so far, of how many; from this thread.
    No name that may not cross a border may be among the questions. Raises nothing of the peers': see Heard.error.
    """
    askers = [_Asker(target, asked, data=data) for target, asked in questions.items()]
    total = sum(len(asked) for asked in questions.values())
    for asker in askers:
        asker.thread.start()
    try:
        for asker in askers:
            while asker.thread.is_alive():
                asker.thread.join(_LOOK_S)
                if on_progress is not None:
                    on_progress(sum(len(a.heard.answers) for a in askers), total)
    except BaseException:
        for asker in askers:
            asker.abort()
        raise
    return [_complete(asker.heard, asked) for asker, asked in zip(askers, questions.values(), strict=True)]


def _complete(heard: Heard, asked: Sequence[Question]) -> Heard:
    """A thread that ended in whatever way must not look like one that heard everything."""
    if heard.error is None and len(heard.answers) < len({question.marker for question in asked}):
        heard.error = PeerLost(heard.peer, "not everything was answered")
    return heard

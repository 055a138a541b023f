"""Delivers tombstones to one peer, and asks for them again now and then. One thread a peer, one session a thread."""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from tombsync import plan, precedence
from tombsync.audit import Audit, Event
from tombsync.errors import HostKeyChanged, PeerError
from tombsync.index import DeliveryOutcomes, Due, HoldsEnded, Outcome, PeerMarkerSeen, PeerReport, PeerVerified, Reader
from tombsync.metrics import Metrics
from tombsync.names import printable
from tombsync.peers import MANY, Answer, Connector, HostKeyHalt, Session
from tombsync.plan import State
from tombsync.push.attempts import Attempts
from tombsync.push.canary import Canary
from tombsync.push.queue import Queue
from tombsync.push.telling import Telling
from tombsync.work import IDLE_WAIT_S, TRANSACTION_ROWS, WAIT_S, Mailbox

log = logging.getLogger(__name__)

PING_INTERVAL_S = 30.0  # an idle session is asked something, so that a dead peer shows although nobody marks
_GATHER_MS = 2  # answers of a catch-up are taken together, those of some ms (benchmarks/catchup.py)


class Pusher:
    """A worker. All fields belong to its thread but these: `_wake_fd` is written by any, `_queue` tells by itself what
    the intake's thread may do, which also adds to `_telling`; any thread appends to `_withdrawals`, and `_session` is
    read by `stop` to close it.
    """

    def __init__(
        self,
        *,
        peer: int,
        connector: Connector,
        index_path: str,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        believed: Callable[[], bool],
        verify_interval_s: float,
        on_holds_ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`peer`: its key in the index; `on_holds_ended`: called in the intake's thread, after held deliveries of all
        peers became due.
        """
        self.peer_name = connector.target.name
        self.name = f"push-{self.peer_name}"
        self.peer = peer
        self._connector = connector
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._believed = believed
        self._on_holds_ended = on_holds_ended
        self._look_again = self._begin_again = False  # set by any thread
        self._withdrawals: deque[tuple[frozenset[int], Callable[[], None]]] = deque()
        self._queue = Queue(peer, self._require_reader, verify_interval_s=verify_interval_s)
        self._reader: Reader | None = None
        self._session: Session | None = None
        self._telling = Telling(self.peer_name, audit, metrics)
        self._stopped = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # the peer as a whole
        self._attempts = Attempts()
        self._last_reason = ""
        self._halt = HostKeyHalt(connector.target.known_hosts)
        self._heard_at = 0.0
        self._canary = Canary(
            self.peer_name, audit, on_marker_seen=lambda: mailbox.put_urgent(PeerMarkerSeen(self.peer))
        )
        self._recalled = False

    @property
    def canary_age_s(self) -> float:
        """Seconds since the whole way to the peer was last found to stand; from any thread."""
        return self._canary.age_s

    @property
    def up(self) -> bool:
        """Whether the session stands; from any thread."""
        return self._session is not None

    def offer(self, rows: Sequence[Due]) -> None:
        """Deliver what was hidden just now, oldest first; from the intake's thread, after each commit."""
        self._queue.offer(rows)
        self.wake()

    def look_again(self) -> None:
        """In the index deliveries were held, or held ones became due; from any thread."""
        self._begin_again = self._look_again = True
        self.wake()

    def withdraw(self, markers: frozenset[int], done: Callable[[], None]) -> None:
        """Deliveries of these markers are held in the index now; from any thread.

        `done` is called, in the pusher's thread, as soon as none of them is on its way any more.
        """
        self._withdrawals.append((markers, done))
        self.wake()

    def wake(self) -> None:
        """End the wait of a turn; from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """Let go of a wait on the peer, whatever phase it is in; from any thread."""
        self._stopped = True
        self._connector.abort()
        session = self._session
        if session is not None:
            session.close()
        self.wake()

    def close(self) -> None:
        """Give up what is held, after the thread has ended, and the intake's has or knows of this no more."""
        self.tell_committed()
        while self._withdrawals:  # nothing is on its way any more
            self._withdrawals.popleft()[1]()
        if self._session is not None:
            self._session.close()
        if self._reader is not None:
            self._reader.close()
        os.close(self._wake_fd)

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Connect when it is time to, or submit what is due and take what was answered."""
        if not self._recalled:
            self._recall(now)
        if self._begin_again:
            self._begin_again = False
            self._queue.begin_again()
        if self._look_again and not self._queue.asking:  # a sweep would pass over what is just being asked for
            self._look_again = False
            self._queue.sweep()
        while self._withdrawals and self._queue.let_go(self._withdrawals[0][0]):
            self._withdrawals.popleft()[1]()
        self.tell_committed()
        if self._stopped:
            self._wait(WAIT_S)
            return
        believed, session = self._believed(), self._session
        if session is None:
            if not believed:
                self._wait(WAIT_S)
            elif now < self._attempts.next_at:
                self._wait(min(WAIT_S, self._attempts.next_at - now))
            elif self._halt.lifted():
                self._connect(now)
            else:
                self._wait(WAIT_S)
            return
        try:
            if believed:
                self._feed(session, now)
            if session.outstanding > MANY:
                precedence.give_way()
            answers = session.collect(time.monotonic())
            if answers:
                self._heard_at = now
                self._take(answers)
            elif now - self._heard_at > PING_INTERVAL_S:
                self._heard_at = now
                session.ping()
            self._canary.look_after(session, now)
        except PeerError as exc:
            self._lose(exc, now)
            return
        if answers:
            self._wait(0.0)  # no wait, but a look: what is fresh overtakes a backlog that is answered without a pause
        else:
            self._wait(self._patience(session, now) if believed else WAIT_S)

    def _recall(self, now: float) -> None:
        """What an earlier life knew of the peer."""
        row = next((row for row in self._require_reader().peers() if row.peer == self.peer), None)
        self._queue.plan_verify(row.verified_at_ns if row is not None else None, now)
        if row is not None and row.marker_seen:
            self._canary.insist()
        self._recalled = True

    def _patience(self, session: Session, now: float) -> float:
        if session.outstanding:
            return min(WAIT_S, session.due_in_s())
        return 0.0 if self._queue.waiting else min(IDLE_WAIT_S, self._queue.until(now), session.due_in_s())

    def _wait(self, timeout_s: float) -> None:
        many = self._session is not None and self._session.outstanding > MANY
        if many and timeout_s and self._poll_wake(_GATHER_MS):
            return
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        if self._session is not None and not self._stopped:  # one that was closed would poll as readable for ever
            poller.register(self._session.fileno(), select.POLLIN)
        for fd, _ in poller.poll(max(0, int(timeout_s * 1000 + 0.999))):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)

    def _poll_wake(self, timeout_ms: int) -> bool:
        """Wait for a wake alone, so that answers gather: few at a time cost more than they are worth."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        if not poller.poll(timeout_ms):
            return False
        os.eventfd_read(self._wake_fd)
        return True

    # -- the session --------------------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        begun = time.monotonic()
        self._halt.look()
        try:
            self._session = self._connector.connect()
        except PeerError as exc:
            if isinstance(exc, HostKeyChanged):
                self._halt.begin()
                self._last_reason = ""  # each attempt after a correction is told
            self._attempts.failed(now + time.monotonic() - begun)
            self._tell_down(exc)
            return
        if self._stopped:
            return
        self._last_reason = ""
        self._heard_at = now + time.monotonic() - begun
        self._queue.begin_again()
        self._mailbox.put_urgent(PeerReport(self.peer, up=True, at_ns=time.time_ns()))
        text = f"{self.peer_name} is {'back' if self._attempts.down else 'connected'}"
        self._audit.record(Event.PEER_UP, text, peer=self.peer_name)
        self._attempts.reached(self._heard_at)

    def _lose(self, exc: PeerError, now: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._attempts.lost(now)
        self._queue.lost()
        self._tell_down(exc)

    def _tell_down(self, exc: PeerError) -> None:
        if self._stopped:
            return
        self._metrics.push_failures.labels(self.peer_name, exc.reason).inc()
        error = f"{exc.what}: {exc.detail}".removesuffix(": ")
        self._mailbox.put_urgent(PeerReport(self.peer, up=False, at_ns=time.time_ns(), error=error))
        if exc.reason == self._last_reason:
            return
        self._last_reason = exc.reason
        event = Event.HOST_KEY_CHANGED if isinstance(exc, HostKeyChanged) else Event.PEER_DOWN
        self._audit.record(event, f"{exc}. {exc.hint}", peer=self.peer_name, reason=exc.reason)

    # -- submitting ---------------------------------------------------------------------------------------------------

    def _feed(self, session: Session, now: float) -> None:
        queue = self._queue
        queue.plan_sweep(now)
        if rows := queue.fresh(session.room(TRANSACTION_ROWS, fresh=True)):
            session.submit(queue.jobs(rows))
        if session.outstanding > MANY:  # not before: a fresh tombstone waits for nobody
            precedence.give_way()
        if rows := queue.backlog(session.room):
            session.submit(queue.jobs(rows))
        rows, ended = queue.verify(session.room, now)
        if rows:
            session.submit(queue.jobs(rows, verify=True))
        if rows := queue.held(session.room, now):
            session.submit(queue.questions(rows))
        if ended:
            self._mailbox.put_urgent(PeerVerified(self.peer, time.time_ns()))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _take(self, answers: Sequence[Answer]) -> None:
        asked_at_ns = time.time_ns()
        answers, there = self._queue.asked(answers)
        for start in range(0, len(there), TRANSACTION_ROWS):
            self._mailbox.put_urgent(HoldsEnded(there[start : start + TRANSACTION_ROWS], self._holds_ended))
        rows, again = self._queue.answered(answers)
        for start in range(0, len(answers), TRANSACTION_ROWS):
            if start:
                precedence.give_way()
            outcomes = [
                Outcome(answer.marker, answer.state, asked_at_ns, answer.detail, answer.data)
                for answer in answers[start : start + TRANSACTION_ROWS]
            ]
            self._mailbox.put_urgent(DeliveryOutcomes(self.peer, outcomes, partial(self._committed, rows, outcomes)))
        for row in again:
            text = f"{self.peer_name} had lost {printable(row.marked.path)}; pushed again"
            self._audit.record(Event.RESTORED, text, marked=row.marked, peer=self.peer_name)
        for answer in answers:
            if answer.reason:
                self._metrics.push_failures.labels(self.peer_name, answer.reason).inc()

    def _holds_ended(self, ended: int) -> None:
        """Runs in the intake's thread: the deliveries of so many tombstones are due, to every peer."""
        if ended:
            text = f"{self.peer_name} has {ended} of the tombstones that were held here: they go to the other peers too"
            self._audit.record(Event.HOLD_ENDED, text, peer=self.peer_name, count=ended)
            self._on_holds_ended()

    def _committed(
        self, rows: dict[int, Due], outcomes: Sequence[Outcome], changed: Sequence[tuple[Outcome, State]]
    ) -> None:
        """Runs in the intake's thread, after the outcomes are in the index: a hide may wait behind it."""
        self._queue.committed(outcomes)
        self._telling.add(rows, changed)
        if changed or any(outcome.state in plan.DUE_STATES for outcome in outcomes):
            self.wake()

    def tell_committed(self) -> None:
        """Tell of what is in the index by now; from another thread only where this one is stuck at the end."""
        self._telling.tell()

    def _require_reader(self) -> Reader:
        if self._reader is None:  # made by the worker's own thread
            self._reader = Reader(self._index_path)
        return self._reader

"""Delivers tombstones to one peer, and asks for them again now and then. One thread a peer, one session a thread.

Newest first: what was just hidden overtakes a backlog, a backlog overtakes a verify. A delivery is taken by its
marker's key: everything between `_low` and `_high` was taken since the last sweep, so that no query looks at it twice.
"""

from __future__ import annotations

import logging
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from tombsync import plan
from tombsync.audit import Audit, Event
from tombsync.errors import HostKeyChanged, PeerError
from tombsync.index import DeliveryOutcomes, Due, Outcome, PeerReport, PeerVerified, Reader
from tombsync.metrics import Metrics
from tombsync.names import printable
from tombsync.peers import Answer, Connector, HostKeyHalt, Job, Session
from tombsync.plan import State
from tombsync.work import TRANSACTION_ROWS, WAIT_S, Mailbox

log = logging.getLogger(__name__)

FRESH_S = 10.0  # a tombstone hidden so lately is created without asking first whether it is there
PING_INTERVAL_S = 30.0  # an idle session is asked something, so that a dead peer shows although nobody marks
_IDLE_WAIT_S = 5.0  # of a session without work: ten of them must cost nothing (benchmarks/idle.py)
_REFUSED = {State.REFUSED, State.NOT_SERVED, State.RECEIVED}  # asked again each minute
_FRESH_ROOM = 32  # fresh tombstones go out even where a backlog fills the window


class Pusher:
    """A worker. All fields belong to its thread but these: `_wake_fd` is written by any; in the intake's thread, after
    outcomes were committed, `_uncommitted` loses members and `_settled` gets some (single operations of a set and of a
    deque need no lock); `_session` is read by `stop` to close it.
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
    ) -> None:
        self.peer_name = connector.target.name
        self.name = f"push-{self.peer_name}"
        self._peer = peer
        self._connector = connector
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._believed = believed
        self._verify_interval_s = verify_interval_s
        self._push_seconds = metrics.push_seconds.labels(self.peer_name)
        self._reader: Reader | None = None
        self._session: Session | None = None
        self._stopped = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # the peer as a whole
        self._failures = 0
        self._down_since: float | None = None  # of the failures in a row
        self._up_since = 0.0
        self._last_reason = ""
        self._attempt_at = 0.0
        self._halt = HostKeyHalt(connector.target.known_hosts)
        self._heard_at = 0.0
        # its deliveries
        self._submitted: dict[int, Due] = {}  # and not answered
        self._uncommitted: set[int] = set()  # answered, and the outcome not yet in the index
        self._settled: deque[set[State]] = deque()  # the states of outcomes that are in the index now
        self._high = 0
        self._low: int | None = None
        self._fresh = True
        self._backlog: deque[Due] = deque()
        self._backlog_left = True
        self._sweep_at = float("inf")
        self._sweep_failed = False  # since it began
        self._failed_sweeps = 0  # in a row
        # the verify
        self._verify_at: float | None = None
        self._verify_below: int | None = None
        self._verify: deque[Due] = deque()
        self._verifying: set[int] = set()

    @property
    def up(self) -> bool:
        """Whether the session stands; from any thread."""
        return self._session is not None

    def wake(self) -> None:
        """There is something new to deliver, or the worker is to stop; from any thread."""
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
        """Give up what is held, after the thread has ended."""
        if self._session is not None:
            self._session.close()
        if self._reader is not None:
            self._reader.close()
        os.close(self._wake_fd)

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Connect when it is time to, or submit what is due and take what was answered."""
        if self._verify_at is None:
            self._verify_at = now + self._until_verify()
        if self._stopped:
            self._wait(WAIT_S)
            return
        believed, session = self._believed(), self._session
        if session is None:
            if not believed:
                self._wait(WAIT_S)
            elif now < self._attempt_at:
                self._wait(min(WAIT_S, self._attempt_at - now))
            elif self._halt.lifted():
                self._connect(now)
            else:
                self._wait(WAIT_S)
            return
        try:
            if believed:
                self._feed(session, now)
            answers = session.collect(time.monotonic())
            if answers:
                self._heard_at = now
                self._take(answers)
            elif now - self._heard_at > PING_INTERVAL_S:
                self._heard_at = now
                session.ping()
        except PeerError as exc:
            self._lose(exc, now)
            return
        if answers:
            self._wait(0.0)  # no wait, but a look: what is fresh overtakes a backlog that is answered without a pause
        else:
            self._wait(self._patience(session, now) if believed else WAIT_S)

    def _patience(self, session: Session, now: float) -> float:
        if session.outstanding:
            return WAIT_S
        if self._verify or self._backlog or self._backlog_left:
            return 0.0
        due = min(self._sweep_at, self._verify_at or now)
        return max(0.0, min(_IDLE_WAIT_S, due - now))

    def _wait(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        if self._session is not None and not self._stopped:  # one that was closed would poll as readable for ever
            poller.register(self._session.fileno(), select.POLLIN)
        for fd, _ in poller.poll(max(0, int(timeout_s * 1000 + 0.999))):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
                self._fresh = True

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
            self._fail(exc, now + time.monotonic() - begun)
            return
        if self._stopped:
            return
        self._last_reason = ""
        self._heard_at = self._up_since = now + time.monotonic() - begun
        self._sweep()
        self._mailbox.put_urgent(PeerReport(self._peer, up=True, at_ns=time.time_ns()))
        text = f"{self.peer_name} is {'connected' if self._down_since is None else 'back'}"
        self._audit.record(Event.PEER_UP, text, peer=self.peer_name)

    def _lose(self, exc: PeerError, now: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        if now - self._up_since >= plan.BACKOFF_LAST_S:  # else sessions that end at once would be tried without a pause
            self._failures, self._down_since = 0, None
        self._submitted.clear()
        self._verifying.clear()
        self._verify.clear()
        self._backlog.clear()
        self._verify_below = None
        self._fail(exc, now)

    def _fail(self, exc: PeerError, now: float) -> None:
        if self._stopped:
            return
        self._failures += 1
        if self._down_since is None:
            self._down_since = now
        self._attempt_at = now + plan.backoff_s(self._failures, now - self._down_since, random=random.random())
        self._metrics.push_failures.labels(self.peer_name, exc.reason).inc()
        error = f"{exc.what}: {exc.detail}".removesuffix(": ")
        self._mailbox.put_urgent(PeerReport(self._peer, up=False, at_ns=time.time_ns(), error=error))
        if exc.reason == self._last_reason:
            return
        self._last_reason = exc.reason
        event = Event.HOST_KEY_CHANGED if isinstance(exc, HostKeyChanged) else Event.PEER_DOWN
        self._audit.record(event, f"{exc}. {exc.hint}", peer=self.peer_name, reason=exc.reason)

    # -- submitting ---------------------------------------------------------------------------------------------------

    def _feed(self, session: Session, now: float) -> None:
        self._plan_sweep(now)
        if self._sweep_at <= now:
            self._sweep()
        if self._fresh:
            self._fresh = False
            self._submit_fresh(session)
        if self._backlog_left and not self._backlog:
            self._refill_backlog()
        room = session.room(len(self._backlog))
        if room:
            self._submit(session, [self._backlog.popleft() for _ in range(room)])
        if not self._backlog and not self._backlog_left:
            self._feed_verify(session, now)

    def _submit_fresh(self, session: Session) -> None:
        room = max(_FRESH_ROOM, session.room(TRANSACTION_ROWS))
        rows = self._require_reader().due(self._peer, above=self._high, limit=room + 1)
        if not rows:
            return
        self._high = rows[0].marker
        if len(rows) > room:  # a burst: its newest go out now, the rest is backlog
            rows = rows[:room]
            self._low, self._backlog_left = rows[-1].marker, True
            self._backlog.clear()
        elif self._low is None:
            self._low = rows[-1].marker
        self._submit(session, self._idle(rows))

    def _refill_backlog(self) -> None:
        rows = self._require_reader().due(self._peer, below=self._low, limit=TRANSACTION_ROWS)
        if len(rows) < TRANSACTION_ROWS:
            self._backlog_left = False
        if rows:
            self._low = rows[-1].marker
            self._high = max(self._high, rows[0].marker)
            self._backlog.extend(self._idle(rows))

    def _idle(self, rows: Sequence[Due]) -> list[Due]:
        return [row for row in rows if row.marker not in self._submitted and row.marker not in self._uncommitted]

    def _submit(self, session: Session, rows: Sequence[Due]) -> None:
        wall_ns = time.time_ns()
        self._submitted.update((row.marker, row) for row in rows)
        session.submit(
            [
                Job(
                    row.marker,
                    row.marked,
                    probe=row.state is not State.PENDING or wall_ns - row.hidden_at_ns > FRESH_S * 1e9,
                    make_hour=not row.ever_there,
                )
                for row in rows
            ]
        )

    def _sweep(self) -> None:
        """Begin again at the newest of all that is due."""
        self._low, self._backlog_left = None, True
        self._backlog.clear()
        self._sweep_at = float("inf")
        self._sweep_failed = False

    def _plan_sweep(self, now: float) -> None:
        """What was not delivered is due again, from when that is in the index: a sweep before would not find it."""
        while self._settled:
            states = self._settled.popleft()
            refused = not states.isdisjoint(_REFUSED)
            if State.PENDING in states and not self._sweep_failed:
                self._sweep_failed = True
                self._failed_sweeps += 1
                pause_s = plan.backoff_s(self._failed_sweeps, 0.0, random=random.random())
                self._sweep_at = min(self._sweep_at, now + pause_s)
            elif not (refused or self._sweep_failed):
                self._failed_sweeps = 0
            if refused:
                self._sweep_at = min(self._sweep_at, now + plan.ASK_AGAIN_S)

    # -- verifying ----------------------------------------------------------------------------------------------------

    def _until_verify(self) -> float:
        verified_ns = next((p.verified_at_ns for p in self._require_reader().peers() if p.peer == self._peer), None)
        age_s = (time.time_ns() - verified_ns) / 1e9 if verified_ns is not None else float("inf")
        return self._verify_interval_s - age_s if 0 <= age_s < self._verify_interval_s else 0.0

    def _feed_verify(self, session: Session, now: float) -> None:
        if self._verify_at is None or now < self._verify_at:
            return
        if not self._verify:
            rows = self._require_reader().confirmed(self._peer, below=self._verify_below, limit=TRANSACTION_ROWS)
            if not rows:
                if not self._verifying:
                    self._verify_at, self._verify_below = now + self._verify_interval_s, None
                    self._mailbox.put_urgent(PeerVerified(self._peer, time.time_ns()))
                    self._sweep()  # a delivery can come late to an old marker, which nothing else would find
                return
            self._verify_below = rows[-1].marker
            self._verify.extend(rows)
        room = session.room(len(self._verify))
        rows = self._idle([self._verify.popleft() for _ in range(room)])
        self._submitted.update((row.marker, row) for row in rows)
        self._verifying.update(row.marker for row in rows)
        session.submit(
            [
                Job(row.marker, row.marked, probe=True, make_hour=False, durable=row.state is State.CONFIRMED)
                for row in rows
            ]
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def _take(self, answers: Sequence[Answer]) -> None:
        asked_at_ns = time.time_ns()
        rows = {answer.marker: self._submitted.pop(answer.marker) for answer in answers}
        self._uncommitted.update(rows)
        for start in range(0, len(answers), TRANSACTION_ROWS):
            outcomes = [
                Outcome(answer.marker, answer.state, asked_at_ns, answer.detail)
                for answer in answers[start : start + TRANSACTION_ROWS]
            ]
            self._mailbox.put_urgent(DeliveryOutcomes(self._peer, outcomes, partial(self._committed, rows, outcomes)))
        for answer in answers:
            verifying = answer.marker in self._verifying
            self._verifying.discard(answer.marker)
            if answer.placed and verifying:
                marked = rows[answer.marker].marked
                text = f"{self.peer_name} had lost {printable(marked.path)}; pushed again"
                self._audit.record(Event.RESTORED, text, marked=marked, peer=self.peer_name)
            if answer.reason:
                self._metrics.push_failures.labels(self.peer_name, answer.reason).inc()

    def _committed(
        self, rows: dict[int, Due], outcomes: Sequence[Outcome], changed: Sequence[tuple[Outcome, State]]
    ) -> None:
        """Runs in the intake's thread, after the outcomes are in the index."""
        self._uncommitted.difference_update(outcome.marker for outcome in outcomes)
        self._settled.append({outcome.state for outcome in outcomes})
        if any(outcome.state in plan.DUE_STATES for outcome in outcomes):
            self.wake()
        wall_ns = time.time_ns()
        for outcome, before in changed:
            row = rows[outcome.marker]
            elapsed_s = max(0.0, (wall_ns - row.hidden_at_ns) / 1e9)
            if outcome.state is State.CONFIRMED:
                if not row.ever_confirmed:
                    self._push_seconds.observe(elapsed_s)
                self._audit.record(
                    Event.DELIVERED,
                    f"{self.peer_name} holds {printable(row.marked.path)}",
                    marked=row.marked,
                    peer=self.peer_name,
                    elapsed_ms=elapsed_s * 1e3,
                )
            elif outcome.state is not State.PENDING:
                self._audit.record(
                    Event.UNDELIVERED,
                    f"{self.peer_name}: {printable(row.marked.path)}: {outcome.state.word}: {outcome.detail}",
                    marked=row.marked,
                    peer=self.peer_name,
                    state=outcome.state.word,
                    was=before.word,
                )

    def _require_reader(self) -> Reader:
        if self._reader is None:  # made by the worker's own thread
            self._reader = Reader(self._index_path)
        return self._reader

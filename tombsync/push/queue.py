"""Which deliveries of one peer come next.

Newest first: what was just hidden overtakes a backlog, a backlog overtakes a verify. The intake offers what it hides; a
delivery that nobody offered is found in the index by its marker's key: everything between `_low` and `_high` was taken
since the last sweep, so that no query looks at it twice.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence

from tombsync import plan
from tombsync.index import Due, Outcome, Reader
from tombsync.peers import Answer, Job
from tombsync.plan import State
from tombsync.work import TRANSACTION_ROWS, Source

FRESH_S = 10.0  # a tombstone hidden so lately is created without asking first whether it is there
ASK_HELD_INTERVAL_S = 10.0
_MOST_OFFERED = 32  # what is more at once is found in the index
_REFUSED = {State.REFUSED, State.NOT_SERVED}  # asked again each minute
_UNDONE = {State.PENDING, State.RECEIVED}  # asked again soon, and then less and less often
_NEVER = float("inf")


class Queue:
    """Belongs to the pusher's thread, but for what the intake's thread does: `offer` adds to `_offered` or sets
    `_unoffered`; `committed` takes from `_uncommitted` and adds to `_settled`. Each is a single operation of a deque, a
    set or an attribute, which needs no lock.
    """

    def __init__(self, peer: int, reader: Callable[[], Reader], *, verify_interval_s: float) -> None:
        """`reader` is called in the pusher's thread only."""
        self._peer = peer
        self._reader = reader
        self._verify_interval_s = verify_interval_s
        self._submitted: dict[int, Due] = {}  # and not answered
        self._uncommitted: set[int] = set()  # answered, and the outcome not yet in the index
        self._settled: deque[set[State]] = deque()  # the states of outcomes that are in the index now
        # what is fresh
        self._offered: deque[Due] = deque()
        self._unoffered = True  # something above `_high` may be due that is not among them
        self._high = 0
        # the backlog
        self._low: int | None = None
        self._backlog: deque[Due] = deque()
        self._backlog_left = True
        self._sweep_at = _NEVER
        self._sweep_failed = False  # since it began
        self._failed_sweeps = 0  # in a row
        # the verify
        self._verify_at: float | None = None
        self._verify_below: int | None = None
        self._verify: deque[Due] = deque()
        self._verifying: set[int] = set()
        # what is held
        self._held_at = 0.0
        self._held_below: int | None = None
        self._asking: set[int] = set()

    def offer(self, rows: Sequence[Due]) -> None:
        """What was hidden just now, oldest first; from the intake's thread, after each commit."""
        if len(self._offered) + len(rows) <= _MOST_OFFERED:
            self._offered.extend(rows)
        else:
            self._unoffered = True

    # -- what to submit -----------------------------------------------------------------------------------------------

    def fresh(self, room: int) -> list[Due]:
        """What is new. `room`: how many more the session takes."""
        rows: list[Due] = []
        while self._offered and len(rows) < room:
            row = self._offered.popleft()
            if self._unoffered:  # looked at behind the row: there may be some before it that were not offered
                break
            if row.marker > self._high:  # else a query found it before it was offered
                self._high = row.marker
                rows.append(row)
        rows.reverse()
        return [*self._fresh_from_index(room - len(rows)), *rows] if self._unoffered and room > len(rows) else rows

    def _fresh_from_index(self, room: int) -> list[Due]:
        self._unoffered = False  # before the query: what is committed after it is offered, or sets this again
        self._offered.clear()
        busy = self._busy()
        rows = self._reader().due(self._peer, above=self._high, limit=room + 1)
        if not rows:
            return []
        self._high = rows[0].marker
        if len(rows) > room:  # a burst: its newest go out now, the rest is backlog
            rows = rows[:room]
            self._low, self._backlog_left = rows[-1].marker, True
            self._backlog.clear()
        elif self._low is None:
            self._low = rows[-1].marker
        return [row for row in rows if row.marker not in busy]

    def backlog(self, room: Callable[[int], int]) -> list[Due]:
        """Older ones. `room(n)`: how many of n the session takes."""
        if self._backlog_left and not self._backlog:
            busy = self._busy()
            rows = self._reader().due(self._peer, below=self._low, limit=TRANSACTION_ROWS)
            self._backlog_left = len(rows) == TRANSACTION_ROWS
            if rows:
                self._low = rows[-1].marker
                self._high = max(self._high, rows[0].marker)
                self._backlog.extend(row for row in rows if row.marker not in busy)
        return [self._backlog.popleft() for _ in range(room(len(self._backlog)))]

    def _busy(self) -> set[int]:
        """What is not to be submitted now. Taken before a query: an outcome that is committed after it, and is busy no
        more, may still be due in its rows.
        """
        return {*self._submitted, *self._uncommitted}

    @property
    def waiting(self) -> bool:
        """Whether there is a backlog, or a verify, that the session had no room for."""
        return bool(self._verify or self._backlog or self._backlog_left)

    def until(self, now: float) -> float:
        """Seconds until something is due again, at most; without an answer of the peer or an offer."""
        return max(0.0, min(self._sweep_at, self._verify_at or now, self._held_at) - now)

    def jobs(self, rows: Sequence[Due], *, verify: bool = False) -> list[Job]:
        """Note these as submitted, and say how. One that may be there already is asked for first."""
        since_ns = time.time_ns() - int(FRESH_S * 1e9)
        self._submitted.update((row.marker, row) for row in rows)
        if verify:
            self._verifying.update(row.marker for row in rows)
            return [
                Job(
                    row.marker,
                    row.marked,
                    probe=True,
                    make_hour=False,
                    durable=row.state is State.CONFIRMED,
                    origin=row.origin,
                    ask_data=True,
                )
                for row in rows
            ]
        return [
            Job(
                row.marker,
                row.marked,
                probe=not _is_fresh(row, since_ns),
                make_hour=not row.ever_there,
                origin=row.origin,
            )
            for row in rows
        ]

    # -- sweeps -------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Begin again at the newest of all that is due."""
        self._low, self._backlog_left = None, True
        self._backlog.clear()
        self._sweep_at = _NEVER
        self._sweep_failed = False

    def plan_sweep(self, now: float) -> None:
        """What was not delivered is due again, from when that is in the index: a sweep before would not find it."""
        while self._settled:
            states = self._settled.popleft()
            refused = not states.isdisjoint(_REFUSED)
            if not (states.isdisjoint(_UNDONE) or self._sweep_failed):
                self._sweep_failed = True
                self._failed_sweeps += 1
                pause_s = plan.backoff_s(self._failed_sweeps, 0.0, random=random.random())
                self._sweep_at = min(self._sweep_at, now + pause_s)
            elif not (refused or self._sweep_failed):
                self._failed_sweeps = 0
            if refused:
                self._sweep_at = min(self._sweep_at, now + plan.ASK_AGAIN_S)
        if self._sweep_at <= now:
            self.sweep()

    def begin_again(self) -> None:
        """A session begins, or some of what is queued is held in the index by now: that alone says what is due."""
        self._offered.clear()  # some of it may be forgotten by now
        self._unoffered = True
        self.sweep()

    def lost(self) -> None:
        """The session ended: nothing is on its way."""
        self._submitted.clear()
        self._verifying.clear()
        self._asking.clear()
        self._verify.clear()
        self._backlog.clear()
        self._verify_below = None

    # -- the verify ---------------------------------------------------------------------------------------------------

    def plan_verify(self, verified_ns: int | None, now: float) -> None:
        """At the first turn: when the next verify is due, from when the last one ended (wall time)."""
        age_s = (time.time_ns() - verified_ns) / 1e9 if verified_ns is not None else _NEVER
        rest_s = self._verify_interval_s - age_s if 0 <= age_s < self._verify_interval_s else 0.0
        self._verify_at = now + rest_s

    def verify(self, room: Callable[[int], int], now: float) -> tuple[list[Due], bool]:
        """What is to be asked for again, once nothing else is left to do; and whether a verify has just ended."""
        if self._backlog or self._backlog_left or self._verify_at is None or now < self._verify_at:
            return [], False
        busy = self._busy()
        if not self._verify:
            rows = self._reader().confirmed(self._peer, below=self._verify_below, limit=TRANSACTION_ROWS)
            if not rows:
                if self._verifying:
                    return [], False
                self._verify_at, self._verify_below = now + self._verify_interval_s, None
                self.sweep()
                return [], True
            self._verify_below = rows[-1].marker
            self._verify.extend(rows)
        rows = [self._verify.popleft() for _ in range(room(len(self._verify)))]
        return [row for row in rows if row.marker not in busy], False

    # -- what is held -------------------------------------------------------------------------------------------------

    def held(self, room: Callable[[int], int], now: float) -> list[Due]:
        """Of those that wait for a person, which to ask for: what a peer has already is no mistake of this node."""
        if self.waiting or now < self._held_at:
            return []
        busy = self._busy()
        rows = self._reader().held(self._peer, below=self._held_below, limit=TRANSACTION_ROWS)
        rows = rows[: room(len(rows))]
        if rows:
            self._held_below = rows[-1].marker
        elif not self._asking:
            self._held_at, self._held_below = now + ASK_HELD_INTERVAL_S, None
        return [row for row in rows if row.marker not in busy]

    @property
    def asking(self) -> bool:
        """Whether questions are on their way."""
        return bool(self._asking)

    def questions(self, rows: Sequence[Due]) -> list[Job]:
        """Note these as submitted; they create nothing."""
        self._submitted.update((row.marker, row) for row in rows)
        self._asking.update(row.marker for row in rows)
        return [Job(row.marker, row.marked, ask_only=True, origin=row.origin) for row in rows]

    def asked(self, answers: Sequence[Answer]) -> tuple[list[Answer], list[int]]:
        """The answers to jobs that were to deliver, and the held markers that the peer has already."""
        if not self._asking:
            return list(answers), []
        there = []
        for answer in answers:
            if answer.marker in self._asking:
                del self._submitted[answer.marker]
                if answer.state in (State.CONFIRMED, State.NOT_DURABLE):
                    there.append(answer.marker)
        delivered = [answer for answer in answers if answer.marker not in self._asking]
        self._asking.difference_update(answer.marker for answer in answers)
        return delivered, there

    def let_go(self, markers: frozenset[int]) -> bool:
        """Take out what is held in the index by now; whether none of it is on its way."""
        self._offered.clear()  # what else was among them is found in the index
        self._unoffered = True
        self._backlog = deque(row for row in self._backlog if row.marker not in markers)
        return markers.isdisjoint(self._busy())

    # -- answers ------------------------------------------------------------------------------------------------------

    def answered(self, answers: Sequence[Answer]) -> tuple[dict[int, Due], list[Due]]:
        """Take answers: the deliveries by marker, and those of them that a verify found missing and placed again."""
        rows = {answer.marker: self._submitted.pop(answer.marker) for answer in answers}
        self._uncommitted.update(rows)
        again = [rows[a.marker] for a in answers if a.placed and a.marker in self._verifying]
        self._verifying.difference_update(rows)
        return rows, again

    def committed(self, outcomes: Sequence[Outcome]) -> None:
        """These are in the index now; from the intake's thread."""
        self._uncommitted.difference_update(outcome.marker for outcome in outcomes)
        self._settled.append({outcome.state for outcome in outcomes})


def _is_fresh(row: Due, since_ns: int) -> bool:
    # What a rescan found is as likely everywhere already: a new index, a start after others had marked.
    return row.state is State.PENDING and row.source is Source.WATCH and row.hidden_at_ns >= since_ns

"""The part of the index's writer that keeps deliveries."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager

from tombsync.index.batches import Outcome
from tombsync.index.schema import IS_HELD, IS_OPEN
from tombsync.plan import ENDS_HOLD_STATES, THERE_STATES, State
from tombsync.work import TRANSACTION_ROWS


class Tally:
    """Counts of the index's rows, so that a scrape costs no query. Written by the writer's thread only; single dict
    operations make it readable from any other.
    """

    def __init__(self) -> None:
        self.files: Counter[int] = Counter()  # place -> segment files
        self.hidden: Counter[int] = Counter()  # place -> segment files that are hidden
        self.deliveries: Counter[tuple[int, State]] = Counter()  # (peer, state) -> deliveries
        self.markers = 0


class Deliveries:
    """What Writer can do with deliveries; the connection and the transactions are Writer's."""

    path: str
    tally: Tally
    _peers: list[int]
    _held_window: tuple[int, int] | None = None  # the last mass whose earlier marks were held

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        raise NotImplementedError

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing."""
        raise NotImplementedError

    def load(self) -> None:
        """Take the places, peers and counts from the file."""
        raise NotImplementedError

    def record_outcomes(self, peer: int, outcomes: Sequence[Outcome]) -> list[tuple[Outcome, State]]:
        """Write answers of a peer; returns those whose state changed, with the state before. Skips forgotten rows.

        A delivery that was held while it was on its way stays held, whatever the answer, unless it arrived.

        Two statements for all that say the same, as each step of a statement lets go of the interpreter and waits for
        it again: row by row a hide waited behind 200 outcomes for 20 to 180 ms (benchmarks/hide.py, catch-up).
        """
        by_answer: dict[tuple[State, int, str, bool | None], list[Outcome]] = {}
        for outcome in outcomes:
            by_answer.setdefault(outcome[1:], []).append(outcome)
        changed = []
        for (state, asked_at_ns, detail, data), group in by_answer.items():
            markers = json.dumps([outcome.marker for outcome in group])
            ((known,),) = self.execute(
                "SELECT json_group_object(marker, state) FROM delivery"
                " WHERE peer = ? AND marker IN (SELECT value FROM json_each(?))",
                (peer, markers),
            )
            self.execute(
                f"UPDATE delivery SET state = iif({IS_HELD} AND NOT ?8, state, ?1),"
                " asked_at_ns = ?2, ever_there = max(ever_there, ?3),"
                f" confirmed_at_ns = iif(?1 = {State.CONFIRMED:d} AND state != ?1, ?2, confirmed_at_ns),"
                " detail = nullif(?4, ''), data = coalesce(?7, data), data_asked_at_ns = iif(?7 IS NULL,"
                " data_asked_at_ns, ?2) WHERE peer = ?5 AND marker IN (SELECT value FROM json_each(?6))",
                (
                    int(state),
                    asked_at_ns,
                    state in THERE_STATES,
                    detail,
                    peer,
                    markers,
                    data,
                    state in ENDS_HOLD_STATES,
                ),
            )
            before = json.loads(known)
            for outcome in group:
                was = before.get(str(outcome.marker))
                stays_held = was == State.HELD and state not in ENDS_HOLD_STATES
                if was is not None and was != state and not stays_held:
                    self.tally.deliveries[peer, State(was)] -= 1
                    self.tally.deliveries[peer, state] += 1
                    changed.append((outcome, State(was)))
        return changed

    # -- holding ------------------------------------------------------------------------------------------------------

    def hold(self, marker: int, window: tuple[int, int]) -> bool:
        """Let the pending deliveries of a marker wait for a person; and those of the mass it belongs to, once.

        `window`: first and last ctime of that mass. Returns whether others were held: a pusher may have them in its
        queue. Inside of a transaction.
        """
        self.hold_pending([marker])
        if window == self._held_window:
            return False
        self._held_window = window
        others = 0
        for peer in self._peers:
            markers = [
                other
                for (other,) in self.execute(
                    "SELECT d.marker FROM delivery d INDEXED BY delivery_open JOIN marker m ON m.id = d.marker"
                    f" WHERE d.peer = ? AND d.{IS_OPEN} AND d.state = {State.PENDING:d}"
                    " AND m.ctime_ns BETWEEN ? AND ? AND NOT m.meant",
                    (peer, *window),
                )
            ]
            others += self._move(peer, markers, State.PENDING, State.HELD)
        return others > 0

    def hold_pending(self, markers: Sequence[int]) -> None:
        """Let the pending deliveries of these markers wait for a person. Inside of a transaction."""
        for peer in self._peers:
            self._move(peer, markers, State.PENDING, State.HELD)

    def end_holds(self, markers: Sequence[int]) -> int:
        """Make held deliveries of these markers due, as they were meant. Returns how many markers had one.

        Inside of a transaction, and so at most TRANSACTION_ROWS of them.
        """
        keys = json.dumps(list(markers))
        ((ended,),) = self.execute(
            "SELECT count(DISTINCT marker) FROM delivery INDEXED BY delivery_held"
            f" WHERE {IS_HELD} AND marker IN (SELECT value FROM json_each(?))",
            (keys,),
        )
        if ended:
            for peer in self._peers:
                self._move(peer, markers, State.HELD, State.PENDING)
            self.execute("UPDATE marker SET meant = 1 WHERE id IN (SELECT value FROM json_each(?))", (keys,))
        return int(ended)

    def held_up_to(self, last: int) -> list[int]:
        """The newest markers that have a held delivery, up to this one: a transaction's worth."""
        return [
            marker
            for (marker,) in self.execute(
                "SELECT DISTINCT marker FROM delivery INDEXED BY delivery_held"
                f" WHERE {IS_HELD} AND marker <= ? ORDER BY marker DESC LIMIT ?",
                (last, TRANSACTION_ROWS),
            )
        ]

    def _move(self, peer: int, markers: Sequence[int], before: State, after: State) -> int:
        moved = self.execute(
            "UPDATE delivery SET state = ?1 WHERE peer = ?2 AND state = ?3 AND marker IN"
            " (SELECT value FROM json_each(?4))",
            (int(after), peer, int(before), json.dumps(list(markers))),
        ).rowcount
        self.tally.deliveries[peer, before] -= moved
        self.tally.deliveries[peer, after] += moved
        return moved

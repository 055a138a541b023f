"""Makes the tombstones of what a sticky takedown has hidden, as empty files, hour by hour."""

from __future__ import annotations

import errno
import time

from tombsync import plan
from tombsync.audit import Audit, Event
from tombsync.errors import TreeRefused
from tombsync.index import MarkersPlaced, Reader
from tombsync.names import Hour
from tombsync.tree import Tree
from tombsync.work import TRANSACTION_ROWS, Mailbox, Source

TURN_S = 0.2  # one round ends after so long, at the end of an hour, and goes on with the next turn
INTERVAL_S = 60.0  # between two rounds that nothing asks for: for an hour directory that comes back


class Placing:
    """Belongs to the worker's thread. What there is to do it reads from the index: hidden, and never in the tree."""

    def __init__(self, tree: Tree, mailbox: Mailbox, audit: Audit) -> None:
        self._tree = tree
        self._mailbox = mailbox
        self._audit = audit
        self.due_at = 0.0  # monotonic; the first round also does what an earlier process left
        self._above: int | None = None  # the last row of a round that has begun
        self._failures = 0  # rounds in a row in which the tree refused one
        self._refused = ""  # of this round

    def due(self, now: float) -> bool:
        """Whether there is something to do now."""
        return self._above is not None or self.due_at <= now

    def soon(self, now: float) -> None:
        """Something was hidden. Where the tree refuses, the next try is awaited all the same."""
        if not self._failures:
            self.due_at = now

    def go_on(self, root_fd: int, reader: Reader, now: float) -> None:
        """Make some of them."""
        until = time.monotonic() + TURN_S
        if self._above is None:
            self._above, self._refused = 0, ""
        while time.monotonic() < until:
            rows = reader.awaited(above=self._above, limit=TRANSACTION_ROWS)
            if not rows:
                self._end_round(now)
                return
            self._above = rows[-1].marker
            hours: dict[Hour, list[str]] = {}
            for row in rows:
                if row.source == Source.TAKEDOWN:
                    hours.setdefault(row.marked.hour, []).append(row.marked.stem)
            for hour, stems in hours.items():
                self._place(root_fd, hour, stems)

    def _place(self, root_fd: int, hour: Hour, stems: list[str]) -> None:
        try:
            self._tree.place_all(root_fd, hour, stems)
        except TreeRefused as exc:
            if exc.errno != errno.ENOENT:  # else the hour went away, and what is hidden with it
                self._refused = str(exc)
            return
        self._mailbox.put_urgent(MarkersPlaced(hour, stems))

    def _end_round(self, now: float) -> None:
        self._above = None
        if not self._refused:
            self._failures = 0
            self.due_at = now + INTERVAL_S
            return
        self._failures += 1
        self.due_at = now + plan.backoff_s(self._failures, 0.0, random=0.5)
        if self._failures == 1:
            self._audit.record(
                Event.TREE_REFUSED,
                "a segment that arrived within a sticky takedown is hidden here, and its tombstone is tried again:"
                f" {self._refused}",
            )

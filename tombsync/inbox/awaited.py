"""Tombstones that were hidden before a kill or a power cut and have no file, neither in the tree nor in an inbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tombsync.inbox import placing
from tombsync.inbox.placing import Placing, Trouble
from tombsync.inbox.telling import Teller
from tombsync.index import MarkerRow, Reader
from tombsync.names import Hour, Marked
from tombsync.work import TRANSACTION_ROWS, Source

INTERVAL_S = 60.0


class Awaited:
    """Goes through them once in a while, some in each turn. Belongs to the inbox worker's thread.

    `troubles`: what the last whole round could not write, by sender.
    """

    def __init__(self, into: Placing, teller: Teller) -> None:
        self.troubles: dict[str, Trouble] = {}
        self._into = into
        self._teller = teller
        self._at = 0.0  # monotonic: when the next round is due
        self._running = False
        self._above = 0  # the key of the last row that was read in this round
        self._hours: dict[Hour, list[MarkerRow]] = {}  # read, and not yet tried
        self._elsewhere: frozenset[Marked] = frozenset()
        self._found: dict[str, Trouble] = {}

    def due(self, now: float) -> bool:
        """Whether there is something to do now."""
        return self._running or self._at <= now

    def soon(self, now: float) -> None:
        """Begin the next round now."""
        self._at = now

    def go_on(self, root_fd: int, reader: Reader, now: float, *, elsewhere: Callable[[], Iterable[Marked]]) -> None:
        """Place some. `elsewhere`: those whose file is in an inbox, which are tried from there."""
        until = time.monotonic() + placing.TURN_S
        if not self._running:
            self._running, self._above, self._found = True, 0, {}
            self._at = now + INTERVAL_S
            self._elsewhere = frozenset(elsewhere())
        while self._running:
            if self._hours:
                self._place(root_fd)
            else:
                self._read(reader, now)
            if time.monotonic() >= until:
                return

    def _read(self, reader: Reader, now: float) -> None:
        rows = reader.awaited(above=self._above, limit=TRANSACTION_ROWS)
        for row in rows:
            self._above = row.marker
            if row.source != Source.TAKEDOWN and row.marked not in self._elsewhere:
                self._hours.setdefault(row.marked.hour, []).append(row)
        if not rows:
            self._running = False
            for sender in self.troubles.keys() - self._found.keys():
                self._teller.can_write(sender)
            for sender, trouble in self._found.items():
                self._teller.cannot_write(sender, trouble.text, now)
            self.troubles = self._found

    def _place(self, root_fd: int) -> None:
        hour = next(iter(self._hours))
        rows = self._hours.pop(hour)
        trouble = self._into.place(root_fd, hour, [row.marked.stem for row in rows])
        if trouble:
            for row in rows:
                before = self._found[row.sender].stems if row.sender in self._found else 0
                self._found[row.sender] = Trouble(before + 1, trouble)

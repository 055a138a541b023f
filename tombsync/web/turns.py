"""Who may read the tree for an answer just now, so that `/metrics` is answered although its disk hangs."""

from __future__ import annotations

import threading

from tombsync.web.server import WORKERS

MOST_AT_ONCE = WORKERS - 1  # one worker is left for what needs no disk
PATIENCE_S = 1.0  # an hour of 10,000 names takes some hundredth of it: who waits longer waits for a disk that hangs


class Turns:
    """So many requests at once; shared by all workers. Who took a turn gives it back, from whichever thread."""

    def __init__(self, most: int = MOST_AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._free = threading.Semaphore(most)
        self._patience_s = patience_s
        self._stuck = False  # somebody waited in vain since the last was given back: the next is told at once

    def take(self) -> bool:
        """Wait for a turn; False where none comes: then the tree cannot be read now."""
        if self._free.acquire(timeout=0 if self._stuck else self._patience_s):
            return True
        self._stuck = True
        return False

    def give_back(self) -> None:
        """End a turn."""
        self._stuck = False
        self._free.release()

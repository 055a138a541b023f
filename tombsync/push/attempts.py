"""When a peer is tried again."""

from __future__ import annotations

import random

from tombsync import plan


class Attempts:
    """Counts what fails in a row. Belongs to the pusher's thread; times are monotonic.

    `down`: the last attempt failed, or the last session was lost.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._short_sessions = 0  # in a row: the peer can be reached, and does not stay
        self._down_since: float | None = None
        self._up_since = 0.0
        self.down = False
        self.next_at = 0.0

    def reached(self, now: float) -> None:
        """A session begins. The outage before it says nothing of the peer any more; sessions that ended soon do."""
        self._failures, self._up_since, self.down = self._short_sessions, now, False
        if not self._short_sessions:
            self._down_since = None

    def lost(self, now: float) -> None:
        """The session has ended."""
        up_for_s = now - self._up_since
        if up_for_s >= plan.BACKOFF_LAST_S:
            self._failures, self._short_sessions, self._down_since = 0, 0, None
        else:  # sessions that end at once would be tried without a pause
            self._short_sessions += 1
        self.failed(now, up_for_s)

    def failed(self, now: float, up_for_s: float = 0.0) -> None:
        """Plan the next attempt. `up_for_s`: how long a session stood before."""
        self._failures += 1
        self.down = True
        if self._down_since is None:
            self._down_since = now
        self.next_at = now + plan.backoff_s(
            self._failures, now - self._down_since, random=random.random(), up_for_s=up_for_s
        )

"""When which rescan comes, and which single hours are visited before."""

from __future__ import annotations

import threading

from tombsync.names import Hour
from tombsync.rescan.kinds import RescanKind

_NEVER = float("inf")


class Schedule:
    """Belongs to the rescan's thread, but for what may be asked from any: `request`, `change_intervals`, `visit_at`.

    `_lock` guards what those set. Times are monotonic.
    """

    def __init__(self, interval_s: float, full_interval_s: float) -> None:
        self._intervals_s = (interval_s, full_interval_s)
        self._interval_at = self._full_at = 0.0
        self._settle_at = _NEVER
        self._lock = threading.Lock()
        self._due: dict[Hour, float] = {}
        self._requested: set[RescanKind] = set()
        self._changed_s: tuple[float, float] | None = None

    # -- asked from any thread ----------------------------------------------------------------------------------------

    def request(self, kind: RescanKind) -> None:
        """Rescan at once."""
        with self._lock:
            self._requested.add(kind)

    def change_intervals(self, interval_s: float, full_interval_s: float) -> None:
        """Rescan so often from now on; what is due by that already begins at once."""
        with self._lock:
            self._changed_s = (interval_s, full_interval_s)

    def visit_at(self, hour: Hour, at: float) -> None:
        """Visit an hour then, if not before."""
        with self._lock:
            self._due[hour] = min(at, self._due.get(hour, _NEVER))

    # -- the rescan's own ---------------------------------------------------------------------------------------------

    def take_changed(self, now: float) -> tuple[float, float] | None:
        """Take up changed intervals, counted from when the last rescans ended (the old ones tell); None without."""
        with self._lock:
            changed_s, self._changed_s = self._changed_s, None
        if changed_s is not None:
            if self._interval_at > now:
                self._interval_at += changed_s[0] - self._intervals_s[0]
            if self._full_at > now:
                self._full_at += changed_s[1] - self._intervals_s[1]
            self._intervals_s = changed_s
        return changed_s

    def next_kind(self, now: float) -> RescanKind | None:
        """Which rescan is due; None for none."""
        with self._lock:
            requested, self._requested = self._requested, set()
        if RescanKind.INTERVAL in requested:
            self._interval_at = now
        if RescanKind.FULL in requested:
            self._full_at = now
        if self._interval_at <= now:
            return RescanKind.INTERVAL
        if self._full_at <= now:
            return RescanKind.FULL
        return RescanKind.SETTLE if self._settle_at <= now else None

    def next_at(self) -> float:
        """When something is due next; what was asked for is at once."""
        with self._lock:
            if self._requested or self._changed_s:
                return 0.0
            due = min(self._due.values(), default=_NEVER)
        return min(self._interval_at, self._full_at, self._settle_at, due)

    def take_hours(self, now: float, limit: int) -> list[Hour]:
        """Hours whose time has come, `limit` at most."""
        with self._lock:
            due = [hour for hour, at in self._due.items() if at <= now][:limit]
            for hour in due:
                del self._due[hour]
        return due

    def settle_at(self, at: float) -> None:
        """Something is left unsettled, and is listed once more then."""
        self._settle_at = at

    def began(self, kind: RescanKind) -> None:
        """A rescan begins."""
        if kind is RescanKind.SETTLE:
            self._settle_at = _NEVER

    def ended(self, kind: RescanKind, now: float) -> None:
        """A rescan ended: the next of its kind is due an interval from now. A full one is an interval one, too."""
        if kind is not RescanKind.SETTLE:
            self._interval_at = now + self._intervals_s[0]
        if kind is RescanKind.FULL:
            self._full_at = now + self._intervals_s[1]

"""When which hour directory of a peer is synced: pure bookkeeping of what waits and what runs.

A sync holds the server up, and with it every placing behind it. So there are only as many in flight as the round trip
hides, and while tombstones are being placed one after another they wait a little: one sync then covers hundreds.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from tombsync.names import Hour
from tombsync.plan import window

M = TypeVar("M")

_SYNC_S = 1.5e-3  # one fsync on an idle disk
_MOST_RUNNING = 64
FEW_PLACING = 8  # so little is being placed that nothing is held up
_LONGEST_WAIT_S = 2.0  # of one placed among many: 10,000 stand by then (benchmarks/catchup.py)


class Syncs(Generic[M]):
    """Members wait by hour for the next sync of its directory. Belongs to its session's thread."""

    def __init__(self) -> None:
        self._waiting: dict[Hour, list[M]] = {}
        self._since: deque[tuple[float, Hour]] = deque()  # hours in the order in which they began to wait
        self._busy: set[Hour] = set()
        self.running = 0
        self.members = 0  # that wait, in all hours

    def wait(self, hour: Hour, member: M, now: float) -> None:
        """A member wants a sync that begins after now."""
        self.members += 1
        if hour in self._waiting:
            self._waiting[hour].append(member)
            return
        self._waiting[hour] = [member]
        if hour not in self._busy:
            self._since.append((now, hour))

    def may_run(self, round_trip_s: float) -> bool:
        """Whether one more may be in flight."""
        return self.running < window(round_trip_s, _SYNC_S, least=1, most=_MOST_RUNNING)

    def due(self, now: float, *, placing: int, round_trip_s: float) -> bool:
        """Whether an hour should be synced now."""
        if not self._since or not self.may_run(round_trip_s):
            return False
        return placing <= FEW_PLACING or now - self._since[0][0] >= _LONGEST_WAIT_S

    def next(self) -> Hour:
        """The hour that is due, counted as running."""
        _, hour = self._since.popleft()
        self._busy.add(hour)
        self.running += 1
        return hour

    def take(self, hour: Hour) -> list[M]:
        """The members that a sync sent now will cover."""
        members = self._waiting.pop(hour, [])
        self.members -= len(members)
        return members

    def ended(self, hour: Hour, now: float) -> None:
        """The sync of this hour was answered; who came to wait meanwhile needs the next one."""
        self.running -= 1
        self._busy.discard(hour)
        if hour in self._waiting:
            self._since.append((now, hour))

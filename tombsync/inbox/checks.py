"""What a file in an inbox is by its name and its status: pure decisions."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from tombsync.errors import BadName
from tombsync.names import Canary, Offer, read_inbox_name


class Refused(NamedTuple):
    """Why a file is not taken: a short word for the metric, and what to tell."""

    reason: str
    text: str


def judge(name: str, found: os.stat_result, *, uid: int) -> Offer | Canary | Refused:
    """What the file asks for. `found` is what lstat says of it; `uid` is the account that alone may put files there."""
    if not stat.S_ISREG(found.st_mode):
        return Refused("not-regular", "no regular file")
    if found.st_uid != uid:
        return Refused("owner", f"of another account ({found.st_uid})")
    if found.st_size:
        return Refused("not-empty", f"it holds {found.st_size} bytes")
    if found.st_nlink != 1:
        return Refused("linked", f"it has {found.st_nlink} links")
    try:
        asked = read_inbox_name(name)
    except BadName as exc:
        return Refused("name", exc.reason)
    if isinstance(asked, Offer) and asked.generation:
        return Refused("generation", f"generation {asked.generation} is not understood")
    return asked


class Quota:
    """How many files one sender may deliver: `per_hour` at once, and then as many as an hour brings, evenly."""

    def __init__(self, per_hour: int) -> None:
        self.per_hour = per_hour
        self._left = float(per_hour)
        self._at: float | None = None  # monotonic: until when `_left` counts

    def change(self, per_hour: int) -> None:
        """Grant more or less from now on."""
        self._left = min(float(per_hour), self._left + max(0, per_hour - self.per_hour))
        self.per_hour = per_hour

    def take(self, wanted: int, now: float) -> int:
        """How many of `wanted` files may be looked at now."""
        if self._at is not None:
            self._left = min(self.per_hour, self._left + (now - self._at) * self.per_hour / 3600.0)
        self._at = now
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted

    @property
    def until_next_s(self) -> float:
        """Seconds until one more is granted; 0 where one is now."""
        return max(0.0, (1.0 - self._left) * 3600.0 / self.per_hour)

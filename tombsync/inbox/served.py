"""Which hours a sender may mark: those of places that are kept here."""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from tombsync.inbox.checks import Refused
from tombsync.names import Hour, hour_number
from tombsync.tree import Tree

_EPOCH = hour_number("1970-01-01T00")
# An hour that is not here is made only up to so much after now: clocks differ by less, and no archive records ahead.
HOURS_AHEAD = 24

NOT_SERVED = Refused("not-served", "its channel or quality is not kept here")
AHEAD = Refused("ahead", f"its hour is not here, and is more than {HOURS_AHEAD} hours after now")


class Served:
    """What is kept in the tree behind `root_fd`, remembered for the time of one batch."""

    def __init__(
        self,
        tree: Tree,
        root_fd: int,
        *,
        recorded: Callable[[], Container[tuple[str, str]]],
        now_s: float | None = None,
    ) -> None:
        """`recorded`: the places that had an hour before, by the index. `now_s`: wall time."""
        self._tree = tree
        self._root_fd = root_fd
        self._recorded = recorded
        self._latest = _EPOCH + int((time.time() if now_s is None else now_s) // 3600) + HOURS_AHEAD
        self._known: dict[tuple[str, str], bool] = {}

    def refusal(self, hour: Hour) -> Refused | None:
        """Why a mark in this hour is not taken; None where it is."""
        place = (hour.channel, hour.quality)
        if place not in self._known:
            self._known[place] = self._is_kept(*place)
        if not self._known[place]:
            return NOT_SERVED
        # One that is there is taken whatever this node's clock says.
        if hour.number > self._latest and self._tree.identity_of(self._root_fd, *place, hour.text) is None:
            return AHEAD
        return None

    def _is_kept(self, channel: str, quality: str) -> bool:
        """ROOT has other directories than those of segments: two levels alone do not make a channel and a quality."""
        if self._tree.identity_of(self._root_fd, channel, quality) is None:
            return False
        if (channel, quality) in self._recorded():
            return True
        return bool(self._tree.hours(self._root_fd, channel, quality))

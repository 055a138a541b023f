"""Whether a segment that arrives falls under a takedown that was made before. Pure; times as in `tombsync.timeline`.

It is judged as the takedown itself found what it marked. Of the qualities that it covers a segment falls under it that
carries a part of its span, or that is another version of an instant at which something was marked. Unless twins were
excluded, also a copy (the same hash, in whatever quality, in the hours of the span and their neighbours), and one that
starts up to TOLERANCE_US away from what was marked: so a backfiller brings a twin of what is hidden.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from tombsync.names import Hour, Kind, classify
from tombsync.timeline import TOLERANCE_US, Piece, hours_of, parse_time, piece
from tombsync.tree import Takedown

_CHAT = "chat"  # the type of a piece that is a batch of chat
_TEMP = "temp"
_EPOCH_US = parse_time("1970-01-01T00:00:00")


class Late(StrEnum):
    """Why a segment falls under a takedown; the values are recorded."""

    CARRIES = "carries"  # a part of the span
    COPY = "copy"  # has the hash of one that was marked
    INSTANT = "instant"  # starts when one starts that was marked
    NEXT_TO = "next-to"  # starts up to TOLERANCE_US away from one that was marked


class Reach:
    """A takedown as arriving segments are held against it. Nothing in it changes."""

    def __init__(self, takedown: Takedown) -> None:
        self.takedown = takedown
        numbers = hours_of(takedown.start_us, takedown.end_us)
        self.hours = range(max(0, numbers.start - takedown.twins), numbers.stop + takedown.twins)
        self._hashes = frozenset(takedown.hashes)
        self._qualities = frozenset(takedown.qualities)

    @property
    def made_at_ns(self) -> int:
        """When it was made, as Unix time."""
        return (parse_time(self.takedown.created_at) - _EPOCH_US) * 1_000

    def covers(self, one: Piece) -> bool:
        """Whether it is of a kind that the takedown is about."""
        if one.type == _CHAT:
            return self.takedown.chat
        return not self._qualities or one.hour.quality in self._qualities

    def _carries(self, one: Piece) -> bool:
        return self.covers(one) and one.touches(self.takedown.start_us, self.takedown.end_us)

    def starts_of(self, hour: Hour, stems: Iterable[str]) -> list[int]:
        """When those of the marked stems of an hour start that this takedown is about, in order."""
        pieces = (piece(hour, Kind.TS, stem) or piece(hour, Kind.JSON, stem) for stem in stems)
        return sorted(
            one.start_us for one in pieces if one is not None and (self._carries(one) or one.hash in self._hashes)
        )

    def why(self, one: Piece, starts: Sequence[int]) -> Late | None:
        """Why a segment falls under it; None where it does not. `starts`: of what is marked in its quality, in its hour
        and the ones around it, in order (`starts_of`)."""
        if one.hour.channel != self.takedown.channel or one.hour.number not in self.hours:
            return None
        if one.type == _TEMP or (one.type == _CHAT and not self.takedown.chat):
            return None  # what is still being written gets another name, and is judged by that
        if self._carries(one):
            return Late.CARRIES
        if self.takedown.twins and one.hash in self._hashes:
            return Late.COPY
        tolerance_us = TOLERANCE_US if self.takedown.twins else 0
        first = bisect_left(starts, one.start_us - tolerance_us)
        if first == len(starts) or starts[first] > one.start_us + tolerance_us:
            return None
        at = bisect_left(starts, one.start_us)
        return Late.INSTANT if at < len(starts) and starts[at] == one.start_us else Late.NEXT_TO


class Find(NamedTuple):
    """A segment that falls under a takedown, and why."""

    piece: Piece
    reach: Reach
    why: Late


def judge(hour: Hour, names: Iterable[str], reaches: Sequence[tuple[Reach, Sequence[int]]]) -> list[Find]:
    """Which files of an hour fall under one of these takedowns, each with its `starts`; of several that one counts
    which is sticky, as it is the one that something follows from."""
    found = []
    for name in names:
        kind, stem = classify(name)
        one = piece(hour, kind, stem)
        if one is None:
            continue
        fits = [Find(one, reach, why) for reach, starts in reaches if (why := reach.why(one, starts)) is not None]
        if fits:
            found.append(max(fits, key=lambda find: find.reach.takedown.sticky))
    return found


def by_channel(takedowns: Iterable[Takedown]) -> dict[str, tuple[Reach, ...]]:
    """The takedowns that run, so that an arriving segment costs one look where its channel has none."""
    found: dict[str, tuple[Reach, ...]] = {}
    for takedown in takedowns:
        if takedown.runs:
            found[takedown.channel] = (*found.get(takedown.channel, ()), Reach(takedown))
    return found

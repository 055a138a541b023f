"""What hiding files costs: the seconds that go beyond those that were asked for, and what is served instead. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from tombsync.timeline import TOLERANCE_US, Piece, SizeOf, sequence

Span = tuple[int, int]
_SERVED_TYPES = ("full", "suspect", "partial")


class Cost(NamedTuple):
    """What one quality loses by a takedown, in microseconds of what could be played before.

    `within_us`: of the span that was asked for; `before_us` and `after_us`: beyond it, on either side; `left_us`: what
    of the span can be played still.
    """

    within_us: int
    before_us: int
    after_us: int
    left_us: int

    @property
    def beyond_us(self) -> int:
        """All that was not asked for."""
        return self.before_us + self.after_us


def cost_of(visible: Iterable[Piece], going: Collection[Piece], start_us: int, end_us: int) -> Cost:
    """What it costs one quality to hide some of its visible files for the sake of a span."""
    served = [one for one in visible if one.type in _SERVED_TYPES]
    before = joined((one.start_us, one.end_us) for one in served)
    after = joined((one.start_us, one.end_us) for one in served if one not in going)

    def lost_us(first_us: int, last_us: int) -> int:
        return _length_us(cut(before, first_us, last_us)) - _length_us(cut(after, first_us, last_us))

    return Cost(
        within_us=lost_us(start_us, end_us),
        before_us=lost_us(0, start_us),
        after_us=lost_us(end_us, _NEVER_US),
        left_us=_length_us(cut(after, start_us, end_us)),
    )


_NEVER_US = 1 << 62


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that neither touch nor overlap, in order."""
    found: list[Span] = []
    for start_us, end_us in sorted(spans):
        if found and start_us <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end_us))
        elif end_us > start_us:
            found.append((start_us, end_us))
    return found


def cut(spans: Iterable[Span], start_us: int, end_us: int) -> list[Span]:
    """What of the spans lies within one."""
    clipped = ((max(first, start_us), min(last, end_us)) for first, last in spans)
    return [(first, last) for first, last in clipped if first < last]


def _length_us(spans: Iterable[Span]) -> int:
    return sum(last - first for first, last in spans)


class Visible:
    """The visible files of one channel and quality, to ask what is served around one of them."""

    def __init__(self, pieces: Iterable[Piece], size_of: SizeOf) -> None:
        self._pieces = sorted(one for one in pieces if one.type in _SERVED_TYPES)
        self._starts = [one.start_us for one in self._pieces]
        self._longest_us = max((one.duration_us for one in self._pieces), default=0)
        self._size_of = size_of

    def served(self, start_us: int, end_us: int, *, without: Piece | None = None) -> list[Piece]:
        """What is served for a span, were one of the files hidden."""
        # Of what plays before it, only what reaches into it counts; that may start as long before as the longest lasts.
        first = bisect_left(self._starts, start_us - self._longest_us - TOLERANCE_US)
        last = bisect_left(self._starts, end_us)
        near: Sequence[Piece] = self._pieces[first:last]
        served = sequence((one for one in near if one != without), start_us, end_us, self._size_of)
        return [one for one in served if one is not None]


def instead_of(visible: Visible, hidden: Piece) -> tuple[bool, list[Piece]]:
    """Whether a file is served for its own span, and what would be served there instead, were it alone hidden."""
    now = visible.served(hidden.start_us, hidden.end_us)
    if hidden not in now:
        return False, []
    then = visible.served(hidden.start_us, hidden.end_us, without=hidden)
    return True, [one for one in then if one not in now]

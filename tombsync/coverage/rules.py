"""What an hour of a channel and quality shows: pure decisions about files in time.

The rules are those of the archive's own checker and readers, in integers of microseconds:

- Of the files that start at one instant one is served (`timeline.best`); `temp` ones never are. `suspect` and `partial`
  ones are served where there is no `full` one, and count as *partial*, as nobody knows how they end.
- *Covered* is the time in which something that is served plays. *Editable* is what is left of it where files that begin
  more than TOLERANCE_US before the end of what was taken before are passed over, as the archive's cutter does.
- *Tombstoned* is what would be covered if nothing were hidden, and is not. The rest is a *hole*.
- A gap of up to TOLERANCE_US between two files is none; nor is one at the border of an hour, judged by its part in it.
- A file belongs to the hour in which it starts, and its time to the hours in which it plays: what reaches past the end
  of an hour covers the beginning of the next one (`Reach`), and of no later one.
- Batches of chat are all read, whether or not they overlap: each covers its minute.

So covered + tombstoned + hole is the whole span, to the microsecond. The span is the hour, but for the one that runs:
that ends now, and what is still to come is neither covered nor a hole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import NamedTuple

from tombsync.names import Hour, Kind, classify
from tombsync.timeline import HOUR_US, TOLERANCE_US, Piece, SizeOf, best, piece

PIXEL_US = 2_000_000  # a pixel of the map
PIXELS = HOUR_US // PIXEL_US
CHAT = "chat"  # the quality whose files are batches of chat
TYPES = ("full", "suspect", "partial", "temp", "chat", "bad")  # "bad": a name that does not parse
# States of a pixel, the worst the greatest. NOTHING: no hour directory, or time that is still to come.
NOTHING, COVERED, PARTIAL, TOMBSTONED, HOLE = range(5)
_SEGMENTS = (Kind.TS, Kind.JSON)
_STEP = 128  # files between two questions whether to give way, half a millisecond

Span = tuple[int, int]  # from, and up to and not including


class Reach(NamedTuple):
    """How far an hour's files reach into the next one, in microseconds past the border."""

    covered_us: int = 0
    full_us: int = 0  # of `full` ones alone
    any_us: int = 0  # if nothing were hidden
    taken_us: int = 0  # of those that are editable


class Coverage(NamedTuple):
    """What an hour shows. `span_us` is how much of it has been, `strip` one state a pixel, `counts` files by TYPES.

    `partial_us` and `editable_us` are parts of `covered_us`. Only `hidden` counts files that are not visible.
    """

    span_us: int
    covered_us: int
    editable_us: int
    partial_us: int
    tombstoned_us: int
    overlaps: int
    overlap_us: int
    hidden: int
    counts: tuple[int, ...]
    reach: Reach
    strip: bytes

    @property
    def hole_us(self) -> int:
        """What nothing covers, hidden or not."""
        return self.span_us - self.covered_us - self.tombstoned_us


@dataclass
class Files:
    """An hour's files, sorted out. `visible` and `hidden` are those that are served, or would be."""

    hour: Hour
    visible: list[Piece] = field(default_factory=list)
    hidden: list[Piece] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    hidden_count: int = 0


def sort_out(
    hour: Hour, names: Iterable[str], hidden_stems: Iterable[str], give_way: Callable[[], None] = lambda: None
) -> Files:
    """Read the names in an hour; what is no segment file is passed over.

    `give_way` is called between pieces of less than a millisecond.
    """
    files, hidden = Files(hour), frozenset(hidden_stems)
    wanted = Kind.JSON if hour.quality == CHAT else Kind.TS
    for number, name in enumerate(names):
        if number % _STEP == 0:
            give_way()
        kind, stem = classify(name)
        if kind not in _SEGMENTS:
            continue
        one = piece(hour, kind, stem) if kind is wanted else None
        if stem in hidden:
            files.hidden_count += 1
            if one is not None:
                files.hidden.append(one)
        elif one is None:
            files.counts["bad"] += 1
        else:
            files.counts[one.type] += 1
            files.visible.append(one)
    return files


def judge(
    files: Files, before: Reach, now_us: int, size_of: SizeOf, give_way: Callable[[], None] = lambda: None
) -> Coverage:
    """What an hour shows. `before`: how far the hour before it reaches; `now_us`: the time, as a Piece counts it."""
    start_us = files.hour.number * HOUR_US
    span = (start_us, min(start_us + HOUR_US, max(start_us, now_us)))
    walk = _Walk(start_us, before)
    for same in _instants(files.visible, give_way):
        walk.take(same, _served(same, size_of))
    everything = [(start_us, start_us + before.any_us), *walk.covered[1:]]
    if files.hidden:
        everything = everything[:1]
        for same in _instants(files.visible + files.hidden, give_way):
            if (one := _served(same, size_of)) is not None:
                everything.append((one.start_us, one.end_us))
    covered, full = _closed(walk.covered, span), _closed(walk.full, span)
    wholly = _closed([*everything, *covered], span)
    covered_us = _length(covered)
    return Coverage(
        span_us=span[1] - span[0],
        covered_us=covered_us,
        editable_us=_length(_closed(walk.taken, span)),
        partial_us=covered_us - _length(full),
        tombstoned_us=_length(wholly) - covered_us,
        overlaps=walk.overlaps,
        overlap_us=walk.overlap_us,
        hidden=files.hidden_count,
        counts=tuple(files.counts[type_] for type_ in TYPES),
        reach=Reach(*(_past(spans, start_us + HOUR_US) for spans in (walk.covered, walk.full, everything, walk.taken))),
        strip=_strip(span, full, covered, wholly),
    )


class _Walk:
    """Goes through what is served, instant by instant. The first span of each list is that of the hour before."""

    def __init__(self, start_us: int, before: Reach) -> None:
        self.covered = [(start_us, start_us + before.covered_us)]
        self.full = [(start_us, start_us + before.full_us)]
        self.taken = [(start_us, start_us + before.taken_us)]
        self._covered_to_us = start_us + before.covered_us
        self._taken_to_us = start_us + before.taken_us
        self.overlaps = self.overlap_us = 0

    def take(self, same: list[Piece], served: Piece | None) -> None:
        """The files of an instant, and that of them which is served."""
        if served is None:
            return
        start_us, end_us, type_ = served.start_us, served.end_us, served.type
        self._overlap(min(end_us, self._covered_to_us) - start_us)
        for one in same:  # the other versions play while it does
            if one is not served and one.type != "temp":
                self._overlap(min(one.end_us, end_us) - start_us)
        self.covered.append((start_us, end_us))
        self._covered_to_us = max(self._covered_to_us, end_us)
        if type_ in _WHOLE:
            self.full.append((start_us, end_us))
        if type_ == "chat" or start_us >= self._taken_to_us - TOLERANCE_US:
            self.taken.append((start_us, end_us))
            self._taken_to_us = end_us

    def _overlap(self, length_us: int) -> None:
        if length_us > TOLERANCE_US:
            self.overlaps += 1
            self.overlap_us += length_us


_WHOLE = ("full", "chat")
_start_us = attrgetter("start_us")
_end_us = itemgetter(1)


def _instants(pieces: list[Piece], give_way: Callable[[], None]) -> Iterator[list[Piece]]:
    """The files of each instant at which one starts, in order."""
    for number, (_, same) in enumerate(groupby(sorted(pieces, key=_start_us), key=_start_us)):
        if number % _STEP == 0:
            give_way()
        yield list(same)


def _served(same: list[Piece], size_of: SizeOf) -> Piece | None:
    """Which file of an instant is served. Of those that play for the same time it does not matter which it is."""
    if len(same) == 1:
        return None if same[0].type == "temp" else same[0]
    if same[0].type == "chat":
        return same[0]
    return best({(one.type, one.end_us): one for one in same}.values(), size_of)


def _closed(spans: Iterable[Span], within: Span) -> list[Span]:
    """Spans as far as they lie within another, in order, without overlaps and without gaps of up to TOLERANCE_US."""
    first_us, last_us = within
    found: list[Span] = []
    begun_us = ended_us = -1
    for start_us, end_us in sorted(spans):
        start_us, end_us = max(start_us, first_us), min(end_us, last_us)
        if start_us >= end_us:
            continue
        if ended_us < 0:
            begun_us, ended_us = (first_us if start_us - first_us <= TOLERANCE_US else start_us), end_us
        elif start_us - ended_us <= TOLERANCE_US:
            ended_us = max(ended_us, end_us)
        else:
            found.append((begun_us, ended_us))
            begun_us, ended_us = start_us, end_us
    if ended_us >= 0:
        found.append((begun_us, last_us if last_us - ended_us <= TOLERANCE_US else ended_us))
    return found


def _length(spans: list[Span]) -> int:
    return sum(end_us - start_us for start_us, end_us in spans)


def _past(spans: list[Span], border_us: int) -> int:
    """How far the hour's own files (not the first span, of the hour before it) reach past a border."""
    return max(0, max(map(_end_us, spans[1:]), default=0) - border_us)


def _strip(span: Span, full: list[Span], covered: list[Span], wholly: list[Span]) -> bytes:
    """The worst state of each PIXEL_US of an hour: hole, tombstoned, partial, covered. NOTHING past the span.

    What is missing in each list is missing in the ones before it too, so the worst is painted last.
    """
    strip = bytearray(PIXELS)
    start_us, end_us = span
    _paint(strip, 0, end_us - start_us, COVERED)
    for state, spans in ((PARTIAL, full), (TOMBSTONED, covered), (HOLE, wholly)):
        at_us = start_us
        for begun_us, ended_us in [*spans, (end_us, end_us)]:
            _paint(strip, at_us - start_us, begun_us - start_us, state)
            at_us = ended_us
    return bytes(strip)


def _paint(strip: bytearray, from_us: int, to_us: int, state: int) -> None:
    """Every pixel of which any part lies in a span."""
    if from_us < to_us:
        first, end = from_us // PIXEL_US, -(-to_us // PIXEL_US)
        strip[first:end] = bytes([state]) * (end - first)

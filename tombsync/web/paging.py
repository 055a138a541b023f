"""A span of time page by page: which segments are on a page, and where the next one goes on.

A cursor is text: the hour to go on with and, behind a comma, the file that was given last. It needs nothing to be
remembered here, and what comes or goes between two pages changes nothing that was given before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tombsync.errors import BadCursor, BadName
from tombsync.names import Hour, Kind, classify, hour_number, hour_text, strict_hour
from tombsync.timeline import Piece, best_by_start, continued, hours_of, piece

MOST_HOURS = 100  # looked at for one page, so that a span of years with nothing in it is a page of 0.1 s each


class Span(NamedTuple):
    """What is asked: a channel and quality and the time from `start_us` up to `end_us` (see timeline)."""

    channel: str
    quality: str
    start_us: int
    end_us: int


class Segments(Protocol):
    """What gives the segments: `client.Client`. Raises as that does."""

    def pieces(self, hour: Hour) -> list[Piece]:
        """The visible files of an hour whose names tell when they play."""

    def size_of(self, one: Piece) -> int:
        """The size of a file in bytes."""


class Cursor(NamedTuple):
    """Where a page begins: in this hour (`Hour.number`), behind this file."""

    hour: int
    after: Piece | None


def parse_cursor(text: str | None, span: Span) -> Cursor:
    """The cursor of a text; of None, that of the first page. Raises BadCursor, BadName."""
    hours = hours_of(span.start_us, span.end_us)
    strict_hour(span.channel, span.quality, "2019-11-13T02")  # whatever the hour: the two come from outside
    if text is None:
        return Cursor(hours.start, None)
    hour, comma, path = text.partition(",")
    try:
        found = Cursor(hour_number(hour), _piece(path, span) if comma else None)
    except BadName:
        raise BadCursor(text) from None
    if found.hour not in hours or (comma and (found.after is None or found.after.hour.number > found.hour)):
        raise BadCursor(text)
    return found


def _piece(path: str, span: Span) -> Piece | None:
    hour, _, name = path.partition("/")
    kind, stem = classify(name)
    if kind not in (Kind.TS, Kind.JSON):
        return None
    return piece(strict_hour(span.channel, span.quality, hour), kind, stem)


class Page:
    """The segments of one page, read hour by hour as they are taken; `next` is the cursor of the page behind it, once
    all are taken, None where there is none.
    """

    def __init__(self, source: Segments, span: Span, cursor: Cursor, *, best: bool, limit: int) -> None:
        """`limit`: how many files at most; `best`: what is served, with None for breaks (see timeline.sequence)."""
        self._source = source
        self._span = span
        self._cursor = cursor
        self._best = best
        self._limit = limit
        self._all_hours = hours_of(span.start_us, span.end_us)
        self._hours = range(cursor.hour, min(cursor.hour + MOST_HOURS, self._all_hours.stop))
        self.next: str | None = None

    def __iter__(self) -> Iterator[Piece | None]:
        taken, last, is_break = 0, self._cursor.after, False
        for one in self._served() if self._best else self._carried():
            if one is None:  # given with what follows it, so that no page ends between the two
                is_break = True
                continue
            if taken == self._limit:
                self.next = _text(one.hour.number, last)
                return
            if is_break:
                yield None
                is_break = False
            yield one
            taken, last = taken + 1, one
        if self._hours.stop < self._all_hours.stop and (last is None or last.end_us < self._span.end_us):
            self.next = _text(self._hours.stop, last)  # the span goes on, and perhaps without a break
        elif is_break:
            yield None

    def _hour_pieces(self) -> Iterator[list[Piece]]:
        for number in self._hours:
            yield self._source.pieces(Hour(self._span.channel, self._span.quality, number))

    def _carried(self) -> Iterator[Piece]:
        after = self._cursor.after
        for pieces in self._hour_pieces():
            for one in sorted(one for one in pieces if one.overlaps(self._span.start_us, self._span.end_us)):
                if after is None or one > after:
                    yield one

    def _served(self) -> Iterator[Piece | None]:
        served = (one for pieces in self._hour_pieces() for one in best_by_start(pieces, self._source.size_of))
        return continued(served, self._span.start_us, self._span.end_us, after=self._cursor.after)


def _text(hour: int, last: Piece | None) -> str:
    return hour_text(hour) + (f",{last.hour.text}/{last.name}" if last is not None else "")

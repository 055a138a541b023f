"""Segments in time: when a file plays, which of several is served for an instant, and what follows on what.

Pure decisions. Times are integers, microseconds since hour 0 as `names.hour_number` counts hours, so that no sum of
them is rounded; spans are half open. The rules are those of the archive's own readers:

- Of the files that start at one instant the best is the longest `full` one, then the largest, then that of the highest
  hash; else a `suspect` one, else a `partial` one, the largest of them. A `temp` one is never served.
- What begins more than TOLERANCE_US before the end of what is served already is passed over. A gap of up to
  TOLERANCE_US is none. After anything but a `full` one there is a break, as nobody knows how it ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from tombsync.errors import BadTime
from tombsync.names import EXTENSION, Hour, Kind, parse_chat_stem, parse_stem

HOUR_US = 3_600_000_000
TOLERANCE_US = 10_000  # the archive's readers take starts and durations that differ by up to 10 ms for the same
_FIRST, _FIRST_US = datetime(1, 1, 1, tzinfo=UTC), 24 * HOUR_US  # days count from 1: `date.toordinal`
_UNIX_US = _FIRST_US + (datetime(1970, 1, 1, tzinfo=UTC) - _FIRST) // timedelta(microseconds=1)
_FIRST_HOUR = 24  # of the day 1
_MAX_US = (datetime.max.replace(tzinfo=UTC) - _FIRST) // timedelta(microseconds=1)
# A day and a time of day at least: a bare day, a week or an ordinal day would say when only to a program.
_TIME_PATTERN = re.compile(r"\d{4}-?\d{2}-?\d{2}[T ]\d{2}.*", re.ASCII)


class Piece(NamedTuple):
    """A file that plays from `start_us` up to, and not including, `end_us`. `type` is `chat` for a batch of chat."""

    start_us: int
    end_us: int
    type: str
    hash: str
    hour: Hour
    stem: str
    kind: Kind

    @property
    def name(self) -> str:
        """The file's name."""
        return self.stem + EXTENSION[self.kind]

    @property
    def path(self) -> str:
        """The file's path relative to the root."""
        return f"{self.hour.path}/{self.name}"

    @property
    def duration_us(self) -> int:
        """How long it plays."""
        return self.end_us - self.start_us

    @property
    def start(self) -> datetime:
        """When it begins to play, UTC."""
        return _moment(self.start_us)

    @property
    def end(self) -> datetime:
        """When it has played, UTC."""
        return _moment(self.end_us)

    def overlaps(self, start_us: int, end_us: int) -> bool:
        """Whether it carries any part of that span."""
        return self.start_us < end_us and start_us < self.end_us

    def touches(self, start_us: int, end_us: int) -> bool:
        """As `overlaps`; and one whose name says that it has no length, at the instant at which it starts."""
        return self.start_us < end_us and (start_us < self.end_us or start_us <= self.start_us)


# Of files that the rule has to tell apart by their size; few are, so it is asked file by file. -1 where it is gone.
SizeOf = Callable[[Piece], int]


def piece(hour: Hour, kind: Kind, stem: str) -> Piece | None:
    """When a file of an hour plays; None where its name does not say so (such a file is carried without a time)."""
    segment = parse_stem(stem) if kind is Kind.TS else parse_chat_stem(stem) if kind is Kind.JSON else None
    if segment is None:
        return None
    start_us = hour.number * HOUR_US + segment.start_us
    end_us = start_us + round(segment.duration_s * 1_000_000)
    return Piece(start_us, end_us, segment.type, segment.hash, hour, stem, kind)


def best(pieces: Iterable[Piece], size_of: SizeOf) -> Piece | None:
    """Which of the files that start at one instant is served; None where none of them ever is."""
    served = [one for one in pieces if one.type in _RANKS]
    rank = min((_RANKS[one.type] for one in served), default=0)
    served = [one for one in served if _RANKS[one.type] == rank]
    if rank == _RANKS["full"]:
        longest_us = max((one.end_us for one in served), default=0)
        served = [one for one in served if one.end_us == longest_us]
    if len(served) < 2:
        return served[0] if served else None
    return max(served, key=lambda one: (size_of(one), one.hash))


_RANKS = {"full": 0, "suspect": 1, "partial": 2}


def best_by_start(pieces: Iterable[Piece], size_of: SizeOf) -> list[Piece]:
    """The file that is served for each instant at which one starts, in order."""
    found = (best(same, size_of) for _, same in groupby(sorted(pieces), key=lambda one: one.start_us))
    return [one for one in found if one is not None]


def sequence(pieces: Iterable[Piece], start_us: int, end_us: int, size_of: SizeOf) -> list[Piece | None]:
    """What is served for a span, in order, of one channel and quality; None stands for a break.

    The first may start before the span and the last end after it. Unless the first item is None, the first file covers
    the start; unless the last one is, the last file reaches the end.
    """
    return list(continued(best_by_start(pieces, size_of), start_us, end_us))


def continued(
    served: Iterable[Piece], start_us: int, end_us: int, *, after: Piece | None = None
) -> Iterator[Piece | None]:
    """The same from what `best_by_start` gives, in order; no more of it is taken than is needed.

    `after`: the file that was given last, where an earlier call was left behind it.
    """
    last = after
    for one in served if last is None or last.end_us < end_us else ():
        if last is None:
            if not one.overlaps(start_us, end_us):
                continue
            if one.start_us > start_us:
                yield None
        else:
            if one.start_us <= last.start_us or one.start_us >= end_us or one.start_us < last.end_us - TOLERANCE_US:
                continue
            if last.type != "full" or one.start_us > last.end_us + TOLERANCE_US:
                yield None
        yield one
        last = one
        if one.end_us >= end_us:
            break
    if last is None or last.type != "full" or last.end_us < end_us:
        yield None


def hours_of(start_us: int, end_us: int) -> range:
    """The hours (`Hour.number`) whose directories may hold a file of a span: also the one before it, as a file stands
    in the hour in which it starts."""
    return range(max(_FIRST_HOUR, start_us // HOUR_US - 1), -(-end_us // HOUR_US))


def parse_time(text: str) -> int:
    """Read a time of ISO 8601 (`2019-11-13T02:45:51.608`, also with an offset); UTC where it names none.

    Raises BadTime.
    """
    if _TIME_PATTERN.fullmatch(text) is None:
        raise BadTime(text)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadTime(text) from None
    return _FIRST_US + (moment - _FIRST) // timedelta(microseconds=1)


def unix_moment_us(unix_ns: int) -> int:
    """A wall time, as the clock gives it, in microseconds since hour 0."""
    return _UNIX_US + unix_ns // 1000


def time_text(moment_us: int) -> str:
    """The inverse of `parse_time`: `2019-11-13T02:45:51.608000Z`."""
    return _moment(moment_us).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def iso(at_ns: int | None) -> str | None:
    """A wall time (nanoseconds since 1970) in the same form, as programs read it; None for never."""
    return None if at_ns is None else time_text(_UNIX_US + at_ns // 1000)


def wall_ns(moment_us: int) -> int:
    """The inverse: a time as `parse_time` gives it, in nanoseconds since 1970; negative before."""
    return (moment_us - _UNIX_US) * 1000


def _moment(moment_us: int) -> datetime:
    """No later than the calendar goes: a file may play beyond it."""
    return _FIRST + timedelta(microseconds=min(moment_us - _FIRST_US, _MAX_US))


_UNIX_US = parse_time("1970-01-01T00:00:00")

"""The coverage of hours for a command, with the agent up or down.

What the index has of an hour counts where nothing has changed since: then its figures are taken as they are, or made of
its rows. An hour that is not known good is read from its directory, and known marks hide in it whatever stands there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from tombsync.coverage.rows import of_row
from tombsync.coverage.rules import Coverage, Reach, judge, sort_out
from tombsync.index import CoverageRow, Reader
from tombsync.names import Hour, Kind, classify
from tombsync.timeline import HOUR_US
from tombsync.tree import Sizes, Tree, hour_numbers, open_below

_CHUNK_HOURS = 256


@dataclass(frozen=True)
class _Judged:
    """An hour, and whether it reaches as far into the next one as the index says."""

    number: int
    coverage: Coverage
    as_known: bool


class Survey:
    """Belongs to one thread. Raises RootMissing, OSError where a directory cannot be read, and what a Reader raises."""

    def __init__(self, tree: Tree, root_fd: int, reader: Reader | None, now_us: int) -> None:
        """`reader`: None where there is no index; `now_us`: when the hour that runs ends (see `timeline`)."""
        self._tree = tree
        self._root_fd = root_fd
        self._reader = reader
        self._now_us = now_us

    def numbers(self, channel: str, quality: str, first: int | None, end: int | None) -> list[int]:
        """The hours that have a directory, from `first` up to and not including `end`, by rising number."""
        return [
            number
            for number in reversed(hour_numbers(self._root_fd, channel, quality))
            if (first is None or number >= first) and (end is None or number < end)
        ]

    def hours(self, channel: str, quality: str, numbers: list[int]) -> Iterator[tuple[int, Coverage]]:
        """Judge hours of one place, by rising number."""
        last: _Judged | None = None
        for start in range(0, len(numbers), _CHUNK_HOURS):
            chunk = numbers[start : start + _CHUNK_HOURS]
            rows = self._rows(channel, quality, chunk[0] - 1, chunk[-1] + 1)
            for number in chunk:
                hour = Hour(channel, quality, number)
                if last is None or last.number != number - 1:
                    last = self._before(hour, rows)
                last = self._judge(hour, rows.get(number), last)
                yield number, last.coverage

    def _rows(self, channel: str, quality: str, first: int, end: int) -> dict[int, CoverageRow]:
        place = self._reader.places().get((channel, quality)) if self._reader is not None else None
        if self._reader is None or place is None:
            return {}
        rows = self._reader.coverage_rows(place[0], first=first, end=end, limit=end - first)
        return {row.number: row for row in rows}

    def _before(self, hour: Hour, rows: dict[int, CoverageRow]) -> _Judged | None:
        """The hour before, where it has a directory; what reaches into it does not reach on into this one."""
        before = hour._replace(number=hour.number - 1)
        return self._judge(before, rows.get(before.number), None) if self._mtime_ns(before) is not None else None

    def _judge(self, hour: Hour, row: CoverageRow | None, before: _Judged | None) -> _Judged:
        mtime_ns = self._mtime_ns(hour)
        if row is not None and row.current and row.settled and row.mtime_ns == mtime_ns:
            known = of_row(row)
            if known.span_us == HOUR_US and (before is None or before.as_known):
                return _Judged(hour.number, known, as_known=True)
        names, hidden = self._files(hour, mtime_ns)
        with Sizes(self._tree, hour) as sizes:
            coverage = judge(
                sort_out(hour, names, hidden),
                before.coverage.reach if before is not None else Reach(),
                self._now_us,
                lambda one: sizes.bytes_of(one.name),
            )
        known_reach = of_row(row).reach if row is not None else Reach()
        return _Judged(hour.number, coverage, as_known=coverage.reach == known_reach)

    def _files(self, hour: Hour, mtime_ns: int | None) -> tuple[set[str], set[str]]:
        """Names in an hour, and the stems that are hidden in it."""
        marked = set(self._reader.markers(hour)) if self._reader is not None else set()
        row = self._reader.hour_row(hour) if self._reader is not None else None
        if self._reader is not None and row is not None and row.settled and row.mtime_ns == mtime_ns:
            return self._reader.segments(hour), marked
        names = self._names(hour)
        kinds = map(classify, names)
        return set(names), marked | {stem for kind, stem in kinds if kind is Kind.TOMBSTONE}

    def _mtime_ns(self, hour: Hour) -> int | None:
        """When the directory last changed; None where there is none."""
        try:
            fd = open_below(self._root_fd, hour.channel, hour.quality, hour.text)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)

    def _names(self, hour: Hour) -> list[str]:
        try:
            fd = open_below(self._root_fd, hour.channel, hour.quality, hour.text)
        except FileNotFoundError:  # gone meanwhile
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

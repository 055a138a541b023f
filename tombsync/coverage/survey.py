"""The coverage of hours for a command, with the agent up or down.

What the index has of an hour counts where nothing has changed since: then its figures are taken as they are, or made of
its rows. An hour that is not known good is read from its directory, and known marks hide in it whatever stands there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tombsync.coverage.rows import of_row
from tombsync.coverage.rules import Coverage, Reach, judge, sort_out
from tombsync.index import CoverageRow, Reader
from tombsync.names import Hour, Kind, classify
from tombsync.timeline import HOUR_US
from tombsync.tree import Sizes, Tree, hour_numbers, open_below

_CHUNK_HOURS = 256


@dataclass(frozen=True)
class _Reaching:
    """An hour, how far it reaches into the next one, and whether the index says the same."""

    number: int
    reach: Reach
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
        last: _Reaching | None = None
        for start in range(0, len(numbers), _CHUNK_HOURS):
            chunk = numbers[start : start + _CHUNK_HOURS]
            rows = self._rows(channel, quality, chunk[0] - 1, chunk[-1] + 1)
            for number in chunk:
                hour = Hour(channel, quality, number)
                if last is None or last.number != number - 1:
                    last = self._before(hour, rows)
                coverage, last = self._judge(hour, rows.get(number), last)
                yield number, coverage

    def _rows(self, channel: str, quality: str, first: int, end: int) -> dict[int, CoverageRow]:
        place = self._reader.places().get((channel, quality)) if self._reader is not None else None
        if self._reader is None or place is None:
            return {}
        rows = self._reader.coverage_rows(place[0], first=first, end=end, limit=end - first)
        return {row.number: row for row in rows}

    def _before(self, hour: Hour, rows: dict[int, CoverageRow]) -> _Reaching:
        """The hour before. What reaches into that one does not reach on into this."""
        before = hour._replace(number=hour.number - 1)
        nothing = _Reaching(before.number, Reach(), as_known=True)
        row = rows.get(before.number)
        if self._mtime_ns(before) is None:  # there is no such directory, or no more
            return replace(nothing, as_known=row is None or of_row(row).reach == Reach())
        return self._judge(before, row, nothing)[1]

    def _judge(self, hour: Hour, row: CoverageRow | None, before: _Reaching) -> tuple[Coverage, _Reaching]:
        known = None if row is None else of_row(row)
        mtime_ns = self._mtime_ns(hour)
        is_current = row is not None and row.current and row.settled and row.mtime_ns == mtime_ns
        if known is not None and is_current and known.span_us == HOUR_US and before.as_known:
            return known, _Reaching(hour.number, known.reach, as_known=True)
        names, hidden = self._files(hour, mtime_ns)
        with Sizes(self._tree, hour) as sizes:
            files = sort_out(hour, names, hidden)
            coverage = judge(files, before.reach, self._now_us, lambda one: sizes.bytes_of(one.name))
        known_reach = Reach() if known is None else known.reach
        return coverage, _Reaching(hour.number, coverage.reach, as_known=coverage.reach == known_reach)

    def _files(self, hour: Hour, mtime_ns: int | None) -> tuple[set[str], set[str]]:
        """Names in an hour, and the stems that are hidden in it."""
        marked = set(self._reader.markers(hour)) if self._reader is not None else set()
        row = self._reader.hour_row(hour) if self._reader is not None else None
        if self._reader is not None and row is not None and row.settled and row.mtime_ns == mtime_ns:
            return self._reader.segments(hour), marked
        with self._opened(hour) as fd:
            names = [] if fd is None else os.listdir(fd)
        kinds = map(classify, names)
        return set(names), marked | {stem for kind, stem in kinds if kind is Kind.TOMBSTONE}

    def _mtime_ns(self, hour: Hour) -> int | None:
        """When the directory last changed; None where there is none."""
        with self._opened(hour) as fd:
            return None if fd is None else os.fstat(fd).st_mtime_ns

    @contextmanager
    def _opened(self, hour: Hour) -> Iterator[int | None]:
        """The directory of an hour; None where there is none."""
        try:
            fd = open_below(self._root_fd, hour.channel, hour.quality, hour.text)
        except FileNotFoundError:
            yield None
            return
        except OSError as exc:
            exc.filename = f"{self._tree.root}/{hour.path}"
            raise
        try:
            yield fd
        finally:
            os.close(fd)

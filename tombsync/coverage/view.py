"""What programs ask of the agent over HTTP: the hours of a channel and quality, as the index has them."""

from __future__ import annotations

import threading
from typing import Any

from tombsync.coverage.map import Map, map_range
from tombsync.coverage.rows import figures, hour_document, of_row, totals_of_sums
from tombsync.index import Reader
from tombsync.names import hour_number, hour_text

_END = hour_number("9999-12-31T23") + 1  # behind the last hour that has a name


class CoverageView:
    """Answers by a reader of its own, which the HTTP threads share under `_lock`; every question is short."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._reader = Reader(path)

    def hours(
        self, channel: str, quality: str, first: int | None, end: int | None, limit: int
    ) -> dict[str, Any] | None:
        """A page of hours and the totals of all that were asked for; None where nothing is known of the place."""
        low, high = first or 0, _END if end is None else end
        with self._lock:
            place = self._place(channel, quality)
            if place is None:
                return None
            rows = self._reader.coverage_rows(place, first=low, end=high, limit=limit + 1)
            sums = self._reader.coverage_sums(place, first=low, end=high)
        totals = totals_of_sums(sums)
        return {
            "channel": channel,
            "quality": quality,
            "totals": {"hours": totals.hours, **figures(totals)},
            "hours": [{**hour_document(row.number, of_row(row)), "current": row.current} for row in rows[:limit]],
            "next": hour_text(rows[limit].number) if len(rows) > limit else None,
        }

    def map(self, channel: str, quality: str, first: int | None, end: int | None) -> Map | None:
        """What a map of a range of hours shows; None where nothing is known of it. See `map_range` for the range."""
        with self._lock:
            place = self._place(channel, quality)
            last = None if place is None else self._reader.coverage_last(place, end=_END if end is None else end)
            if place is None or last is None:
                return None
            low, high = map_range(first, end, last)
            if low >= high:  # all that is known was before
                return None
            rows = self._reader.coverage_rows(place, first=low, end=high, limit=high - low)
        return Map(channel, quality, low, high, {row.number: row.strip for row in rows})

    def _place(self, channel: str, quality: str) -> int | None:
        found = self._reader.places().get((channel, quality))
        return found[0] if found else None

    def close(self) -> None:
        """Close the reader."""
        with self._lock:
            self._reader.close()

"""A reading connection to the index, and what all questions to it share: places and hours by their keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tombsync.index import files
from tombsync.index.schema import HOUR_BITS, from_key, hour_id, hour_of
from tombsync.names import Hour


class Questions:
    """One connection, which belongs to one thread. Raises IndexMissing, IndexDamaged, StateRefused."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = files.open_for_reading(path)
        self._places: dict[int, tuple[str, str]] = {}

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        with files.translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """All questions in a `with` block are answered as of one moment. Kept short, as the log cannot shrink then."""
        with files.translated(self.path):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with files.translated(self.path):
                self._connection.execute("ROLLBACK")

    def places(self) -> dict[tuple[str, str], tuple[int, bool]]:
        """(channel, quality) -> (key, whether it was a mount of its own)."""
        return {
            (from_key(channel), from_key(quality)): (identifier, bool(own_mount))
            for identifier, channel, quality, own_mount in self._all(
                "SELECT id, channel, quality, own_mount FROM place"
            )
        }

    def _place(self, identifier: int) -> dict[int, tuple[str, str]]:
        if identifier not in self._places:
            self._places = {place: pair for pair, (place, _) in self.places().items()}
        return self._places

    def _hour_key(self, hour: Hour) -> int | None:
        for _ in range(2):
            for place, pair in self._places.items():
                if pair == (hour.channel, hour.quality):
                    return hour_id(place, hour.number)
            self._places = {place: pair for pair, (place, _) in self.places().items()}
        return None

    def _hour_of(self, identifier: int) -> Hour:
        return hour_of(identifier, self._place(identifier >> HOUR_BITS))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

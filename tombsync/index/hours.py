"""The part of the index's reader that knows what stands in hours."""

from __future__ import annotations

import json
from typing import NamedTuple

from tombsync.index.questions import Questions
from tombsync.index.schema import HIDDEN_STEMS, ROW_NAME, from_key, place_range
from tombsync.names import EXTENSION, Hour, Kind, tombstone_name

_HOUR_COLUMNS = "id, mtime_ns, digest, pass, settled, edits, files"


class HourRow(NamedTuple):
    """What the index knows of one hour directory. `number` is `names.Hour.number`."""

    number: int
    mtime_ns: int | None
    digest: bytes | None
    pass_number: int
    settled: int
    edits: int
    files: int


def mistakes_key(hour: Hour) -> str:
    """The key of the fact that an hour has names that look like tombstones and are none of ours."""
    return f"mistakes {json.dumps(hour.path)}"  # text, whatever bytes the path is made of


class Hours(Questions):
    """What Reader can tell of hours and segments."""

    def hour_rows(self, place: int, *, below: int | None, least: int) -> list[HourRow]:
        """The hours of a place from `least` up to and not including `below`."""
        first, last = place_range(place)
        last = last if below is None else first + below - 1
        rows = self._all(f"SELECT {_HOUR_COLUMNS} FROM hour WHERE id BETWEEN ? AND ?", (first + least, last))
        return [HourRow(row[0] - first, *row[1:]) for row in rows]

    def settled_mtimes(self, place: int, *, below: int | None, least: int) -> dict[int, int | None]:
        """The same hours by number: the mtime of each that is settled, None of the others.

        Two columns and no object a row: an interval rescan needs no more (benchmarks/rescan.py).
        """
        first, last = place_range(place)
        last = last if below is None else first + below - 1
        return dict(
            self._all(
                "SELECT id - ?1, iif(settled, mtime_ns, NULL) FROM hour WHERE id BETWEEN ?1 + ?2 AND ?3",
                (first, least, last),
            )
        )

    def unsettled(self, *, below: int | None, limit: int) -> list[tuple[int, Hour, HourRow]]:
        """Hours whose listing does not count yet, as (key, hour, row), by falling key."""
        rows = self._all(
            f"SELECT {_HOUR_COLUMNS} FROM hour WHERE settled = 0 AND id < ? ORDER BY id DESC LIMIT ?",
            (below if below is not None else 1 << 62, limit),
        )
        return [(row[0], hour := self._hour_of(row[0]), HourRow(hour.number, *row[1:])) for row in rows]

    def hour_row(self, hour: Hour) -> HourRow | None:
        """One hour's row."""
        key = self._hour_key(hour)
        rows = self._all(f"SELECT {_HOUR_COLUMNS} FROM hour WHERE id = ?", (key,))
        return HourRow(hour.number, *rows[0][1:]) if rows else None

    def segments(self, hour: Hour) -> set[str]:
        """The file names of an hour, hidden or not."""
        return set(self._names("", self._hour_key(hour)))

    def _names(self, condition: str, key: int | None) -> list[str]:
        # As one JSON array: SQLite puts it together and json takes it apart, neither row by row in Python. A stem that
        # is a BLOB (not UTF-8) fits in no JSON; blobs sort behind all text.
        ((array,),) = self._all(
            f"SELECT json_group_array({ROW_NAME}) FROM segment WHERE hour = ?1 AND stem < x'' {condition}",
            (key,),
        )
        names: list[str] = json.loads(array)
        names.extend(
            from_key(stem) + EXTENSION[Kind(ext)]
            for stem, ext in self._all(
                f"SELECT stem, ext FROM segment WHERE hour = ?1 AND stem >= x'' {condition}",
                (key,),
            )
        )
        return names

    def markers(self, hour: Hour) -> dict[str, bool]:
        """The marked stems of an hour -> whether the tombstone was once in the tree."""
        key = self._hour_key(hour)
        rows = self._all(
            "SELECT stem, max(in_tree) FROM marker WHERE hour = ? GROUP BY stem HAVING max(gen) % 2 = 0", (key,)
        )
        return {from_key(stem): bool(in_tree) for stem, in_tree in rows}

    def has_mistakes(self, hour: Hour) -> bool:
        """Whether the last listing of an hour found a `STEM.ts.tombstone` or the like, of which there are no rows."""
        return bool(self._all("SELECT 1 FROM meta WHERE key = ? AND value IS NOT NULL", (mistakes_key(hour),)))

    def listing(self, hour: Hour, *, tombstones: bool = False) -> list[str]:
        """The visible file names of an hour, sorted; with `tombstones` the tombstones too. [] for an unknown hour."""
        names = self._names(f"AND stem NOT IN {HIDDEN_STEMS}", self._hour_key(hour))
        if tombstones:
            names.extend(tombstone_name(stem) for stem in self.markers(hour))
        return sorted(names)

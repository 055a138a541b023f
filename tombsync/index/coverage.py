"""What the index keeps of each hour's coverage: figures that `tombsync.coverage` made, and which are only kept here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tombsync.index.questions import Questions
from tombsync.index.schema import COVERAGE_FIGURES, REACH_FIGURES, STALE, place_range
from tombsync.names import Hour
from tombsync.timeline import HOUR_US

if TYPE_CHECKING:
    from tombsync.index.writer import Writer

_FIGURES = ", ".join(COVERAGE_FIGURES)
_OF_ROW = ", ".join(f"c.{name}" for name in COVERAGE_FIGURES)
_REACH = ", ".join(REACH_FIGURES)
_SUMMED = tuple(name for name in COVERAGE_FIGURES if name not in REACH_FIGURES)
# What the figures were made of. `edits` alone tells of what the watcher saw and what was hidden; what a rescan finds
# changes the count or the digest.
_SAME = "c.edits = h.edits AND c.files = h.files AND c.hidden_files = h.hidden AND c.digest IS h.digest"
_DUE = f"(c.hour IS NULL OR NOT ({_SAME}) OR c.span_us < {HOUR_US})"


class Made(NamedTuple):
    """What the hour's row said right before the figures were made."""

    edits: int
    files: int
    hidden: int
    digest: bytes | None


class CoverageRow(NamedTuple):
    """An hour's figures, in the order of COVERAGE_FIGURES. `current`: nothing has changed since they were made."""

    number: int
    current: bool
    settled: bool
    mtime_ns: int | None
    figures: tuple[int, ...]
    strip: bytes


@dataclass
class HourCovered:
    """An hour's figures. Where it reaches into the next hour otherwise than before, that one is due again."""

    hour: Hour
    made: Made
    figures: tuple[int, ...]
    strip: bytes
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        identifier = writer.hour_id(self.hour)
        before = writer.execute(f"SELECT {_REACH} FROM coverage WHERE hour = ?", (identifier,)).fetchone()
        values = (identifier, *self.made, *self.figures, self.strip)
        writer.execute(
            f"INSERT OR REPLACE INTO coverage (hour, edits, files, hidden_files, digest, {_FIGURES}, strip)"
            f" SELECT {', '.join('?' * len(values))} WHERE EXISTS (SELECT 1 FROM hour WHERE id = ?)",
            (*values, identifier),
        )
        reach = self.figures[-len(REACH_FIGURES) :]
        if reach != (before or (0,) * len(reach)):
            writer.execute("UPDATE coverage SET edits = ? WHERE hour = ?", (STALE, identifier + 1))

    def committed(self) -> None:
        pass


class Coverages(Questions):
    """What Reader can tell of coverage."""

    def coverage_due(self, place: int, *, above: int, limit: int) -> list[tuple[int, Made]]:
        """Hours of a place whose figures are missing or old, or whose hour was not over, by rising number."""
        first, last = place_range(place)
        rows = self._all(
            "SELECT h.id, h.edits, h.files, h.hidden, h.digest FROM hour h LEFT JOIN coverage c ON c.hour = h.id"
            f" WHERE h.id > ? AND h.id <= ? AND {_DUE} ORDER BY h.id LIMIT ?",
            (first + above, last, limit),
        )
        return [(row[0] - first, Made(*row[1:])) for row in rows]

    def coverage_due_unsettled(self, *, above: int, limit: int) -> list[tuple[int, Hour, Made]]:
        """The same of all hours that are not settled (whatever changes makes an hour so), as (key, hour, made)."""
        rows = self._all(
            "SELECT h.id, h.edits, h.files, h.hidden, h.digest FROM hour h INDEXED BY hour_unsettled"
            " LEFT JOIN coverage c ON c.hour = h.id"
            f" WHERE h.settled = 0 AND h.id > ? AND {_DUE} ORDER BY h.id LIMIT ?",
            (above, limit),
        )
        return [(row[0], self._hour_of(row[0]), Made(*row[1:])) for row in rows]

    def hour_reach(self, hour: Hour) -> tuple[int, ...]:
        """How far an hour reaches into the next one (REACH_FIGURES); nothing where it was not judged."""
        rows = self._all(f"SELECT {_REACH} FROM coverage WHERE hour = ?", (self._hour_key(hour),))
        return tuple(rows[0]) if rows else (0,) * len(REACH_FIGURES)

    def coverage_rows(self, place: int, *, first: int, end: int, limit: int) -> list[CoverageRow]:
        """The figures of a place's hours from `first` up to and not including `end`, by rising number."""
        low, _ = place_range(place)
        rows: list[tuple[Any, ...]] = self._all(
            f"SELECT c.hour, {_SAME}, h.settled, h.mtime_ns, c.strip, {_OF_ROW}"
            " FROM coverage c JOIN hour h ON h.id = c.hour WHERE c.hour >= ? AND c.hour < ? ORDER BY c.hour LIMIT ?",
            (low + first, low + end, limit),
        )
        return [CoverageRow(row[0] - low, bool(row[1]), bool(row[2]), row[3], row[5:], row[4]) for row in rows]

    def coverage_last(self, place: int, *, end: int) -> int | None:
        """The last hour of a place that was judged, below `end`."""
        low, _ = place_range(place)
        rows = self._all("SELECT max(hour) FROM coverage WHERE hour >= ? AND hour < ?", (low, low + end))
        return rows[0][0] - low if rows[0][0] is not None else None

    def coverage_sums(self, place: int, *, first: int = 0, end: int | None = None) -> tuple[int, ...]:
        """How many hours of a place were judged, and the sums of their figures but for the reach."""
        low, last = place_range(place)
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _SUMMED)
        rows = self._all(
            f"SELECT count(*), {sums} FROM coverage WHERE hour >= ? AND hour <= ?",
            (low + first, last if end is None else low + end - 1),
        )
        return tuple(rows[0])

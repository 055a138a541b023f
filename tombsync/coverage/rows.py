"""An hour's coverage as a row of the index, as a document, and summed up."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from tombsync.coverage.rules import TYPES, Coverage, Reach
from tombsync.index import CoverageRow, HourCovered, Made
from tombsync.names import Hour, hour_text

_PLAIN: Final = 8  # figures before the counts, see `Coverage`
_US = 1_000_000


def to_batch(hour: Hour, made: Made, coverage: Coverage) -> HourCovered:
    """For the index's writer."""
    figures = (*coverage[:_PLAIN], *coverage.counts, *coverage.reach)
    return HourCovered(hour, made, figures, zlib.compress(coverage.strip))


def of_row(row: CoverageRow) -> Coverage:
    """The inverse."""
    end = _PLAIN + len(TYPES)
    counts, reach = row.figures[_PLAIN:end], Reach._make(row.figures[end:])
    return Coverage._make((*row.figures[:_PLAIN], counts, reach, zlib.decompress(row.strip)))


class Totals(NamedTuple):
    """The figures of several hours, summed. Times in microseconds, `counts` by TYPES."""

    hours: int = 0
    span_us: int = 0
    covered_us: int = 0
    editable_us: int = 0
    partial_us: int = 0
    tombstoned_us: int = 0
    overlaps: int = 0
    overlap_us: int = 0
    hidden: int = 0
    counts: tuple[int, ...] = (0,) * len(TYPES)

    @property
    def hole_us(self) -> int:
        """What nothing covers, hidden or not."""
        return self.span_us - self.covered_us - self.tombstoned_us


def totals_of_sums(sums: tuple[int, ...]) -> Totals:
    """From what `Reader.coverage_sums` gives."""
    return Totals._make((*sums[: _PLAIN + 1], sums[_PLAIN + 1 :]))


def totals_of(hours: Iterable[Coverage]) -> Totals:
    """The sum of some hours."""
    sums = [0] * (_PLAIN + 1 + len(TYPES))
    for one in hours:
        for index, value in enumerate((1, *one[:_PLAIN], *one.counts)):
            sums[index] += value
    return totals_of_sums(tuple(sums))


def figures(one: Coverage | Totals) -> dict[str, Any]:
    """For programs: seconds, counts of files."""
    return {
        "span_s": one.span_us / _US,
        "covered_s": one.covered_us / _US,
        "editable_s": one.editable_us / _US,
        "partial_s": one.partial_us / _US,
        "tombstoned_s": one.tombstoned_us / _US,
        "hole_s": one.hole_us / _US,
        "overlaps": one.overlaps,
        "overlap_s": one.overlap_us / _US,
        "files": {**dict(zip(TYPES, one.counts, strict=True)), "hidden": one.hidden},
    }


def hour_document(number: int, coverage: Coverage) -> dict[str, Any]:
    """One hour for programs."""
    return {"hour": hour_text(number), **figures(coverage)}

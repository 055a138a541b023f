"""What the index knows of the surroundings of a segment, to judge it by."""

from __future__ import annotations

from collections.abc import Sequence

from tombsync.index import Reader
from tombsync.names import EXTENSION, Hour, Kind, Marked
from tombsync.takedown.late import Find, Reach, judge


class Surroundings:
    """The marked stems of an hour and its neighbours: what starts a tolerance away may stand in one of those."""

    def __init__(self, reader: Reader, hour: Hour) -> None:
        self._hour = hour
        numbers = range(max(0, hour.number - 1), hour.number + 2)
        self._markers = {number: reader.markers(hour._replace(number=number)) for number in numbers}

    def is_marked(self, stem: str) -> bool:
        """Whether a stem of the hour itself is hidden."""
        return stem in self._markers[self._hour.number]

    def judge(self, names: Sequence[str], reaches: Sequence[Reach]) -> list[Find]:
        """Which of these files of the hour fall under one of these takedowns, marked or not."""
        return judge(self._hour, names, [(reach, self._starts(reach)) for reach in reaches])

    def _starts(self, reach: Reach) -> list[int]:
        return sorted(
            start
            for number, stems in self._markers.items()
            for start in reach.starts_of(self._hour._replace(number=number), stems)
        )


def takedown_of(reader: Reader, marked: Marked, reaches: Sequence[Reach]) -> Reach | None:
    """The takedown that a stem falls under, a sticky one before others; None where it falls under none."""
    names = [marked.stem + EXTENSION[kind] for kind in (Kind.TS, Kind.JSON)]
    found = Surroundings(reader, marked.hour).judge(names, reaches)
    return max((find.reach for find in found), key=lambda reach: reach.takedown.sticky, default=None)

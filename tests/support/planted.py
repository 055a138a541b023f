"""Hours of real media whose coverage is known: what is planted, and what each shows, worked out by hand.

All of one channel. Between most hours there is one without a directory, so that nothing reaches over; where something
does, the hours follow each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.media import Film, Shot, plant, plant_chat, run
from tombsync.names import Hour, hour_number, tombstone_name

CHANNEL = "desertbus"
FILM_S = 16  # eight clips, which every hour is made of
HASH = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"


class Shown(NamedTuple):
    """What an hour shows, in seconds and files."""

    covered: float
    editable: float
    partial: float = 0
    tombstoned: float = 0
    hole: float = 0
    overlaps: int = 0
    overlap: float = 0
    full: int = 0
    suspect: int = 0
    partials: int = 0
    temp: int = 0
    chat: int = 0
    bad: int = 0
    hidden: int = 0


class Planted(NamedTuple):
    """An hour: why, where, what is in it, and what it shows."""

    why: str
    quality: str
    hour: str
    shots: list[Shot]
    shown: Shown

    @property
    def place(self) -> Hour:
        """The hour itself."""
        return Hour(CHANNEL, self.quality, hour_number(self.hour))


def from_(start_s: float, count: int, type_: str = "full") -> list[Shot]:
    """So many shots of 2 s, one behind the other."""
    return [Shot(round(start_s + 2 * index, 6), 2.0, type_) for index in range(count)]


def hidden(shots: list[Shot]) -> list[Shot]:
    """The same, each with a tombstone."""
    return [shot._replace(hidden=True) for shot in shots]


HOURS = [
    # 1800 segments of 2 s.
    Planted("full", "source", "2019-11-13T00", run(0, 3600), Shown(3600, 3600, full=1800)),
    # Six segments are not there: 3600 - 12.
    Planted("hole in the middle", "source", "2019-11-13T02", [*run(0, 1800), *run(1812, 3600)],
            Shown(3588, 3588, hole=12, full=1794)),
    # 6 s at the beginning and 10 s at the end are not there; (3590 - 6) / 2 segments.
    Planted("hole at both borders", "source", "2019-11-13T04", run(6, 3590), Shown(3584, 3584, hole=16, full=1792)),
    # The second half begins 5 ms early, which is nothing, and so ends 5 ms before the hour, which is nothing either.
    Planted("overlap of 5 ms", "source", "2019-11-13T06", [*run(0, 1800), *from_(1799.995, 900)],
            Shown(3600, 3600, full=1800)),
    # It begins 500 ms early: one overlap, and 0.5 s are lacking at the end. The first of the second half is passed over
    # by the cutter, so of it and the missing end 1.5 + 0.5 s are not editable: [0, 1800) and [1801.5, 3599.5).
    Planted("overlap of 500 ms", "source", "2019-11-13T08", [*run(0, 1800), *from_(1799.5, 900)],
            Shown(3599.5, 3598, hole=0.5, overlaps=1, overlap=0.5, full=1800)),
    # A second file of one instant overlaps with its whole 2 s; one that begins 0.4 ms later with 1.9996 s of its own.
    Planted("twins", "source", "2019-11-13T10", [*run(0, 3600), Shot(100, clip=7), Shot(200.0004, clip=5)],
            Shown(3600, 3600, overlaps=2, overlap=3.9996, full=1802)),
    # Of two full ones of one instant the longer is served, so nothing is missing; the other overlaps with its 1 s.
    Planted("longer of two full", "source", "2019-11-13T12",
            [*run(0, 100), Shot(100, 1.0, clip=6), Shot(100, 2.0, clip=7), *run(102, 3600)],
            Shown(3600, 3600, overlaps=1, overlap=1, full=1801)),
    # A minute of which only partial ones came: 30 of them; (3600 - 60) / 2 full ones.
    Planted("partial only", "source", "2019-11-13T14",
            [*run(0, 600), *run(600, 660, type_="partial"), *run(660, 3600)],
            Shown(3600, 3600, partial=60, full=1770, partials=30)),
    # A minute of suspect ones counts as partial. A partial beside a suspect (at 10 s) and a suspect beside a full one
    # (at 60 s) are not served: two overlaps of 2 s.
    Planted("suspect", "source", "2019-11-13T16",
            [*run(0, 60, type_="suspect"), Shot(10, type="partial"), Shot(60, type="suspect"), *run(60, 3600)],
            Shown(3600, 3600, partial=60, overlaps=2, overlap=4, full=1770, suspect=31, partials=1)),
    # 15 segments are hidden, and nothing else carries their 30 s.
    Planted("tombstoned", "source", "2019-11-13T18", [*run(0, 900), *hidden(run(900, 930)), *run(930, 3600)],
            Shown(3570, 3570, tombstoned=30, full=1785, hidden=15)),
    # Two are hidden; for the first a partial stands in, so 2 s are partial and only the other 2 s are tombstoned.
    Planted("tombstoned, and a partial stands in", "source", "2019-11-13T20",
            [*run(0, 1000), *hidden(run(1000, 1004)), Shot(1000, type="partial"), *run(1004, 3600)],
            Shown(3598, 3598, partial=2, tombstoned=2, full=1798, partials=1, hidden=2)),
    # The last one begins at 3598.5, half a second late, and plays 0.5 s of the next hour.
    Planted("reaches over the border", "source", "2019-11-13T22", [*run(0, 3598), Shot(3598.5)],
            Shown(3599.5, 3599.5, hole=0.5, full=1800)),
    # From 0.5 to 3600.5: the first 0.5 s are those of the hour before, and nothing is missing.
    Planted("begins with the hour before", "source", "2019-11-13T23", from_(0.5, 1800), Shown(3600, 3600, full=1800)),
    # An empty directory, but for the 0.5 s that reach in.
    Planted("nothing but what reaches in", "source", "2019-11-14T00", [], Shown(0.5, 0.5, hole=3599.5)),
    # What may still go away is never served.
    Planted("temp only", "source", "2019-11-14T02", run(0, 60, type_="temp"), Shown(0, 0, hole=3600, temp=30)),
    # Three names that say no time of a segment (planted below), beside all that there should be.
    Planted("bad names", "source", "2019-11-14T04", run(0, 3600), Shown(3600, 3600, full=1800, bad=3)),
    Planted("empty", "source", "2019-11-14T06", [], Shown(0, 0, hole=3600)),
    # Half of the hour is hidden, the other half was never there.
    Planted("all that there is is hidden", "source", "2019-11-14T08", hidden(run(0, 1800)),
            Shown(0, 0, tombstoned=1800, hole=1800, hidden=900)),
    # The copy that came back under a name 0.4 ms later shows it all: nothing is tombstoned, and 0.4 ms are nothing.
    Planted("hidden, and its copy came back", "source", "2019-11-14T10",
            [*run(0, 10), Shot(10, hidden=True), Shot(10.0004), *run(12, 3600)],
            Shown(3600, 3600, full=1800, hidden=1)),
    # The last second would be that of a hidden one, which begins at 3599 and would reach 1 s into the next hour ...
    Planted("hidden over the border", "source", "2019-11-14T12", [*run(0, 3598), Shot(3599, hidden=True)],
            Shown(3598, 3598, tombstoned=1, hole=1, full=1799, hidden=1)),
    # ... of which that second is tombstoned and the next one missing.
    Planted("after what is hidden", "source", "2019-11-14T13", run(2, 3600),
            Shown(3598, 3598, tombstoned=1, hole=1, full=1799)),
    # Another quality is judged by itself.
    Planted("other quality", "160p", "2019-11-13T00", run(0, 3000), Shown(3000, 3000, hole=600, full=1500)),
    # Batches of minutes 0 to 58, two of minute 10, and that of minute 5 is hidden: 58 of 60 minutes can be read, one is
    # tombstoned, the last is missing. What overlaps is read too, so all of it is editable.
    Planted("chat", "chat", "2019-11-13T00", [],
            Shown(3480, 3480, tombstoned=60, hole=60, overlaps=1, overlap=60, chat=59, hidden=1)),
]  # fmt: skip


def plant_hours(root: Path, scratch: Path, *, wanted: Callable[[Planted], bool] = lambda _: True) -> None:
    """Make the hours, of films that are cut once."""
    hours = [one for one in HOURS if wanted(one)]
    videos = {one.quality for one in hours} - {"chat"}
    films = {quality: Film(quality, seconds=FILM_S, scratch=scratch / quality) for quality in videos}
    for one in hours:
        if one.quality == "chat":
            stems = plant_chat(root, one.place, [*((60 * minute, "hello") for minute in range(59)), (600, "again")])
            (root / one.place.path / tombstone_name(stems[5])).touch()
        else:
            plant(root, one.place, films[one.quality], one.shots)
        if one.why == "bad names":
            for name in ("intro.ts", f"00:00.000000-2.0-fully-{HASH}.ts", f"45:00-{HASH}.json", ".being-written.ts"):
                (root / one.place.path / name).write_bytes(b"?")

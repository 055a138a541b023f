"""Directories are swapped for links to the outside and back, as fast as the kernel does it, while the inbox worker
places tombstones: `python -m tests.faults.inbox_race --seconds 60`.

A channel, a quality, an hour, and an hour that is not there yet. Nothing may come to stand outside, no data may change,
and when the swapping is over every tombstone stands in its place or was refused as one of a place that is not kept.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

from tests.support.agent import HASH, make_hour
from tests.support.inbox_worker import SENDER, InboxWorker
from tests.support.swapper import Pair, Swapper
from tombsync.names import Hour, Marked, Offer, hour_number

FIRST_HOUR = hour_number("2019-11-13T02")
QUALITY = "source"
OFFERS = 3  # of each kind of place in one turn
RETRY_ABOVE = 300  # waiting tombstones: then their retry is due, as a long list of them makes each turn slow
FRESH_FOR_TURNS = 2  # the link comes and goes where an hour is to be made


@dataclass(frozen=True)
class Level:
    """What is swapped: its channel is called so, and `parts` is how many parts below ROOT the directory lies."""

    name: str
    parts: int
    missing: bool = False  # the hour is not there before a tombstone comes for it


LEVELS = (Level("channel", 1), Level("quality", 2), Level("hour", 3), Level("missing", 3, missing=True))
REFUSABLE = ("channel", "quality")  # a link there is no place that this node keeps


@dataclass
class Result:
    """What came of it. `escapes`: what is different outside, by path."""

    offered: dict[str, list[Marked]] = field(default_factory=lambda: {level.name: [] for level in LEVELS})
    failures: int = 0  # tombstones that could not be written at their first try
    refused: int = 0
    turns: int = 0
    swaps: int = 0
    escapes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Tombstones delivered."""
        return sum(map(len, self.offered.values()))


class Ground:
    """The tree, what lies outside, and the links that wait for their moment. Each channel is swapped at one level."""

    def __init__(self, base: Path, worker: InboxWorker) -> None:
        self.root = worker.root
        self.outside = base / "outside"
        self.aside = base / "aside"
        self.aside.mkdir()
        for level in LEVELS:
            make_hour(self.root, Hour(level.name, QUALITY, FIRST_HOUR - 1).path)  # so that the place is one of segments
            hour = make_hour(self.root, Hour(level.name, QUALITY, FIRST_HOUR).path)
            # It looks like what it stands in for: if it were followed, the rest of the way would be there.
            make_hour(self.outside, f"{level.name}/{QUALITY}/{hour.name}")
            stands_in = Path(level.name, QUALITY, hour.name)
            (self.aside / level.name).symlink_to(self.outside.joinpath(*stands_in.parts[: level.parts]))
        self.data = self._data()
        self._before = seen(self.outside)

    def pairs(self, fresh: Hour) -> list[Pair]:
        """What to swap while `fresh` is the hour that is not there yet."""
        hours = ((level, fresh if level.missing else self.hour(level)) for level in LEVELS)
        return [
            (self.root.joinpath(*Path(hour.path).parts[: level.parts]), self.aside / level.name)
            for level, hour in hours
        ]

    @staticmethod
    def hour(level: Level, later: int = 0) -> Hour:
        """The hour of a level, or a later one."""
        return Hour(level.name, QUALITY, FIRST_HOUR + later)

    def _data(self) -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(self.root.rglob("*.ts"))}

    def escapes(self) -> list[str]:
        """What is different outside."""
        now = seen(self.outside)
        return sorted(path for path, _ in now.items() ^ self._before.items())

    def check(self) -> None:
        """After the swapping. Raises AssertionError."""
        assert self._data() == self.data
        assert all((self.aside / level.name).is_symlink() for level in LEVELS)
        assert [path for path in self.root.rglob("*") if path.is_symlink()] == []


def seen(directory: Path) -> dict[str, tuple[int, int]]:
    """Everything below a directory with size and mtime; what came and went again shows at the directory's own."""
    found = {}
    for path, directories, names in os.walk(directory):
        for name in [".", *directories, *names]:
            status = os.lstat(f"{path}/{name}")
            found[os.path.normpath(f"{path}/{name}")] = (status.st_size, status.st_mtime_ns)
    return found


def stem_of(number: int) -> str:
    """A stem of its own for each number."""
    return f"{number // 60 % 60:02d}:{number % 60:02d}.{number // 3600:06d}-2.0-full-{HASH}"


def run(base: Path, *, until: Callable[[], bool]) -> Result:
    """Deliver and swap until then, or until something escaped; when nothing has, everything has come to its end.

    Raises AssertionError where data was changed, or a tombstone was lost.
    """
    result = Result()
    with InboxWorker(base) as worker:
        ground = Ground(base, worker)
        worker.turn()  # it looks at the view, which is not to be in doubt
        with Swapper() as swapper:
            for number in itertools.count():
                if until() or result.escapes:
                    break
                fresh = ground.hour(LEVELS[-1], 1 + number // FRESH_FOR_TURNS)
                swapper.swap(ground.pairs(fresh))
                deliver(worker, result, number, fresh)
                take(worker, result)
                result.escapes = ground.escapes()
        result.swaps = swapper.swaps
        if not result.escapes:
            worker.take_all()
            result.escapes = ground.escapes()
        ground.check()
        if not result.escapes:
            check_none_lost(worker, result)
    return result


def deliver(worker: InboxWorker, result: Result, number: int, fresh: Hour) -> None:
    """Some tombstones for each kind of place."""
    for level in LEVELS:
        hour = fresh if level.missing else Ground.hour(level)
        for one in range(number * OFFERS, (number + 1) * OFFERS):
            marked = Marked(hour, stem_of(one))
            worker.deliver(Offer(marked, SENDER))
            result.offered[level.name].append(marked)


def take(worker: InboxWorker, result: Result) -> None:
    """Let the worker hide them, and then place them."""
    waited = len(worker.box.unplaced)
    if waited > RETRY_ABOVE:
        worker.box.place_at = 0.0
    worker.box.changed = True
    worker.turn()
    worker.settle()
    before = len(worker.box.unplaced)
    worker.turn()
    result.failures += max(0, len(worker.box.unplaced) - before)
    result.turns += 1


def check_none_lost(worker: InboxWorker, result: Result) -> None:
    """Each stands, and durably so for the index, or it was refused for the one reason that there can be."""
    refused = worker.refused()
    assert refused.keys() <= {"not-served"}, refused
    result.refused = int(sum(refused.values()))
    lost = 0
    for level, offered in result.offered.items():
        for marked in offered:
            stands = (worker.root / marked.tombstone_path).is_file()
            assert (worker.reader.marker(marked) is not None) == stands, marked.path  # hidden, if it was taken
            if not stands:
                assert level in REFUSABLE, marked.path
                lost += 1
    assert lost == result.refused
    assert os.listdir(worker.directory) == []


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
def main(seconds: float) -> None:
    """Swap directories for links to the outside while the inbox worker places tombstones."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="tombsync-race-") as directory:
        result = run(Path(directory), until=lambda: time.monotonic() > end)
    click.echo(
        f"{result.swaps} swaps, {result.count} tombstones in {result.turns} turns: {result.failures} could not be"
        f" written at first, {result.refused} were refused, {len(result.escapes)} escapes"
    )
    if result.escapes:
        raise click.ClickException("\n".join(result.escapes[:10]))


if __name__ == "__main__":
    main()

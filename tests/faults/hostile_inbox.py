"""Hostile names in an inbox: `python -m tests.faults.hostile_inbox --names 1000000`.

Each becomes a file there, and the worker takes what is in it. Nothing may escape from the tree, nothing may crash, what
comes to stand is a tombstone in an hour of a place that is kept, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes

import click

from tests.faults.hostile_names import GOOD_STEM, HOUR_TEXT, OWN, PIECES, Names, can_be_file, check_inside
from tests.support.agent import make_hour
from tests.support.inbox_worker import InboxWorker
from tombsync import names
from tombsync.audit import Event
from tombsync.errors import BadName
from tombsync.inbox.checks import judge
from tombsync.names import Canary, Offer

BATCH = 5_000  # names in the inbox at once
NODE = "node-b"
# Places that the node keeps, one of them of a name that has to be written otherwise in an inbox.
KEPT = ("desertbus", "caf\u00e9, 100%")
QUALITY = "source"
FIELDS = (
    *("1", "1", "1", "0", "2", "01", "-1", "", "v1"),
    *("0", "0", "0", "1", "00", "-0", "1e9", "9" * 30, "canary", ""),
    *(NODE, NODE, "", ".", "..", "a b", "n" * 64, "n" * 65, "0" * 16, "f" * 15, "node-b\n"),
)


class InboxNames(Names):
    """A source of hostile names of files in an inbox, the same for the same seed."""

    def inbox_name(self) -> str:
        """A name that a file can have; many are nearly right, and some are right."""
        while True:
            ways = (self.name, self._encoded, self._encoded, self._bent, self._fields, self._canary)
            name = self.random.choice(ways)()
            if can_be_file(name):
                return name

    def _encoded(self) -> str:
        """As the encoding wants it, of parts that are often no good."""
        dice = self.random
        channel, quality = dice.choice(((dice.choice(KEPT), QUALITY), (self.stem(), self.stem())))
        hour = dice.choice(
            (HOUR_TEXT, HOUR_TEXT, f"{dice.randrange(10000):04d}-02-30T{dice.randrange(30)}", self.stem())
        )
        stem = dice.choice((self.stem(), GOOD_STEM, f"{dice.randrange(10**6)}"))
        generation = dice.choice("00000001")
        return ",".join(["1", generation, NODE, *(_quoted(part) for part in (channel, quality, hour, stem))])

    def _bent(self) -> str:
        """As the encoding wants it, and then not quite."""
        dice, name = self.random, self._encoded()
        at = dice.randrange(len(name))
        return dice.choice(
            (
                name[:at] + dice.choice(PIECES) + name[at + dice.randrange(3) :],
                name.replace("%", "%25", 1),
                name.lower(),
                name.replace(",", "%2C", 1),
                f"{name},",
                f",{name}",
                name.replace(":", "%3A", 1),
                f"{name}%00",
                f"{name}{dice.choice(('.ts', '.json', '.tombstone', '%2F..', '%0A'))}",
            )
        )

    def _canary(self) -> str:
        token = f"{self.random.getrandbits(64):016x}"
        return f"1,canary,{NODE},{self.random.choice((token, token[1:], token.upper(), self.stem()))}"

    def _fields(self) -> str:
        """Fields that mean something, in any order and number."""
        return ",".join(
            self.random.choices((*FIELDS, *KEPT, QUALITY, HOUR_TEXT, GOOD_STEM), k=self.random.randint(1, 9))
        )


def _quoted(part: str) -> str:
    try:
        return quote_from_bytes(os.fsencode(part), safe=":")
    except UnicodeEncodeError:
        return part


@dataclass
class Result:
    """How many names went where, and how long the checks alone and the whole way took."""

    counts: Counter[str] = field(default_factory=Counter)
    checked_s: float = 0.0
    taken_s: float = 0.0

    def __str__(self) -> str:
        rest = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()) if what != "names")
        count = self.counts["names"]
        return (
            f"{count} names: {count / self.checked_s:.0f} checked a second, {count / self.taken_s:.0f} taken from the"
            f" inbox a second: {rest}"
        )


class Run:
    """One worker, whose inbox gets one batch after another."""

    def __init__(self, base: Path, worker: InboxWorker, seed: int) -> None:
        self.result = Result()
        self._names = InboxNames(seed)
        self._worker = worker
        self._base = base
        for channel in KEPT:
            make_hour(worker.root, f"{channel}/{QUALITY}/{HOUR_TEXT}")
        self._data = self._all_data()
        self._outside = self._beside()
        self._wanted: set[str] = set()  # tombstones, relative to the root

    def _beside(self) -> list[str]:
        return [*sorted(os.listdir(self._base)), *sorted(os.listdir(self._base.parent))]

    def _all_data(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self._worker.root.rglob("*.ts"))}

    def batch(self, count: int) -> None:
        """So many names, put into the inbox and taken from it."""
        batch: set[str] = set()
        while len(batch) < count:
            batch.add(self._names.inbox_name())
        self._check(batch)
        for name in batch:
            self._worker.put(name)
        begun = time.perf_counter()
        self._worker.take_all()
        self.result.taken_s += time.perf_counter() - begun
        assert self._beside() == self._outside
        assert {entry.name for entry in os.scandir(self._worker.root)} == {OWN, *KEPT}
        self.result.counts["names"] += count

    def _check(self, batch: set[str]) -> None:
        """What the checks alone say of these names, of files that look as a sender's own do."""
        mine = os.stat_result((stat.S_IFREG | 0o600, 1, 1, 1, 1000, 1000, 0, 0, 0, 0))
        begun = time.perf_counter()
        asked = [(name, judge(name, mine, uid=1000)) for name in batch]
        self.result.checked_s += time.perf_counter() - begun
        for name, found in asked:
            with contextlib.suppress(BadName):
                read = names.read_inbox_name(name)  # of any generation
                spelled = names.offer_name(read) if isinstance(read, Offer) else names.canary_name(read)
                assert spelled == name, name  # there is one name for each
            self.result.counts["canaries"] += isinstance(found, Canary)
            if isinstance(found, Offer):
                check_inside(found.marked)
                hour = found.marked.hour
                if hour.channel in KEPT and hour.quality == QUALITY:
                    self._wanted.add(found.marked.tombstone_path)

    def finish(self) -> Result:
        """What stands is what was asked for and may be. Raises AssertionError."""
        there = set(self._tombstones())
        assert there == self._wanted
        assert self._worker.reader.totals()[3] == len(there)
        assert self._all_data() == self._data
        counts = self.result.counts
        counts["placed"] = len(there)
        counts.update({f"refused as {reason}": int(count) for reason, count in self._worker.refused().items()})
        told = [record["MESSAGE"] for record in self._worker.journal.records(Event.REJECTED)]
        assert told
        assert all(message.isprintable() for message in told)
        return self.result

    def _tombstones(self) -> Iterator[str]:
        """All that stands and is no data; each must be an empty regular file in an hour directory."""
        root = self._worker.root
        for path, directories, files in os.walk(root):
            below = os.path.relpath(path, root).split(os.sep)
            if OWN in directories:
                directories.remove(OWN)
            assert len(below) < 4 or not directories, path
            for name in files:
                assert len(below) == 3 and names.is_hour(below[2]), f"{path}/{name}"
                if names.classify(name)[0] is names.Kind.TOMBSTONE:
                    found = os.lstat(f"{path}/{name}")
                    assert stat.S_ISREG(found.st_mode) and found.st_size == 0, f"{path}/{name}"
                    yield "/".join([*below, name])


def run(base: Path, *, count: int, seed: int) -> Result:
    """So many names, through the worker of an inbox below `base`. Raises AssertionError."""
    with InboxWorker(base) as worker:
        begun = Run(base, worker, seed)
        for start in range(0, count, BATCH):
            begun.batch(min(BATCH, count - start))
        return begun.finish()


@click.command()
@click.option("--names", "count", default=1_000_000, show_default=True, help="How many names.")
@click.option("--seed", type=int, help="Repeat the names of another run.")
def main(count: int, seed: int | None) -> None:
    """Put hostile names into an inbox, and say how many the worker took a second."""
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tombsync-inbox-") as directory:
        base = Path(directory, "base")
        base.mkdir()
        click.echo(str(run(base, count=count, seed=seed)))


if __name__ == "__main__":
    main()

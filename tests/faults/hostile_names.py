"""Hostile names through the whole of it: `python -m tests.faults.hostile_names --names 1000000`.

Each name goes through tombsync.names as if it came from outside; each that a file can have becomes one, in an hour
below a channel and a quality that are often no friendlier, and so goes through the watcher, the index, `mark`, `ls`,
the journal and the metrics of a running agent. Nothing may escape from the tree, nothing may crash, and every listing
is that of the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.zygote import ForkedAgent, Zygote
from tests.support.trees import listed
from tests.support.waiting import wait_for
from tombsync import errors, names
from tombsync.names import Hour, Marked

BATCH = 5_000  # names of one hour; fewer than the kernel's queue holds
ROOT = "/srv/segments"  # for what is text alone
HOUR_TEXT = "2019-11-13T02"
WITHIN_S = 120.0
OWN = ".tombsync"

GOOD_STEM = "45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
EXTENSIONS = ("", ".ts", ".ts", ".json", ".tombstone", ".tombstone", ".ts.tombstone", ".tombstone.tombstone", ".TS")
# What has broken one program or another: paths, options, shells, SQL, formats, markup, terminals, logs, encodings.
PIECES = (
    *("..", ".", "./", "../", "/", "//", "/..", "~", "~root", "-", "--", "--json", "-rf", "--config=/etc/passwd"),
    *("$(reboot)", "`id`", ";", "&", "|", ">", "*", "?", "[a-z]", "\\", "'", '"', "'; DROP TABLE marker; --", "%00"),
    *("%s%n", "%2e%2e%2f", "{0}", "{}", "#", "&amp;", "<script>", "\x1b[2J", "\x1b]0;x\x07", "\r", "\n", "\t", "\x7f"),
    *("\nPRIORITY=0\n", "\x85", "\u2028", "\u202e", "\u200b", "\ufeff", "e\u0301", "\u00e9", "\u4e2d", "\U0001f47b"),
    *("\udcff", "\udcc3(", "\udced\udca0\udc80", " ", "  ", "CON", "NUL", "null", "true", "0", "1e999", OWN),
    *(".tombstone", ".ts", ".json", HOUR_TEXT, GOOD_STEM, "45:51", "full", "temp", "a", "A", "\u0130", "\u01c5"),
)
NEVER_IN_FILES = ("\0", "\ud800", "a\0b")  # NUL, and a surrogate that stands for no byte


class Names:
    """A source of hostile names, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def stem(self) -> str:
        """Any text; often one that is nearly right."""
        dice = self.random
        kind = dice.random()
        if kind < 0.3:  # a good one with something wrong in it
            at = dice.randrange(len(GOOD_STEM) + 1)
            return GOOD_STEM[:at] + dice.choice(PIECES) + GOOD_STEM[at + dice.randrange(3) :]
        if kind < 0.5:  # any bytes
            return os.fsdecode(dice.randbytes(dice.choice((1, 2, 4, 16, 60, 240, 246, 255))))
        if kind < 0.55:  # too long, or just not
            return dice.choice(("a", "\u00e9", "\udcff")) * dice.choice((81, 122, 123, 127, 128, 245, 246, 255, 256))
        return "".join(dice.choices(PIECES, k=dice.randint(1, 6)))

    def name(self) -> str:
        """A stem and an extension."""
        return self.stem() + self.random.choice(EXTENSIONS)

    def path(self) -> str:
        """What somebody may type or send instead of CHANNEL/QUALITY/HOUR/NAME."""
        dice = self.random
        parts = [self.stem(), self.stem(), dice.choice((HOUR_TEXT, HOUR_TEXT, self.stem())), self.name()]
        if dice.random() < 0.5:
            parts[:2] = ["desertbus", "source"]
        if dice.random() < 0.2:
            parts.insert(dice.randrange(5), dice.choice(("..", ".", "", "/", *NEVER_IN_FILES)))
        return dice.choice(("", "", "", "/", f"{ROOT}/", "../", f"{ROOT}/../")) + "/".join(parts)

    def place(self) -> tuple[str, str]:
        """A channel and a quality that can be directories of the tree."""
        found: list[str] = []
        while len(found) < 2:
            part = self.stem()[:60]
            if can_be_file(part) and part[0] != ".":
                found.append(part)
        return found[0], found[1]


def can_be_file(name: str) -> bool:
    """Whether a directory can hold this name."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return (
        0 < len(encoded) <= names.MAX_NAME_BYTES and b"/" not in encoded and b"\0" not in encoded and name not in "..."
    )


def can_be_typed(text: str) -> bool:
    """Whether a command can be given this."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_inside(marked: Marked) -> None:
    """A stem that was taken stays in an hour directory, and its tombstone is one."""
    path = f"{ROOT}/{marked.tombstone_path}"
    assert os.path.normpath(path) == path, path
    below = path.removeprefix(f"{ROOT}/").split("/")
    assert len(below) == 4, path
    assert all(part and part[0] != "." and can_be_file(part) for part in below), path
    assert names.is_hour(below[2]), path
    assert names.classify(below[3]) == (names.Kind.TOMBSTONE, marked.stem), path
    assert not marked.unsafe, path


def check_names(path: str) -> bool:
    """What tombsync.names makes of a path and of its last part; whether the path was taken."""
    name = path.rpartition("/")[2]
    taken = False
    for read in (names.strict_path, lambda path: names.locate(path, root=ROOT, cwd=f"{ROOT}/desertbus/source")):
        with contextlib.suppress(errors.BadName, errors.OutsideRoot):
            check_inside(read(path))
            taken = True
    kind, stem = names.classify(name)
    assert kind is names.Kind.OTHER or name.startswith(stem)
    segment = names.parse_stem(stem) or names.parse_chat_stem(stem)
    assert segment is None or "/" not in names.segment_stem(segment)
    shown = names.printable(path)
    assert shown.isprintable()
    assert shown.isascii() or shown.encode()
    return taken


def stems_marked(there: Iterable[str]) -> set[str]:
    """The stems that a directory of these names marks; `STEM.ts.tombstone` is a mistake, and marks none."""
    ends = (".ts", ".json", ".tombstone")
    stems = (name[: -len(".tombstone")] for name in there if name.endswith(".tombstone") and name[0] != ".")
    return {stem for stem in stems if not stem.endswith(ends)}


def expected(there: Sequence[str], *, tombstones: bool) -> list[str]:
    """What is to be listed of a directory of these names, sorted."""
    marked = stems_marked(there)
    found = [name for name in there if name.endswith((".ts", ".json")) and name[0] != "."]
    visible = [name for name in found if name.rpartition(".")[0] not in marked]
    return sorted(visible + [f"{stem}.tombstone" for stem in marked if tombstones])


class Run:
    """A running agent, whose tree gets one hour after another."""

    def __init__(self, agent: ForkedAgent, seed: int) -> None:
        self.agent = agent
        self.names = Names(seed)
        self.counts: Counter[str] = Counter()
        self._outside = self._beside()
        self._tombstones = 0
        self._hours = 0

    def _beside(self) -> dict[str, list[str]]:
        """What stands beside and above the tree."""
        base = self.agent.base
        return {str(path): sorted(os.listdir(path)) for path in (base.parent, base, self.agent.socket.parent)}

    def batch(self, count: int) -> None:
        """One hour of so many names."""
        paths = [self.names.path() for _ in range(count)]
        self.counts["names"] += count
        self.counts["taken as paths"] += sum(map(check_names, paths))
        self._hours += 1  # every other one in a place of which commands have nothing to fear but the names
        channel, quality = self.names.place() if self._hours % 2 else ("desertbus", "source")
        hour = Hour(channel, quality, names.hour_number(HOUR_TEXT) + self._hours)
        directory = self.agent.root / hour.path
        directory.mkdir(parents=True, exist_ok=True)
        self._mark(hour, paths, self._make(directory, paths))
        self._check(hour, directory)

    def _make(self, directory: Path, paths: Iterable[str]) -> list[str]:
        """A file of each name that can be one; the segments among them."""
        segments = []
        for name in sorted({path.rpartition("/")[2] for path in paths}):
            if can_be_file(name):
                os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
                self.counts["files"] += 1
                if names.classify(name)[0] in (names.Kind.TS, names.Kind.JSON):
                    segments.append(name)
        return segments

    def _mark(self, hour: Hour, paths: list[str], segments: list[str]) -> None:
        """Give `mark` every path as it is, and some of the segments that are there."""
        before = set(os.listdir(self.agent.root))
        typed = [path for path in paths if can_be_typed(path)]
        typed += [f"{hour.path}/{name}" for name in segments[::7]]
        done = self._command("mark", "--json", "--", *typed)
        assert done.returncode in (errors.EXIT_FAILED, errors.EXIT_IN_PART, 0), done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        assert all(line.isprintable() for line in done.stderr.split("\n"))
        results = json.loads(done.stdout)
        assert len(results) == len(typed)
        self.counts["marked by command"] += sum(result["outcome"] == "marked" for result in results)
        assert set(os.listdir(self.agent.root)) == before
        assert self._beside() == self._outside

    def _command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tombsync", name, "--config", str(self.agent.config), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=WITHIN_S)

    def _check(self, hour: Hour, directory: Path) -> None:
        """The index, `ls`, HTTP and the metrics say what the directory says."""
        agent = self.agent
        there = os.listdir(directory)
        marks = stems_marked(there)
        visible, all_names = expected(there, tombstones=False), expected(there, tombstones=True)
        wait_for(lambda: sorted(agent.listing(hour)) == visible, f"the index to list {hour.path!r}", WITHIN_S)
        reader = agent.reader()
        try:
            assert reader.markers(hour).keys() == marks
            assert sorted(reader.listing(hour, tombstones=True)) == all_names
        finally:
            reader.close()
        self.counts["hidden"] += len(marks)
        self._tombstones += len(marks)

        done = self._command("ls", "--json", "--tombstones", "--", hour.path)
        if names.unsafe(hour.channel) or names.unsafe(hour.quality):
            assert done.returncode == errors.EXIT_FAILED
            assert done.stderr.split("\n")[0].isprintable()
        else:
            assert done.returncode == 0, done.stderr
            assert sorted(json.loads(done.stdout)) == listed(directory, tombstones=True)  # as the archive lists it
        status, text = agent.get("/metrics")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert [sample.value for sample in families["tombsync_tombstones"].samples] == [self._tombstones]
        labels = {label for sample in families["tombsync_segments"].samples for label in sample.labels.values()}
        assert {names.printable(hour.channel), names.printable(hour.quality)} <= labels
        assert all(label.isprintable() for label in labels)
        assert agent.get("/healthz")[0] == 200
        self._check_journal(len(marks))

    def _check_journal(self, hidden: int) -> None:
        """One line a record, each of printable ASCII; then it begins anew, or it would grow without end."""
        log = self.agent.log
        wait_for(lambda: log.read_bytes().count(b'"TOMBSYNC_EVENT": "hidden"') >= hidden, "the journal", WITHIN_S)
        lines = log.read_text(encoding="ascii").split("\n")
        assert all(line.isprintable() for line in lines)
        records = [json.loads(line) for line in lines if line.startswith("{")]
        assert sum(record["TOMBSYNC_EVENT"] == "hidden" for record in records) == hidden
        assert not any(record["TOMBSYNC_EVENT"] in ("worker-died", "records-lost") for record in records)
        assert "Traceback" not in "".join(lines)
        os.truncate(log, 0)


def run(base: Path, *, count: int, seed: int) -> Counter[str]:
    """So many names, through an agent on a tree below `base`: how many of them went where. Raises AssertionError."""
    with Zygote() as zygote:
        agent = ForkedAgent(zygote, base / "node")
        with agent.ending():
            agent.start()
            agent.log.write_bytes(b"")
            begun = Run(agent, seed)
            for start in range(0, count, BATCH):
                begun.batch(min(BATCH, count - start))
            assert agent.stop() == 0
    return begun.counts


def report(counts: Counter[str], took_s: float) -> str:
    """The counts and the rate, in one line."""
    rest = ", ".join(f"{number} {what}" for what, number in counts.items() if what != "names")
    return f"{counts['names']} names in {took_s:.0f} s, {counts['names'] / took_s:.0f} names/s: {rest}"


@click.command()
@click.option("--names", "count", default=1_000_000, show_default=True, help="How many names.")
@click.option("--seed", type=int, help="Repeat the names of another run.")
def main(count: int, seed: int | None) -> None:
    """Let hostile names loose on an agent, and say how many it took a second."""
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tombsync-names-") as directory:
        Path(directory, "base").mkdir()
        counts = run(Path(directory, "base"), count=count, seed=seed)
        click.echo(report(counts, time.perf_counter() - begun))


if __name__ == "__main__":
    main()

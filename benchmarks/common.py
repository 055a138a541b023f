"""What every benchmark shares: percentiles, a report, real agents, and seeing a commit from outside."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from inotify_simple import INotify, flags

from tombsync.index import index_path
from tombsync.index.schema import IS_OPEN
from tombsync.plan import State


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float], unit: str = "ms", scale: float = 1e3) -> dict[str, float]:
    """p50, p99 and max of seconds, in the unit."""
    return {
        f"p50_{unit}": round(percentile(values, 0.50) * scale, 3),
        f"p99_{unit}": round(percentile(values, 0.99) * scale, 3),
        f"max_{unit}": round(max(values) * scale, 3),
        "count": len(values),
    }


class Report:
    """Collects figures and prints each as a line; with --json as one document at the end."""

    def __init__(self, name: str, as_json: bool) -> None:
        self.figures: dict[str, Any] = {}
        self._name = name
        self._as_json = as_json

    def add(self, figure: str, value: Any, *, must: str = "", ok: bool | None = None) -> None:
        """One figure; `must` is what it has to reach, `ok` whether it did."""
        entry: dict[str, Any] = {"value": value}
        if must:
            entry |= {"must": must, "ok": ok}
        self.figures[figure] = entry
        if not self._as_json:
            verdict = "" if ok is None else ("  ok" if ok else "  MISSED")
            print(f"{figure}: {value}" + (f"  (must: {must}){verdict}" if must else ""), flush=True)

    def note(self, text: str) -> None:
        """A line of progress."""
        print(f"# {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print the document."""
        if self._as_json:
            print(json.dumps({"benchmark": self._name, "machine": machine(), "figures": self.figures}, indent=2))


_LOOK_S = 0.00002  # and the kernel's 50 us: between the writes of a transaction into the log and its end
_LOOKS = 10
_LOOK_ANYWAY_MS = 20  # the write may have been told before it was waited for
_FAST_CREATE_S = 40e-6
_LONGEST_WAIT_S = 300.0


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that all share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="one JSON document")
    made.add_argument("--work", type=Path, help="where trees are kept between runs (default: a temporary directory)")
    return made


@contextmanager
def work_directory(given: Path | None) -> Iterator[Path]:
    """A directory for trees and state, removed at the end unless it was given."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        _spread(given)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tombsync-bench-") as made:
        _spread(Path(made))
        yield Path(made)


def _spread(directory: Path) -> None:
    """Let ext4 put what is made below it into groups of its own, where nobody has just removed thousands of files."""
    subprocess.run(["chattr", "+T", directory], stderr=subprocess.DEVNULL, check=False)


def await_fast_creates(base: Path) -> None:
    """Wait while making files is slow: on ext4 for some minutes after many were removed nearby (20 us become 700).

    Gives up after a while, and says so: figures of that run are then the disk's.
    """
    begun = time.monotonic()
    while True:
        directory = Path(tempfile.mkdtemp(prefix="creates-", dir=base))
        each_s = measure(partial(_fill, directory)) / 1000
        waited_s = time.monotonic() - begun
        if each_s <= _FAST_CREATE_S or waited_s > _LONGEST_WAIT_S:
            print(f"# a file is made in {each_s * 1e6:.0f} us, after a wait of {waited_s:.0f} s", file=sys.stderr)
            return
        time.sleep(5)


def _fill(directory: Path) -> None:
    for number in range(1000):
        touch(directory / f"x{number}")


def await_true(condition: Callable[[], bool], what: str, *, within_s: float = 600.0, pause_s: float = 0.01) -> None:
    """Look until something is so. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within_s:g} s in vain for {what}")
        time.sleep(pause_s)


def need(*programs: str) -> None:
    """Say at once which programs are missing."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise SystemExit(f"not on this machine: {', '.join(missing)} (Debian has a package of each name)")


class CommitWatch:
    """Sees from another process when a stem is hidden. One thread's.

    It waits for the kernel to tell that the index's log was written, and only then looks: whoever looks again and again
    takes a core, on which a thread of the agent that wakes there has to wait for the next tick (4 ms).
    """

    def __init__(self, state_dir: Path) -> None:
        self._connection = sqlite3.connect(f"file:{index_path(str(state_dir))}?mode=ro", uri=True, isolation_level=None)
        self._written = INotify()
        self._written.add_watch(state_dir, flags.MODIFY)

    def newest(self) -> int:
        """The key of the newest marker."""
        found: int = self._connection.execute("SELECT coalesce(max(id), 0) FROM marker").fetchone()[0]
        return found

    def open_deliveries(self) -> int:
        """Deliveries to whichever peer that are not confirmed."""
        found: int = self._connection.execute(f"SELECT count(*) FROM delivery WHERE {IS_OPEN}").fetchone()[0]
        return found

    def is_confirmed(self, key: int) -> bool:
        """Whether a marker has that key and each of its deliveries is confirmed.

        A question by keys: counting all there are costs as much as the agent's commit, on one of the cores it needs.
        """
        question = f"SELECT count(*), coalesce(sum(state = {State.CONFIRMED:d}), 0) FROM delivery WHERE marker = ?"
        deliveries, confirmed = self._connection.execute(question, (key,)).fetchone()
        return bool(deliveries) and deliveries == confirmed

    def wait_newer(self, key: int, *, timeout_s: float = 60.0) -> float:
        """The monotonic time at which a marker newer than `key` was seen."""
        return self.wait_until(lambda: self.newest() > key, timeout_s=timeout_s)

    def wait_until(self, seen: Callable[[], bool], *, timeout_s: float = 60.0) -> float:
        """The monotonic time at which a commit was seen that makes `seen()` true."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._written.read(timeout=_LOOK_ANYWAY_MS)
            for _ in range(_LOOKS):
                if seen():
                    return time.monotonic()
                time.sleep(_LOOK_S)
        raise TimeoutError("what was waited for was not committed")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._written.close()


def touch(path: Path) -> float:
    """Create an empty file and return the monotonic time right before."""
    begun = time.monotonic()
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    return begun


def measure(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def warm_find(root: Path, repeats: int = 3) -> float:
    """Seconds of `find ROOT -name '*.tombstone'`, the best of some after one to warm the cache."""
    command = ["find", str(root), "-name", "*.tombstone"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return min(measure(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(repeats))


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in 10^6 bytes."""
    return rss_mb_of(Path(f"/proc/{pid}/status").read_text())


def rss_mb_of(status: str) -> float:
    """The same, from what the kernel says in /proc/PID/status: also of a process of another machine."""
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

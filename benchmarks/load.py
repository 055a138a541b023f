"""Load beside a measurement, as processes of their own: `python -m benchmarks.load segments DIR --rate 2000`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import trees
from tombsync.names import Hour

_BURST = 20  # segments between two looks at the clock
_PER_HOUR = 1800  # of one quality


def arrive(root: Path, rate: float, seconds: float) -> None:
    """Create segments in new hours of two qualities, `rate` a second; an hour holds as many as a real one."""
    begun, made = time.monotonic(), 0
    first = trees.FIRST_HOUR + 50_000
    while (root / Hour("desertbus", "source", first).path).exists():
        first += 1
    while (now := time.monotonic() - begun) < seconds:
        due = int(now * rate)
        while made < due:
            for _ in range(min(_BURST, due - made)):
                index = made // 2
                hour = Hour("desertbus", ("source", "480p")[made % 2], first + index // _PER_HOUR)
                directory = root / hour.path
                if index % _PER_HOUR == 0:
                    directory.mkdir(parents=True)
                fd = os.open(directory / f"{trees.stem(hour.number, index)}.ts", os.O_WRONLY | os.O_CREAT)
                os.close(fd)
                made += 1
        time.sleep(0.002)


@contextmanager
def segments(root: Path, rate: float, seconds: float = 600.0) -> Iterator[None]:
    """New segments arrive for the time of a `with` block."""
    command = [sys.executable, "-m", "benchmarks.load", str(root), "--rate", str(rate), "--seconds", str(seconds)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    arrive(options.directory, options.rate, options.seconds)


if __name__ == "__main__":
    main()

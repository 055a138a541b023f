"""Load beside a measurement, as a process of its own: `python -m benchmarks.load DIR --rate 2000`."""

from __future__ import annotations

import argparse
import os
import signal
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


def arrive(root: Path, rate: float, seconds: float) -> float:
    """Create segments in new hours of two qualities, `rate` a second; an hour holds as many as a real one.

    Until SIGTERM, or for so many seconds; returns the rate that was reached.
    """
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    begun, made = time.monotonic(), 0
    first = trees.FIRST_HOUR + 50_000
    while (root / Hour("desertbus", "source", first).path).exists():
        first += 1
    while (now := time.monotonic() - begun) < seconds and not ended:
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
    return made / (time.monotonic() - begun)


@contextmanager
def segments(root: Path, rate: float, seconds: float = 600.0) -> Iterator[None]:
    """New segments arrive for the time of a `with` block. Raises RuntimeError where they did not."""
    command = [sys.executable, "-m", "benchmarks.load", str(root), "--rate", str(rate), "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.terminate()
        out, _ = process.communicate()
    if float(out) < 0.95 * rate:
        raise RuntimeError(f"only {out.strip()} segments a second arrived")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print(f"{arrive(options.directory, options.rate, options.seconds):.0f}")


if __name__ == "__main__":
    main()

"""Segment trees with the name shapes of a real archive: `python -m benchmarks.trees DIR --hours 556 --per-hour 1800`.

A tree of many millions of names is made of hard links, one inode per 60,000 names (the limit of ext4 is 65,000).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tombsync.names import Hour, Segment, hour_number, segment_stem

FIRST_HOUR = hour_number("2024-01-01T00")
_NAMES_PER_INODE = 60_000


def stem(hour: int, index: int, kind: str = "full") -> str:
    """The stem of the segment that begins 2 s times `index` into an hour."""
    digest = hashlib.sha256(b"%d/%d/%s" % (hour, index, kind.encode())).digest()
    start_us = (index % 1800) * 2_000_000 + 608_000 + index // 1800
    return segment_stem(Segment(start_us, 2.0, kind, base64.urlsafe_b64encode(digest).decode().rstrip("=")))


def hours(count: int, *, channel: str = "desertbus", qualities: tuple[str, ...] = ("source", "480p")) -> Iterator[Hour]:
    """`count` hours, spread over the qualities."""
    for number in range(count):
        yield Hour(channel, qualities[number % len(qualities)], FIRST_HOUR + number // len(qualities))


def make(root: Path, count: int, per_hour: int, *, hard_links: bool = False) -> int:
    """Make a tree of empty segments and return how many."""
    root.mkdir(parents=True, exist_ok=True)
    made, source = 0, ""
    for hour in hours(count):
        directory = root / hour.path
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for index in range(per_hour):
                name = stem(hour.number, index) + ".ts"
                if hard_links and source and made % _NAMES_PER_INODE:
                    os.link(source, name, dst_dir_fd=fd)
                else:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd))
                    source = f"{directory}/{name}"
                made += 1
        finally:
            os.close(fd)
    return made


def kept(root: Path, count: int, per_hour: int, *, hard_links: bool = False) -> Path:
    """A tree of this size below `root`, made once and kept (making and removing disturb what follows)."""
    tree = root / f"tree-{count}x{per_hour}"
    done = tree.with_suffix(".made")
    if not done.exists():
        shutil.rmtree(tree, ignore_errors=True)
        begun = time.monotonic()
        made = make(tree, count, per_hour, hard_links=hard_links)
        print(f"# made {made} names in {count} hours in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        done.touch()
    return tree


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hours", type=int, default=556)
    parser.add_argument("--per-hour", type=int, default=1800)
    parser.add_argument("--hard-links", action="store_true")
    options = parser.parse_args()
    print(make(options.directory, options.hours, options.per_hour, hard_links=options.hard_links))


if __name__ == "__main__":
    main()

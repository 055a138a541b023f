"""The segments of the demo: a small tree with names as the archive makes them, and proof that nobody touched it."""

from __future__ import annotations

import hashlib
import os
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import NamedTuple

from tombsync.names import EXTENSION, OWN_DIRECTORY, Hour, Kind, Marked, Segment, classify, segment_stem, strict_hour

CHANNEL = "demo"  # a name that nobody takes for a real hide, should the agents' records go to this machine's journal
QUALITIES = ("source", "480p")
HOURS = ("2019-11-13T00", "2019-11-13T01", "2019-11-13T02")
SEGMENTS_PER_HOUR = 60  # two minutes of it; a whole hour has 1,800
_SEGMENT_S = 2.0
_FIRST_US = (45 * 60 + 51) * 1_000_000 + 608_000
_PACKET_BYTES = 188  # of an MPEG transport stream, each beginning with 0x47
_PACKETS = 4


class Trace(NamedTuple):
    """What shows whether a file was written, truncated, replaced or touched."""

    inode: int
    size_bytes: int
    mtime_ns: int
    sha256: str


def hours() -> list[Hour]:
    """Every hour of the demo's tree."""
    return [strict_hour(CHANNEL, quality, hour) for quality in QUALITIES for hour in HOURS]


def make_tree(root: Path) -> list[Marked]:
    """Make the tree, the same on every node; returns the segments of the newest hour in the best quality."""
    made: list[Marked] = []
    for hour in hours():
        directory = root / hour.path
        directory.mkdir(parents=True)
        made = made if hour != _shown_hour() else []
        for number in range(SEGMENTS_PER_HOUR):
            content = _content(hour, number)
            digest = urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            start_us = _FIRST_US + number * int(_SEGMENT_S * 1e6)
            stem = segment_stem(Segment(start_us, _SEGMENT_S, "full", digest))
            (directory / (stem + EXTENSION[Kind.TS])).write_bytes(content)
            if hour == _shown_hour():
                made.append(Marked(hour, stem))
    return made


def _shown_hour() -> Hour:
    return strict_hour(CHANNEL, QUALITIES[0], HOURS[-1])


def _content(hour: Hour, number: int) -> bytes:
    """Bytes that are the same on every node and differ from segment to segment."""
    packets = []
    for packet in range(_PACKETS):
        seed = f"{hour.path} {number} {packet}".encode()
        packets.append(b"\x47" + hashlib.shake_256(seed).digest(_PACKET_BYTES - 1))
    return b"".join(packets)


def traces(root: Path) -> dict[str, Trace]:
    """Every data file of a tree by its path below the root: all but the tombstones and what is tombsync's own."""
    found = {}
    for directory, below, names in os.walk(root):
        if OWN_DIRECTORY in below:
            below.remove(OWN_DIRECTORY)
        for name in names:
            if classify(name)[0] is Kind.TOMBSTONE:
                continue
            path = Path(directory, name)
            stat = path.stat(follow_symlinks=False)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = Trace(stat.st_ino, stat.st_size, stat.st_mtime_ns, digest)
    return found


def first_difference(before: dict[str, Trace], after: dict[str, Trace]) -> str:
    """The path of a file that is not as it was, or is gone or new; "" where there is none."""
    return min((path for path in before.keys() | after.keys() if before.get(path) != after.get(path)), default="")

"""A tree and its index as an agent leaves them, without an agent: for tests of what only reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.support.index import NOW_NS, REGULAR
from tombsync.index import Facts, HourListed, SegmentRows, Writer, index_path, mistakes_key
from tombsync.names import Hour, Marked
from tombsync.plan import diff_hour
from tombsync.tree import Tree
from tombsync.work import Sighting, Source


class Archive:
    """A tree at BASE/segments and an index in BASE/state."""

    def __init__(self, base: Path, *, peers: Iterable[str] = ()) -> None:
        self.root, self.state_dir = base / "segments", base / "state"
        self.root.mkdir()
        self.state_dir.mkdir()
        self.writer = Writer(index_path(str(self.state_dir)))
        self.writer.sync_peers({name: f"user@{name}:22/segments" for name in peers})
        self.adopt()

    def adopt(self) -> None:
        """Take the tree for the known one."""
        self.writer.apply([Facts({"root": Tree(str(self.root)).adopt()})])

    def make(self, hour: Hour, *names: str) -> Path:
        """Put files into an hour directory."""
        directory = self.root / hour.path
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            (directory / name).touch()
        return directory

    def mark(self, hour: Hour, *stems: str, at_ns: int = NOW_NS) -> None:
        """Make tombstones, and hide by them."""
        self.make(hour, *(f"{stem}.tombstone" for stem in stems))
        self.hide(hour, *stems, at_ns=at_ns)

    def hide(self, hour: Hour, *stems: str, at_ns: int = NOW_NS) -> None:
        """Hide in the index alone, one transaction each."""
        for stem in stems:
            self.writer.hide([(Sighting(Marked(hour, stem), Source.WATCH, 0), REGULAR)], at_ns)

    def settle(self, *hours: Hour) -> None:
        """Bring the index up to date with these directories, as two rescans do."""
        for hour in hours:
            directory = self.root / hour.path
            diff = diff_hour(os.listdir(directory), segments=set(), markers=set())
            self.hide(hour, *diff.markers_found)
            self.writer.apply(
                [
                    SegmentRows(hour, add=diff.add),
                    Facts({mistakes_key(hour): 1 if diff.mistakes else None}),
                ]
            )
            (edits,) = self.writer.execute(
                "SELECT edits FROM hour WHERE id = ?", (self.writer.hour_id(hour),)
            ).fetchone()
            os.utime(directory, ns=(NOW_NS, NOW_NS))  # long ago, as what comes within the same tick would not be seen
            self.writer.apply([HourListed(hour, NOW_NS, b"digest", 1, settled=True, edits=edits)])

    def open(self) -> None:
        """Write to the index again."""
        self.writer = Writer(index_path(str(self.state_dir)))

    def close(self) -> None:
        """Close the index."""
        self.writer.close()

"""Hours with the names that a listing can get wrong, and what the archive's listing service says of them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.agent import HASH, segment_stem
from tests.support.trees import listed

CHANNEL, QUALITY = "desertbus", "source"
BAD_UTF8 = os.fsdecode(b"bad\xff\xfe.ts")


def make_nasty(root: Path) -> list[Path]:
    """Hour directories below ROOT/desertbus/source, each of a kind of its own, the last two without a directory."""
    made = [
        _hour(root, "2019-11-13T00", *(f"{segment_stem(second)}.ts" for second in range(0, 60, 2))),
        _hour(root, "2019-11-13T01"),  # empty
        _hour(root, "2019-11-13T02", ".a.ts", ".b.tombstone", "b.ts", ".ts", ".tombstone", ".json", "..ts", "a.ts"),
        _hour(root, "2019-11-13T03", "alone.tombstone", "other.ts", "alone2.tombstone", "alone2.json.part"),
        _hour(root, "2019-11-13T04", "x.ts", "x.json", "y.ts", "y.json", "y.tombstone", "z.ts.ts", "z.ts.tombstone"),
        _hour(root, "2019-11-13T05", "a.json.json", "a.json.tombstone", "b.tombstone.tombstone", "b.tombstone", "b.ts"),
        _hour(root, "2019-11-13T06", "a.TS", "b.Json", "ts", "json", "tombstone", "c.ts~", "c ts", "d.mp4", "e."),
        _hour(
            root, "2019-11-13T07", "a b.ts", "100%.ts", "a\nb.ts", "a\nb.json", "é中👻.ts", "é中👻.tombstone", BAD_UTF8
        ),
        _hour(root, "2019-11-13T08", "dir.ts", "lnk.ts", "fifo.ts", "lnk2.ts", "deadlink.ts"),
        _hour(
            root, "2019-11-13T09", f"45:51.608000-2.0-temp-{'0' * 8}-0000-0000-0000-{'0' * 12}.ts", f"45:00-{HASH}.json"
        ),
    ]
    eighth = made[8]
    (eighth / "dir.tombstone").mkdir()
    (eighth / "lnk.tombstone").symlink_to("lnk.ts")
    os.mkfifo(eighth / "fifo.tombstone")
    (eighth / "lnk2.ts").unlink()
    (eighth / "lnk2.ts").symlink_to("lnk.ts")
    (eighth / "deadlink.ts").unlink()
    (eighth / "deadlink.ts").symlink_to("nowhere")
    (eighth / "subdirectory.ts").mkdir()
    (eighth / "subdirectory.ts" / "inner.ts").touch()
    place = root / CHANNEL / QUALITY
    (place / "notes.txt").touch()  # no hour, as `junk` is none
    made.append(_hour(root, "junk", "one.ts", "two.ts", "two.tombstone"))
    (place / ".hidden").mkdir()
    (root / CHANNEL / "480p").mkdir()
    (root / CHANNEL / "chat").symlink_to("480p")
    (root / ".tombsync").mkdir(exist_ok=True)
    (root / "coverage-maps").mkdir()
    (root / "thumbnail.png").touch()
    return [*made, place / "2019-11-13T10", root / "no" / "such" / "2019-11-13T00"]


def _hour(root: Path, hour: str, *names: str) -> Path:
    directory = root / CHANNEL / QUALITY / hour
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).touch()
    return directory


def above(directory: Path) -> list[str]:
    """What that service lists of a channel, a quality or the root, sorted; [] where it is not there."""
    try:
        return sorted(name for name in os.listdir(directory) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []


def all_of(directory: Path) -> tuple[list[str], list[str]]:
    """Both listings of an hour: without its tombstones, and with them."""
    return listed(directory), listed(directory, tombstones=True)

"""Real segments: a test pattern cut by ffmpeg into clips of MPEG-TS, named by the hash of their content.

`cut` fills an hour from one film, second by second, as a recording does. `Film` is cut once for many hours, and `plant`
puts its clips into them wherever a test wants a hole, an overlap, a twin or a part that only half arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.programs import need
from tombsync.names import Hour, Segment, segment_stem, tombstone_name

SEGMENT_S = 2
_SIZES = {"source": "320x180", "160p": "160x90"}
_PARTIAL_SHARE = 2  # a partial is what came of a download that broke off: here the first half


def cut(root: Path, hour: Hour, *, seconds: int, start_s: int = 0, scratch: Path) -> list[str]:
    """Fill an hour directory with `seconds` of video from `start_s` of the hour on; returns the stems in order."""
    film = Film(hour.quality, seconds=seconds, scratch=scratch / f"{hour.quality}-{hour.number}-{start_s}")
    shots = run(start_s, start_s + seconds)
    return plant(root, hour, film, [shot._replace(clip=index) for index, shot in enumerate(shots)])


class Film:
    """A test pattern with a tone, cut into clips of `clip_s` seconds; its picture counts the seconds.

    Clip n shows seconds n * clip_s to (n + 1) * clip_s, with the time stamps of there: clips that follow each other
    play as one. Kept as files below `scratch`, to which names in an hour are hard links.
    """

    def __init__(self, quality: str, *, seconds: int, scratch: Path, clip_s: int = SEGMENT_S) -> None:
        self.clip_s = clip_s
        self._kept = scratch / "kept"
        self._kept.mkdir(parents=True)
        raw = scratch / "raw"
        raw.mkdir()
        picture, tone = f"testsrc2=size={_SIZES[quality]}:rate=10:duration={seconds}", f"sine=duration={seconds}"
        subprocess.run(
            [need("ffmpeg"), "-v", "error", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone,
             "-c:v", "libx264", "-preset", "ultrafast", "-force_key_frames", f"expr:gte(t,n_forced*{clip_s})",
             "-c:a", "aac", "-f", "segment", "-segment_time", str(clip_s), "-segment_format", "mpegts",
             str(raw / "%05d.ts")],
            check=True,
        )  # fmt: skip
        self.clips = [self.keep(piece.read_bytes()) for piece in sorted(raw.iterdir())]

    def keep(self, data: bytes) -> str:
        """Keep content; returns its hash as it stands in names."""
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        path = self.path(digest)
        if not path.exists():
            path.write_bytes(data)
        return digest

    def path(self, digest: str) -> Path:
        """Where content of this hash is kept."""
        return self._kept / digest

    def content(self, shot: Shot) -> str:
        """The hash of what a shot shows; kept from then on."""
        whole = self.clips[(int(shot.start_s // self.clip_s) if shot.clip is None else shot.clip) % len(self.clips)]
        if shot.type != "partial":
            return whole
        data = self.path(whole).read_bytes()
        return self.keep(data[: len(data) // _PARTIAL_SHARE])


class Shot(NamedTuple):
    """A segment to plant: its start in the hour, how long its name says it is, and its type.

    `clip`: which clip of the film it holds; None for that of its second, the film begun again at its end. Two shots of
    one instant and type need two clips, as one name stands for one content.
    """

    start_s: float
    duration_s: float = float(SEGMENT_S)
    type: str = "full"
    clip: int | None = None
    hidden: bool = False  # a tombstone beside it


def run(start_s: float, end_s: float, *, step_s: float = SEGMENT_S, type_: str = "full") -> list[Shot]:
    """Shots that follow each other without a gap, from `start_s` up to `end_s` of the hour."""
    return [Shot(start_s + index * step_s, float(step_s), type_) for index in range(int((end_s - start_s) / step_s))]


def plant(root: Path, hour: Hour, film: Film, shots: Iterable[Shot]) -> list[str]:
    """Put shots into an hour directory, made if need be; returns their stems in the order given."""
    directory = root / hour.path
    directory.mkdir(parents=True, exist_ok=True)
    stems = []
    for shot in shots:
        digest = film.content(shot)
        name_hash = (
            str(uuid.uuid5(uuid.NAMESPACE_URL, f"{hour.path}/{shot.start_s}")) if shot.type == "temp" else digest
        )
        stem = segment_stem(Segment(round(shot.start_s * 1_000_000), shot.duration_s, shot.type, name_hash))
        os.link(film.path(digest), directory / f"{stem}.ts")
        if shot.hidden:
            (directory / tombstone_name(stem)).touch()
        stems.append(stem)
    return stems


def plant_chat(root: Path, hour: Hour, batches: Iterable[tuple[int, str]]) -> list[str]:
    """Put chat batches into an hour directory, each by the second it starts at and a message; returns their stems."""
    directory = root / hour.path
    directory.mkdir(parents=True, exist_ok=True)
    stems = []
    for start_s, text in batches:
        data = json.dumps([{"time": start_s, "command": "PRIVMSG", "params": ["#channel", text]}]).encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        stem = segment_stem(Segment(start_s * 1_000_000, 60.0, "chat", digest))
        (directory / f"{stem}.json").write_bytes(data)
        stems.append(stem)
    return stems


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of every data file below a directory."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".ts", ".json")
    }

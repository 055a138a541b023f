"""Real segments: a test pattern cut by ffmpeg into 2 s of MPEG-TS each, named by the hash of their content."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from pathlib import Path

from tests.support.programs import need
from tombsync.names import Hour, Segment, segment_stem

SEGMENT_S = 2
_SIZES = {"source": "320x180", "160p": "160x90"}


def cut(root: Path, hour: Hour, *, seconds: int, start_s: int = 0, scratch: Path) -> list[str]:
    """Fill an hour directory with `seconds` of video from `start_s` of the hour on; returns the stems in order."""
    raw = scratch / f"{hour.quality}-{hour.number}-{start_s}"
    raw.mkdir(parents=True)
    source = f"testsrc2=size={_SIZES[hour.quality]}:rate=10:duration={seconds}"
    subprocess.run(
        [need("ffmpeg"), "-v", "error", "-f", "lavfi", "-i", source, "-f", "lavfi", "-i", f"sine=duration={seconds}",
         "-c:v", "libx264", "-preset", "ultrafast", "-force_key_frames", f"expr:gte(t,n_forced*{SEGMENT_S})",
         "-c:a", "aac", "-f", "segment", "-segment_time", str(SEGMENT_S), "-segment_format", "mpegts",
         str(raw / "%05d.ts")],
        check=True,
    )  # fmt: skip
    directory = root / hour.path
    directory.mkdir(parents=True, exist_ok=True)
    stems = []
    for index, piece in enumerate(sorted(raw.iterdir())):
        data = piece.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        start_us = (start_s + index * SEGMENT_S) * 1_000_000
        stem = segment_stem(Segment(start_us, float(SEGMENT_S), "full", digest))
        (directory / f"{stem}.ts").write_bytes(data)
        stems.append(stem)
    return stems


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of every data file below a directory."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".ts", ".json")
    }

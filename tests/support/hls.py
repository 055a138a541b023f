"""HLS: a playlist of segments, as an archive makes it, and what a player makes of that, frame by frame."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tests.support.programs import need
from tombsync.names import Hour, Segment, parse_stem

_TOLERANCE_US = 10_000  # gaps of up to 10 ms are none to the archive


class Played(NamedTuple):
    """What a player decoded: a hash of each video frame, in order, and what it complained of."""

    frames: list[str]
    errors: str


def playlist(hour: Hour, names: Sequence[str], prefix: str) -> str:
    """A media playlist (RFC 8216) of the video files of one hour in order, with a discontinuity at each gap.

    `prefix`: what stands before CHANNEL/QUALITY/HOUR in a segment's URL. Names that are no segments are left out.
    """
    found = [(segment, name) for name in sorted(names) if (segment := parse_stem(name.removesuffix(".ts"))) is not None]
    longest_s = max((segment.duration_s for segment, _ in found), default=0.0)
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{round(longest_s)}", "#EXT-X-MEDIA-SEQUENCE:0"]
    end_us: int | None = None
    for segment, name in found:
        if end_us is not None and segment.start_us - end_us > _TOLERANCE_US:
            lines.append("#EXT-X-DISCONTINUITY")
        lines += [f"#EXTINF:{segment.duration_s:.3f},", f"{prefix}/{hour.path}/{quote(name)}"]
        end_us = _end_us(segment)
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""])


def _end_us(segment: Segment) -> int:
    return segment.start_us + round(segment.duration_s * 1_000_000)


def play(what: str | Path) -> Played:
    """Decode the video of a file or a URL to its end, as quickly as it goes."""
    done = subprocess.run(
        [need("ffmpeg"), "-v", "error", "-i", str(what), "-map", "0:v", "-fps_mode", "passthrough",
         "-f", "framehash", "-hash", "sha256", "-"],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    rows = [line.split(",") for line in done.stdout.splitlines() if not line.startswith("#")]
    return Played([row[-1].strip() for row in rows], done.stderr)


def probe(what: str) -> tuple[int, int]:
    """What ffprobe says of a playlist: the frames of its video, counted by decoding them, and its (whole) seconds."""
    done = subprocess.run(
        [need("ffprobe"), "-v", "error", "-count_frames", "-select_streams", "v",
         "-show_entries", "stream=nb_read_frames:format=duration", "-of", "json", what],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    (stream,) = found["streams"]
    return int(stream["nb_read_frames"]), round(float(found["format"]["duration"]))

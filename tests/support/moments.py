"""Trees for takedowns of a span of time: hours whose files each have a hash of their own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from tombsync.names import hour_text
from tombsync.timeline import HOUR_US, parse_time

CHANNEL = "desertbus"


def digest(content: str) -> str:
    """The hash of a file of this content, as names have it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip("=")


def put(
    root: Path, at: str, *, quality: str = "source", duration_s: float = 2.0, kind: str = "full", content: str = ""
) -> str:
    """Put a segment (or with kind `chat` a batch) into a tree; its path without the extension. `at`: ISO 8601."""
    start_us = parse_time(at)
    hour, rest_us = divmod(start_us, HOUR_US)
    content = content or f"{quality} {at} {kind} {duration_s}"
    seconds, micro = divmod(rest_us, 1_000_000)
    clock = f"{seconds // 60:02d}:{seconds % 60:02d}"
    if kind == "chat":
        stem, extension = f"{clock}-{digest(content)}", ".json"
    else:
        unique = "12345678-1234-1234-1234-123456789abc" if kind == "temp" else digest(content)
        stem, extension = f"{clock}.{micro:06d}-{duration_s}-{kind}-{unique}", ".ts"
    directory = root / CHANNEL / quality / hour_text(hour)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / (stem + extension)).write_text(content)
    return f"{CHANNEL}/{quality}/{hour_text(hour)}/{stem}"


def put_minute(root: Path, minute: str, *, quality: str = "source") -> list[str]:
    """Thirty segments of two seconds; `minute` like 2019-11-13T02:45."""
    return [put(root, f"{minute}:{second:02d}", quality=quality) for second in range(0, 60, 2)]


def tombstones(root: Path) -> set[str]:
    """The marked stems of a tree, by path."""
    return {str(path.relative_to(root)).removesuffix(".tombstone") for path in root.glob("*/*/*/*.tombstone")}

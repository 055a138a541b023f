"""What a tombstone says of itself: a little TOML that is optional to every reader, claimed by whoever wrote it."""

from __future__ import annotations

import os
import stat
import tomllib

from tombsync.names import Marked, tombstone_name
from tombsync.tree.directories import open_below

NOTE_BYTES = 4096
# Not to wait for a fifo of that name, and not to be led away by a link.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KEYS = ("actor", "node", "time", "reason")


def read_note(root_fd: int, marked: Marked) -> dict[str, str]:
    """The claims in a tombstone: actor, node, time and reason, those that are there; {} where nothing can be read.

    Anybody who may write into the tree can write anything there: nothing may be decided by it.
    """
    try:
        hour_fd = open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text)
        try:
            fd = os.open(tombstone_name(marked.stem), _READ, dir_fd=hour_fd)
        finally:
            os.close(hour_fd)
        try:
            text = _read(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
    except OSError:
        return {}
    return parse_note(text)


def _read(fd: int) -> bytes:
    text = b""
    while len(text) <= NOTE_BYTES and (part := os.read(fd, NOTE_BYTES + 1 - len(text))):
        text += part
    return text


def parse_note(text: bytes) -> dict[str, str]:
    """The claims in a note; {} where it is longer than NOTE_BYTES or not what `mark` writes."""
    if len(text) > NOTE_BYTES:
        return {}
    try:
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError):  # brackets in brackets, as deep as 4 KiB go
        return {}
    return {key: values[key] for key in _KEYS if isinstance(values.get(key), str)}

"""What was purged, kept with the tree itself: ROOT/.tombsync/purged/CHANNEL/QUALITY/HOUR, one JSON line a file.

It is there so that data which comes back beside its tombstone is told apart from data that was never purged. Beside the
tree it survives a new index and a new state directory, one file an hour costs no memory in the agent, and nothing of
ours stands in an hour directory. A purge appends to it, before it deletes; the agent only reads it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from tombsync.errors import NotDeleted
from tombsync.names import OWN_DIRECTORY, Hour
from tombsync.tree.data import DataFile
from tombsync.tree.directories import open_below
from tombsync.tree.own import FILE_MODE, give_as, make_below, require_own_file, write_all

PURGED = "purged"
_MOST_BYTES = 16 << 20  # of one hour: 1,800 segments, purged 50 times
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Purged(NamedTuple):
    """One file that was purged: when (wall time), and the ctime that it had, by which it is known if it stayed."""

    at_ns: int
    ctime_ns: int


def remember_purge(root_fd: int, hour: Hour, files: Sequence[DataFile], *, at_ns: int, actor: str) -> None:
    """Append files of one hour, durably, before they are deleted. Raises NotDeleted."""
    lines = b"".join(
        json.dumps(
            {
                "name": file.name,
                "purged_at_ns": at_ns,
                "ctime_ns": file.ctime_ns,
                "bytes": file.size_bytes,
                "actor": actor,
            }
        ).encode()
        + b"\n"
        for file in files
    )
    try:
        directory = make_below(root_fd, OWN_DIRECTORY, PURGED, hour.channel, hour.quality)
        try:
            fd = os.open(hour.text, _APPEND, FILE_MODE, dir_fd=directory)
            try:
                require_own_file(fd)
                os.fchmod(fd, FILE_MODE)
                give_as(directory, fd)
                write_all(fd, b"\n" + lines)  # an earlier one may have been cut short in a line
                os.fsync(fd)
            finally:
                os.close(fd)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        path = f"{OWN_DIRECTORY}/{PURGED}/{hour.path}"
        reason = f"what is purged cannot be kept in {path}: {os.strerror(exc.errno or 0)}"
        raise NotDeleted(hour.path, reason) from exc


def purged_of(root_fd: int, hour: Hour) -> dict[str, Purged]:
    """The files of an hour that were purged, by name, each as it was the last time; lines that say nothing are passed
    over. Raises OSError where what was purged cannot be read."""
    try:
        directory = open_below(root_fd, OWN_DIRECTORY, PURGED, hour.channel, hour.quality)
    except FileNotFoundError:
        return {}
    try:
        fd = os.open(hour.text, _READ, dir_fd=directory)
    except FileNotFoundError:
        return {}
    finally:
        os.close(directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {}
        with open(fd, "rb", closefd=False) as file:
            text = file.read(_MOST_BYTES)
    finally:
        os.close(fd)
    found = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            found[str(entry["name"])] = Purged(int(entry["purged_at_ns"]), int(entry["ctime_ns"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found

"""What was purged, kept with the tree itself: ROOT/.tombsync/purged/CHANNEL/QUALITY/HOUR, one JSON line a file.

It is there so that data which comes back beside its tombstone is told apart from data that was never purged. Beside the
tree it survives a new index and a new state directory, one file an hour costs no memory in the agent, and nothing of
ours stands in an hour directory. A purge appends to it, before it deletes; the agent only reads it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from tombsync.errors import NotDeleted
from tombsync.names import OWN_DIRECTORY, Hour
from tombsync.tree.data import DataFile
from tombsync.tree.directories import DIRECTORY, open_below

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
        directory = _make_below(root_fd, OWN_DIRECTORY, PURGED, hour.channel, hour.quality)
        try:
            fd = os.open(hour.text, _APPEND, 0o644, dir_fd=directory)
            try:
                _require_own_file(fd)
                os.fchmod(fd, 0o644)  # whatever the umask: the agent, under another account, reads it
                _give_as(directory, fd)
                left = memoryview(b"\n" + lines)  # an earlier one may have been cut short in a line
                while left:  # a raw write may be partial
                    left = left[os.write(fd, left) :]
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


def _make_below(root_fd: int, *parts: str) -> int:
    """Open a directory below ROOT and make what is missing of it, durably. Raises OSError."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            made = True
            try:
                os.mkdir(part, 0o755, dir_fd=fd)
                os.fsync(fd)
            except FileExistsError:
                made = False
            above, fd = fd, os.open(part, DIRECTORY, dir_fd=fd)
            try:
                if made:
                    os.fchmod(fd, 0o755)
                    _give_as(above, fd)
            finally:
                os.close(above)
    except OSError:
        os.close(fd)
        raise
    return fd


def _require_own_file(fd: int) -> None:
    """Raise OSError where what was opened may have other names, or is no file: who owns the tree could put it there."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))


def _give_as(parent_fd: int, fd: int) -> None:
    """What root has made belongs to whom the directory belongs that it is in, so that they can go on with it."""
    found, parent = os.fstat(fd), os.fstat(parent_fd)
    if os.geteuid() == found.st_uid == 0 and parent.st_uid != 0:
        os.fchown(fd, parent.st_uid, parent.st_gid)


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

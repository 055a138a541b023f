"""Directories below ROOT, by descriptors: each step is opened relative to the one before, and no link is followed."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator, Sequence

from tombsync.names import OWN_DIRECTORY, hour_number, is_hour

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MARKER_PREFIX = "root-"
_MAX_NOTE_BYTES = 4096
# A file system without O_TMPFILE, a kernel that takes it for a directory to be written; and no /proc to link from.
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)


def identities(root_fd: int) -> list[str]:
    """The identities found in ROOT/.tombsync, sorted. Raises OSError where that is there and cannot be read."""
    try:
        own = os.open(OWN_DIRECTORY, DIRECTORY, dir_fd=root_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        names = sorted(os.listdir(own))
    finally:
        os.close(own)
    return [name.removeprefix(MARKER_PREFIX) for name in names if name.startswith(MARKER_PREFIX)]


def create_empty(directory_fd: int, name: str, note: bytes = b"") -> bool:
    """Create a file with O_EXCL and sync it; False where the name is taken. Mode 0644, as nothing in it is secret.

    Without a note it is opened for reading only, so that a process which may not write files can create it. With one
    it has its name only when the note is in it, where the file system can do that: who sees it must see that it is no
    accident. Raises OSError.
    """
    if note:
        try:
            return _link_with_note(directory_fd, name, note[:_MAX_NOTE_BYTES])
        except OSError as exc:
            if exc.errno not in _NO_UNNAMED_FILES:
                raise
    access = os.O_RDWR if note else os.O_RDONLY
    try:
        fd = os.open(name, access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory_fd)
    except FileExistsError:
        return False
    try:
        _write_note(fd, note[:_MAX_NOTE_BYTES])
        os.fsync(fd)
    finally:
        os.close(fd)
    return True


def _link_with_note(directory_fd: int, name: str, note: bytes) -> bool:
    """Write a file without a name (open(2), O_TMPFILE), sync it, and give it its name; False where that is taken."""
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=directory_fd)
    try:
        _write_note(fd, note)
        os.fsync(fd)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
    return True


def create_name(directory_fd: int, name: str) -> None:
    """Create an empty file with O_EXCL and do not sync it; nothing where the name is taken. Raises OSError."""
    try:
        os.close(
            os.open(
                name, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory_fd
            )
        )
    except FileExistsError:
        pass


def _write_note(fd: int, note: bytes) -> None:
    """Whole or not at all: a disk without room for it is no reason to call a tombstone failed that stands and hides."""
    left = memoryview(note)
    try:
        while left:  # a raw write may be partial
            left = left[os.write(fd, left) :]
    except OSError:
        os.ftruncate(fd, 0)


def open_below(root_fd: int, *parts: str) -> int:
    """Open a directory below ROOT, part by part, without following a link. Raises OSError."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            below = os.open(part, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def directory_names(root_fd: int, *parts: str, links: list[str] | None = None) -> list[str]:
    """The real directories in ROOT/parts, hidden ones left out; [] where there is no such directory.

    Names of links are added to `links`. Where they lead is not looked at: it may be a loop, or a disk that hangs.
    """
    return list(_directories(root_fd, parts, links))


def hour_numbers(root_fd: int, channel: str, quality: str, *, links: list[str] | None = None) -> array[int]:
    """The hours of one channel and quality, newest first, as `names.hour_number`; `links` as in `directory_names`.

    They are kept as integers, and each name is parsed once: 100,000 of them are listed at each start and each rescan
    (benchmarks/idle.py).
    """
    names = _directories(root_fd, (channel, quality), links)
    return array("q", sorted((hour_number(name) for name in names if is_hour(name)), reverse=True))


def _directories(root_fd: int, parts: Sequence[str], links: list[str] | None) -> Iterator[str]:
    try:
        fd = open_below(root_fd, *parts)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return
        raise
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name
                elif links is not None and entry.is_symlink():
                    links.append(entry.name)
    finally:
        os.close(fd)


def is_own_mount(root_fd: int, *parts: str) -> bool | None:
    """Whether ROOT/parts lies on another device than ROOT; None where it does not exist."""
    try:
        fd = open_below(root_fd, *parts)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_dev != os.fstat(root_fd).st_dev
    finally:
        os.close(fd)


def names_in_place(path: str) -> list[str]:
    """List a directory that is still there afterwards: what is made in one that was moved away is nobody's here.

    Raises OSError.
    """
    fd = os.open(path, DIRECTORY)
    try:
        names = os.listdir(fd)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return names
    finally:
        os.close(fd)

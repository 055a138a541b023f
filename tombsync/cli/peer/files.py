"""Files of the system that are changed whole: written beside, synced, and renamed into place.

Only where nobody but root can change the way to them, so that no link or other file of somebody else is taken for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile

from tombsync import errors
from tombsync.cli.files import sync_directory

_WRITABLE_BY_OTHERS = 0o022
_MOST_LINKS = 40  # as the kernel has it


def read_text(path: str) -> str:
    """The text of a file, bytes that are not UTF-8 kept; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter of a process whose file in /proc this was
        return ""


def open_regular(path: str) -> int:
    """Open a file to read it, and do not wait where it is a fifo. Raises OSError, also where it is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file")
    return descriptor


def require_roots(path: str, *, content: bool = False) -> None:
    """Raise NotRootsAlone where somebody else could change what an absolute path leads to, links on the way included;
    FileRefused where it leads nowhere.

    What passed this stays so: only root (or whoever runs this) can exchange any of it. `content`: what stands in the
    file counts, too.
    """
    at, links, may_be_missing = "/", 0, True
    left = path.split("/")[::-1]
    while True:
        try:
            found = os.lstat(at)
        except FileNotFoundError:
            if not may_be_missing:
                raise errors.NotRootsAlone(os.path.dirname(at), "anybody may put something in its place") from None
            return  # nobody else can make it
        except OSError as exc:
            raise errors.FileRefused(at, exc.strerror or str(exc)) from exc
        if stat.S_ISREG(found.st_mode) and not content and not any(left):
            return
        if found.st_uid not in (0, os.geteuid()):
            raise errors.NotRootsAlone(at, f"it belongs to uid {found.st_uid}")
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise errors.NotRootsAlone(path, os.strerror(errno.ELOOP))
            target = os.readlink(at)
            left += target.split("/")[::-1]
            if target.startswith("/"):
                at, may_be_missing = "/", True
            else:
                at = os.path.dirname(at)
        elif found.st_mode & _WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
            raise errors.NotRootsAlone(at, f"its mode is {stat.S_IMODE(found.st_mode):04o}")
        else:  # in a sticky directory like /tmp nobody can move away what is root's, but anybody make what is missing
            may_be_missing = not found.st_mode & _WRITABLE_BY_OTHERS
        while left and left[-1] in ("", "."):
            left.pop()
        if not left:
            return
        part = left.pop()
        at = os.path.dirname(at) if part == ".." else os.path.join(at, part)


def replace_file(path: str, text: str, *, mode: int = 0o644) -> None:
    """Put a text in place of a file in one step, durably. Owner and mode stay; a new one is root's, with `mode`.

    Through a symlink of root's the file behind it is replaced. Raises NotRootsAlone.
    """
    require_roots(path)
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    descriptor, beside = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            try:
                was = os.stat(path)
            except FileNotFoundError:
                os.fchmod(file.fileno(), mode)
            else:
                os.fchown(file.fileno(), was.st_uid, was.st_gid)
                os.fchmod(file.fileno(), was.st_mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_directory(directory)


def remove_file(path: str) -> None:
    """Remove a file durably; none is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))

"""What commands keep in ROOT/.tombsync: directories and files that the agent, under another account, can read."""

from __future__ import annotations

import errno
import os
import stat

from tombsync.tree.directories import DIRECTORY

# Whatever the umask. The agent's account may have no other right in the tree than to list it and to read what anybody
# may (an ACL on directories covers no file that others make), and nothing in here says more than a tombstone's note.
DIRECTORY_MODE = 0o755
FILE_MODE = 0o644


def make_below(root_fd: int, *parts: str) -> int:
    """Open a directory below ROOT and make what is missing of it, durably. Raises OSError."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            made = True
            try:
                os.mkdir(part, DIRECTORY_MODE, dir_fd=fd)
                os.fsync(fd)
            except FileExistsError:
                made = False
            above, fd = fd, os.open(part, DIRECTORY, dir_fd=fd)
            try:
                if made:
                    os.fchmod(fd, DIRECTORY_MODE)
                    give_as(above, fd)
            finally:
                os.close(above)
    except OSError:
        os.close(fd)
        raise
    return fd


def require_own_file(fd: int) -> None:
    """Raise OSError where what was opened may have other names, or is no file: who owns the tree could put it there."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))


def give_as(parent_fd: int, fd: int) -> None:
    """What root has made belongs to whom the directory belongs that it is in, so that they can go on with it."""
    found, parent = os.fstat(fd), os.fstat(parent_fd)
    if os.geteuid() == found.st_uid == 0 and parent.st_uid != 0:
        os.fchown(fd, parent.st_uid, parent.st_gid)


def write_all(fd: int, text: bytes) -> None:
    """Write to the last byte. Raises OSError."""
    left = memoryview(text)
    while left:  # a raw write may be partial
        left = left[os.write(fd, left) :]

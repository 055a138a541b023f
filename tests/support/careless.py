"""Ways to open a directory below ROOT that follow links: bugs to plant, to show that a racing test finds them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

OpenBelow = Callable[..., int]


def without_nofollow(root_fd: int, *parts: str) -> int:
    """Part by part, and each may be a link."""
    return _walk(root_fd, parts, look_first=False)


def looking_first(root_fd: int, *parts: str) -> int:
    """Part by part; each is looked at, and may be a link by the time that it is opened."""
    return _walk(root_fd, parts, look_first=True)


def nofollow_at_the_end(root_fd: int, *parts: str) -> int:
    """The whole path at once: O_NOFOLLOW speaks of its last part alone."""
    return os.open("/".join(parts), _DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)


def _walk(root_fd: int, parts: tuple[str, ...], *, look_first: bool) -> int:
    fd = os.dup(root_fd)
    try:
        for part in parts:
            if look_first and not stat.S_ISDIR(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


CARELESS: tuple[OpenBelow, ...] = (without_nofollow, looking_first, nofollow_at_the_end)

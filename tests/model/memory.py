"""Directories in memory for the model's trees: gone with their process, or when the next one begins."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator

PREFIX = "tombsync-model-"


def new_directory() -> str:
    """An empty directory; whoever asked removes it, and at the latest the end of the process does."""
    return tempfile.mkdtemp(prefix="world-", dir=_own())


@functools.cache
def _own() -> str:
    """The directory of this process. It is locked for as long as the process lives, which is how others know it."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    with _locked(base):
        _remove_left(base)
        own = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        fcntl.flock(os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_EX)
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _remove_left(base: str) -> None:
    """Remove what processes that were killed have left."""
    for entry in os.scandir(base):
        if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError), _locked(entry.path, wait=False):  # in use, or somebody else's
                shutil.rmtree(entry.path)


@contextlib.contextmanager
def _locked(directory: str, *, wait: bool = True) -> Iterator[None]:
    """A directory's lock. Raises BlockingIOError where another process has it, unless it is to be waited for."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)

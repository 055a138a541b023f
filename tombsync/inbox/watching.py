"""Waits for what comes into inboxes."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from inotify_simple import INotify, flags

from tombsync.inbox.box import Box

_MASK = flags.CREATE | flags.MOVED_TO | flags.ONLYDIR
_OVERFLOW, _IGNORED = int(flags.Q_OVERFLOW), int(flags.IGNORED)  # a flag asked of an event costs as much as reading it


class Watching:
    """Marks boxes as changed. Belongs to the inbox worker's thread, except `wake`."""

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, Box] = {}
        self._watched_as: dict[str, tuple[int, int]] = {}  # path -> device and inode of the directory that is watched
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """End the wait; from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Give up what is held."""
        self._inotify.close()
        os.close(self._wake_fd)

    def wait(self, timeout_s: float) -> None:
        """Until something comes, somebody wakes it or the time is over."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        poller.register(self._inotify.fileno(), select.POLLIN)
        for fd, _ in poller.poll(int(timeout_s * 1000 + 0.999)):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)

    def see_events(self) -> None:
        """Mark the boxes into which something came; all where the kernel dropped events."""
        for event in self._inotify.read(timeout=0):
            if event.mask & _OVERFLOW:
                for box in self._watched.values():
                    box.changed = True
                continue
            watched = self._watched.get(event.wd)
            if watched is not None:
                watched.changed = True
                if event.mask & _IGNORED:
                    del self._watched[event.wd]
                    self._watched_as.pop(watched.path, None)

    def watch(self, box: Box, fd: int) -> str:
        """Watch the directory that stands at its path now: a file system may have been mounted over the last one.

        `fd` is of that directory. Returns why it cannot be watched; "" where it is.
        """
        found = os.fstat(fd)
        if self._watched_as.get(box.path) != (found.st_dev, found.st_ino):
            try:
                wd = self._inotify.add_watch(f"/proc/self/fd/{fd}", _MASK)
            except OSError as exc:
                return exc.strerror or str(exc)
            self._watched[wd] = box
            self._watched_as[box.path] = (found.st_dev, found.st_ino)
        return ""

    def forget(self, box: Box) -> None:
        """Watch its directory no more."""
        self._watched_as.pop(box.path, None)
        for wd in [wd for wd, watched in self._watched.items() if watched is box]:
            del self._watched[wd]
            with suppress(OSError):  # its directory went, and the watch with it
                self._inotify.rm_watch(wd)

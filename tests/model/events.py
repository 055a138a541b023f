"""The kernel's inotify, as far as the emitter uses it: watches by inode, a queue that can overflow."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from inotify_simple import flags

ALL = 1_000_000


class KernelEvent(NamedTuple):
    """See inotify(7), `struct inotify_event`."""

    wd: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """One inotify instance. `allowance`: how many events a `read` may take."""

    def __init__(self) -> None:
        self.queue: list[KernelEvent] = []
        self.allowance = ALL
        self._last_wd = 0
        self._wds: dict[int, int] = {}  # inode -> watch descriptor

    def add_watch(self, path: str, mask: int) -> int:
        """Watch a directory; the same inode again gives the same descriptor. Raises OSError."""
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if found.st_ino not in self._wds:
            self._last_wd += 1
            self._wds[found.st_ino] = self._last_wd
        return self._wds[found.st_ino]

    def rm_watch(self, wd: int) -> None:
        """End a watch. Raises OSError where there is none."""
        inode = next((inode for inode, known in self._wds.items() if known == wd), None)
        if inode is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._ended(inode)

    def read(self, timeout: int | None = None) -> list[KernelEvent]:
        """Take what is queued, without waiting."""
        taken, self.queue = self.queue[: self.allowance], self.queue[self.allowance :]
        return taken

    def close(self) -> None:
        """See inotify_simple."""

    # -- what the trees tell ------------------------------------------------------------------------------------------

    def tell(self, directory: str, mask: int, name: str = "") -> None:
        """Something happened in a directory that is there, or to it (without a name)."""
        wd = self._wds.get(os.lstat(directory).st_ino)
        if wd is not None:
            event = KernelEvent(wd, mask, 0, name)
            if not self.queue or self.queue[-1] != event:  # the kernel merges it with an equal one at the end
                self.queue.append(event)

    def removed(self, inode: int) -> None:
        """A directory is no more."""
        if inode in self._wds:
            self.queue.append(KernelEvent(self._wds[inode], flags.DELETE_SELF, 0, ""))
            self._ended(inode)

    def lose(self, kept: int, *, told: bool) -> bool:
        """Of what is queued only the first ones are kept, as in an overflow, which is `told` or not (as on NFS).

        Returns whether there was any more.
        """
        lost = len(self.queue) > kept
        del self.queue[kept:]
        if told:
            self.queue.append(KernelEvent(-1, flags.Q_OVERFLOW, 0, ""))
        return lost

    def _ended(self, inode: int) -> None:
        self.queue.append(KernelEvent(self._wds.pop(inode), flags.IGNORED, 0, ""))

"""How large the files of one hour are, asked file by file where it matters."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType

from tombsync.names import Hour
from tombsync.tree.directories import open_below
from tombsync.tree.tree import Tree


class Sizes:
    """Of one hour, for the time of a `with` block. Its directory is opened when the first file is asked for."""

    def __init__(self, tree: Tree, hour: Hour) -> None:
        self._tree = tree
        self._hour = hour
        self._stack = ExitStack()
        self._fd: int | None = None

    def bytes_of(self, name: str) -> int:
        """The size of a file, -1 where it is gone or cannot be seen. Raises RootMissing."""
        try:
            if self._fd is None:
                with self._tree.open_root() as root_fd:
                    self._fd = open_below(root_fd, self._hour.channel, self._hour.quality, self._hour.text)
                self._stack.callback(os.close, self._fd)
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_size
        except OSError:
            return -1

    def __enter__(self) -> Sizes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

"""A process that swaps directories for links and back, as fast as the kernel does it. It is also its own program."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2  # renameat2(2)
_ROUNDS = 50  # between two looks at what is asked
_END_WITHIN_S = 20.0

Pair = tuple[Path, Path]  # where a directory stands or is to stand, and the link that takes its place again and again


class Swapper:
    """Swaps until the `with` block ends; then every directory and every link is where it was.

    A place where nothing stands has the link for a moment, and then nothing again, until somebody makes a directory
    there.
    """

    def __init__(self, pairs: Sequence[Pair] = ()) -> None:
        self.swaps = 0  # how often a link came to stand in a directory's place; at the end
        command = [sys.executable, "-I", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.swap(pairs)

    def swap(self, pairs: Sequence[Pair]) -> None:
        """From now on these; soon, that is: the process reads it between two rounds."""
        assert self._process.stdin is not None
        text = json.dumps([[str(path) for path in pair] for pair in pairs])
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Swapper:
        return self

    def __exit__(self, *_: object) -> None:
        said = self._process.communicate(timeout=_END_WITHIN_S)[0]
        assert self._process.returncode == 0, "the swapper failed: see its stderr"
        self.swaps = int(said)


class _Swapping:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.pairs: list[tuple[bytes, bytes]] = []
        self.swaps = 0
        self._unread = b""

    def _rename(self, old: bytes, new: bytes, how: int) -> int:
        if self._libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, how) == 0:
            return 0
        return ctypes.get_errno()

    def _swap_in(self, at: bytes, aside: bytes) -> int | None:
        """The link takes the place; how, which is also the way back. None where a directory was made in this moment."""
        for how in (_EXCHANGE, _NOREPLACE):
            code = self._rename(aside, at, how)
            if code == 0:
                self.swaps += 1
                return how
            if code == errno.EEXIST:
                return None
        raise OSError(code, os.strerror(code), os.fsdecode(at))

    def _swap_all(self) -> None:
        ways = [self._swap_in(at, aside) for at, aside in self.pairs]
        for (at, aside), how in zip(self.pairs, ways, strict=True):
            if how is not None and (code := self._rename(at, aside, how)):
                raise OSError(code, os.strerror(code), os.fsdecode(at))

    def run(self) -> None:
        os.set_blocking(0, False)
        while self._listen():
            for _ in range(_ROUNDS):
                self._swap_all()
        sys.stdout.write(str(self.swaps))

    def _listen(self) -> bool:
        """Take up what is asked; False when nobody is there to ask any more."""
        try:
            read = os.read(0, 65536)
        except BlockingIOError:
            return True
        *lines, self._unread = (self._unread + read).split(b"\n")
        if lines:
            self.pairs = [(os.fsencode(at), os.fsencode(aside)) for at, aside in json.loads(lines[-1])]
        return bool(read)


if __name__ == "__main__":
    _Swapping().run()

"""A program on a terminal of its own, for what only happens there."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Terminal:
    """A context manager: types keys and reads what the program prints."""

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._read = ""
        self._master, terminal = pty.openpty()
        self._process = subprocess.Popen(
            words, stdin=terminal, stdout=terminal, stderr=terminal, cwd=cwd, env=dict(env), start_new_session=True
        )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self._master, keys.encode())

    def until(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        """Read until this is printed; what was read up to its end is gone then."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self._read)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} was not printed within {timeout_s:.0f} s, but {self._read!r}"
            self._read += os.read(self._master, 4096).decode(errors="replace")
        self._read = self._read[found.end() :]
        return found

"""A real systemd-journald with a journal of its own, in a mount and a process namespace. Needs root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.programs import need
from tests.support.trees import need_root
from tests.support.waiting import wait_for

JOURNALD = "/lib/systemd/systemd-journald"
_PREPARE = """
set -e
for directory in /run /var/log; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
mkdir -p /run/systemd/journal /run/log/journal
exec 3<&0
cat <&3 &
echo ready
wait  # which takes in, as the first process must, whoever lost its parent
"""


class Journald:
    """A context manager. Programs that are run by `prefix` find its socket, and journalctl its journal."""

    def __enter__(self) -> Self:
        need_root()
        need("journalctl")
        if not os.path.exists(JOURNALD):
            pytest.fail("systemd-journald is not where Debian has it", pytrace=False)
        nsenter = need("nsenter")
        self._namespace = subprocess.Popen(
            [need("unshare"), "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", _PREPARE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._namespace.stdout is not None
        try:
            assert self._namespace.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{self._namespace.pid}/task/{self._namespace.pid}/children").read_text().split()
            (self._first,) = children
            self.prefix: Sequence[str] = [nsenter, f"--target={self._first}", "--mount", "--pid", "--"]
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        assert self._namespace.stdin is not None
        assert self._namespace.stdout is not None
        self._namespace.kill()  # and with it all that runs inside
        self._namespace.wait()
        self._namespace.stdin.close()
        self._namespace.stdout.close()
        if hasattr(self, "_daemon"):
            self._daemon.wait()

    def start(self) -> None:
        """Start it, and wait for its socket."""
        socket = self.path("/run/systemd/journal/socket")
        socket.unlink(missing_ok=True)
        self._daemon = subprocess.Popen([*self.prefix, JOURNALD], stderr=subprocess.DEVNULL)
        wait_for(socket.exists, "journald to listen")

    def stop(self) -> None:
        """As `systemctl stop` does: its socket stays, and nobody listens."""
        wait_for(self._pids, "journald to run")
        for pid in self._pids():
            os.kill(pid, signal.SIGTERM)
        self._daemon.wait()

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text().split()
        return [int(child) for child in children]

    def path(self, inside: str) -> Path:
        """A path of the namespace, from outside."""
        return Path(f"/proc/{self._first}/root{inside}")

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program inside."""
        return subprocess.run([*self.prefix, *map(str, words)], capture_output=True, text=True, timeout=60)

    def python(self, script: str) -> None:
        """Run a script of Python inside."""
        done = self.run(sys.executable, "-c", script)
        assert done.returncode == 0, done.stderr

    def records(self, *matches: str) -> list[dict[str, Any]]:
        """What its journal has of these matches by now."""
        done = self.run("journalctl", "--output=json", "--all", "--no-pager", *matches)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def copy(self, directory: Path) -> Path:
        """Its journal as files for other machines; they are whole, as it is stopped for that."""
        self.stop()
        directory.mkdir()
        for file in self.path("/run/log/journal").rglob("*.journal"):
            (directory / file.name).write_bytes(file.read_bytes())
        self.start()
        return directory

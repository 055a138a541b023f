"""This machine, but with accounts, mounts, settings and an sshd of its own, for tests that change them. Needs root.

A mount and a process namespace in which /etc is a copy and /srv, /run and /var/log are empty. Whatever is done in
there, by useradd, mount or sshd, is gone with its last process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import tombsync
from tests.support.programs import need
from tests.support.relay import free_port
from tests.support.trees import need_root
from tests.support.waiting import wait_for

# $1: a directory to mount a file system of its own at, which holds whatever belongs to this machine alone; $2: where
# other tests may have disks mounted at this moment, which stay in use for as long as they have a copy in here.
_PREPARE = """
set -e
while read -r source target rest; do
    case "$source $target" in "/dev/loop"*" $2/"*) umount --lazy "$target" ;; esac
done </proc/self/mounts
mount -t tmpfs tmpfs "$1"
cp -a /etc "$1/etc" || test -e "$1/etc/passwd"  # lock files of other programs come and go
mount --bind "$1/etc" /etc
for directory in /srv /run /var/log; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
mkdir -p /run/sshd /etc/ssh/sshd_config.d /etc/tombsync
ssh-keygen -A >/dev/null
exec 3<&0
cat <&3 &
echo ready
wait  # which takes in, as the first process must, whoever lost its parent
"""
CONFIG = Path("/etc/tombsync/tombsync.toml")


class Machine:
    """A context manager; `base` must not exist yet. Paths are those of the machine; `path` is how to reach one."""

    def __init__(self, base: Path, *, node: str = "node-a") -> None:
        self.base = base
        self.node = node
        self.root = base / "segments"
        self.port = 0
        self._sshd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        need_root()
        for program in (
            "useradd",
            "userdel",
            "usermod",
            "groupadd",
            "sshd",
            "ssh-keygen",
            "mount",
            "umount",
            "setpriv",
        ):
            need(program)
        self._nsenter = need("nsenter")
        self.base.mkdir()
        self._process = subprocess.Popen(
            [need("unshare"), "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", _PREPARE, "sh", str(self.base), tempfile.gettempdir()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            (self.pid,) = (int(child) for child in children)
            self.path(self.root).mkdir()
            self.write_settings()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    def path(self, inside: Path | str) -> Path:
        """A path of the machine, from outside. An absolute symlink on the way would lead out of it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write_settings(self, more: str = "") -> None:
        """Write its settings file anew."""
        self.path(CONFIG).write_text(f'node = "{self.node}"\nroot = "{self.root}"\n{more}')

    def run(self, *words: str | Path, expect: int | None = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in it, as its root, in its root directory."""
        done = subprocess.run(
            [self._nsenter, "--target", str(self.pid), "--mount", "--pid", *(str(word) for word in words)],
            input=stdin, capture_output=True, text=True, timeout=50, env=self._environment(),
        )  # fmt: skip
        told = f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, told
        assert expect is None or done.returncode == expect, told
        return done

    def tombsync(self, *words: str | Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of tombsync in it."""
        return self.run(sys.executable, "-m", "tombsync", *words, expect=expect)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command of tombsync in it; its stdout and stderr can be read."""
        return self.start_program(sys.executable, "-m", "tombsync", *words)

    def start_program(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a program in it; its stdout and stderr can be read."""
        return subprocess.Popen(
            [self._nsenter, "--target", str(self.pid), "--mount", "--pid", *(str(word) for word in words)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self._environment(),
        )  # fmt: skip

    def json(self, *words: str | Path, expect: int | None = 0) -> Any:
        """Run a command of tombsync with --json and return what it printed."""
        return json.loads(self.tombsync(*words, "--json", expect=expect).stdout)

    def make_key(self, name: str) -> tuple[Path, Path]:
        """A new key, as the paths of its private and its public half; both here and in the machine."""
        path = self.base.with_name(f"{self.base.name}-{name}")  # beside, where both see it
        command = [need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        return path, path.with_suffix(".pub")

    def start_sshd(self) -> None:
        """Its sshd, with the configuration as it is now, on a port of loopback."""
        self.port = free_port()
        options = {"Port": self.port, "ListenAddress": "127.0.0.1", "PidFile": "none", "MaxStartups": 100}
        self._sshd = subprocess.Popen(
            [self._nsenter, "--target", str(self.pid), "--mount", "--pid", need("sshd"), "-D", "-E", "/var/log/sshd",
             *(f"-o{key}={value}" for key, value in options.items())],
            stdin=subprocess.DEVNULL, env=self._environment(),
        )  # fmt: skip
        wait_for(self._answers, "sshd to answer")

    def sshd_log(self) -> str:
        """What its sshd has logged."""
        return self.path("/var/log/sshd").read_text(errors="replace")

    def snapshot(self, *but: Path | str) -> dict[str, object]:
        """Everything in its /etc, its /srv and `base`, the mounts included; not what is below the paths `but`.

        Every change of a file changes its ctime.
        """
        tops = ("/etc", "/srv", str(self.base))
        found: dict[str, object] = {"mounts": [line for line in self.mounts() if line.split()[4].startswith(tops)]}
        left_out = {str(path) for path in but} | {f"{self.base}/etc"}  # which is /etc
        for top in tops:
            for inside in self._walk(top, left_out):
                status = self.path(inside).lstat()
                kept = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size)
                found[inside] = (*kept, status.st_mtime_ns, status.st_ctime_ns, self._content(inside, status))
        return found

    def mounts(self) -> list[str]:
        """Its mounts, as proc(5) shows them in mountinfo. Those of the machine itself come and go among them."""
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def mount_points(self) -> set[str]:
        """Where something is mounted in its /srv."""
        return {line.split()[4] for line in self.mounts() if line.split()[4].startswith("/srv")}

    def _walk(self, top: str, left_out: set[str]) -> Iterable[str]:
        yield top
        if top in left_out:
            return
        for entry in os.scandir(self.path(top)):
            inside = f"{top}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(inside, left_out)
            else:
                yield inside

    def _content(self, inside: str, status: os.stat_result) -> bytes:
        return self.path(inside).read_bytes() if stat.S_ISREG(status.st_mode) else b""

    def _answers(self) -> bool:
        assert self._sshd is not None
        assert self._sshd.poll() is None, self.sshd_log()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as probe:
                return probe.recv(256).startswith(b"SSH-")
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(tombsync.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}

    def _clean_up(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=20)
        if self._sshd is not None:
            self._sshd.wait(20)
        self.base.rmdir()

"""Machines that a real systemd runs: containers of systemd-nspawn on one root file system, each in a network namespace.

The root file system is made once, from Debian's registry, and kept below the user's cache directory. What a machine
writes goes to a layer of its own, in memory. Needs root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.support.programs import need
from tests.support.trees import need_root
from tests.support.waiting import wait_for

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "iproute2", "procps", "python3", "python3-venv", "acl",
)  # fmt: skip
SUITE = "bookworm"
NETWORK = "10.91.0"
BOOT_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    *command: str | Path, check: bool = True, timeout_s: float = 300, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of this machine."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        env=env,
    )
    assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def root_file_system() -> Path:
    """A small Debian, made where it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tombsync-tests"
    wanted = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12]
    made = cache / f"{SUITE}-{wanted}"
    if not made.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as beside:
            run(
                need("mmdebstrap"), "--variant=minbase", f"--include={','.join(PACKAGES)}",
                "--aptopt=Acquire::Languages \"none\"", SUITE, f"{beside}/root", timeout_s=900,
            )  # fmt: skip
            with suppress(OSError):  # another run was faster
                os.rename(f"{beside}/root", made)
    return made


class Machine:
    """One of them, `address` as the others reach it; started by Machines."""

    def __init__(self, name: str, address: str, base: Path, namespace: str, binds: Sequence[str]) -> None:
        self.name = name
        self.address = address
        self.root = base / "root"  # of its file system
        self.tree = "/segments"  # its segment tree, in it
        self.console = base / "console.log"
        self._namespace = namespace
        self._binds = binds
        self._nspawn: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Power on, and wait until systemd has started everything."""
        # A mount namespace in which there is nothing but cgroup2, with a group of its own for each machine.
        script = (
            'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; mkdir -p "/sys/fs/cgroup/$1"'
            ' && echo $$ > "/sys/fs/cgroup/$1/cgroup.procs" && shift && exec "$@"'
        )
        command = [
            need("unshare"), "--mount", "--propagation", "private", "bash", "-c", script, "bash", self._namespace,
            need("systemd-nspawn"), "--quiet", "--boot", f"--directory={self.root}", f"--machine={self._namespace}",
            "--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/{self._namespace}",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe", *self._binds,
        ]  # fmt: skip
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        wait_for(self._is_up, f"{self.name} to boot ({self.console})", BOOT_S, pause_s=0.1)

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, f"{self.name} ended: {self.console.read_text(errors='replace')[-3000:]}"
        if self._leader() is None:
            return False
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def _leader(self) -> int | None:
        """Its systemd, as this machine numbers it."""
        assert self._nspawn is not None
        with suppress(OSError):
            for child in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    def cut_power(self) -> None:
        """Everything in it ends at once."""
        leader = self._leader()
        assert leader is not None
        assert self._nspawn is not None
        os.kill(leader, signal.SIGKILL)
        self._nspawn.wait(30)

    def stop(self) -> None:
        """At the end of the tests: no machine is left."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            leader = self._leader()
            os.kill(self._nspawn.pid if leader is None else leader, signal.SIGKILL)
            self._nspawn.wait(30)

    # -- in it ---------------------------------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """A command of this machine that runs one in it."""
        return [
            need("nsenter"), "-t", str(self._leader()), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w",
            "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8", "HOME=/root", *words,
        ]  # fmt: skip

    def run(self, *words: str, check: bool = True, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root."""
        return run(*self.command(*words), check=check, timeout_s=timeout_s)

    def says(self, *words: str) -> str:
        """What a program prints there."""
        return self.run(*words).stdout.strip()

    def shell(self, script: str, *words: str) -> str:
        """What a shell script prints there; words are $1 and so on."""
        return self.says("sh", "-euc", script, "sh", *words)

    def write(self, path: str, text: str) -> None:
        """Write a file there; missing directories are made."""
        self.shell('mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"', path, text)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Records of its journal, all boots."""
        said = self.says("journalctl", "--quiet", "--output=json", "--merge", *matches)
        return [json.loads(line) for line in said.splitlines()]

    def property(self, name: str, unit: str = "tombsync.service") -> str:
        """A property of a unit."""
        return self.says("systemctl", "show", f"--property={name}", "--value", unit)


class Machines:
    """Some machines on one network, `prepare`d before they boot."""

    def __init__(
        self, base: Path, names: Sequence[str], *, binds: Sequence[str], prepare: Callable[[Machine], None]
    ) -> None:
        self._base = base
        self._binds = binds
        self._prepare = prepare
        self._stack = ExitStack()
        self._mark = f"tst{os.getpid()}"
        self.all = [
            Machine(name, f"{NETWORK}.{number}", base / name, f"{self._mark}-{name}", binds)
            for number, name in enumerate(names, start=1)
        ]

    def __enter__(self) -> list[Machine]:
        need_root()
        for program in ("mmdebstrap", "systemd-nspawn", "ip", "nsenter", "unshare"):
            need(program)
        lower = root_file_system()
        with self._stack:
            self._mount("tmpfs", self._base, "-t", "tmpfs", "-o", "size=4g")
            self._make_network()
            for machine in self.all:
                self._make_root(machine, lower)
            for machine in self.all:
                self._stack.callback(machine.stop)
                machine.start()
            self._stack = self._stack.pop_all()
        return self.all

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _mount(self, what: str, where: Path, *options: str) -> None:
        where.mkdir(parents=True, exist_ok=True)
        run(need("mount"), *options, what, where)
        self._stack.callback(run, need("umount"), "--lazy", where)

    def _make_network(self) -> None:
        ip, bridge = need("ip"), f"{self._mark}-br"
        run(ip, "netns", "add", bridge)
        self._stack.callback(run, ip, "netns", "del", bridge)
        run(ip, "-n", bridge, "link", "add", "br0", "type", "bridge")
        run(ip, "-n", bridge, "link", "set", "br0", "up")
        for number, machine in enumerate(self.all):
            own = f"{self._mark}-{machine.name}"
            run(ip, "netns", "add", own)
            self._stack.callback(run, ip, "netns", "del", own)
            run(ip, "-n", bridge, "link", "add", f"p{number}", "type", "veth", "peer", "name", "host0", "netns", own)
            run(ip, "-n", bridge, "link", "set", f"p{number}", "master", "br0", "up")
            run(ip, "-n", own, "addr", "add", f"{machine.address}/24", "dev", "host0")
            run(ip, "-n", own, "link", "set", "host0", "up")
            run(ip, "-n", own, "link", "set", "lo", "up")

    def _make_root(self, machine: Machine, lower: Path) -> None:
        base = machine.root.parent
        for layer in ("upper", "work"):
            (base / layer).mkdir(parents=True)
        layers = f"lowerdir={lower},upperdir={base / 'upper'},workdir={base / 'work'}"
        self._mount("overlay", machine.root, "-t", "overlay", "-o", layers)
        root = machine.root
        (root / "etc/hostname").write_text(f"{machine.name}\n")
        (root / "etc/machine-id").unlink(missing_ok=True)
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        hosts = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in self.all)]
        (root / "etc/hosts").write_text("\n".join(hosts) + "\n")
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        run(need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", root / "etc/ssh/ssh_host_ed25519_key")
        (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
        self._prepare(machine)


def copied(source: Path, to: Path, version: str) -> Path:
    """The project as it is delivered, as another version of it."""
    to.mkdir(parents=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(source / name, to / name)
    for name in ("tombsync", "systemd", "docs"):
        shutil.copytree(source / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    text, found = re.subn(r"^version = .*$", f"version = {version}", (to / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert found == 1
    (to / "setup.cfg").write_text(text)
    return to

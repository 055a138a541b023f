"""A real OpenSSH server on loopback, run by whoever runs the tests, out of a temporary directory.

Its processes are found by parent, never by name, so a server of the machine itself is not touched.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.programs import need
from tests.support.relay import free_port

WAIT_S = 20.0  # a bound for a loaded machine; what is waited for takes some milliseconds
POLL_S = 0.005

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
PidFile none
LogLevel VERBOSE
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile {authorized_keys}
AllowTcpForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTTY no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp {sftp_args}
"""


class Sshd:
    """An OpenSSH server for one test. A context manager; nothing of it is left when the block ends.

    It accepts one key for the current user, and serves the whole file system as sftp-server does; `root` is a
    directory of its own that stands for a peer's segment tree. `config` holds further lines of sshd_config, which win
    over those here (sshd takes the first). `limit_open_files` is RLIMIT_NOFILE of the server and its sessions.
    `kept_below`: make the directory there and leave it, as removing many files slows down what follows on a disk.

    Every method returns when what it does has happened, and raises TimeoutError where that takes more than WAIT_S.
    Owner: the test's thread.
    """

    host = "127.0.0.1"
    port: int
    user: str
    directory: Path
    root: Path
    key_path: Path  # the client's private key
    authorized_keys_path: Path
    known_hosts_path: Path  # pins the host keys of the beginning, see `pin`
    log_path: Path

    def __init__(
        self,
        *,
        sftp_args: str = "",
        host_key_types: Sequence[str] = ("ed25519",),
        limit_open_files: int | None = None,
        config: Iterable[str] = (),
        kept_below: Path | None = None,
    ) -> None:
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self._sftp_args = sftp_args
        self._host_key_types = tuple(host_key_types)
        self._limit_open_files = limit_open_files
        self._config = tuple(config)
        self._kept_below = kept_below
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    def __enter__(self) -> Self:
        self._sshd, self._keygen = need("sshd"), need("ssh-keygen")
        self.directory = Path(tempfile.mkdtemp(prefix="tombsync-sshd-", dir=self._kept_below))
        try:
            self._prepare()
            self._start_on_some_port()
            self.pin()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    @property
    def pid(self) -> int:
        """The listening process. Raises RuntimeError where the server is stopped."""
        if self._process is None:
            raise RuntimeError("the server is stopped")
        return self._process.pid

    def sessions(self) -> list[int]:
        """The pids of the listener's children: one for each connection, logged in or not."""
        if self._process is None:
            return []
        return [process.pid for process in _alive() if process.parent == self._process.pid]

    def open_files(self, below: str | Path) -> int:
        """How many files below a directory its sessions hold open."""
        found = 0
        for pid in _family(self.pid)[1:]:
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # closed between the listing and the reading
                    found += os.readlink(f"/proc/{pid}/fd/{number}").startswith(f"{below}/")
        return found

    def start(self) -> None:
        """Start the stopped server: the same port, the host keys that are on disk."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        self._process = subprocess.Popen(
            [self._sshd, "-D", "-f", str(self._config_path), "-E", str(self.log_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C reaches the tests alone, which then stop the server
        )
        if self._limit_open_files is not None:
            # From outside instead of in a wrapper: the sessions, which are what counts, are forked off later.
            limit = (self._limit_open_files, self._limit_open_files)
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, limit)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server with all its sessions, at once, as a crash would. A stopped server is left as it is."""
        process, self._process = self._process, None
        if process is None:
            return
        family: list[int] = []
        if process.poll() is None:
            family = _stop_family(process.pid)
            _signal(reversed(family), signal.SIGKILL)
        self._frozen = False
        process.wait(WAIT_S)
        _wait_for(lambda: not _states(family), "the server's processes to end")

    def freeze(self) -> None:
        """SIGSTOP the listener and all sessions: connections stand, and can still be made, but nobody answers."""
        _stop_family(self.pid)
        self._frozen = True

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._frozen = False
        _signal(_family(self.pid), signal.SIGCONT)

    def kill_sessions(self) -> None:
        """Kill every session and keep the listener: clients see their connection end."""
        family = _stop_family(self.pid)
        _signal(reversed(family[1:]), signal.SIGKILL)
        if not self._frozen:
            _signal(family[:1], signal.SIGCONT)
        _wait_for(lambda: not _states(family[1:]), "the sessions to end")

    def new_host_key(self) -> None:
        """Restart with new host keys, as a reinstalled or another machine would; known_hosts keeps the old ones."""
        self.stop()
        self._make_host_keys()
        self.start()

    def pin(self) -> None:
        """Write the present host keys to known_hosts."""
        lines = []
        for path in self._host_key_paths():
            kind, blob = path.with_suffix(".pub").read_text().split()[:2]
            lines.append(f"[{self.host}]:{self.port} {kind} {blob}\n")
        self.known_hosts_path.write_text("".join(lines))

    def log(self) -> str:
        """What the server has logged so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _prepare(self) -> None:
        self.root = self.directory / "segments"
        self.key_path = self.directory / "id_ed25519"
        self.authorized_keys_path = self.directory / "authorized_keys"
        self.known_hosts_path = self.directory / "known_hosts"
        self.log_path = self.directory / "sshd.log"
        self._config_path = self.directory / "sshd_config"
        self.root.mkdir()
        self._make_key(self.key_path, "ed25519")
        self._make_host_keys()
        shutil.copyfile(self.key_path.with_suffix(".pub"), self.authorized_keys_path)
        if os.geteuid() == 0:
            # Where sshd of Debian and its relatives puts its unprivileged half; else made by its service.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def _make_host_keys(self) -> None:
        for kind, path in zip(self._host_key_types, self._host_key_paths(), strict=True):
            path.unlink(missing_ok=True)
            self._make_key(path, kind)

    def _host_key_paths(self) -> list[Path]:
        return [self.directory / f"host_{kind}" for kind in self._host_key_types]

    def _make_key(self, path: Path, kind: str) -> None:
        command = [self._keygen, "-q", "-t", kind, "-N", "", "-C", "test", "-f", str(path)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def _start_on_some_port(self) -> None:
        for attempt in range(5):
            self.port = free_port()
            self._write_config()
            try:
                self.start()
                return
            except RuntimeError:
                if attempt == 4 or "Address already in use" not in self.log():
                    raise

    def _write_config(self) -> None:
        lines = [*self._config, *(f"HostKey {path}" for path in self._host_key_paths())]
        own = CONFIG.format(port=self.port, authorized_keys=self.authorized_keys_path, sftp_args=self._sftp_args)
        # From OpenSSH 9.8 on, addresses whose logins fail are shut out for a while: not what a test of failures wants.
        for extra in ("PerSourcePenalties no\n", ""):
            self._config_path.write_text("\n".join(lines) + "\n" + extra + own)
            checked = subprocess.run(
                [self._sshd, "-t", "-f", str(self._config_path)], capture_output=True, text=True, check=False
            )
            if checked.returncode == 0:
                return
        raise RuntimeError(f"sshd does not accept its configuration: {checked.stderr}")

    def _wait_until_it_answers(self) -> None:
        process = self._process
        assert process is not None

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"sshd ended with code {process.returncode}:\n{self.log()}")
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), WAIT_S) as probe:
                return probe.recv(256).startswith(b"SSH-")
            return False

        _wait_for(answers, "sshd to answer")
        _wait_for(lambda: not self.sessions(), "the first connection to end")

    def _clean_up(self) -> None:
        try:
            self.stop()
        finally:
            if self._kept_below is None:
                _remove_tree(self.directory)


class _Process(NamedTuple):
    pid: int
    parent: int
    state: str  # one letter, see proc(5)


def _alive() -> list[_Process]:
    """Every process of the machine but zombies: those have ended, it is only their parent who has not asked."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            # A process may end between the listing and the reading.
            with contextlib.suppress(OSError):
                # The command's name, in parentheses, may hold spaces and parentheses of its own.
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found.append(_Process(int(name), int(fields[1]), fields[0]))
    return found


def _family(pid: int) -> list[int]:
    """A process and all its descendants, parents before children."""
    children: dict[int, list[int]] = {}
    for process in _alive():
        children.setdefault(process.parent, []).append(process.pid)
    family = [pid]
    for member in family:  # grows while it is walked
        family += children.get(member, [])
    return family


def _states(pids: Iterable[int]) -> set[str]:
    wanted = set(pids)
    return {process.state for process in _alive() if process.pid in wanted}


def _stop_family(pid: int) -> list[int]:
    """SIGSTOP a process and all its descendants; returns them. One that is stopped forks no more, so this ends."""
    stopped: list[int] = []
    while new := [member for member in _family(pid) if member not in stopped]:
        _signal(new, signal.SIGSTOP)
        stopped += new
        _wait_for(partial(_all_stopped, stopped), "the server's processes to stop")
    return stopped


def _all_stopped(pids: Iterable[int]) -> bool:
    return _states(pids) <= {"T", "t"}


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:g} s in vain for {what}")
        time.sleep(POLL_S)


def _remove_tree(directory: Path) -> None:
    """Remove a tree, also where a test has taken its owner's rights away below."""
    for path, directories, _ in os.walk(directory):  # goes down into each only after it was yielded
        for name in directories:
            below = os.path.join(path, name)
            if not os.path.islink(below):
                os.chmod(below, 0o700)
    shutil.rmtree(directory)

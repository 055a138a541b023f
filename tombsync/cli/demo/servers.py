"""The SFTP server of one node: OpenSSH's where it is installed, else the one that tombsync brings along."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import paramiko

from tombsync.cli.demo import processes
from tombsync.cli.demo.keys import HOST, public_line
from tombsync.cli.demo.sftpd import EmbeddedSftpServer
from tombsync.errors import TombsyncError

_CHECK_TIMEOUT_S = 5.0
_BACKLOG = 128

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}
PidFile none
LogLevel VERBOSE
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
DisableForwarding yes
PermitTTY no
PermitUserRC no
PrintMotd no
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""
# OpenSSH 9.8 and later shut out addresses that hang up early, for a while. Older ones do not know the word.
_NO_PENALTIES = "PerSourcePenalties no\n"
_MISSING_DIRECTORY = re.compile(r"Missing privilege separation directory: (/(?:var/)?run/\S+)")
_NOT_ALLOWED = re.compile(r"User \S+ not allowed because .*\S")


class ServerRefused(TombsyncError):
    """This machine's OpenSSH will not serve the demo."""


class Port:
    """A port of loopback that stays the demo's own while its server is down.

    It is bound and not listened on: connections are refused, and the kernel gives it to nobody else; a server that sets
    SO_REUSEADDR, as sshd does, can listen beside it. Closed at the end of the demo.
    """

    def __init__(self) -> None:
        self._held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind((HOST, 0))
        self.number: int = self._held.getsockname()[1]

    def close(self) -> None:
        """Let go of it."""
        self._held.close()


class Place(NamedTuple):
    """What a server is made of: `directory` holds its files, `root` is what it is there to serve."""

    directory: Path
    root: Path
    port: int
    host_key: paramiko.PKey
    host_key_path: Path
    client_key: paramiko.PKey


class Server(Protocol):
    """An SFTP server that can be started and stopped again and again."""

    def start(self) -> None:
        """Begin to listen; may return before it does. Raises ServerRefused, OSError."""

    def stop(self) -> None:
        """End it with all its sessions, as an outage would. One that is stopped is left as it is."""

    def require_alive(self) -> None:
        """Raise ServerRefused where it was started and has ended by itself."""

    def explanation(self) -> str:
        """What its log says of a login that was refused; "" where it says nothing."""


class EmbeddedServer:
    """The server that tombsync brings along, in threads of the demo."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._running: _EmbeddedOnPort | None = None

    def start(self) -> None:
        """Listen."""
        place = self._place
        self._running = _EmbeddedOnPort(place.host_key, place.client_key, str(place.root))
        self._running.start_on(place.port)

    def stop(self) -> None:
        """Drop every session and stop listening."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def require_alive(self) -> None:
        """Its threads live as long as the demo."""

    def explanation(self) -> str:
        """It refuses nobody who has the key."""
        return ""


class _EmbeddedOnPort(EmbeddedSftpServer):
    def start_on(self, port: int) -> None:
        """Listen on a port of one's own choice, so that a peer comes back where it was."""
        self._listener = socket.create_server((HOST, port), backlog=_BACKLOG)
        self._run_thread("sftpd-accept", partial(self._accept_loop, self._listener))


class OpenSshServer:
    """OpenSSH's server, run by whoever runs the demo, with a configuration of its own."""

    def __init__(self, program: str, place: Place) -> None:
        """Write and check its configuration. Raises ServerRefused, OSError."""
        self._program = program
        self._config = place.directory / "sshd_config"
        self._log = place.directory / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        authorized_keys = place.directory / "authorized_keys"
        authorized_keys.write_text(public_line(place.client_key) + "\n")
        text = _CONFIG.format(port=place.port, host_key=place.host_key_path, authorized_keys=authorized_keys)
        refusal = ""
        for candidate in (_NO_PENALTIES + text, text):
            self._config.write_text(candidate)
            refusal = self._refusal()
            if not refusal:
                return
        raise ServerRefused(refusal)

    def _refusal(self) -> str:
        """Why sshd does not take its configuration; "" where it does."""
        reason = self._check()
        missing = _MISSING_DIRECTORY.search(reason)
        if missing is not None and os.geteuid() == 0:
            # Its service would have made it. It stays: an sshd of this machine may have come to need it meanwhile.
            os.makedirs(missing[1], mode=0o755, exist_ok=True)
            reason = self._check()
        return reason

    def _check(self) -> str:
        try:
            checked = subprocess.run(
                [self._program, "-t", "-f", str(self._config)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_CHECK_TIMEOUT_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return "sshd -t does not end"
        if checked.returncode == 0:
            return ""
        return " ".join(checked.stderr.split()) or f"sshd -t ended with {checked.returncode}"

    def start(self) -> None:
        """Start it. Its sessions end with `stop`, not with a Ctrl-C."""
        command = [self._program, "-D", "-e", "-f", str(self._config)]
        self._process = processes.start(command, self._log)

    def stop(self) -> None:
        """Kill the listener and its sessions."""
        process, self._process = self._process, None
        if process is not None:
            processes.end_family(process)

    def require_alive(self) -> None:
        """Raise ServerRefused where the listener has ended."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2].strip()
            raise ServerRefused(f"sshd ended with {code}: {last}" if last else f"sshd ended with {code}")

    def explanation(self) -> str:
        """Why it does not let the account in, where that is not for the key."""
        found = _NOT_ALLOWED.search(self._log.read_text(errors="replace"))
        return found[0] if found is not None else ""


def find_sshd() -> str:
    """The absolute path of sshd, also where only root has /usr/sbin in PATH; "" where there is none."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which("sshd", path=path)
    return os.path.abspath(found) if found else ""


def account() -> str:
    """The name of the account that runs the demo; "" for a uid without one, which sshd serves nobody under."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""

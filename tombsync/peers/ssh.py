"""One SSH connection to a peer: pinned host key, our own key, the SFTP channel. paramiko's errors become ours here."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import paramiko
from paramiko.pkey import UnknownKeyType

from tombsync import errors
from tombsync.peers import known_hosts, tree

CONNECT_TIMEOUT_S = 15.0  # from the first packet to an open SFTP session; a frozen server is given up then
_PHASE_TIMEOUT_S = 10.0  # each step of it by itself
_DEAD_AFTER_MS = 10_000  # TCP_USER_TIMEOUT: unacknowledged data ends the connection, where the kernel's default is 15 min

log = logging.getLogger(__name__)
logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its errors reach us as exceptions; its log repeats them

_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


@dataclass(frozen=True)
class Target:
    """Where a peer is and how to log in there. `path` is its segment tree, absolute."""

    name: str
    host: str
    port: int
    user: str
    key: str
    known_hosts: str
    path: str


class _Transport(paramiko.Transport):
    # How often its thread looks whether it should end, in seconds. At the stock 0.1 ten idle sessions cost 0.4 % of a
    # core, at 1.0 a tenth of that (measured by benchmarks/idle.py). Closing shuts the socket down, so nothing waits for it.
    _active_check_timeout = 1.0


class Connector:
    """Makes sessions with one peer. `connect` runs in the peer's own thread; `abort` may be called from any.

    `_socket` is written by that thread and read by `abort`, under `_lock`.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        """End a running `connect`, and let none begin again."""
        with self._lock:
            self._aborted = True
            _shut(self._socket)

    def connect(self) -> tree.TreeSession:
        """Connect, check the host key, log in, open SFTP and see that it answers. Raises PeerError."""
        target = self.target
        pinned = known_hosts.load(target.known_hosts, peer=target.name, host=target.host, port=target.port)
        key = load_key(target.key, target.name)
        begun = time.monotonic()
        guard = threading.Timer(CONNECT_TIMEOUT_S, self._shut_current)  # some of paramiko's waits have no bound
        guard.daemon = True
        with _translated(target.name, begun):
            raw = self._dial()
            transport: paramiko.Transport | None = None
            guard.start()
            try:
                transport = _Transport(raw)
                channel = self._log_in(transport, pinned, key)
                session = tree.TreeSession(target.name, target.path, transport, channel)
                session.begin(begun + CONNECT_TIMEOUT_S)
                return session
            except BaseException:
                _shut(raw)
                if transport is not None:
                    transport.close()
                raw.close()
                raise
            finally:
                guard.cancel()
                with self._lock:
                    self._socket = None

    def _shut_current(self) -> None:
        with self._lock:
            _shut(self._socket)

    def _dial(self) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.target.host, self.target.port, type=socket.SOCK_STREAM
        ):
            raw = socket.socket(family, kind, protocol)
            with self._lock:
                if self._aborted:
                    raw.close()
                    raise errors.PeerLost(self.target.name, "stopping")
                self._socket = raw
            try:
                raw.settimeout(_PHASE_TIMEOUT_S)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_MS)
                raw.connect(address)
            except OSError as exc:
                failure = exc
                raw.close()
            else:
                return raw
        raise failure or OSError("the name has no address")

    def _log_in(self, transport: paramiko.Transport, pinned: known_hosts.Pinned, key: paramiko.PKey) -> paramiko.Channel:
        transport.banner_timeout = _PHASE_TIMEOUT_S
        transport.handshake_timeout = _PHASE_TIMEOUT_S
        transport.auth_timeout = _PHASE_TIMEOUT_S
        transport.channel_timeout = _PHASE_TIMEOUT_S
        options = transport.get_security_options()
        options.key_types = [a for a in pinned.algorithms() if a in options.key_types]
        # An AEAD cipher costs one pass over the data; all others of the library's list stay as they are.
        options.ciphers = sorted(options.ciphers, key=lambda name: "gcm" not in name)
        transport.start_client(timeout=_PHASE_TIMEOUT_S)
        pinned.require(self.target.name, transport.get_remote_server_key())
        transport.auth_publickey(self.target.user, key)
        channel = transport.open_session(timeout=_PHASE_TIMEOUT_S)
        try:
            channel.settimeout(_PHASE_TIMEOUT_S)
            channel.invoke_subsystem("sftp")
        except paramiko.SSHException as exc:
            if transport.is_active():
                raise errors.SftpRefused(self.target.name, str(exc)) from exc
            raise
        return channel


def require_usable(target: Target) -> None:
    """Raise KeyUnusable or HostKeyUnknown where our own side of a peer cannot work. Asks nobody."""
    load_key(target.key, target.name)
    known_hosts.load(target.known_hosts, peer=target.name, host=target.host, port=target.port)


def load_key(path: str, peer: str) -> paramiko.PKey:
    """Our private key. Raises KeyUnusable with the reason."""
    try:
        key = paramiko.PKey.from_path(path)
    except paramiko.PasswordRequiredException as exc:
        raise errors.KeyUnusable(peer, f"{path} has a passphrase, which a service cannot type") from exc
    except OSError as exc:
        raise errors.KeyUnusable(peer, f"{path}: {exc.strerror or exc}") from exc
    except (paramiko.SSHException, UnknownKeyType, ValueError, TypeError) as exc:
        public = path.endswith(".pub")
        why = "is a public key; keys in an ssh-agent cannot serve" if public else "is no private key that can be read"
        if "passphrase" in str(exc).lower() or "encrypted" in str(exc).lower():
            why = "has a passphrase, which a service cannot type"
        raise errors.KeyUnusable(peer, f"{path} {why}") from exc
    if key.get_name() not in _KEY_TYPES:
        raise errors.KeyUnusable(peer, f"{path} is of the kind {key.get_name()}")
    return key


def _shut(raw: socket.socket | None) -> None:
    if raw is not None:
        with contextlib.suppress(OSError):  # not connected yet, or closed already
            raw.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _translated(peer: str, begun: float) -> Iterator[None]:
    """Every error of a connection attempt as one of ours."""

    def late() -> bool:
        return time.monotonic() - begun >= _PHASE_TIMEOUT_S - 0.5

    try:
        yield
    except errors.PeerError:
        raise
    except paramiko.AuthenticationException as exc:
        if late():
            raise errors.PeerTimeout(peer, "while logging in") from exc
        raise errors.LoginRefused(peer, str(exc).rstrip(".")) from exc
    except paramiko.ssh_exception.IncompatiblePeer as exc:
        raise errors.HostKeyChanged(peer, f"it no longer has a key of a pinned type ({exc})") from exc
    except TimeoutError as exc:
        raise errors.PeerTimeout(peer, "while connecting") from exc
    except socket.gaierror as exc:
        raise errors.PeerUnreachable(peer, exc.strerror or str(exc)) from exc
    except EOFError as exc:
        error = errors.PeerTimeout if late() else errors.PeerLost
        raise error(peer, "while connecting") from exc
    except OSError as exc:
        raise errors.PeerUnreachable(peer, exc.strerror or str(exc)) from exc
    except paramiko.SSHException as exc:
        if late():
            raise errors.PeerTimeout(peer, "while connecting") from exc
        raise errors.PeerProtocol(peer, str(exc)) from exc

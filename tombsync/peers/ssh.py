"""One SSH connection to a peer: pinned host key, our own key, the SFTP channel. paramiko's errors become ours here."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from tombsync import errors
from tombsync.peers import known_hosts
from tombsync.peers.inbox import InboxSession
from tombsync.peers.session import SftpSession
from tombsync.peers.tree import TreeSession

CONNECT_TIMEOUT_S = 15.0  # from the first packet to an open SFTP session; a frozen server is given up then
_PHASE_TIMEOUT_S = 10.0  # each step of it by itself, and the looking up of the name before it
_DEAD_AFTER_MS = (
    10_000  # TCP_USER_TIMEOUT: unacknowledged data ends the connection, where the kernel's default is 15 min
)

log = logging.getLogger(__name__)
logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its errors reach us as exceptions; its log repeats them

_MOST_DETAIL = 200  # characters: a server's own words can be many
_PUBLIC_KEY_STARTS = (b"ssh-", b"ecdsa-", b"sk-")
_KEY_TYPES = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


@dataclass(frozen=True)
class Target:
    """Where a peer is, how to log in there, and how it is delivered to.

    `path` is its segment tree, absolute, or for `delivery = "inbox"` the view of it inside of the jail. `node` is the
    name of this node.
    """

    name: str
    host: str
    port: int
    user: str
    key: str
    known_hosts: str
    path: str
    delivery: str = "tree"
    node: str = ""


class _Transport(paramiko.Transport):
    # How often its thread looks whether it should end, in seconds. At the stock 0.1 ten idle sessions cost 0.4 % of a
    # core, at 1.0 a tenth of that (benchmarks/idle.py). Closing shuts the socket down, so nothing waits for it.
    _active_check_timeout = 1.0


class Connector:
    """Makes sessions with one peer. `connect` runs in the peer's own thread; `abort` may be called from any.

    `_lookup` and `_socket` are written by that thread and read by `abort`, under `_lock`.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._lookup: Future[list[Any]] = Future()
        self._socket: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        """End a running `connect`, and let none begin again."""
        with self._lock:
            self._aborted = True
            self._lookup.cancel()
            _shut(self._socket)

    def connect(self) -> SftpSession:
        """Connect, check the host key, log in, open SFTP and see that it answers. Raises PeerError."""
        target = self.target
        pinned = known_hosts.load(target.known_hosts, peer=target.name, host=target.host, port=target.port)
        key = load_key(target.key, target.name)
        addresses = self._look_up()
        begun = time.monotonic()
        deadline = begun + CONNECT_TIMEOUT_S
        with _translated(target.name, begun):
            raw = self._dial(addresses, deadline)
            transport: paramiko.Transport | None = None
            # Some of paramiko's waits have no bound.
            guard = threading.Timer(deadline - time.monotonic(), self._shut_current)
            guard.daemon = True
            guard.start()
            try:
                transport = _Transport(raw)
                channel = self._log_in(transport, pinned, key)
                session = _session(target, transport, channel)
                session.begin(deadline)
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

    def _look_up(self) -> list[Any]:
        """The addresses of the host. Nothing bounds the system's resolver, so it is asked in a thread, and given up."""
        target = self.target
        lookup: Future[list[Any]] = Future()
        with self._lock:
            self._lookup = lookup
            if self._aborted:
                raise errors.PeerLost(target.name, "stopping")

        def resolve() -> None:
            try:
                found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                if lookup.set_running_or_notify_cancel():
                    lookup.set_exception(exc)
            else:
                if lookup.set_running_or_notify_cancel():
                    lookup.set_result(found)

        threading.Thread(target=resolve, name=f"look-up-{target.name}", daemon=True).start()
        try:
            return lookup.result(_PHASE_TIMEOUT_S)
        except CancelledError as exc:
            raise errors.PeerLost(target.name, "stopping") from exc
        except TimeoutError as exc:
            raise errors.PeerUnreachable(target.name, "its name cannot be looked up: no name server answers") from exc
        except OSError as exc:
            raise errors.PeerUnreachable(target.name, exc.strerror or str(exc)) from exc

    def _dial(self, addresses: list[Any], deadline: float) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            raw = socket.socket(family, kind, protocol)
            try:
                self._hold(raw)
                raw.settimeout(min(_PHASE_TIMEOUT_S, left_s))
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_MS)
                raw.connect(address)
                self._hold(raw)  # again: a socket that is not connected yet cannot be shut down
            except OSError as exc:
                failure = exc
                raw.close()
            except errors.PeerLost:
                raw.close()
                raise
            else:
                return raw
        raise failure or OSError("the name has no address")

    def _hold(self, raw: socket.socket) -> None:
        """Let `abort` shut it down from now on. Raises PeerLost where that was called already."""
        with self._lock:
            self._socket = raw
            if self._aborted:
                raise errors.PeerLost(self.target.name, "stopping")

    def _log_in(
        self, transport: paramiko.Transport, pinned: known_hosts.Pinned, key: paramiko.PKey
    ) -> paramiko.Channel:
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
        self._authenticate(transport, key)
        try:
            channel = transport.open_session(timeout=_PHASE_TIMEOUT_S)
        except paramiko.ChannelException as exc:
            raise errors.SftpRefused(self.target.name, f"no session is allowed: {exc.text}") from exc
        try:
            channel.settimeout(_PHASE_TIMEOUT_S)
            channel.invoke_subsystem("sftp")
        except paramiko.SSHException as exc:
            if transport.is_active():
                raise errors.SftpRefused(self.target.name, str(exc)) from exc
            raise
        return channel

    def _authenticate(self, transport: paramiko.Transport, key: paramiko.PKey) -> None:
        try:
            wanted = transport.auth_publickey(self.target.user, key)
        except paramiko.AuthenticationException as exc:
            if not transport.is_active():  # nobody refused anything
                raise EOFError from exc
            raise
        if wanted:
            raise errors.LoginRefused(self.target.name, f"the key alone is not enough, it wants {', '.join(wanted)}")


def _session(target: Target, transport: paramiko.Transport, channel: paramiko.Channel) -> SftpSession:
    if target.delivery == "inbox":
        return InboxSession(target.name, target.path, transport, channel, node=target.node)
    return TreeSession(target.name, target.path, transport, channel)


def require_usable(target: Target) -> None:
    """Raise KeyUnusable or HostKeyUnknown where our own side of a peer cannot work. Asks nobody."""
    load_key(target.key, target.name)
    known_hosts.load(target.known_hosts, peer=target.name, host=target.host, port=target.port)


def load_key(path: str, peer: str) -> paramiko.PKey:
    """Our private key. Raises KeyUnusable with the reason."""
    try:
        key = paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError) as exc:  # TypeError: cryptography's word for it
        raise errors.KeyUnusable(peer, f"{path} has a passphrase, which a service cannot type") from exc
    except OSError as exc:
        raise errors.KeyUnusable(peer, f"{path}: {exc.strerror or exc}") from exc
    except (paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError) as exc:
        public = _is_public(path)
        why = "is a public key; keys in an ssh-agent cannot serve" if public else "is no private key that can be read"
        raise errors.KeyUnusable(peer, f"{path} {why}") from exc
    if key.get_name() not in _KEY_TYPES:
        raise errors.KeyUnusable(peer, f"{path} is of the kind {key.get_name()}")
    return key


def _is_public(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(16).startswith(_PUBLIC_KEY_STARTS)
    return False


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
        if "host key" not in str(exc):  # another version, no common cipher: nothing that known_hosts could mend
            raise errors.PeerProtocol(peer, str(exc)) from exc
        raise errors.HostKeyChanged(peer, f"it no longer has a key of a pinned type ({exc})") from exc
    except TimeoutError as exc:
        raise errors.PeerTimeout(peer, "while connecting") from exc
    except EOFError as exc:
        error = errors.PeerTimeout if late() else errors.PeerLost
        raise error(peer, "while connecting") from exc
    except OSError as exc:
        raise errors.PeerUnreachable(peer, exc.strerror or str(exc)) from exc
    except Exception as exc:  # paramiko's thread hands on whatever a server's bytes made it raise
        if late():
            raise errors.PeerTimeout(peer, "while connecting") from exc
        if isinstance(exc.__context__, EOFError | ConnectionError):  # no banner: too many connections, or shut out
            raise errors.PeerLost(peer, "while connecting") from exc
        raise errors.PeerProtocol(peer, str(exc)[:_MOST_DETAIL] or type(exc).__name__) from exc

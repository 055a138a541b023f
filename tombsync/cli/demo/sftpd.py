"""A small SFTP server for the demo, where no OpenSSH is installed. Nothing of the agent imports it.

It speaks what a tombstone's delivery needs and no more: OPEN (also of a directory, for its fsync), CLOSE, LSTAT, MKDIR,
REALPATH, `fsync@openssh.com` and `limits@openssh.com`. It cannot write, truncate, rename or remove. Status codes are
OpenSSH's, so a client that works here meets no other answers there.

One key may log in, under any user name; everything runs as the user of this process. Paths are the real absolute ones
of this machine, and only those below the served directory are answered: the walk to a name follows no symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from tombsync.cli.demo import sftp_packets as sftp

HOST = "127.0.0.1"  # the demo never listens anywhere else
CLOSE_TIMEOUT_S = 5.0  # paramiko's threads look up every 0.1 s; more is only waited for a file system that hangs
RECEIVE_BYTES = 64 * 1024
EXTENSIONS = {b"fsync@openssh.com": b"1", b"limits@openssh.com": b"1"}

# O_NONBLOCK: a fifo in the tree must not hang the session. It means nothing to files and directories.
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WALK_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# What paramiko raises for a connection that ended under a read, a write or a close.
_GONE = (OSError, EOFError, paramiko.SSHException)

log = logging.getLogger(__name__)
# Without a handler Python prints paramiko's tracebacks of every dropped connection between the demo's own lines.
log.addHandler(logging.NullHandler())


class EmbeddedSftpServer:
    """Serves one directory to the holder of one key, on a loopback port that the kernel chooses.

    `root` is resolved once, here; clients name paths below what it resolves to (the attribute `root`). `authorized_key`
    may be the public half alone. Owner: the thread that calls `start` and `close`; each is called once.
    """

    def __init__(
        self, host_key: paramiko.PKey, authorized_key: paramiko.PKey, root: str, *, max_open_handles: int | None = None
    ) -> None:
        self.root = os.path.realpath(root)
        self._host_key = host_key
        self._authorized_blob = authorized_key.asbytes()
        self._max_open_handles = max_open_handles or _default_max_open_handles()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()  # guards the two lists: the accepting, the transports' and the owner's threads
        self._transports: list[paramiko.Transport] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> int:
        """Listen, and return the port. Raises OSError where no port is to be had."""
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._run_thread("sftpd-accept", partial(self._accept_loop, self._listener))
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Drop every session and stop listening, within CLOSE_TIMEOUT_S. Open handles are closed, files stay."""
        self._closing.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # close() alone does not wake accept()
            self._listener.close()
        with self._lock:
            transports, threads = list(self._transports), list(self._threads)
        for transport in transports:
            transport.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in [*threads, *transports]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _accept_loop(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:  # closed by close(), or out of descriptors for the moment
                self._closing.wait(0.1)
                continue
            try:
                self._begin(connection)
            except Exception:  # one bad connection must not end the accepting of others
                log.exception("a connection could not be taken")
                connection.close()

    def _begin(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(connection)
        transport.set_log_channel(__name__)
        transport.add_server_key(self._host_key)
        with self._lock:
            self._transports = [other for other in self._transports if other.is_alive()]
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if self._closing.is_set():
                connection.close()
                return
            self._transports.append(transport)
            # With an event it returns at once: a client that says nothing holds up no other.
            transport.start_server(event=threading.Event(), server=_Login(self._authorized_blob, self._serve))

    def _serve(self, channel: paramiko.Channel) -> None:
        session = _Session(channel, Jail(self.root), self._max_open_handles)
        self._run_thread("sftpd-session", session.run)

    def _run_thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
            thread.start()


class _Login(paramiko.ServerInterface):
    """What an SSH client may have here: a login with the one key, and the subsystem sftp on a session channel.

    Arguments keep the names of paramiko's own methods; the base class refuses whatever is not overridden here.
    """

    def __init__(self, authorized_blob: bytes, serve: Callable[[paramiko.Channel], None]) -> None:
        self._authorized_blob = authorized_blob
        self._serve = serve

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        # paramiko has verified, or will verify, the signature: this only says whether the key is welcome.
        return AUTH_SUCCESSFUL if key.asbytes() == self._authorized_blob else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if name != "sftp":
            return False
        self._serve(channel)
        return True


class Jail:
    """Opens names below one directory, part by part from its own descriptor, so that nothing in the tree leads out.

    Every method raises OSError: EACCES for a path that is relative, lies outside or holds `..`; else what the kernel
    says. A symbolic link as a directory of the path is ENOTDIR, as the last name ELOOP (EEXIST where it is created).
    """

    def __init__(self, root: str) -> None:
        self.root = os.fsencode(root)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        with self._parent(path) as (directory, name):
            return os.open(name, flags | _OPEN_FLAGS, mode, dir_fd=directory)

    def lstat(self, path: bytes) -> os.stat_result:
        with self._parent(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def mkdir(self, path: bytes, mode: int) -> None:
        with self._parent(path) as (directory, name):
            os.mkdir(name, mode, dir_fd=directory)

    def absolute(self, path: bytes) -> bytes:
        """A path as text without `.`, `..` and double slashes; a relative one starts at the served directory."""
        full = path if path.startswith(b"/") else self.root + b"/" + path
        full = b"/" + os.path.normpath(full).lstrip(b"/")
        self._parts(full)
        return full

    def _parts(self, path: bytes) -> list[bytes]:
        prefix = self.root.rstrip(b"/") + b"/"
        if not (path + b"/").startswith(prefix):
            raise PermissionError(errno.EACCES, "outside of the served directory")
        parts = [part for part in path[len(prefix) :].split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise PermissionError(errno.EACCES, "a path with ..")
        return parts

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that holds a path's last name, as a descriptor, and that name; `.` for the root itself."""
        *directories, name = self._parts(path) or [b"."]
        # By its path each time, not by a descriptor kept: a plain server serves what is mounted or put there now.
        directory = os.open(self.root, _WALK_FLAGS)
        try:
            for part in directories:
                below = os.open(part, _WALK_FLAGS, dir_fd=directory)
                os.close(directory)
                directory = below
            yield directory, name
        finally:
            os.close(directory)


class _Session:
    """One SFTP session: reads requests, answers each in the order in which it came. Owned by one thread.

    The answers to all requests of one read leave in one write, so that thousands in flight cost few system calls.
    """

    def __init__(self, channel: paramiko.Channel, jail: Jail, max_open_handles: int) -> None:
        self._channel = channel
        self._jail = jail
        self._max_open_handles = max_open_handles
        self._descriptors: dict[bytes, int] = {}  # by handle
        self._opened = 0  # handles are numbered and never given twice, so that a stale one cannot hit another file
        self._greeted = False
        self._methods: dict[int, Callable[[int, sftp.Fields], bytes]] = {
            sftp.FXP_OPEN: self._open,
            sftp.FXP_CLOSE: self._close,
            sftp.FXP_LSTAT: self._lstat,
            sftp.FXP_MKDIR: self._mkdir,
            sftp.FXP_REALPATH: self._realpath,
            sftp.FXP_EXTENDED: self._extended,
        }

    def run(self) -> None:
        """Serve until the client goes, sends what is not SFTP, or the server closes."""
        splitter = sftp.Splitter()
        try:
            while received := self._channel.recv(RECEIVE_BYTES):
                answers = [self._answer(packet) for packet in splitter.feed(received)]
                if answers:
                    self._channel.sendall(b"".join(answers))
        except sftp.BadPacket as error:
            log.warning("session ended: %s", error)
        except _GONE:
            log.debug("session lost", exc_info=True)
        finally:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            with contextlib.suppress(*_GONE):  # closing says so to the client
                self._channel.close()

    def _answer(self, packet: sftp.Fields) -> bytes:
        kind = packet.byte()
        if not self._greeted:
            if kind != sftp.FXP_INIT:
                raise sftp.BadPacket("a request before INIT")
            self._greeted = True
            return sftp.version(EXTENSIONS)
        request = packet.uint32()
        method = self._methods.get(kind)
        if method is None:
            return sftp.status(request, sftp.FX_OP_UNSUPPORTED)
        try:
            return method(request, packet)
        except sftp.BadPacket:
            raise
        except OSError as error:
            return sftp.status(request, sftp.status_of(error))
        except ValueError:  # a NUL byte in a path: no system call could carry it
            return sftp.status(request, sftp.FX_BAD_MESSAGE)

    def _open(self, request: int, packet: sftp.Fields) -> bytes:
        path, wanted, attributes = packet.string(), packet.uint32(), packet.attributes()
        exclusive = wanted & sftp.FXF_CREAT and wanted & sftp.FXF_EXCL
        if wanted & sftp.FXF_APPEND or (wanted & sftp.FXF_TRUNC and not exclusive):
            return sftp.status(request, sftp.FX_OP_UNSUPPORTED)  # nothing that exists is ever changed here
        if len(self._descriptors) >= self._max_open_handles:
            return sftp.status(request, sftp.FX_FAILURE)
        flags = os.O_RDONLY
        if wanted & sftp.FXF_WRITE:
            flags = os.O_RDWR if wanted & sftp.FXF_READ else os.O_WRONLY
        if wanted & sftp.FXF_CREAT:
            flags |= os.O_CREAT
        if wanted & sftp.FXF_EXCL:
            flags |= os.O_EXCL
        mode = 0o666 if attributes.mode is None else attributes.mode & 0o7777
        descriptor = self._jail.open(path, flags, mode)
        handle = self._opened.to_bytes(8, "big")
        self._opened += 1
        self._descriptors[handle] = descriptor
        return sftp.handle(request, handle)

    def _close(self, request: int, packet: sftp.Fields) -> bytes:
        descriptor = self._descriptors.pop(packet.string(), None)
        if descriptor is None:
            return sftp.status(request, sftp.FX_NO_SUCH_FILE)
        os.close(descriptor)
        return sftp.status(request, sftp.FX_OK)

    def _lstat(self, request: int, packet: sftp.Fields) -> bytes:
        return sftp.attrs(request, self._jail.lstat(packet.string()))

    def _mkdir(self, request: int, packet: sftp.Fields) -> bytes:
        path, attributes = packet.string(), packet.attributes()
        self._jail.mkdir(path, 0o777 if attributes.mode is None else attributes.mode & 0o7777)
        return sftp.status(request, sftp.FX_OK)

    def _realpath(self, request: int, packet: sftp.Fields) -> bytes:
        return sftp.name(request, self._jail.absolute(packet.string()))

    def _extended(self, request: int, packet: sftp.Fields) -> bytes:
        name = packet.string()
        if name == b"limits@openssh.com":
            return sftp.limits(request, self._max_open_handles)
        if name != b"fsync@openssh.com":
            return sftp.status(request, sftp.FX_OP_UNSUPPORTED)
        descriptor = self._descriptors.get(packet.string())
        if descriptor is None:
            return sftp.status(request, sftp.FX_NO_SUCH_FILE)
        os.fsync(descriptor)
        return sftp.status(request, sftp.FX_OK)


def _default_max_open_handles() -> int:
    """Half of what this process may have open: other sessions and the demo itself live in the same process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else min(4096, soft // 2)

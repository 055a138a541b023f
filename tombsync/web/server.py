"""The WSGI server: bound at once, served by one thread and a few workers, and stopped within a bound.

waitress reads every request in its one loop and hands only complete ones to the workers, so a client that sends half a
request, or reads slowly, holds nobody else. What it does not have is an end: this module adds it.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher

from tombsync import precedence
from tombsync.errors import ListenRefused

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

WORKERS = 4
CLOSE_TIMEOUT_S = 2.0
UNIX_MODE = 0o660  # the group is that of whoever may read, a web server for example
LOOP_WAIT_S = 5.0  # of an idle loop, which is woken for all it does (benchmarks/idle.py)
MOST_UNREAD_BYTES = 4 * 1024 * 1024  # of answers: at 16 MiB (waitress's watermark) a worker waits for the reader
_BACKLOG = 128
_POLL_S = 0.01

_SETTINGS = {
    "ident": "",  # no Server header: it would tell the version
    "expose_tracebacks": False,
    "log_socket_errors": False,  # a client that goes away is no event
    "connection_limit": 200,
    "channel_timeout": 30,
    "cleanup_interval": 5,
    "max_request_header_size": 32 * 1024,
    "max_request_body_size": 64 * 1024,  # nobody needs one; below the size at which a temporary file is made
}


class WebServer:
    """Serves one WSGI application on `HOST:PORT`, `[v6]:PORT` or `unix:/path`.

    `start` and `close` are called by one thread, the owner.
    """

    def __init__(
        self,
        app: WSGIApplication,
        listen: str,
        *,
        workers: int = WORKERS,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_turn`: called by the serving thread before each turn of its loop, the longest of which is LOOP_WAIT_S."""
        self._app = app
        self._on_turn = on_turn
        self._listen = listen
        self._worker_count = workers
        self._address: tuple[str, int] | None = None
        self._unix_file: tuple[int, int] | None = None  # device and inode of the socket that we made
        self._server: Any = None
        self._map: dict[int, Any] = {}  # descriptor -> what waitress's loop looks after; empty at the end
        self._workers = _Workers()
        self._loop: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port, with the port that was given for 0; a socket's path and 0."""
        if self._address is None:
            raise RuntimeError("the server was not started")
        return self._address

    @property
    def alive(self) -> bool:
        """Whether the serving thread runs."""
        return self._loop is not None and self._loop.is_alive()

    def start(self) -> None:
        """Bind, and serve in threads of our own. Raises ListenRefused; nothing is left behind then.

        For a Unix socket the process's umask is changed for a moment, because a service may be forbidden to chmod:
        start before workers that create files.
        """
        if self._server is not None:
            raise RuntimeError("the server was started before")
        path = _unix_path(self._listen)
        listener = _bind_unix(path, self._listen) if path else _bind_tcp(self._listen)
        if path:
            made = os.lstat(path)
            self._unix_file = (made.st_dev, made.st_ino)
            self._address = (path, 0)
        else:
            self._address = listener.getsockname()[:2]
        self._server = create_server(
            self._app, map=self._map, sockets=[listener], backlog=_BACKLOG, threads=0, **_SETTINGS
        )
        self._server.task_dispatcher = self._workers
        self._server.channel_class = _Channel
        self._workers.set_thread_count(self._worker_count)
        self._loop = threading.Thread(target=self._run, name="http", daemon=True)
        self._loop.start()

    def _run(self) -> None:
        """waitress's own loop, a turn at a time."""
        while self._map:
            self._on_turn()
            wasyncore.loop(timeout=LOOP_WAIT_S, use_poll=True, map=self._map, count=1)  # select() fails at 1024

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Stop; returns whether all of it ended in time. After False (a route is stuck) it may be called again.

        Nothing new is accepted from now on. Requests under way have half of the time to be answered, then every
        connection is cut, which also wakes a worker that waits for a slow reader.
        """
        if self._server is None or self._loop is None:
            return True
        server, loop = self._server, self._loop
        started_at = time.monotonic()

        # Everything below that touches waitress's sockets runs in its loop, like waitress's own code.
        self._in_loop(loop, lambda: wasyncore.dispatcher.close(server), timeout_s)  # only the listening socket
        self._remove_unix_file()
        self._workers.set_thread_count(0)
        self._workers.join(started_at + timeout_s / 2)
        while loop.is_alive() and _sending(server) and time.monotonic() < started_at + timeout_s / 2:
            loop.join(_POLL_S)
        self._in_loop(loop, lambda: _cut_connections(server), timeout_s)
        if not self._workers.join(started_at + timeout_s):
            # A worker that is still there will write to the trigger's descriptor, which must not be another file then.
            return False
        self._in_loop(loop, server.trigger.close, timeout_s)  # the last of the loop's descriptors: it ends
        loop.join(max(_POLL_S, started_at + timeout_s - time.monotonic()))
        return not loop.is_alive()

    def _in_loop(self, loop: threading.Thread, action: Callable[[], object], timeout_s: float) -> None:
        """Do it in the loop's thread and wait for that; here, if the loop is no more."""
        done = threading.Event()

        def act() -> None:
            try:
                action()
            finally:
                done.set()

        if loop.is_alive():
            self._server.trigger.pull_trigger(act)
            done.wait(timeout_s)
        if not loop.is_alive() and not done.is_set():
            act()

    def _remove_unix_file(self) -> None:
        """Remove our socket, and not one that another process made in its place."""
        if self._unix_file is None:
            return
        try:
            found = os.lstat(self.address[0])
            if (found.st_dev, found.st_ino) == self._unix_file:
                os.unlink(self.address[0])
        except OSError:
            pass
        self._unix_file = None


class _Channel(HTTPChannel):  # type: ignore[misc] # waitress is not annotated
    """A connection that has precedence from when it is made, and from what it sends, until that is answered."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Runs in the loop, which is about to hear the first request."""
        super().__init__(*arguments, **keywords)
        precedence.claim(self)

    def received(self, data: bytes) -> Any:
        """Runs in the loop, where something arrived."""
        precedence.claim(self)  # before a worker is given the request, which may release it at once
        taken = super().received(data)
        if not self.requests:  # a part of one, which could come byte by byte; or it is answered by now
            precedence.release(self)
        return taken

    def service(self) -> None:
        """Runs in a worker: answer what was asked. Who asks on without reading is cut: a worker would wait for it."""
        if self.total_outbufs_len > MOST_UNREAD_BYTES:
            with self.requests_lock:
                unanswered = list(self.requests)
                self.requests.clear()
            for one in unanswered:
                one.close()
            self.will_close = True
            self.server.trigger.pull_trigger(self._cut)
            return
        try:
            super().service()
        finally:
            if not self.requests:
                precedence.release(self)

    def _cut(self) -> None:
        """Runs in the loop: its socket may never be writable again."""
        if self.connected:
            self.handle_close()

    def handle_close(self) -> None:
        """Runs in the loop, at the end."""
        precedence.release(self)
        super().handle_close()


class _Workers(ThreadedTaskDispatcher):  # type: ignore[misc] # waitress is not annotated
    """waitress's workers, with names, and joined at the end (the original forgets its threads)."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[threading.Thread] = []

    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        """Called by set_thread_count."""
        thread = threading.Thread(target=target, name=f"http-{thread_no}", args=(thread_no,), daemon=True)
        self._started.append(thread)
        thread.start()

    def join(self, until: float) -> bool:
        """Wait for all of them, until `until` (monotonic); returns whether they ended."""
        for thread in self._started:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._started)


def _sending(server: Any) -> bool:
    return any(channel.total_outbufs_len for channel in list(server.active_channels.values()))


def _cut_connections(server: Any) -> None:
    for channel in list(server.active_channels.values()):
        channel.handle_close()


def _unix_path(listen: str) -> str:
    return listen.removeprefix("unix:") if listen.startswith("unix:/") else ""


def _bind_tcp(listen: str) -> socket.socket:
    """A listening socket. Of a name with several addresses the first that works, IPv4 first. Raises ListenRefused."""
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # an IPv6 address without brackets: where does the port begin?
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ListenRefused(listen, "not HOST:PORT, [IPv6]:PORT or unix:/path", hint="correct [http] listen")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a host name"
        raise ListenRefused(listen, reason, hint="correct [http] listen") from error
    refusal = OSError("no address")
    for family, kind, protocol, _, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            refusal = error
    raise ListenRefused(listen, refusal.strerror or str(refusal)) from refusal


def _bind_unix(path: str, listen: str) -> socket.socket:
    """A listening socket at a path, in place of one that nobody listens on any more. Raises ListenRefused."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path, listen)
        umask = os.umask(0o777 & ~UNIX_MODE)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        raise ListenRefused(listen, error.strerror or str(error), hint="correct [http] listen") from error
    except ListenRefused:
        listener.close()
        raise


def _remove_stale(path: str, listen: str) -> None:
    """Remove a socket that a killed process left. Raises ListenRefused where it is in use or is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenRefused(listen, "a file that is no socket is there", hint="move it away, or change [http] listen")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is in use, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            raise ListenRefused(listen, "another process listens on it") from None
        else:
            raise ListenRefused(listen, "another process listens on it")

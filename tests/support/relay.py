"""Faults of a network on loopback: a TCP relay that delays, holds, resets and refuses, and servers that misbehave.

Both run in threads of their own and end with their `with` block. All times are seconds, all counts bytes of payload.
"""

from __future__ import annotations

import contextlib
import queue
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

HOST = "127.0.0.1"
COMMAND_TIMEOUT_S = 10.0
RECEIVE_BYTES = 256 * 1024
# What one direction may hold before the relay stops reading: at 50 ms of delay that still passes 1 GB/s.
MAX_HELD_BYTES = 64 * 1024 * 1024

Direction = Literal["up", "down", "both"]
Misbehaviour = Literal["silent", "banner", "garbage", "slow-line", "fast-line"]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that the kernel gives to outgoing connections.

    So a server that is down for a while finds its port free again, and a client that keeps trying to connect cannot
    meet itself there (on loopback a socket can connect to its own port). Two callers may still be given the same one:
    retry where listening fails.
    """
    for _ in range(1000):
        port = random.randrange(20000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise OSError("no free port on loopback")


def _listen(port: int) -> socket.socket:
    return socket.create_server((HOST, port), backlog=128)


def _listen_anywhere() -> socket.socket:
    for _ in range(20):
        with contextlib.suppress(OSError):
            return _listen(free_port())
    raise OSError("no port on loopback could be listened on")


def _abort(connection: socket.socket) -> None:
    """Close with RST instead of FIN: the other side reads ECONNRESET."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class _Flow:
    """One direction of one connection: what was read from `source` and is not yet written to `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held: deque[tuple[float, bytes | None]] = deque()  # (due, data); b"" is the end (FIN), None is RST
        self.held_bytes = 0
        self.ended = False  # the end was read: nothing more will come
        self.done = False  # the end was passed on
        self.dead = False  # the sink takes nothing any more: what comes is dropped
        self.blocked = False  # the sink's buffer is full

    def due_at(self) -> float | None:
        return self.held[0][0] if self.held and not self.blocked else None

    def end(self, due: float) -> None:
        """The source has sent RST: say so to the sink, behind what it sent before."""
        if not self.held or self.held[-1][1] is not None:
            self.held.append((due, None))
        self.ended = True


class _Link:
    """One relayed connection. `pending` holds until the connection to the target stands."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.client = client
        self.target = target
        self.pending = True
        self.closed = False
        self.up = _Flow(client, target)
        self.down = _Flow(target, client)


class Relay:
    """A TCP relay in front of `target`, to be told what goes wrong on the way. A context manager.

    `delay_s` is latency added to each direction (so twice that to the round trip), without any limit of the rate; the
    order is kept. It does not delay the opening of a connection. "up" is from the client to the target.

    Everything public may be used from any thread; what changes the network has happened when the call returns. The
    sockets belong to the relay's own thread alone.
    """

    def __init__(self, target: tuple[str, int], *, delay_s: float = 0.0) -> None:
        self.host = HOST
        self.target = target
        self.delay_up_s = delay_s
        self.delay_down_s = delay_s
        # Held over a write and its counting, so that who has received a byte also finds it counted.
        self._counting = threading.Lock()
        self._bytes_up = 0
        self._bytes_down = 0
        self.connections_total = 0
        self._stalled_up = False
        self._stalled_down = False
        self._links: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._commands: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._stopping = False
        self._listener: socket.socket | None = _listen_anywhere()
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # it has failed already: said below
            self._tell(self._stop)
        self._thread.join(COMMAND_TIMEOUT_S)
        if self._failure is not None and error is None:
            raise RuntimeError("the relay's thread failed") from self._failure

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links)

    @property
    def bytes_up(self) -> int:
        """Passed on to the target so far."""
        with self._counting:
            return self._bytes_up

    @property
    def bytes_down(self) -> int:
        """Passed on to clients so far."""
        with self._counting:
            return self._bytes_down

    def set_delay(self, delay_s: float, direction: Direction = "both") -> None:
        """Change the added latency of what is read from now on; what is under way keeps its own and stays in front."""
        if direction != "down":
            self.delay_up_s = delay_s
        if direction != "up":
            self.delay_down_s = delay_s

    def stall(self, direction: Direction = "both") -> None:
        """Hold every byte of a direction, of connections yet to come too; nothing is lost, nobody is told."""
        self._tell(lambda: self._set_stalled(direction, True))

    def resume(self, direction: Direction = "both") -> None:
        """Let a stalled direction flow again, beginning with what was held."""
        self._tell(lambda: self._set_stalled(direction, False))

    def reset(self) -> None:
        """End every connection with RST on both sides. New ones are taken as before."""
        self._tell(self._reset)

    def refuse(self) -> None:
        """Stop listening: new connections are refused. Those that stand are left alone (see `reset`)."""
        self._tell(self._refuse)

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._tell(self._accept_again)

    # -- the relay's thread; nothing below is called by another --------------------------------------------------------

    def _tell(self, command: Callable[[], None]) -> None:
        done = threading.Event()
        self._commands.put((command, done))
        with contextlib.suppress(OSError):  # full of wake-ups is awake enough; closed is said below
            self._wake_write.send(b".")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while not done.wait(0.05):
            if self._failure is not None or not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the relay's thread does not answer") from self._failure

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # handed to the test's thread by _tell and __exit__
            self._failure = error
        finally:
            self._close_all()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._timeout_s()):
            self._ready(key.fileobj, key.data, events)
        while not self._commands.empty():
            command, done = self._commands.get()
            command()
            done.set()
        now = time.monotonic()
        for link in list(self._links):
            for flow in (link.up, link.down):
                due = flow.due_at()
                if due is not None and due <= now and not link.closed:
                    self._pass_on(link, flow)

    def _timeout_s(self) -> float | None:
        """How long nothing can be due. epoll counts in ms and rounds up, so the last bit is slept, exactly."""
        dues = [
            due
            for link in self._links
            for flow in (link.up, link.down)
            if not self._is_stalled(link, flow) and (due := flow.due_at()) is not None
        ]
        if not dues:
            return None
        left_s = min(dues) - time.monotonic()
        if left_s >= 0.001:
            return left_s - 0.001
        if left_s > 0:
            time.sleep(left_s)
        return 0.0

    def _ready(self, socket_: object, link: _Link | None, events: int) -> None:
        if link is None:
            if socket_ is self._wake_read:
                self._wake_read.recv(4096)
            elif socket_ is self._listener:
                self._take()
            return
        if link.closed:
            return
        if link.pending:
            self._target_answered(link)
            return
        reading, writing = (link.up, link.down) if socket_ is link.client else (link.down, link.up)
        if events & selectors.EVENT_WRITE:
            writing.blocked = False
            self._pass_on(link, writing)
        if events & selectors.EVENT_READ and not link.closed:
            self._read(link, reading)

    def _take(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, _ = self._listener.accept()
            target = socket.socket()
            for side in (client, target):
                side.setblocking(False)
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, target)
            self._links.append(link)
            self.connections_total += 1
            target.connect_ex(self.target)  # in progress: its outcome makes the socket writable
            self._selector.register(target, selectors.EVENT_WRITE, link)

    def _target_answered(self, link: _Link) -> None:
        link.pending = False
        self._selector.unregister(link.target)
        if link.target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            self._sink_is_gone(link, link.up)
        self._register(link)

    def _read(self, link: _Link, flow: _Flow) -> None:
        due = time.monotonic() + (self.delay_up_s if flow is link.up else self.delay_down_s)
        try:
            data = flow.source.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            flow.end(due)
            self._register(link)
            return
        flow.ended = not data
        if not flow.dead:
            flow.held.append((due, data))
            flow.held_bytes += len(data)
        if flow.held and flow.held[0][0] <= time.monotonic():
            self._pass_on(link, flow)
        else:
            self._register(link)

    def _pass_on(self, link: _Link, flow: _Flow) -> None:
        """Write what is due, unless the direction is stalled."""
        now = time.monotonic()
        while flow.held and flow.held[0][0] <= now and not self._is_stalled(link, flow):
            due, data = flow.held[0]
            if data is None:
                self._drop(link)
                return
            try:
                if data:
                    sent = self._send(link, flow, data)
                else:
                    flow.sink.shutdown(socket.SHUT_WR)
                    sent, flow.done = 0, True
            except BlockingIOError:
                flow.blocked = True
                break
            except OSError:
                self._sink_is_gone(link, flow)
                break
            flow.held_bytes -= sent
            if sent < len(data):
                flow.held[0] = (due, data[sent:])
            else:
                flow.held.popleft()
        if link.up.done and link.down.done:
            self._forget(link)
            link.client.close()
            link.target.close()
        else:
            self._register(link)

    def _send(self, link: _Link, flow: _Flow, data: bytes) -> int:
        with self._counting:
            sent = flow.sink.send(data)
            if flow is link.up:
                self._bytes_up += sent
            else:
                self._bytes_down += sent
        return sent

    def _sink_is_gone(self, link: _Link, flow: _Flow) -> None:
        """The sink has sent RST; the source learns of it as of all else: late, or not while stalled."""
        flow.dead = True
        flow.held.clear()
        flow.held_bytes = 0
        back, delay_s = (link.down, self.delay_down_s) if flow is link.up else (link.up, self.delay_up_s)
        back.end(time.monotonic() + delay_s)

    def _register(self, link: _Link) -> None:
        """Tell the selector what can be done with both sockets now."""
        if link.pending:
            return
        for side, reading, writing in ((link.client, link.up, link.down), (link.target, link.down, link.up)):
            events = 0
            if not reading.ended and reading.held_bytes < MAX_HELD_BYTES and not self._is_stalled(link, reading):
                events |= selectors.EVENT_READ
            if writing.blocked and not self._is_stalled(link, writing):
                events |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(side)
            if known is None:
                if events:
                    self._selector.register(side, events, link)
            elif not events:
                self._selector.unregister(side)  # with no events asked, a hang-up would still wake us without end
            elif known.events != events:
                self._selector.modify(side, events, link)

    def _is_stalled(self, link: _Link, flow: _Flow) -> bool:
        return self._stalled_up if flow is link.up else self._stalled_down

    def _set_stalled(self, direction: Direction, stalled: bool) -> None:
        if direction != "down":
            self._stalled_up = stalled
        if direction != "up":
            self._stalled_down = stalled
        for link in self._links:
            self._register(link)

    def _reset(self) -> None:
        for link in list(self._links):
            self._drop(link)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept_again(self) -> None:
        if self._listener is None:
            self._listener = _listen(self.port)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _drop(self, link: _Link) -> None:
        self._forget(link)
        _abort(link.client)
        _abort(link.target)

    def _forget(self, link: _Link) -> None:
        link.closed = True
        self._links.remove(link)
        for side in (link.client, link.target):
            if side in self._selector.get_map():
                self._selector.unregister(side)

    def _stop(self) -> None:
        self._stopping = True

    def _close_all(self) -> None:
        self._reset()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()


class SilentServer:
    """A server on loopback that takes every connection and then misbehaves in one way. A context manager.

    - `silent`: says nothing, for ever.
    - `banner`: sends the line `banner`, then nothing.
    - `garbage`: sends 64 KiB that are no protocol (the same each time), then nothing.
    - `slow-line`: sends `line_bytes` without a newline, 100 bytes every 20 ms.
    - `fast-line`: the same at once.

    Afterwards the connection stays open, and what the client sends is read by nobody.
    """

    def __init__(
        self,
        misbehaviour: Misbehaviour,
        *,
        banner: bytes = b"SSH-2.0-OpenSSH_9.2\r\n",
        line_bytes: int = 10 * 1024 * 1024,
    ) -> None:
        self.host = HOST
        self.connections_total = 0
        self._misbehaviour = misbehaviour
        self._banner = banner
        self._line_bytes = line_bytes
        self._stopping = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = _listen_anywhere()
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept_loop, name="silent-server", daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._accepting.join(COMMAND_TIMEOUT_S)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes sendall()
        for thread in self._threads:
            thread.join(COMMAND_TIMEOUT_S)
        for connection in self._connections:
            _abort(connection)

    def _accept_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._misbehave, args=(connection,), name="silent-server", daemon=True)
            self._threads.append(thread)
            thread.start()
            self.connections_total += 1

    def _misbehave(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._misbehaviour == "banner":
                connection.sendall(self._banner)
            elif self._misbehaviour == "garbage":
                connection.sendall(random.Random(1).randbytes(64 * 1024))
            elif self._misbehaviour == "fast-line":
                connection.sendall(b"x" * self._line_bytes)
            elif self._misbehaviour == "slow-line":
                for _ in range(self._line_bytes // 100):
                    connection.sendall(b"x" * 100)
                    if self._stopping.wait(0.02):
                        return

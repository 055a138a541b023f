"""A network that loses packets: a TCP relay whose sockets drop a share of what arrives, before TCP sees it.

A socket filter (socket(7), SO_ATTACH_FILTER) with a random number of the kernel does that, so it needs neither rights
nor modules; senders notice as they do on a bad line, by missing acknowledgements.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
from typing import Self

_SO_ATTACH_FILTER, _SO_MEMINFO = 26, 55
_MEMINFO = struct.Struct("=9I")  # the last one counts dropped packets
# linux/filter.h; the random number is loaded from beyond every packet (SKF_AD_OFF + SKF_AD_RANDOM).
_LOAD, _JUMP_IF_GREATER_OR_EQUAL, _RETURN, _RANDOM = 0x20, 0x35, 0x06, 0xFFFFF000 + 56
_RECEIVE_BYTES = 64 * 1024


def lose(connection: socket.socket, share: float) -> None:
    """Let this socket, and all that it will accept, drop a share of the packets that arrive."""
    steps = (
        (_LOAD, 0, 0, _RANDOM),
        (_JUMP_IF_GREATER_OR_EQUAL, 1, 0, int(share * 2**32)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class LossyRelay:
    """Passes connections on to `target`, over sockets that lose. A context manager."""

    host = "127.0.0.1"

    def __init__(self, target: tuple[str, int], *, share: float) -> None:
        self._target = target
        self._share = share
        self._listener = socket.create_server((self.host, 0))
        lose(self._listener, share)
        self.port: int = self._listener.getsockname()[1]
        self._sides: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="lossy relay", daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._threads[0].join()
        for side in self._sides:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for side in (self._listener, *self._sides):
            side.close()

    @property
    def dropped(self) -> int:
        """Packets dropped so far."""
        return sum(
            _MEMINFO.unpack(side.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
            for side in tuple(self._sides)
        )

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            target = socket.socket()
            lose(target, self._share)
            self._sides += (client, target)
            with contextlib.suppress(OSError):
                target.connect(self._target)
            for source, sink in ((client, target), (target, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=_pass_on, args=(source, sink), name="lossy relay", daemon=True)
                self._threads.append(thread)
                thread.start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """One direction, until its end, which is passed on too."""
    try:
        while data := source.recv(_RECEIVE_BYTES):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

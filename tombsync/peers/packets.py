"""SFTP packets over one channel of an SSH connection; paramiko's errors of a running session become ours here."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import paramiko

from tombsync import errors
from tombsync.peers import wire

REPLY_TIMEOUT_S = 10.0  # requests wait and nothing at all was answered: the session is given up
_RECEIVE_BYTES = 256 * 1024

Packet = tuple[int, int, bytes]  # its type, the request's id, the rest


class Packets:
    """Belongs to the thread that uses the session, but for `close`, which is for all."""

    def __init__(self, peer: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        self._peer = peer
        self._transport = transport
        self._channel = channel
        self._parser = wire.Parser()
        self.descriptor = channel.fileno()  # polls as readable when something arrived or the channel ended

    def send(self, data: bytes) -> None:
        """Send whole packets. Raises PeerTimeout, PeerLost."""
        try:
            self._channel.sendall(data)
        except TimeoutError as exc:
            raise errors.PeerTimeout(self._peer, "it takes no more requests") from exc
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise errors.PeerLost(self._peer, str(exc)) from exc

    def arrived(self) -> Iterator[Packet]:
        """What has arrived, without waiting. Raises PeerLost, PeerProtocol."""
        while self._channel.recv_ready():
            data = self._receive()
            if not data:
                raise errors.PeerLost(self._peer)
            yield from self._parse(data)
        if self._channel.closed or self._channel.eof_received or not self._transport.is_active():
            raise errors.PeerLost(self._peer)

    def wait(self, deadline: float) -> Packet:
        """The next packet, while the session is being opened.

        Raises PeerTimeout, PeerLost, SftpRefused, PeerProtocol.
        """
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise errors.PeerTimeout(self._peer, "while opening SFTP")
            self._channel.settimeout(min(left, REPLY_TIMEOUT_S))
            try:
                data = self._receive()
            except TimeoutError as exc:
                raise errors.PeerTimeout(self._peer, "while opening SFTP") from exc
            if not data:
                raise errors.SftpRefused(self._peer, "the channel was closed at once")
            for packet in self._parse(data):
                self._channel.settimeout(REPLY_TIMEOUT_S)
                return packet

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise errors.PeerLost(self._peer, str(exc)) from exc

    def _parse(self, data: bytes) -> Iterator[Packet]:
        with self.protocol():
            yield from self._parser.feed(data)

    @contextlib.contextmanager
    def protocol(self) -> Iterator[None]:
        """Our error for what is not SFTP."""
        try:
            yield
        except wire.NotSftp as exc:
            raise errors.PeerProtocol(self._peer, str(exc)) from exc

    def close(self) -> None:
        """End the connection; from any thread."""
        raw = self._transport.sock
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)
        self._transport.close()
        raw.close()

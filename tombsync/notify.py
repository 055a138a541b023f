"""What the service manager is told, by the protocol of sd_notify(3): datagrams to the socket that it names.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import MutableMapping

from tombsync.names import printable

SEND_TIMEOUT_S = 0.25  # how long one datagram waits in the kernel for room at the service manager
_MAX_STATUS_CHARACTERS = 300


class Notifier:
    """Belongs to the supervising thread. Tells nobody where no service manager listens; never raises.

    A change of state that could not be sent is sent before the next one. A status is sent when it changes.
    """

    def __init__(self, address: str = "", *, watchdog: bool = False) -> None:
        """`address`: a path, or a name that begins with "@"; `watchdog`: whether beats are awaited."""
        self._watchdog = watchdog
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            micro = int(SEND_TIMEOUT_S * 1_000_000)  # not settimeout(): see audit.JournalSink
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, micro))
        self._unsent: list[str] = []
        self._status = ""

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """As the service manager asked; its variables are taken out, so that no child process takes them up."""
        address = environment.pop("NOTIFY_SOCKET", "")
        micro = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "")
        return cls(
            address if address[:1] in ("/", "@") else "",
            watchdog=bool(micro) and process in ("", str(os.getpid())),
        )

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._change("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; `ready` ends it."""
        self._change(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._change("STOPPING=1")

    def alive(self) -> None:
        """Every worker beats."""
        self._send_unsent()
        if self._watchdog:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for people: what is being done."""
        shown = printable(text)[:_MAX_STATUS_CHARACTERS]
        if shown != self._status and self._send(f"STATUS={shown}"):
            self._status = shown

    def close(self) -> None:
        """Close our end."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _change(self, message: str) -> None:
        self._unsent.append(message)
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and self._send(self._unsent[0]):
            del self._unsent[0]

    def _send(self, message: str) -> bool:
        if self._socket is None:
            return True
        try:
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except OSError:  # it is starting again, or behind: at the next look
            return False
        return True

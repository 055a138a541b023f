"""The packets of SFTP version 3, as a server reads and writes them.

Source: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for the two extensions. Every packet is a uint32 length and
that many bytes: a type byte, then (but for INIT and VERSION) a uint32 request id, then fields. Integers are big-endian,
a string is a uint32 length and its bytes. Names are bytes: the protocol knows no encoding.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

VERSION = 3
MAX_PACKET_BYTES = 256 * 1024  # SFTP_MAX_MSG_LENGTH of OpenSSH
MAX_DATA_BYTES = MAX_PACKET_BYTES - 1024  # OpenSSH's max-read-length and max-write-length

FXP_INIT, FXP_VERSION, FXP_OPEN, FXP_CLOSE, FXP_LSTAT = 1, 2, 3, 4, 7
FXP_MKDIR, FXP_REALPATH, FXP_EXTENDED = 14, 16, 200
FXP_STATUS, FXP_HANDLE, FXP_NAME, FXP_ATTRS, FXP_EXTENDED_REPLY = 101, 102, 104, 105, 201

FX_OK, FX_NO_SUCH_FILE, FX_PERMISSION_DENIED, FX_FAILURE, FX_BAD_MESSAGE, FX_OP_UNSUPPORTED = 0, 2, 3, 4, 5, 8

FXF_READ, FXF_WRITE, FXF_APPEND, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

ATTR_SIZE, ATTR_UIDGID, ATTR_PERMISSIONS, ATTR_ACMODTIME, ATTR_EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

# OpenSSH's own words (sftp-server.c), so that a log reads the same whichever server answered.
_MESSAGE = {
    FX_OK: b"Success",
    FX_NO_SUCH_FILE: b"No such file",
    FX_PERMISSION_DENIED: b"Permission denied",
    FX_FAILURE: b"Failure",
    FX_BAD_MESSAGE: b"Bad message",
    FX_OP_UNSUPPORTED: b"Operation unsupported",
}

# errno_to_portable() of OpenSSH; whatever is not here is FX_FAILURE: exists, no space, read-only and all others alike.
_STATUS_OF_ERRNO = {
    errno.ENOENT: FX_NO_SUCH_FILE,
    errno.ENOTDIR: FX_NO_SUCH_FILE,
    errno.EBADF: FX_NO_SUCH_FILE,
    errno.ELOOP: FX_NO_SUCH_FILE,
    errno.EPERM: FX_PERMISSION_DENIED,
    errno.EACCES: FX_PERMISSION_DENIED,
    errno.ENAMETOOLONG: FX_BAD_MESSAGE,
    errno.EINVAL: FX_BAD_MESSAGE,
    errno.ENOSYS: FX_OP_UNSUPPORTED,
}


class BadPacket(ValueError):
    """The bytes are not SFTP: the stream cannot be followed any further, so the session ends."""


class Attributes(NamedTuple):
    """What of a client's ATTRS a server that only creates can use; `mode` is None where the client named none."""

    mode: int | None


class Fields:
    """Reads the fields of one packet in order. Every method raises BadPacket where the packet is too short."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = 0

    def byte(self) -> int:
        return self._take(1)[0]

    def uint32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        return self._take(self.uint32())

    def attributes(self) -> Attributes:
        flags = self.uint32()
        if flags & ATTR_SIZE:
            self._take(8)
        if flags & ATTR_UIDGID:
            self._take(8)
        mode = self.uint32() if flags & ATTR_PERMISSIONS else None
        if flags & ATTR_ACMODTIME:
            self._take(8)
        if flags & ATTR_EXTENDED:
            for _ in range(2 * self.uint32()):
                self.string()
        return Attributes(mode)

    def _take(self, count: int) -> bytes:
        taken = self._packet[self._at : self._at + count]
        if len(taken) != count:
            raise BadPacket("a packet ends in the middle of a field")
        self._at += count
        return taken


class Splitter:
    """Cuts a byte stream into packets, wherever the reads happened to end. Owned by one session's thread."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, received: bytes) -> Iterator[Fields]:
        """Yield every packet that is complete by now, without its length.

        Raises BadPacket for a length that no client has a reason to send.
        """
        self._pending += received
        at = 0
        try:
            while len(self._pending) - at >= 4:
                length = int.from_bytes(self._pending[at : at + 4], "big")
                if not 0 < length <= MAX_PACKET_BYTES:
                    raise BadPacket(f"a packet of {length} bytes")
                if len(self._pending) - at < 4 + length:
                    break
                start, at = at + 4, at + 4 + length
                yield Fields(bytes(self._pending[start:at]))
        finally:
            del self._pending[:at]  # once for a whole read: cutting the front off is a copy of the rest


def status_of(error: OSError) -> int:
    """The status code with which OpenSSH would answer this error."""
    return _STATUS_OF_ERRNO.get(error.errno or 0, FX_FAILURE)


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def version(extensions: dict[bytes, bytes]) -> bytes:
    """The answer to INIT: our version and the extensions, each with its own version."""
    pairs = b"".join(string(name) + string(value) for name, value in extensions.items())
    return _packet(FXP_VERSION, struct.pack(">I", VERSION) + pairs)


def status(request: int, code: int) -> bytes:
    return _packet(FXP_STATUS, struct.pack(">II", request, code) + string(_MESSAGE[code]) + string(b""))


def handle(request: int, value: bytes) -> bytes:
    return _packet(FXP_HANDLE, struct.pack(">I", request) + string(value))


def name(request: int, path: bytes) -> bytes:
    """The answer to REALPATH: one name with empty attributes (the "long name" is the name, as OpenSSH sends it)."""
    return _packet(FXP_NAME, struct.pack(">II", request, 1) + string(path) + string(path) + struct.pack(">I", 0))


def attrs(request: int, stat: os.stat_result) -> bytes:
    """The answer to LSTAT. Version 3 has 32 bits for seconds and ids: what is wider wraps, as with OpenSSH."""
    flags = ATTR_SIZE | ATTR_UIDGID | ATTR_PERMISSIONS | ATTR_ACMODTIME
    low = [value & 0xFFFFFFFF for value in (stat.st_uid, stat.st_gid, stat.st_mode)]
    times = [int(value) & 0xFFFFFFFF for value in (stat.st_atime, stat.st_mtime)]
    return _packet(FXP_ATTRS, struct.pack(">IIQIIIII", request, flags, stat.st_size, *low, *times))


def limits(request: int, max_open_handles: int) -> bytes:
    """The answer to limits@openssh.com: max-packet-length, max-read-length, max-write-length, max-open-handles."""
    return _packet(
        FXP_EXTENDED_REPLY,
        struct.pack(">IQQQQ", request, MAX_PACKET_BYTES, MAX_DATA_BYTES, MAX_DATA_BYTES, max_open_handles),
    )


def _packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(body), kind) + body

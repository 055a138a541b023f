"""SFTP version 3 packets (draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL for the extensions): bytes in, bytes out.

No I/O in here. One reply to each request, matched by its id; a server answers in order but need not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

INIT, VERSION, OPEN, CLOSE, LSTAT, MKDIR = 1, 2, 3, 4, 7, 14
STATUS, HANDLE, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 105, 200, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = 0, 1, 2, 3, 4, 5
NO_CONNECTION, CONNECTION_LOST, OP_UNSUPPORTED = 6, 7, 8

READ, CREATE, EXCLUSIVE = 0x01, 0x08, 0x20
ATTR_SIZE, ATTR_OWNER, ATTR_PERMISSIONS = 0x1, 0x2, 0x4

FSYNC = b"fsync@openssh.com"
LIMITS = b"limits@openssh.com"

MAX_PACKET_BYTES = 256 * 1024  # what OpenSSH itself accepts at most; more is no SFTP

_HEAD = struct.Struct(">IBI")
_HEAD_STRING = struct.Struct(">IBII")  # and the length of a string behind it
_INT = struct.Struct(">I")
_NO_ATTRS = _INT.pack(0)
# Readable by everyone, writable by its owner: there is nothing in it, and the peer's umask may take away more.
_CREATE_TAIL = struct.pack(">III", READ | CREATE | EXCLUSIVE, ATTR_PERMISSIONS, 0o644)


class NotSftp(Exception):
    """The bytes are not what an SFTP server sends."""


class Reply(NamedTuple):
    """One reply. `code` is the status, OK for a handle or attributes; `mode` is st_mode of answered attributes."""

    code: int
    handle: bytes = b""
    mode: int | None = None
    message: str = ""
    data: bytes = b""


def _string(value: bytes) -> bytes:
    return _INT.pack(len(value)) + value


def _packet(kind: int, request: int, body: bytes) -> bytes:
    return _HEAD.pack(len(body) + 5, kind, request) + body


def init() -> bytes:
    """The first packet; the answer is VERSION."""
    return struct.pack(">IBI", 5, INIT, 3)


def create(request: int, path: bytes) -> bytes:
    """Create a file that must not exist. Opened for reading: it needs no right to write what is there."""
    size = len(path)  # the one packet that a catch-up makes by the thousand
    return _HEAD_STRING.pack(9 + size + len(_CREATE_TAIL), OPEN, request, size) + path + _CREATE_TAIL


def open_existing(request: int, path: bytes) -> bytes:
    """Open a file or directory for reading, to sync it."""
    return _packet(OPEN, request, _string(path) + _INT.pack(READ) + _NO_ATTRS)


def close(request: int, handle: bytes) -> bytes:
    """Close a handle."""
    return _HEAD_STRING.pack(9 + len(handle), CLOSE, request, len(handle)) + handle


def fsync(request: int, handle: bytes) -> bytes:
    """Make what a handle names durable."""
    return _packet(EXTENDED, request, _string(FSYNC) + _string(handle))


def lstat(request: int, path: bytes) -> bytes:
    """Ask what stands at a path, without following a link."""
    return _packet(LSTAT, request, _string(path))


def mkdir(request: int, path: bytes) -> bytes:
    """Make a directory with the mode that the peer's umask allows."""
    return _packet(MKDIR, request, _string(path) + _NO_ATTRS)


def limits(request: int) -> bytes:
    """Ask for the server's limits."""
    return _packet(EXTENDED, request, _string(LIMITS))


class Parser:
    """Cuts a byte stream into replies."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield (type, request id, rest of the body) of each whole packet. Raises NotSftp."""
        buffer = self._buffer + data if self._buffer else data
        offset, end = 0, len(buffer)
        try:
            while end - offset >= 9:
                length, kind, request = _HEAD.unpack_from(buffer, offset)
                if not 5 <= length <= MAX_PACKET_BYTES:
                    raise NotSftp(f"a packet of {length} bytes")
                if end - offset < length + 4:
                    break
                start, offset = offset + 9, offset + 4 + length
                yield kind, request, buffer[start:offset]
        finally:  # also where the reader takes one packet and leaves
            self._buffer = buffer[offset:]


def parse_reply(kind: int, body: bytes) -> Reply:
    """Read the body of one reply. Raises NotSftp."""
    try:
        if kind == STATUS:
            (code,) = _INT.unpack_from(body)
            return Reply(code, message=_text(body[4:])) if code else Reply(code)
        if kind == HANDLE:
            return Reply(OK, _take(body)[0])
        if kind == ATTRS:
            return Reply(OK, mode=_mode(body))
        if kind == EXTENDED_REPLY:
            return Reply(OK, data=body)
    except struct.error as exc:
        raise NotSftp("a reply that ends too soon") from exc
    raise NotSftp(f"a packet of type {kind}")


def parse_version(version: int, body: bytes) -> set[bytes]:
    """The extensions that a VERSION packet names (its request-id field is the version). Raises NotSftp."""
    if version != 3:
        raise NotSftp(f"version {version}")
    names = set()
    while body:
        name, body = _take(body)
        _, body = _take(body)
        names.add(name)
    return names


def parse_limits(data: bytes) -> int:
    """The open handles that a server allows, from its answer to `limits`; 0 where it has no limit. Raises NotSftp."""
    try:
        return int(struct.unpack_from(">QQQQ", data)[3])
    except struct.error as exc:
        raise NotSftp("limits that end too soon") from exc


def _take(body: bytes) -> tuple[bytes, bytes]:
    try:
        (length,) = _INT.unpack_from(body)
    except struct.error as exc:
        raise NotSftp("a string that ends too soon") from exc
    if length > len(body) - 4:
        raise NotSftp("a string longer than its packet")
    return body[4 : 4 + length], body[4 + length :]


def _text(body: bytes) -> str:
    if len(body) < 4:  # servers older than version 3 send no message
        return ""
    return _take(body)[0].decode("utf-8", "replace")


def _mode(body: bytes) -> int:
    (flags,) = _INT.unpack_from(body)
    offset = 4 + (8 if flags & ATTR_SIZE else 0) + (8 if flags & ATTR_OWNER else 0)
    if not flags & ATTR_PERMISSIONS:
        raise NotSftp("attributes without a mode")
    mode: int = _INT.unpack_from(body, offset)[0]
    return mode

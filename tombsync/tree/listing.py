"""The entries of a directory, as the kernel gives them: for an hour of thousands of files, as quick as it can be."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from hashlib import blake2b

_DIGEST_BYTES = 16  # compared only with the digest of the same directory; 2^-64 for a chance match of a million hours
# One getdents64 call fills it with some 2,700 names of 75 bytes; 1,800 segments are one hour of one quality.
_BUFFER_BYTES = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_getdents = getattr(_libc, "getdents64", None) or _libc.getdents
_getdents.restype = ctypes.c_ssize_t
_getdents.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Listing:
    """The raw entries of one directory and their digest. Owned by one thread; refilled by `read`.

    Record layout: getdents64(2), `struct linux_dirent64`: 8 bytes inode, 8 bytes offset, 2 bytes record length, 1 byte
    type, then the name with its NUL and padding.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        self._chunks: list[bytes] = []
        self.digest = b""

    def read(self, fd: int, *, keep: bool = True) -> bytes:
        """List the open directory from its start and return the digest; `keep=False` keeps no names.

        Two equal digests mean equal entries. On ext4 the order depends on the names alone, elsewhere it may not:
        unequal digests mean "compare the rows". Raises OSError.
        """
        os.lseek(fd, 0, os.SEEK_SET)
        self._chunks.clear()
        hashed = blake2b(digest_size=_DIGEST_BYTES)
        while True:
            # The kernel leaves the padding behind a name as it finds it, so it must be the same each time.
            ctypes.memset(self._buffer, 0, _BUFFER_BYTES)
            count = _getdents(fd, self._buffer, _BUFFER_BYTES)
            if count < 0:
                code = ctypes.get_errno()
                if code == errno.EINTR:
                    continue
                raise OSError(code, os.strerror(code))
            if count == 0:
                break
            view = memoryview(self._buffer)[:count]
            hashed.update(view)
            if keep:
                self._chunks.append(view.tobytes())
        self.digest = hashed.digest()
        return self.digest

    def names(self) -> Iterator[str]:
        """The names of the last `read(keep=True)`, `.` and `..` among them."""
        for chunk in self._chunks:
            offset, end = 0, len(chunk)
            while offset < end:
                start = offset + 19
                yield chunk[start : chunk.index(0, start)].decode(_ENCODING, _ERRORS)  # os.fsdecode, but quicker
                offset += chunk[offset + 16] | chunk[offset + 17] << 8

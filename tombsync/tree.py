"""The segment tree, by directory descriptors: identity, listing, seeing and placing tombstones.

Nothing in here opens a segment, and nothing follows a symlink below ROOT: each step of a path is opened relative to the
one before with O_NOFOLLOW. No descriptor is kept between calls, as one would keep the file system from being unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import uuid
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from tombsync.errors import RootMissing, RootNotBelieved, TreeRefused
from tombsync.names import OWN_DIRECTORY, Marked, hour_number, is_hour, tombstone_name
from tombsync.work import Sight

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARKER_PREFIX = "root-"
_DIGEST_BYTES = 16  # compared only with the digest of the same directory; 2^-64 for a chance match of a million hours
# One getdents64 call fills it with some 2,700 names of 75 bytes; 1,800 segments are one hour of one quality.
_BUFFER_BYTES = 256 * 1024
_MAX_NOTE_BYTES = 4096
# statfs(2) f_type of file systems that take writes which raise no inotify event here.
_SILENT_FILESYSTEMS = {0x6969: "nfs", 0x65735546: "fuse", 0x794C7630: "overlay", 0xFF534D42: "cifs", 0xFE534D42: "smb2"}

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


class Tree:
    """One segment tree at a path that was resolved once. Holds no descriptor and no state, so any thread may use it."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    @contextmanager
    def open_root(self) -> Iterator[int]:
        """A descriptor of ROOT for the time of a `with` block. Raises RootMissing."""
        try:
            fd = os.open(self.root, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise RootMissing(self.root) from exc
        except OSError as exc:
            raise RootMissing(self.root, f"cannot be opened: {os.strerror(exc.errno or 0)}") from exc
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def open_believed(self, identity: str) -> Iterator[int]:
        """Like `open_root`, but only where the root marker is the expected one. Raises RootMissing, RootNotBelieved."""
        with self.open_root() as fd:
            self.require(fd, identity)
            yield fd

    def require(self, root_fd: int, identity: str) -> None:
        """Raise RootNotBelieved where the open root has not this identity, RootMissing where that cannot be told."""
        try:
            own = open_below(root_fd, OWN_DIRECTORY)
            try:
                os.stat(_MARKER_PREFIX + identity, dir_fd=own, follow_symlinks=False)
            finally:
                os.close(own)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise RootNotBelieved(self.root, identity, next(iter(identities(root_fd)), "")) from exc
        except OSError as exc:
            raise RootMissing(self.root, f"cannot be read: {os.strerror(exc.errno or 0)}") from exc

    def doubt(self, identity: str) -> RootMissing | RootNotBelieved | None:
        """Why the tree at ROOT cannot be taken for the one of this identity now; None where it can."""
        try:
            with self.open_believed(identity):
                return None
        except (RootMissing, RootNotBelieved) as exc:
            return exc

    def believed(self, identity: str) -> bool:
        """Whether the tree at ROOT has this identity now."""
        return self.doubt(identity) is None

    def adopt(self, identity: str | None = None) -> str:
        """The identity of the tree, made if it has none; with `identity`, that one, made if need be.

        Raises RootMissing, TreeRefused.
        """
        with self.open_root() as fd:
            try:
                found = identities(fd)
            except OSError as exc:
                raise RootMissing(self.root, f"cannot be read: {os.strerror(exc.errno or 0)}") from exc
            if found and identity in (None, *found):
                return identity or found[0]
            identity = identity or str(uuid.uuid4())
            path = f"{self.root}/{OWN_DIRECTORY}/{_MARKER_PREFIX}{identity}"
            try:
                try:
                    os.mkdir(OWN_DIRECTORY, 0o755, dir_fd=fd)
                except FileExistsError:
                    pass
                own = os.open(OWN_DIRECTORY, _DIRECTORY, dir_fd=fd)
                try:
                    create_empty(own, _MARKER_PREFIX + identity)
                    os.fsync(own)
                finally:
                    os.close(own)
                os.fsync(fd)
            except OSError as exc:
                raise TreeRefused(path, os.strerror(exc.errno or 0), exc.errno or 0) from exc
            return identity

    def silent_filesystem(self) -> str:
        """The name of ROOT's file system where writes from elsewhere raise no event here; else ""."""
        return _SILENT_FILESYSTEMS.get(_filesystem_type(self.root), "")

    def sight(self, marked: Marked) -> Sight:
        """lstat a tombstone. One that is gone already counts as regular: nothing speaks against it."""
        try:
            found = os.lstat(f"{self.root}/{marked.tombstone_path}")
        except OSError:
            return Sight(regular=True, owner_uid=None, ctime_ns=None)
        return Sight(stat.S_ISREG(found.st_mode), found.st_uid, found.st_ctime_ns, found.st_size)

    def place(self, root_fd: int, marked: Marked, note: bytes = b"") -> bool:
        """Create a tombstone in its existing hour directory, durably; False where the name was taken already.

        Created empty with O_EXCL (the one way that the confined agent has), without a temporary name. `note` is written
        into it afterwards and is optional to every reader. Raises TreeRefused.
        """
        name = tombstone_name(marked.stem)
        path = f"{self.root}/{marked.tombstone_path}"
        try:
            hour_fd = open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text)
            try:
                made = create_empty(hour_fd, name, note)
                os.fsync(hour_fd)
            finally:
                os.close(hour_fd)
        except OSError as exc:
            raise TreeRefused(path, os.strerror(exc.errno or 0), exc.errno or 0) from exc
        return made

    def list_below(self, *parts: str) -> list[str]:
        """Every name in ROOT/parts, hidden ones too; no link is followed. Raises RootMissing, OSError."""
        with self.open_root() as root_fd:
            try:
                fd = open_below(root_fd, *parts)
                try:
                    return os.listdir(fd)
                finally:
                    os.close(fd)
            except OSError as exc:
                exc.filename = "/".join([self.root, *parts])
                raise

    def hours(self, root_fd: int, channel: str, quality: str, *, links: list[str] | None = None) -> list[str]:
        """The names of the hour directories of one channel and quality, unsorted; [] where it is no directory.

        `links` as in `directory_names`.
        """
        return [name for name in directory_names(root_fd, channel, quality, links=links) if is_hour(name)]

    def places(self, root_fd: int) -> Iterator[tuple[str, str]]:
        """Every CHANNEL/QUALITY pair of directories, symlinks and hidden names left out."""
        for channel in sorted(directory_names(root_fd)):
            for quality in sorted(directory_names(root_fd, channel)):
                yield channel, quality


def identities(root_fd: int) -> list[str]:
    """The identities found in ROOT/.tombsync, sorted. Raises OSError where that is there and cannot be read."""
    try:
        own = os.open(OWN_DIRECTORY, _DIRECTORY, dir_fd=root_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        names = sorted(os.listdir(own))
    finally:
        os.close(own)
    return [name.removeprefix(_MARKER_PREFIX) for name in names if name.startswith(_MARKER_PREFIX)]


def create_empty(directory_fd: int, name: str, note: bytes = b"") -> bool:
    """Create a file with O_EXCL and sync it; False where the name is taken. Mode 0644, as nothing in it is secret.

    Without a note it is opened for reading only, so that a process which may not write files can create it. Raises
    OSError.
    """
    access = os.O_RDWR if note else os.O_RDONLY
    try:
        fd = os.open(name, access | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory_fd)
    except FileExistsError:
        return False
    try:
        _write_note(fd, note[:_MAX_NOTE_BYTES])
        os.fsync(fd)
    finally:
        os.close(fd)
    return True


def _write_note(fd: int, note: bytes) -> None:
    """Whole or not at all: a disk without room for it is no reason to call a tombstone failed that stands and hides."""
    left = memoryview(note)
    try:
        while left:  # a raw write may be partial
            left = left[os.write(fd, left) :]
    except OSError:
        os.ftruncate(fd, 0)


def open_below(root_fd: int, *parts: str) -> int:
    """Open a directory below ROOT, part by part, without following a link. Raises OSError."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def directory_names(root_fd: int, *parts: str, links: list[str] | None = None) -> list[str]:
    """The real directories in ROOT/parts, hidden ones left out; [] where there is no such directory.

    Names of links are added to `links`. Where they lead is not looked at: it may be a loop, or a disk that hangs.
    """
    return list(_directories(root_fd, parts, links))


def hour_numbers(root_fd: int, channel: str, quality: str, *, links: list[str] | None = None) -> array[int]:
    """The hours of one channel and quality, newest first, as `names.hour_number`; `links` as in `directory_names`.

    They are kept as integers, and each name is parsed once: 100,000 of them are listed at each start and each rescan
    (benchmarks/idle.py).
    """
    names = _directories(root_fd, (channel, quality), links)
    return array("q", sorted((hour_number(name) for name in names if is_hour(name)), reverse=True))


def _directories(root_fd: int, parts: Sequence[str], links: list[str] | None) -> Iterator[str]:
    try:
        fd = open_below(root_fd, *parts)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return
        raise
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name
                elif links is not None and entry.is_symlink():
                    links.append(entry.name)
    finally:
        os.close(fd)


def is_own_mount(root_fd: int, *parts: str) -> bool | None:
    """Whether ROOT/parts lies on another device than ROOT; None where it does not exist."""
    try:
        fd = open_below(root_fd, *parts)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_dev != os.fstat(root_fd).st_dev
    finally:
        os.close(fd)


def names_in_place(path: str) -> list[str]:
    """List a directory that is still there afterwards: what is made in one that was moved away is nobody's here.

    Raises OSError.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        names = os.listdir(fd)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return names
    finally:
        os.close(fd)


def _filesystem_type(path: str) -> int:
    # struct statfs begins with f_type, a long on every 64-bit Linux; 256 bytes hold the whole struct.
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return 0
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF

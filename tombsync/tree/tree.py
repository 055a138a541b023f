"""One segment tree: its identity, what stands in it, and placing tombstones."""

from __future__ import annotations

import ctypes
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tombsync.errors import RootMissing, RootNotBelieved, TreeRefused
from tombsync.names import OWN_DIRECTORY, Hour, Marked, is_hour, tombstone_name
from tombsync.tree.acl import lets_the_owner_write
from tombsync.tree.directories import (
    DIRECTORY,
    MARKER_PREFIX,
    create_empty,
    create_name,
    directory_names,
    identities,
    open_below,
)
from tombsync.work import Sight

# statfs(2) f_type of file systems that take writes which raise no inotify event here.
_SILENT_FILESYSTEMS = {0x6969: "nfs", 0x65735546: "fuse", 0x794C7630: "overlay", 0xFF534D42: "cifs", 0xFE534D42: "smb2"}

_libc = ctypes.CDLL(None, use_errno=True)


class Tree:
    """One segment tree at a path that was resolved once. Holds no descriptor and no state, so any thread may use it."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    @contextmanager
    def open_root(self) -> Iterator[int]:
        """A descriptor of ROOT for the time of a `with` block. Raises RootMissing."""
        try:
            fd = os.open(self.root, DIRECTORY)
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
                os.stat(MARKER_PREFIX + identity, dir_fd=own, follow_symlinks=False)
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
            path = f"{self.root}/{OWN_DIRECTORY}/{MARKER_PREFIX}{identity}"
            try:
                try:
                    os.mkdir(OWN_DIRECTORY, 0o755, dir_fd=fd)
                except FileExistsError:
                    pass
                own = os.open(OWN_DIRECTORY, DIRECTORY, dir_fd=fd)
                try:
                    create_empty(own, MARKER_PREFIX + identity)
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

    def place_all(self, root_fd: int, hour: Hour, stems: Sequence[str]) -> None:
        """Create tombstones in an existing hour directory; all are durable when this returns, none is written into.

        Those that stand already are left as they are. One sync of the directory makes every new empty file in it
        durable, at a hundredth of the price of one each. Raises TreeRefused; some may stand then.
        """
        path = f"{self.root}/{hour.path}"
        try:
            hour_fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
            try:
                for stem in stems:
                    path = f"{self.root}/{hour.path}/{tombstone_name(stem)}"
                    create_name(hour_fd, tombstone_name(stem))
                os.fsync(hour_fd)
            finally:
                os.close(hour_fd)
        except OSError as exc:
            raise TreeRefused(path, os.strerror(exc.errno or 0), exc.errno or 0) from exc

    def make_hour(self, root_fd: int, hour: Hour) -> bool:
        """Make a missing HOUR directory, durably; False where the archive could not write into it, so it is not made.

        That is so where QUALITY belongs neither to root nor to this account, and has no default ACL that lets its owner
        write. Raises TreeRefused.
        """
        path = f"{self.root}/{hour.path}"
        try:
            quality_fd = open_below(root_fd, hour.channel, hour.quality)
            try:
                covered = lets_the_owner_write(quality_fd)
                if os.fstat(quality_fd).st_uid not in (0, os.geteuid()) and not covered:
                    return False
                try:
                    # With a default ACL the mode is a mask over it, and must take nothing away.
                    os.mkdir(hour.text, 0o777 if covered else 0o755, dir_fd=quality_fd)
                except FileExistsError:
                    return True
                os.fsync(quality_fd)
            finally:
                os.close(quality_fd)
        except OSError as exc:
            raise TreeRefused(path, os.strerror(exc.errno or 0), exc.errno or 0) from exc
        return True

    def identity_of(self, root_fd: int, *parts: str) -> tuple[int, int] | None:
        """Device and inode of ROOT/parts; None where there is no such directory."""
        try:
            fd = open_below(root_fd, *parts)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            return found.st_dev, found.st_ino
        finally:
            os.close(fd)

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


def _filesystem_type(path: str) -> int:
    # struct statfs begins with f_type, a long on every 64-bit Linux; 256 bytes hold the whole struct.
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return 0
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF

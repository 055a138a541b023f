"""The data beside a tombstone: listed and, by a purge alone, deleted. By directory descriptors; no link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tombsync.errors import NotDeleted, NotPurgeable
from tombsync.names import EXTENSION, Hour, Kind, Marked, tombstone_name
from tombsync.tree.directories import open_below
from tombsync.tree.tree import Tree

_EXTENSIONS = (EXTENSION[Kind.TS], EXTENSION[Kind.JSON])


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file of a marked stem as it was listed: which file it was, and its size."""

    marked: Marked
    name: str
    size_bytes: int
    device: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @property
    def path(self) -> str:
        """Relative to the root."""
        return f"{self.marked.hour.path}/{self.name}"

    def is_still(self, found: os.stat_result) -> bool:
        """Whether this is the file that was listed. Not by its ctime: that changes with another link of it."""
        listed = (self.device, self.inode, self.size_bytes, self.mtime_ns)
        return listed == (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Standing(NamedTuple):
    """Whether something stands at the name of a stem's tombstone, and at one of its data."""

    tombstone: bool
    data: bool


def standing(root_fd: int, marked: Marked) -> Standing:
    """What stands of a stem; neither where its hour is not there. Raises OSError where that cannot be seen."""
    hour = marked.hour
    try:
        fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
    except (FileNotFoundError, NotADirectoryError):
        return Standing(tombstone=False, data=False)
    try:
        data = any(_stands(fd, marked.stem + extension) for extension in _EXTENSIONS)
        return Standing(_stands(fd, tombstone_name(marked.stem)), data)
    finally:
        os.close(fd)


def _stands(hour_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=hour_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def list_data(root_fd: int, marked: Marked) -> list[DataFile]:
    """The data files of a stem whose tombstone stands; [] where there are none.

    Raises NotPurgeable where the tombstone does not stand as a regular file, or data is no regular file.
    """
    hour = marked.hour
    try:
        fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
    except OSError as exc:
        raise NotPurgeable(marked.path, f"its hour directory cannot be opened: {os.strerror(exc.errno or 0)}") from exc
    try:
        if reason := _why_not_marked(fd, marked.stem):
            raise NotPurgeable(marked.path, reason)
        files = []
        for extension in _EXTENSIONS:
            name = marked.stem + extension
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise NotPurgeable(marked.path, f"{name}: {os.strerror(exc.errno or 0)}") from exc
            if not stat.S_ISREG(found.st_mode):
                raise NotPurgeable(marked.path, f"{name} is a directory, a link or a device")
            files.append(
                DataFile(marked, name, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
            )
        return files
    finally:
        os.close(fd)


def _why_not_marked(hour_fd: int, stem: str) -> str:
    try:
        found = os.stat(tombstone_name(stem), dir_fd=hour_fd, follow_symlinks=False)
    except OSError as exc:
        return f"its tombstone does not stand in this node's tree: {os.strerror(exc.errno or 0)}"
    return "" if stat.S_ISREG(found.st_mode) else "its tombstone is a directory, a link or a device"


def delete_data(
    tree: Tree,
    identity: str,
    hour: Hour,
    files: Sequence[DataFile],
    remember: Callable[[int, Hour, Sequence[DataFile]], None],
) -> Iterator[tuple[DataFile, NotDeleted | None]]:
    """Delete listed files of one hour, durably, each only where it is still that file and its tombstone stands.

    Yields each file when it is gone, or with what kept it. `remember` is called before the first goes. Raises
    RootMissing and RootNotBelieved before anything of this hour is deleted, and NotDeleted where `remember` does.
    """
    with tree.open_believed(identity) as root_fd:
        try:
            fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
        except OSError as exc:
            for file in files:
                yield file, NotDeleted(file.path, f"its hour directory: {os.strerror(exc.errno or 0)}")
            return
        try:
            remember(root_fd, hour, files)
            for file in files:
                yield file, _delete(fd, file)
            try:
                os.fsync(fd)
            except OSError as exc:
                raise NotDeleted(hour.path, f"the directory cannot be synced: {os.strerror(exc.errno or 0)}") from exc
        finally:
            os.close(fd)


def _delete(hour_fd: int, file: DataFile) -> NotDeleted | None:
    if reason := _why_not_marked(hour_fd, file.marked.stem):
        return NotDeleted(file.path, reason)
    try:
        found = os.stat(file.name, dir_fd=hour_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or not file.is_still(found):
            return NotDeleted(file.path, "it is not the file that was listed")
        os.unlink(file.name, dir_fd=hour_fd)
    except OSError as exc:
        return NotDeleted(file.path, os.strerror(exc.errno or 0))
    return None

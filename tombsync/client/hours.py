"""The names of one hour: from the index where it is known to be good, else from the directory.

The index is good for an hour that is settled (two listings of its directory saw the same mtime), whose directory still
has that mtime, in the tree that the index was made of. Any other hour (never listed, changed since, just hidden in, its
disk away) is read from its directory, where whatever the directory or the index marks is left out: that takes longer
and is never wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import NamedTuple, Protocol

from tombsync import plan
from tombsync.errors import DirectoryUnreadable, RootMissing, RootNotBelieved
from tombsync.index import Reader
from tombsync.names import Hour
from tombsync.tree import Tree, open_below

# No such directory; a file of that name; a link, which is not followed.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Directories(Protocol):
    """What lists a directory of the tree: `tree.Tree`."""

    def list_below(self, *parts: str) -> list[str]:
        """Every name in ROOT/parts. Raises RootMissing, OSError."""


class HourNames(NamedTuple):
    """The file names of one hour, sorted, and whether the index gave them."""

    names: list[str]
    from_index: bool


def hour_listing(reader: Reader | None, tree: Tree, hour: Hour, *, tombstones: bool = False) -> HourNames:
    """The visible names of an hour, and with `tombstones` those too. `reader`: None where there is no index.

    Raises DirectoryUnreadable, RootMissing, and what a Reader does.
    """
    if reader is None:
        return HourNames(directory_listing(tree, hour, (), tombstones=tombstones), from_index=False)
    mtime_ns = _mtime_ns(reader, tree, hour)  # not at the moment below: a disk may hang
    with reader.one_moment():
        row = reader.hour_row(hour)
        if row is not None and row.settled and row.mtime_ns == mtime_ns and not reader.has_mistakes(hour):
            return HourNames(reader.listing(hour, tombstones=tombstones), from_index=True)
    names = names_below(tree, hour.channel, hour.quality, hour.text)
    if names is None:
        return HourNames([], from_index=False)
    # The marks are read after the directory: what is marked between the two is left out already.
    marked = reader.markers(hour)
    return HourNames(plan.visible_names(names, marked=marked, tombstones=tombstones), from_index=False)


def _mtime_ns(reader: Reader, tree: Tree, hour: Hour) -> int:
    """When the hour's directory was changed; -1 where it is not there, or not in the tree that the index knows."""
    identity: str | None = reader.fact("root")
    if identity is None:
        return -1
    try:
        with tree.open_believed(identity) as root_fd:
            fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
            try:
                return os.fstat(fd).st_mtime_ns
            finally:
                os.close(fd)
    except (OSError, RootMissing, RootNotBelieved):
        return -1


def directory_listing(tree: Directories, hour: Hour, marked: Collection[str], *, tombstones: bool) -> list[str]:
    """The visible names of an hour as its directory and these marked stems say; [] where there is no directory.

    Raises DirectoryUnreadable, RootMissing.
    """
    names = names_below(tree, hour.channel, hour.quality, hour.text)
    return [] if names is None else plan.visible_names(names, marked=marked, tombstones=tombstones)


def names_below(tree: Directories, *parts: str) -> list[str] | None:
    """Every name in ROOT/parts, unsorted; None where there is no such directory, or a link in its way.

    Raises DirectoryUnreadable, RootMissing.
    """
    try:
        return tree.list_below(*parts)
    except RootMissing as exc:
        if isinstance(exc.__cause__, OSError) and exc.__cause__.errno in _NOTHING_THERE:
            return None
        raise
    except OSError as exc:
        if exc.errno in _NOTHING_THERE:
            return None
        raise DirectoryUnreadable(exc.filename or "/".join(parts), os.strerror(exc.errno or 0)) from exc

"""Taking tombstones out of the tree again, by directory descriptors: for the command that takes marks back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from tombsync.errors import NotTakenBack, RootMissing, RootNotBelieved
from tombsync.names import Hour, Marked, tombstone_name
from tombsync.tree.directories import open_below
from tombsync.tree.tree import Tree


def remove_tombstones(
    tree: Tree, identity: str, hour: Hour, stems: Sequence[str]
) -> Iterator[tuple[Marked, NotTakenBack | None]]:
    """Remove tombstones of one hour, durably when the last was yielded; each with what kept it.

    One that is gone already is no error. Raises RootMissing and RootNotBelieved before anything is removed, and
    NotTakenBack where the directory cannot be synced.
    """
    with tree.open_believed(identity) as root_fd:
        try:
            fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
        except OSError as exc:
            why = f"its hour directory: {os.strerror(exc.errno or 0)}"
            yield from ((marked, NotTakenBack(marked.path, why)) for marked in (Marked(hour, stem) for stem in stems))
            return
        try:
            for stem in stems:
                yield Marked(hour, stem), _remove(fd, Marked(hour, stem))
            try:
                os.fsync(fd)
            except OSError as exc:
                raise NotTakenBack(hour.path, f"it cannot be synced: {os.strerror(exc.errno or 0)}") from exc
        finally:
            os.close(fd)


def _remove(hour_fd: int, marked: Marked) -> NotTakenBack | None:
    try:
        os.unlink(tombstone_name(marked.stem), dir_fd=hour_fd)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return NotTakenBack(marked.path, "its tombstone is a directory: move that away first")
    except OSError as exc:
        return NotTakenBack(marked.path, os.strerror(exc.errno or 0))
    return None


def lacks_tombstone(tree: Tree, identity: str, marked: Marked) -> bool:
    """Whether the hour stands in the tree that is meant, and has no tombstone of that stem."""
    hour = marked.hour
    try:
        with tree.open_believed(identity) as root_fd:
            fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
    except (OSError, RootMissing, RootNotBelieved):
        return False
    try:
        os.stat(tombstone_name(marked.stem), dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False

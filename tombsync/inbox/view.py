"""Whether what the peers look at is the tree of this node: each of its directories must be the very same one."""

from __future__ import annotations

import os

from tombsync.names import printable
from tombsync.tree import Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def stale(tree: Tree, root_fd: int, view: str) -> str:
    """What is wrong with the view; "" where ROOT and each CHANNEL/QUALITY are the same directories there.

    A bind mount goes on showing the old tree after a disk was exchanged, and what was mounted below it later is not in
    it: a sender would wait for a tombstone that it cannot see, or see one that is not there.
    """
    try:
        view_fd = os.open(view, _DIRECTORY)
    except OSError as exc:
        return f"{view}: {exc.strerror}"
    try:
        if tree.identity_of(root_fd) != tree.identity_of(view_fd):
            return f"{view} is not {tree.root}: mount it again"
        for place in tree.places(root_fd):
            if tree.identity_of(root_fd, *place) != tree.identity_of(view_fd, *place):
                return f"{view}/{printable('/'.join(place))} is not that of {tree.root}: mount it there too"
    except OSError as exc:
        return f"{tree.root} cannot be read: {exc.strerror}"
    finally:
        os.close(view_fd)
    return ""

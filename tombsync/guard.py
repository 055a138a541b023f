"""Keeps an eye on the tree's identity: while the tree is not believed, nothing is changed and nothing pushed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tombsync.audit import Audit, Event
from tombsync.tree import Tree

CHECK_INTERVAL_S = 2.0


class RootGuard:
    """A worker. `_believed` is written by its thread (and once before it starts) and read by all."""

    name = "guard"

    def __init__(self, tree: Tree, identity: str, audit: Audit, on_return: Callable[[], None]) -> None:
        self._tree = tree
        self._identity = identity
        self._audit = audit
        self._on_return = on_return
        self._woken = threading.Event()
        self._believed = True
        self.check()

    def believed(self) -> bool:
        """Whether the tree was the expected one at the last look."""
        return self._believed

    def check(self) -> None:
        """Look now."""
        doubt = self._tree.doubt(self._identity)
        believed = doubt is None
        if believed == self._believed:
            return
        self._believed = believed
        if believed:
            text = f"the segment tree {self._tree.root} is back; the agent starts again"
            self._audit.record(Event.ROOT_RETURNED, text)
            self._on_return()
        else:
            self._audit.record(Event.ROOT_LOST, f"{doubt}; nothing is changed and nothing pushed until it is back")

    def loop(self, now: float) -> None:
        """One look, at the latest after CHECK_INTERVAL_S."""
        self._woken.wait(CHECK_INTERVAL_S)
        self._woken.clear()
        self.check()

    def wake(self) -> None:
        """Look at once; the watcher does so when it sees the root disturbed."""
        self._woken.set()

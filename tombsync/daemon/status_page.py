"""What the status page asks of the agent's parts."""

from __future__ import annotations

import os
import threading
import time

from flask import Blueprint

from tombsync import web
from tombsync.daemon.crew import STALLED_AFTER_S
from tombsync.daemon.state import describe
from tombsync.errors import RootMissing
from tombsync.guard import RootGuard
from tombsync.metrics import Sources
from tombsync.names import OWN_DIRECTORY
from tombsync.rescan import Rescan
from tombsync.tree import TAKEDOWNS, Takedown, Tree, open_below, read_takedowns

_SETTLES_NS = 2_000_000_000  # as of a listing of an hour: a change so soon after another may show the same mtime


class RunningTakedowns:
    """Those that are not ended, read again only when their directory says that a record changed. From any thread."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._read_of: tuple[int, int] | None = None  # the directory's inode and mtime, where later changes show in it
        self._running: list[Takedown] = []

    def __call__(self) -> list[Takedown]:
        with self._lock:
            try:
                with self._tree.open_root() as root_fd:
                    self._look(root_fd)
            except (OSError, RootMissing):  # none was ever made here, or the tree is away
                self._read_of, self._running = None, []
            return self._running

    def _look(self, root_fd: int) -> None:
        fd = open_below(root_fd, OWN_DIRECTORY, TAKEDOWNS)
        try:
            now_ns, seen = time.time_ns(), os.fstat(fd)
        finally:
            os.close(fd)
        version = (seen.st_ino, seen.st_mtime_ns)
        if version != self._read_of:
            found = read_takedowns(root_fd, damaged=lambda _: None)  # whoever follows them tells of those
            self._running = [takedown for takedown in found if takedown.runs]
            self._read_of = version if abs(now_ns - seen.st_mtime_ns) > _SETTLES_NS else None


def page_of(
    node: str, tree: Tree, sources: Sources, guard: RootGuard, rescan: Rescan, ask: web.Ask, turns: web.Turns
) -> Blueprint:
    """The status page of this agent."""
    agent = web.Agent(
        node=node,
        root=tree.root,
        sources=sources,
        ready=rescan.first_done.is_set,
        doing=lambda: describe(guard, rescan),
        stale_after_s=STALLED_AFTER_S,
        ask=ask,
        takedowns=RunningTakedowns(tree),
    )
    return web.status_page(agent, turns)

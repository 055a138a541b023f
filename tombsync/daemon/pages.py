"""What the status page asks of the agent's parts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Blueprint

from tombsync import config, web
from tombsync.daemon.crew import STALLED_AFTER_S
from tombsync.daemon.state import describe
from tombsync.guard import RootGuard
from tombsync.index import Reader
from tombsync.metrics import Sources
from tombsync.rescan import Rescan


class LentReader:
    """A reader of the index for whichever thread has it: one at a time, under `_lock`."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._reader = Reader(path)

    @contextmanager
    def __call__(self) -> Iterator[Reader]:
        with self._lock:
            yield self._reader

    def close(self) -> None:
        """Nobody asks any more."""
        with self._lock:
            self._reader.close()


def page_of(
    settings: config.Settings, root: str, sources: Sources, guard: RootGuard, rescan: Rescan, reader: LentReader
) -> Blueprint:
    """The status page of this agent."""
    return web.status_page(
        web.Agent(
            node=settings.node,
            root=root,
            sources=sources,
            ready=rescan.first_done.is_set,
            doing=lambda: describe(guard, rescan),
            stale_after_s=STALLED_AFTER_S,
            reader=reader,
        )
    )

"""Moves the write-ahead log into the index's file, beside the writer, so that no fsync falls into a hide."""

from __future__ import annotations

import logging
import sqlite3
import threading

from tombsync.errors import StateRefused
from tombsync.index import files
from tombsync.work import IDLE_WAIT_S

log = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 0.5  # of 0.1 to 1 s, measured without a difference to hiding
# The log is begun again from its start past this size (4 KiB pages, 32 MiB); it reached 570 MB without.
RESTART_ABOVE_PAGES = 8_192


class Checkpointer:
    """A worker of one connection of its own. It never waits for readers: what it cannot do now it does next time."""

    name = "checkpoint"

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None  # made by the worker's own thread
        self._told_of_refusal = False
        self._written = threading.Event()  # there may be something to move
        self._written.set()
        self._woken = threading.Event()

    def loop(self, now: float) -> None:
        """One checkpoint where something was written. Raises IndexDamaged, and StateRefused where none can begin."""
        if not self._written.wait(IDLE_WAIT_S):
            return
        self._woken.wait(CHECKPOINT_INTERVAL_S)
        if self._connection is None:
            self._connection = files.open_for_checkpoints(self._path)
        try:
            with files.translated(self._path):
                self._written.clear()  # before it: what is written meanwhile is told again
                if not _checkpoint(self._connection):
                    self._written.set()
        except StateRefused as exc:  # a full disk: the log keeps everything, and grows for as long as it can
            self._written.set()
            if not self._told_of_refusal:
                self._told_of_refusal = True
                log.warning("the index's log cannot be moved into its file, and it is tried again: %s", exc)
        else:
            self._told_of_refusal = False

    def note_written(self) -> None:
        """Something was written; from any thread."""
        self._written.set()

    def wake(self) -> None:
        """End the waits of this turn and of all to come."""
        self._woken.set()
        self._written.set()

    def close(self) -> None:
        """Close the connection, after the thread has ended."""
        if self._connection is not None:
            self._connection.close()


def _checkpoint(connection: sqlite3.Connection) -> bool:
    """Move what can be moved; whether that was all."""
    try:
        _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > RESTART_ABOVE_PAGES:
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        return bool(moved == pages)
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False

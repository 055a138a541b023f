"""What workers share: the wrapper that drives them, their heartbeat, and the queue of the index's only writer."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from tombsync.errors import TombsyncError
from tombsync.names import Marked

log = logging.getLogger(__name__)

TRANSACTION_ROWS = 200  # hide latency p99 beside a rescan: benchmarks/hide.py
BULK_WAITS_ABOVE_ROWS = 4_000  # 20 transactions: enough to keep the writer busy, little to wait behind
# Then they go on: in turns, as beside a Python loop each statement of the writer waits for the interpreter, and a row
# costs it 7 us instead of 2 (first index: benchmarks/rescan.py).
BULK_GOES_ON_AT_ROWS = 400
BULK_REFUSED_ABOVE_ROWS = 400_000  # the watcher never waits; past this it asks for a rescan instead
WAIT_S = 1.0  # no wait of a worker for what nobody tells it is longer
# Nor of one that is woken for all it does: waking an idle thread to do nothing costs 0.2 ms (benchmarks/idle.py).
IDLE_WAIT_S = 5.0


class Source(StrEnum):
    """Who saw a tombstone first."""

    WATCH = "watch"
    RESCAN = "rescan"
    INBOX = "inbox"
    COMMAND = "command"
    TAKEDOWN = "takedown"


class Sighting(NamedTuple):
    """A tombstone was seen. `read_ns` is the monotonic clock when the event was read or the directory listed.

    `directory`: the event said that it was one, whatever stands there now. `sender` is the peer whose inbox it came by,
    `origin` the node that is said to have marked it first; both "" for what was seen in the tree.
    """

    marked: Marked
    source: Source
    read_ns: int
    directory: bool = False
    sender: str = ""
    origin: str = ""


class Sight(NamedTuple):
    """What lstat says of a tombstone. `owner_uid` and times are None where it is gone already."""

    regular: bool
    owner_uid: int | None
    ctime_ns: int | None
    size_bytes: int = 0


class Batch(Protocol):
    """Rows for the index: built by any worker, applied by the writer only."""

    @property
    def rows(self) -> int:
        """How many rows it touches; at most TRANSACTION_ROWS."""

    def apply(self, writer: Any) -> None:
        """Write the rows with the index's Writer (which this rank does not know), inside its transaction."""

    def committed(self) -> None:
        """Runs in the writer's thread after the commit."""


class Flush:
    """A batch without rows: `done` is set when everything that was handed over before it is committed."""

    rows = 0

    def __init__(self) -> None:
        self.done = threading.Event()

    def apply(self, writer: object) -> None:
        """Write nothing."""

    def committed(self) -> None:
        """Tell whoever waits."""
        self.done.set()


class Mailbox:
    """The queue in front of the index's writer: markers overtake urgent batches, those overtake bulk ones.

    Every field is guarded by `_changed`. Producers of bulk wait (bounded, woken by `close`) while the writer is behind;
    sightings and urgent batches never wait.
    """

    def __init__(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """`on_wait`: called by a producer of bulk at least every WAIT_S while it waits, as that ends no turn."""
        self._on_wait = on_wait
        self._changed = threading.Condition()
        self._sightings: deque[Sighting] = deque()
        self._urgent: deque[Batch] = deque()
        self._bulk: deque[Batch] = deque()
        self._bulk_rows = 0
        self._closed = False

    @property
    def sightings_wait(self) -> bool:
        """Whether more of them came meanwhile."""
        return bool(self._sightings)

    def put_sightings(self, sightings: Iterable[Sighting]) -> None:
        """Hand over tombstones to hide."""
        with self._changed:
            self._sightings.extend(sightings)
            self._changed.notify_all()

    def put_urgent(self, batch: Batch) -> None:
        """Hand over a small batch: delivery outcomes, a peer's state, progress."""
        with self._changed:
            self._urgent.append(batch)
            self._changed.notify_all()

    def put_bulk(self, batch: Batch) -> None:
        """Hand over rows of a rescan; waits while the writer is behind."""
        with self._changed:
            if self._bulk_rows >= BULK_WAITS_ABOVE_ROWS:
                while self._bulk_rows > BULK_GOES_ON_AT_ROWS and not self._closed:
                    self._on_wait()
                    self._changed.wait(WAIT_S)
            self._put_bulk(batch)

    def offer_bulk(self, batch: Batch) -> bool:
        """Hand over rows without waiting; False where the writer is so far behind that they were not taken."""
        with self._changed:
            if self._bulk_rows >= BULK_REFUSED_ABOVE_ROWS:
                return False
            self._put_bulk(batch)
            return True

    def _put_bulk(self, batch: Batch) -> None:
        self._bulk.append(batch)
        self._bulk_rows += batch.rows
        self._changed.notify_all()

    def wait_for_more(self, timeout_s: float) -> None:
        """Wait until there is something to take, for so long at most."""
        with self._changed:
            if not (self._sightings or self._urgent or self._bulk):
                self._changed.wait(timeout_s)

    def take(self, timeout_s: float) -> list[Sighting] | list[Batch]:
        """Take the next transaction's worth: sightings, or batches of one lane; [] after `timeout_s` without work."""
        with self._changed:
            if not (self._sightings or self._urgent or self._bulk):
                self._changed.wait(timeout_s)
            if self._sightings:
                count = min(len(self._sightings), TRANSACTION_ROWS)
                return [self._sightings.popleft() for _ in range(count)]
            return self._take_batches(self._urgent) or self._take_batches(self._bulk)

    def _take_batches(self, lane: deque[Batch]) -> list[Batch]:
        taken: list[Batch] = []
        rows = 0
        while lane and (not taken or rows + lane[0].rows <= TRANSACTION_ROWS):
            rows += lane[0].rows
            taken.append(lane.popleft())
        if lane is self._bulk and taken:
            self._bulk_rows -= rows
            if self._bulk_rows <= BULK_GOES_ON_AT_ROWS:
                self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Let go of every producer that waits; what is queued can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Attention:
    """An event that a signal handler may set: threading.Event takes a lock, which the interrupted thread may hold."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        """End the wait, running or next; from any thread or signal handler."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float) -> None:
        """Wait until it was set since the last wait, or until the time is over."""
        select.select([self._fd], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class Beats:
    """When each worker last finished a turn, on the monotonic clock.

    Each worker's own thread writes its own key; everybody reads. Single dict operations need no lock.
    """

    def __init__(self) -> None:
        self._beats: dict[str, float] = {}

    def beat(self, worker: str) -> None:
        """Say that this worker is alive now."""
        self._beats[worker] = time.monotonic()

    def forget(self, worker: str) -> None:
        """A worker was ended on purpose."""
        self._beats.pop(worker, None)

    def ages_s(self) -> dict[str, float]:
        """Seconds since each worker's last beat."""
        now = time.monotonic()
        return {worker: now - at for worker, at in list(self._beats.items())}


class Worker(Protocol):
    """One thread's work, a turn at a time."""

    name: str

    def loop(self, now: float) -> None:
        """One turn: bounded work and a bounded wait. `now` is the monotonic clock, in seconds."""

    def wake(self) -> None:
        """End the wait of a running turn; called from other threads, also to stop."""


class Driver:
    """Runs one worker in a thread of its own, turn by turn, until it is told to stop or a turn raises.

    `failure` is written once, by the thread, before it ends.
    """

    def __init__(self, worker: Worker, beats: Beats, on_death: Callable[[], None]) -> None:
        self.worker = worker
        self.failure: BaseException | None = None
        self._beats = beats
        self._on_death = on_death
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=worker.name, daemon=True)

    def start(self) -> None:
        """Begin the turns."""
        self._beats.beat(self.worker.name)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._beats.beat(self.worker.name)
                self.worker.loop(time.monotonic())
        except TombsyncError as exc:  # says by itself what is wrong; the daemon acts on it
            self.failure = exc
            self._on_death()
        except Exception as exc:  # a worker's outermost turn: logged here, counted and acted on by the daemon
            log.exception("worker %s died", self.worker.name)
            self.failure = exc
            self._on_death()
        else:
            self._beats.forget(self.worker.name)

    def stop(self) -> None:
        """Ask the worker to end; does not wait."""
        self._stop.set()
        self.worker.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; False where it is still running."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

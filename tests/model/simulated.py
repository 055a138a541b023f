"""Clocks, waits and sizes as the model wants them: the one place where the agent's modules are changed for it."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from tombsync import intake, work
from tombsync.index import checkpoint, peer_rows
from tombsync.push import queue
from tombsync.push import worker as pusher
from tombsync.rescan import hours, worker
from tombsync.watch import emitter, observer

TICK_NS = 20_000  # how far a look at a clock moves time
FILE_TICK_NS = 1_000_000_000  # granularity of an mtime, as coarse as SETTLE_S allows for: changes often share one
# The same, for a turn of the rescan, which ends after 20 ms.
ONE_STEP_NS = 11_000_000
MANY_STEPS_NS = 500_000
START_WALL_NS = 1_573_613_000_000_000_000
# Sizes that let a handful of rows take the ways that thousands take: transactions, chunks of hours, bursts, backlogs.
_SMALL_SIZES: tuple[tuple[Any, str, int], ...] = (
    *((module, "TRANSACTION_ROWS", 3) for module in (work, pusher, queue, hours, observer, peer_rows)),
    (worker, "_CHUNK_HOURS", 1),
    (queue, "_MOST_OFFERED", 1),
)


class Timebase:
    """A machine's clocks: what they show when the simulation's time is 0. `wall_ns` jumps; `boot_ns` never does."""

    def __init__(self, number: int) -> None:
        self.boot_ns = (number + 1) * 100_000_000_000
        self.wall_ns = START_WALL_NS + number * 1_000_000
        self.jumps = 0

    def jump(self, by_ns: int) -> None:
        """Set the wall clock. No mtime afterwards equals one from before: that is a coincidence of 1 in 10^9."""
        self.wall_ns += by_ns
        self.jumps += 1

    def file_time_ns(self, now_ns: int) -> int:
        """The mtime of what is changed now."""
        return (self.wall_ns + now_ns) // FILE_TICK_NS * FILE_TICK_NS + self.jumps


class Clock:
    """Stands in for the module `time`; `base` is that of the node whose code runs."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.tick_ns = TICK_NS
        self.base = Timebase(0)

    def advance(self, seconds: float) -> None:
        """Let time pass, everywhere."""
        self.now_ns += int(seconds * 1e9)

    def monotonic_ns(self) -> int:
        """See time.monotonic_ns."""
        self.now_ns += self.tick_ns
        return self.base.boot_ns + self.now_ns

    def monotonic(self) -> float:
        """See time.monotonic."""
        return self.monotonic_ns() / 1e9

    def time_ns(self) -> int:
        """See time.time_ns."""
        self.now_ns += self.tick_ns
        return self.base.wall_ns + self.now_ns

    def time(self) -> float:
        """See time.time."""
        return self.time_ns() / 1e9


class _Event(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class _Condition(threading.Condition):
    def wait(self, timeout: float | None = None) -> bool:
        return False


class _Poll:
    def __init__(self) -> None:
        self._poll = select.poll()

    def register(self, fd: int, mask: int) -> None:
        self._poll.register(fd, mask)

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        return self._poll.poll(0)


_THREADING = SimpleNamespace(Event=_Event, Condition=_Condition, Lock=threading.Lock, Thread=threading.Thread)
_SELECT = SimpleNamespace(poll=_Poll, POLLIN=select.POLLIN)


@contextlib.contextmanager
def simulated(
    clock: Clock, *, inotify: Callable[[], object], emitter_class: type, listing: Callable[[], object]
) -> Iterator[None]:
    """Change the agent's modules for the time of a `with` block: clocks, waits, the kernel's inotify, sizes."""
    wanted: list[tuple[Any, str, object]] = [
        *((module, "time", clock) for module in (emitter, hours, intake, pusher, queue, work, worker)),
        *((module, "threading", _THREADING) for module in (checkpoint, intake, work, worker)),
        (pusher, "select", _SELECT),
        (emitter, "INotify", inotify),
        (observer, "HourEmitter", emitter_class),
        (hours, "Listing", listing),
        *_SMALL_SIZES,
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    try:
        for module, name, value in wanted:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)

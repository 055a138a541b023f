"""Which hours are looked at, and when.

- An *interval* rescan stats every hour directory and lists those whose mtime changed, or that are not settled.
- A *full* rescan lists every hour; where the digest of its entries is the known one, that is all.
- A *settle* rescan comes a little after each of them and lists what it left unsettled.
- Single hours are visited when the watcher saw something go there.

A listing counts as settled once two listings at least SETTLE_S apart on the monotonic clock saw the same mtime: a
directory's mtime has the granularity of the kernel's tick, so a change right after a listing can leave it as it was.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tombsync import memory
from tombsync.audit import Audit, Event
from tombsync.errors import RootMissing, RootNotBelieved
from tombsync.index import Facts, HourRow, Reader
from tombsync.metrics import Metrics
from tombsync.names import Hour
from tombsync.rescan.hours import HourVisitor, PassState
from tombsync.rescan.kinds import Progress, RescanKind
from tombsync.rescan.places import PlaceName, Places
from tombsync.rescan.schedule import Schedule
from tombsync.tree import Tree
from tombsync.work import IDLE_WAIT_S, WAIT_S, Flush, Mailbox

log = logging.getLogger(__name__)

SETTLE_S = 2.0
_SLICE_S = 0.02  # one turn; between turns the worker beats and can stop
_CHUNK_HOURS = 256  # hours compared with one query of the index
_DISTURBED_AFTER_S = 1.0  # `rm -r` of an hour raises an event a file: look once, when most of it is done
_PROGRESS_INTERVAL_S = 1.0


class Rescan:
    """A worker. All fields belong to its thread, except the public ones, which it writes and everybody reads;
    `_schedule` says by itself what may be asked from others.
    """

    name = "rescan"

    def __init__(
        self,
        *,
        tree: Tree,
        identity: str,
        index_path: str,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        interval_s: float,
        full_interval_s: float,
        first_pass: int,
        believed: Callable[[], bool],
        may_begin: Callable[[], bool],
        on_missed: Callable[[], None],
        accept_lost: Callable[[], bool],
        held_back: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """`first_pass`: a number that no pass had before; `may_begin`: the watcher is in place; `on_missed`: a
        directory may have no watch; `accept_lost`: asked once a rescan, whether what looks unmounted is meant to be
        gone; `held_back`: whether a person may be taking the mark of this key back just now.
        """
        self._tree = tree
        self._identity = identity
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        metrics.tell_intervals(interval_s, full_interval_s)
        self._believed = believed
        self._may_begin = may_begin
        self._on_missed = on_missed
        self._accept_lost = accept_lost
        self._held_back = held_back
        self._state = PassState(number=first_pass - 1, first_of_process=first_pass)
        self._ended: deque[tuple[int, float]] = deque()  # (pass, when it ended), not yet settleable
        self._pass: Iterator[None] | None = None
        self._schedule = Schedule(interval_s, full_interval_s)
        self._told_at = 0.0
        self._woken = threading.Event()
        self._reader: Reader  # all three are made by the worker's own thread, at its first turn
        self._places: Places
        self._visitor: HourVisitor | None = None
        self.first_done = threading.Event()
        self.progress: Progress | None = None
        self.completed: dict[str, float] = {}  # kind -> Unix time
        self.unreadable: dict[str, int] = {}  # kind -> directories that could not be read
        self.doubt: RootMissing | RootNotBelieved | None = None  # why a rescan was given up, the last time

    # -- asked from other threads -------------------------------------------------------------------------------------

    def request(self, kind: RescanKind) -> None:
        """Rescan soon."""
        self._schedule.request(kind)
        self._woken.set()

    def change_intervals(self, interval_s: float, full_interval_s: float) -> None:
        """Rescan so often from now on; what is due by that already begins at once."""
        self._schedule.change_intervals(interval_s, full_interval_s)
        self._woken.set()

    def request_hour(self, hour: Hour) -> None:
        """Visit one hour soon: something went there."""
        self._schedule.visit_at(hour, time.monotonic() + _DISTURBED_AFTER_S)
        self._woken.set()

    def wake(self) -> None:
        """End the wait of a turn."""
        self._woken.set()

    def close(self) -> None:
        """Give up what is held, after the thread has ended."""
        if self._visitor is not None:
            self._reader.close()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Go on with the running rescan for a slice, or begin what is due, or wait for it."""
        if not self._believed():
            self._wait(WAIT_S)
            return
        if not self._may_begin():  # the watcher walks a small tree in a moment, and everything waits for a first rescan
            self._wait(_SLICE_S)
            return
        visitor = self._require_visitor()
        try:
            if self._visit_due(visitor, now):
                return
            if self._pass is None:
                kind = self._next_kind(now)
                if kind is None:
                    self._wait(min(IDLE_WAIT_S, max(0.0, self._schedule.next_at() - now)))
                    return
                self._pass = self._run(visitor, kind, now)
            while time.monotonic() - now < _SLICE_S:
                if next(self._pass, self) is self:
                    self._pass = None
                    return
        except (RootMissing, RootNotBelieved) as exc:
            log.warning("the rescan stops: %s", exc)
            self.doubt = exc
            self._pass = None
            self._wait(WAIT_S)  # the guard finds out for itself

    def _require_visitor(self) -> HourVisitor:
        if self._visitor is None:
            self._reader = Reader(self._index_path)
            self._places = Places(
                tree=self._tree, identity=self._identity, reader=self._reader, mailbox=self._mailbox, audit=self._audit
            )
            self._visitor = HourVisitor(
                tree=self._tree,
                identity=self._identity,
                reader=self._reader,
                places=self._places,
                mailbox=self._mailbox,
                audit=self._audit,
                metrics=self._metrics,
                visit_again=self._schedule.visit_at,
                on_found=self._found,
                held_back=self._held_back,
            )
        return self._visitor

    def _found(self) -> None:
        if self.first_done.is_set():
            self._on_missed()

    def _wait(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def _next_kind(self, now: float) -> RescanKind | None:
        changed_s = self._schedule.take_changed(now)
        if changed_s is not None:
            self._metrics.tell_intervals(*changed_s)
        return self._schedule.next_kind(now)

    def _visit_due(self, visitor: HourVisitor, now: float) -> bool:
        """Visit the hours that were asked for and whose time has come."""
        due = self._schedule.take_hours(now, _CHUNK_HOURS)
        if not due:
            return False
        if self._pass is None:  # a number of its own, so that these listings settle only with a later one
            self._begin_pass(now)
        for hour in due:
            visitor.visit(hour, self._reader.hour_row(hour), self._state)
        if self._pass is None:
            self._end_pass()
        return True

    # -- one rescan ---------------------------------------------------------------------------------------------------

    def _run(self, visitor: HourVisitor, kind: RescanKind, begun: float) -> Iterator[None]:
        self._begin_pass(begun)
        started_ns = time.time_ns()
        self._told_at = 0.0
        self._schedule.began(kind)
        if kind is RescanKind.SETTLE:
            yield from self._settle(visitor, started_ns)
        else:
            yield from self._compare_all(visitor, kind, started_ns)
            yield from visitor.look_for_files()
        flush = Flush()  # ended means: what was found is in the index
        self._mailbox.put_bulk(flush)
        while not flush.done.wait(_SLICE_S):
            yield
        now = time.monotonic()
        if kind is not RescanKind.SETTLE:
            self._end_pass()
        self._schedule.ended(kind, now)
        long = kind is RescanKind.FULL or not self.first_done.is_set()
        self._tell_end(kind, now - begun)
        if long:
            memory.give_back()

    def _begin_pass(self, now: float) -> None:
        state = self._state
        state.number += 1
        state.left_unsettled = False
        state.unreadable = 0
        while self._ended and self._ended[0][1] <= now - SETTLE_S:
            state.settleable = self._ended.popleft()[0]
        self._mailbox.put_bulk(Facts({"pass": state.number}))  # before the first row that carries it

    def _end_pass(self) -> None:
        """What this pass left unsettled is listed once more, SETTLE_S from now."""
        now = time.monotonic()
        self._ended.append((self._state.number, now))
        if self._state.left_unsettled:
            self._schedule.settle_at(now + SETTLE_S)

    def _tell_end(self, kind: RescanKind, took_s: float) -> None:
        finished = time.time()
        self.progress = None
        self.completed[kind.value] = finished
        self._metrics.rescan_seconds.labels(kind.value).observe(took_s)
        unreadable = self._state.unreadable + (self._places.unreadable if kind is not RescanKind.SETTLE else 0)
        self.unreadable[kind.value] = unreadable
        ended = {
            f"rescan_{kind.value}_ns": int(finished * 1e9),
            f"rescan_{kind.value}_s": took_s,
            f"rescan_{kind.value}_unreadable": unreadable,
        }
        self._mailbox.put_urgent(Facts({"rescan_kind": None, **ended}))
        if kind is not RescanKind.SETTLE:
            text = f"{kind.value} rescan completed in {took_s:.1f} s"
            if unreadable:
                text += f"; {unreadable} directories could not be read, and what is new in them is not known"
            self._audit.record(
                Event.RESCAN_COMPLETED, text, elapsed_ms=took_s * 1e3, kind=kind.value, unreadable=unreadable
            )
            self.first_done.set()

    def _tell_progress(self, progress: Progress) -> None:
        """Say how far it is; to the commands, through the index, not more often than once a second."""
        self.progress = progress
        now = time.monotonic()
        if now - self._told_at < _PROGRESS_INTERVAL_S:
            return
        self._told_at = now
        self._mailbox.put_urgent(
            Facts(
                {
                    "rescan_kind": progress.kind.value,
                    "rescan_done": progress.done,
                    "rescan_total": progress.total,
                    "rescan_started_ns": progress.started_ns,
                }
            )
        )

    def _settle(self, visitor: HourVisitor, started_ns: int) -> Iterator[None]:
        below: int | None = None
        done = 0
        while hours := self._reader.unsettled(below=below, limit=_CHUNK_HOURS):
            for key, hour, row in hours:
                below = key
                visitor.visit(hour, row, self._state)
                yield
            done += len(hours)
            self._tell_progress(Progress(RescanKind.SETTLE, done, done, started_ns))

    def _compare_all(self, visitor: HourVisitor, kind: RescanKind, started_ns: int) -> Iterator[None]:
        places = self._places
        places.refresh()
        present: dict[PlaceName, array[int]] = {}
        for place in places.names():
            if (numbers := places.hours(place)) is not None:
                present[place] = numbers
            yield
        accept_lost = self._accept_lost()
        done, total = 0, sum(len(numbers) for numbers in present.values())
        self._tell_progress(Progress(kind, done, total, started_ns))
        for place, numbers in present.items():
            if numbers:
                if places.returned(place):
                    self._on_missed()  # the watches went with the mount
            elif accept_lost:
                places.give_up(place)
            elif places.lost(place):
                continue
            key = places.key(place)
            below: int | None = None
            for start in range(0, max(1, len(numbers)), _CHUNK_HOURS):
                chunk = numbers[start : start + _CHUNK_HOURS]
                least = chunk[-1] if start + _CHUNK_HOURS < len(numbers) else 0
                for visited in self._compare_hours(visitor, kind, place, chunk, key=key, below=below, least=least):
                    self._tell_progress(Progress(kind, done + visited, total, started_ns))
                    yield
                below = least
                done += len(chunk)

    def _compare_hours(
        self,
        visitor: HourVisitor,
        kind: RescanKind,
        place: PlaceName,
        numbers: Sequence[int],
        *,
        key: int | None,
        below: int | None,
        least: int,
    ) -> Iterator[int]:
        """Compare some hours of a place with the rows of the same range; yields how many are done."""
        mtimes = {} if key is None else self._reader.settled_mtimes(key, below=below, least=least)
        gone = mtimes.keys() - numbers
        if len(mtimes) - len(gone) < len(numbers):
            self._found()  # hours that nobody told of may have no watch
        to_visit = numbers if kind is RescanKind.FULL else self._places.changed(place, numbers, mtimes)
        rows: dict[int, HourRow] = {}
        if key is not None and (to_visit or gone):
            rows = {row.number: row for row in self._reader.hour_rows(key, below=below, least=least)}
        done = len(numbers) - len(to_visit)
        yield done
        for number in to_visit:
            visitor.visit(Hour(*place, number), rows.get(number), self._state)
            done += 1
            yield done
        for number in gone:  # or it cannot be read: the visit finds out
            visitor.visit(Hour(*place, number), rows.get(number), self._state)
            yield done

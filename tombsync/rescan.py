"""Compares the tree with the index, hour by hour, and repairs what the watcher missed.

- An *interval* rescan stats every hour directory and lists those whose mtime changed, or that are not settled.
- A *full* rescan lists every hour; where the digest of its entries is the known one, that is all.
- A *settle* rescan comes a little after each of them and lists what it left unsettled.
- Single hours are visited when the watcher saw something go there.

A listing counts as settled once two listings at least SETTLE_S apart on the monotonic clock saw the same mtime: a
directory's mtime has the granularity of the kernel's tick, so a change right after a listing can leave it as it was.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tombsync import plan
from tombsync.audit import Audit, Event
from tombsync.errors import RootMissing, RootNotBelieved, TreeRefused
from tombsync.index import Facts, HourGone, HourListed, HourRow, MarkersForgotten, PlaceMount, Reader, SegmentRows
from tombsync.metrics import Metrics
from tombsync.names import Hour, Kind, Marked, hour_number, mistake_message, printable
from tombsync.tree import Listing, Tree, is_own_mount, open_below
from tombsync.work import TRANSACTION_ROWS, WAIT_S, Flush, Mailbox, Sighting, Source

log = logging.getLogger(__name__)

SETTLE_S = 2.0
_SLICE_S = 0.02  # one turn; between turns the worker beats and can stop
_CHUNK_HOURS = 256  # hours compared with one query of the index
_DISTURBED_AFTER_S = 1.0  # `rm -r` of an hour raises an event a file: look once, when most of it is done
_PROGRESS_INTERVAL_S = 1.0
_MOST_MISTAKES_TOLD = 10_000


class RescanKind(StrEnum):
    """Which hours a rescan lists."""

    INTERVAL = "interval"
    FULL = "full"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the running rescan is, in hours."""

    kind: RescanKind
    done: int
    total: int
    started_ns: int


class Rescan:
    """A worker. All fields belong to its thread, except `_due` and `_requested`, which `_lock` guards."""

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
    ) -> None:
        """`first_pass`: a number that no pass had before; `may_begin`: the watcher is in place; `on_missed`: it was not;
        `accept_lost`: asked once a rescan, whether what looks unmounted is meant to be gone.
        """
        self._tree = tree
        self._identity = identity
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._interval_s = interval_s
        self._full_interval_s = full_interval_s
        self._believed = believed
        self._may_begin = may_begin
        self._on_missed = on_missed
        self._accept_lost = accept_lost
        self._reader: Reader | None = None  # made by the worker's own thread
        self._listing = Listing()
        self._first_pass = first_pass
        self._number = first_pass - 1
        self._ended: deque[tuple[int, float]] = deque()  # (pass, when it ended), the latest settleable one and newer
        self._settleable = 0  # a listing of this pass or an earlier one of this process may settle now
        self._left_unsettled = False
        self._pass: Iterator[None] | None = None
        self._interval_at = self._full_at = self._settle_at = 0.0  # monotonic
        self._settle_at = float("inf")
        self._missing: dict[Marked, float] = {}  # recorded tombstones that are gone, since when (monotonic)
        self._gone: dict[Hour, float] = {}  # hours with tombstones that are gone, since when
        self._lost_places: set[tuple[str, str]] = set()
        self._mistakes: set[tuple[Hour, str]] = set()
        self._unreadable: set[Hour] = set()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._due: dict[Hour, float] = {}
        self._requested: set[RescanKind] = set()
        self.first_done = threading.Event()
        self.progress: Progress | None = None  # written by the worker, read by all
        self.completed: dict[str, float] = {}  # kind -> Unix time; likewise

    # -- asked from other threads -------------------------------------------------------------------------------------

    def request(self, kind: RescanKind) -> None:
        """Rescan soon."""
        with self._lock:
            self._requested.add(kind)
        self._woken.set()

    def request_hour(self, hour: Hour) -> None:
        """Visit one hour soon: something went there."""
        with self._lock:
            self._due.setdefault(hour, time.monotonic() + _DISTURBED_AFTER_S)
        self._woken.set()

    def wake(self) -> None:
        """End the wait of a turn."""
        self._woken.set()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Go on with the running rescan for a slice, or begin what is due, or wait for it."""
        if not self._believed() or not self._may_begin():
            self._wait(WAIT_S)
            return
        if self._reader is None:
            self._reader = Reader(self._index_path)
        try:
            if self._visit_due(now):
                return
            if self._pass is None:
                kind = self._next_kind(now)
                if kind is None:
                    self._wait(min(WAIT_S, max(0.0, self._next_at() - now)))
                    return
                self._pass = self._run(kind, now)
            while time.monotonic() - now < _SLICE_S:
                if next(self._pass, self) is self:
                    self._pass = None
                    return
        except (RootMissing, RootNotBelieved) as exc:
            log.warning("the rescan stops: %s", exc)
            self._pass = None
            self._wait(WAIT_S)  # the guard finds out for itself

    def _wait(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def _next_kind(self, now: float) -> RescanKind | None:
        with self._lock:
            requested, self._requested = self._requested, set()
        if self._interval_at <= now or RescanKind.INTERVAL in requested:
            if RescanKind.FULL in requested:
                self._full_at = now
            return RescanKind.INTERVAL
        if self._full_at <= now or RescanKind.FULL in requested:
            return RescanKind.FULL
        return RescanKind.SETTLE if self._settle_at <= now else None

    def _next_at(self) -> float:
        with self._lock:
            due = min(self._due.values(), default=float("inf"))
        return min(self._interval_at, self._full_at, self._settle_at, due)

    # -- one rescan ---------------------------------------------------------------------------------------------------

    def _run(self, kind: RescanKind, begun: float) -> Iterator[None]:
        self._begin_pass(begun)
        started_ns = time.time_ns()
        self._progress(Progress(kind, 0, 0, started_ns), 0.0)
        if kind is RescanKind.SETTLE:
            yield from self._settle_unsettled(started_ns)
        else:
            yield from self._compare_all(kind, started_ns)
        flush = Flush()  # ended means: what was found is in the index
        self._mailbox.put_bulk(flush)
        while not flush.done.wait(_SLICE_S):
            yield
        now = time.monotonic()
        self._ended.append((self._number, now))
        if kind is RescanKind.SETTLE:
            self._settle_at = float("inf")
        else:
            self._interval_at = now + self._interval_s
            if kind is RescanKind.FULL:
                self._full_at = now + self._full_interval_s
            self._settle_at = now + SETTLE_S if self._left_unsettled else float("inf")
        self._end(kind, now - begun)

    def _begin_pass(self, now: float) -> None:
        self._number += 1
        self._left_unsettled = False
        while self._ended and self._ended[0][1] <= now - SETTLE_S:
            self._settleable = self._ended.popleft()[0]
        self._mailbox.put_bulk(Facts({"pass": self._number}))  # before the first row that carries it

    def _end(self, kind: RescanKind, took_s: float) -> None:
        finished = time.time()
        self.progress = None
        self.completed[kind.value] = finished
        self._metrics.rescan_seconds.labels(kind.value).observe(took_s)
        self._mailbox.put_urgent(
            Facts({"rescan_kind": None, f"rescan_{kind.value}_ns": int(finished * 1e9), f"rescan_{kind.value}_s": took_s})
        )
        if kind is RescanKind.SETTLE:
            return
        self._audit.record(
            Event.RESCAN_COMPLETED, f"{kind.value} rescan completed in {took_s:.1f} s", elapsed_ms=took_s * 1e3, kind=kind.value
        )
        self.first_done.set()

    def _progress(self, progress: Progress, told_at: float) -> float:
        """Say how far it is; to the commands not more often than once a second. Returns when they were told."""
        self.progress = progress
        now = time.monotonic()
        if now - told_at < _PROGRESS_INTERVAL_S:
            return told_at
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
        return now

    def _compare_all(self, kind: RescanKind, started_ns: int) -> Iterator[None]:
        reader = self._require_reader()
        known = reader.places()
        with self._tree.open_believed(self._identity) as root_fd:
            places = set(self._tree.places(root_fd))
        yield
        present: list[tuple[tuple[str, str], array[int]]] = []
        for place in sorted(places | known.keys()):
            with self._tree.open_believed(self._identity) as root_fd:
                names = self._tree.hours(root_fd, *place)
                own_mount = is_own_mount(root_fd, *place)
            present.append((place, array("q", sorted((hour_number(name) for name in names), reverse=True))))
            identifier, was_own_mount = known.get(place, (None, False))
            if names and identifier is not None and own_mount is not None and own_mount != was_own_mount:
                self._mailbox.put_bulk(PlaceMount(Hour(*place, 0), own_mount))
            yield
        accepted = self._accept_lost()
        total, done, told_at = sum(len(numbers) for _, numbers in present), 0, 0.0
        for place, numbers in present:
            identifier, was_own_mount = known.get(place, (None, False))
            if not numbers and not accepted and self._lost(place, was_own_mount):
                continue
            below: int | None = None
            for start in range(0, max(1, len(numbers)), _CHUNK_HOURS):
                chunk = numbers[start : start + _CHUNK_HOURS]
                least = chunk[-1] if start + _CHUNK_HOURS < len(numbers) else 0
                yield from self._compare_chunk(kind, place, identifier, chunk, below, least)
                below = least
                done += len(chunk)
                told_at = self._progress(Progress(kind, done, total, started_ns), told_at)

    def _compare_chunk(
        self, kind: RescanKind, place: tuple[str, str], identifier: int | None, numbers: Sequence[int], below: int | None, least: int
    ) -> Iterator[None]:
        """Compare some hours of a place, newest first, with the rows of the same range."""
        reader = self._require_reader()
        rows = {} if identifier is None else {
            row.number: row for row in reader.hour_rows(identifier, below=below, least=least)
        }  # fmt: skip
        to_visit = list(numbers) if kind is RescanKind.FULL else self._changed(place, numbers, rows)
        yield
        for number in to_visit:
            self._visit(Hour(*place, number), rows.get(number))
            yield
        for number in rows.keys() - set(numbers):
            self._visit_gone(Hour(*place, number))
            yield

    def _changed(self, place: tuple[str, str], numbers: Sequence[int], rows: dict[int, HourRow]) -> list[int]:
        """Of these hours, those whose directory is not as it was when it settled."""
        changed = []
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                place_fd = open_below(root_fd, *place)
            except OSError:
                return []
            try:
                for number in numbers:
                    row = rows.get(number)
                    if row is None or not row.settled:
                        changed.append(number)
                        continue
                    try:
                        found = os.stat(Hour(*place, number).text, dir_fd=place_fd, follow_symlinks=False)
                    except OSError:
                        changed.append(number)
                        continue
                    if found.st_mtime_ns != row.mtime_ns:
                        changed.append(number)
            finally:
                os.close(place_fd)
        return changed

    def _settle_unsettled(self, started_ns: int) -> Iterator[None]:
        reader = self._require_reader()
        below: int | None = None
        done, told_at = 0, 0.0
        while hours := reader.unsettled(below=below, limit=_CHUNK_HOURS):
            for key, hour, row in hours:
                below = key
                self._visit(hour, row)
                yield
            done += len(hours)
            told_at = self._progress(Progress(RescanKind.SETTLE, done, done, started_ns), told_at)

    # -- one hour -----------------------------------------------------------------------------------------------------

    def _visit_due(self, now: float) -> bool:
        """Visit the hours that the watcher asked for and whose time has come."""
        with self._lock:
            due = [hour for hour, at in self._due.items() if at <= now][:_CHUNK_HOURS]
            for hour in due:
                del self._due[hour]
        if not due:
            return False
        if self._pass is None:  # a number of its own, so that these listings settle only with a later one
            self._begin_pass(now)
        reader = self._require_reader()
        for hour in due:
            self._visit(hour, reader.hour_row(hour))
        if self._pass is None:
            ended = time.monotonic()
            self._ended.append((self._number, ended))
            self._settle_at = min(self._settle_at, ended + SETTLE_S)
        return True

    def _visit(self, hour: Hour, row: HourRow | None) -> None:
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
            except (FileNotFoundError, NotADirectoryError):
                fd = None
            except OSError as exc:
                self._cannot_read(hour, exc)
                return
            if fd is not None:
                try:
                    self._compare(root_fd, fd, hour, row)
                except OSError as exc:
                    self._cannot_read(hour, exc)
                finally:
                    os.close(fd)
                return
        self._visit_gone(hour)

    def _cannot_read(self, hour: Hour, exc: OSError) -> None:
        if hour not in self._unreadable:
            self._unreadable.add(hour)
            log.warning("%s cannot be listed: %s", printable(hour.path), exc.strerror)

    def _compare(self, root_fd: int, fd: int, hour: Hour, row: HourRow | None) -> None:
        mtime_ns = os.fstat(fd).st_mtime_ns
        if row is not None and row.digest and self._listing.read(fd, keep=False) == row.digest:
            self._still_known(hour, row, mtime_ns)
            return
        reader = self._require_reader()
        row = reader.hour_row(hour)  # the rows before the listing: see plan.diff_hour
        segments = reader.segments(hour) if row else set()
        markers = reader.markers(hour)
        mtime_ns = os.fstat(fd).st_mtime_ns
        digest = self._listing.read(fd)
        diff = plan.diff_hour(
            self._listing.names(), segments=segments, markers=set(markers), markers_in_tree={s for s, there in markers.items() if there}
        )
        if diff.markers_found:
            seen_ns = time.monotonic_ns()
            self._mailbox.put_sightings(
                [Sighting(Marked(hour, stem), Source.RESCAN, seen_ns) for stem in diff.markers_found]
            )
            if self.first_done.is_set():
                self._on_missed()
        self._put_segments(hour, add=diff.add, drop=diff.drop)
        for name in diff.mistakes:
            self._tell_mistake(hour, name)
        waiting = self._put_back(root_fd, hour, diff.markers_missing)
        self._left_unsettled = True
        if not waiting:  # else the hour has to be visited again, whatever its mtime says
            edits = (row.edits if row else 0) + len(diff.markers_found)  # each of them is an edit, whoever tells it first
            self._mailbox.put_bulk(HourListed(hour, mtime_ns, digest, self._number, settled=False, edits=edits))

    def _still_known(self, hour: Hour, row: HourRow, mtime_ns: int) -> None:
        """The entries are those that the rows were made of."""
        assert row.digest is not None
        if row.settled and row.mtime_ns == mtime_ns:
            return
        settled = row.mtime_ns == mtime_ns and self._first_pass <= row.pass_number <= self._settleable
        if not settled:
            self._left_unsettled = True
        self._mailbox.put_bulk(HourListed(hour, mtime_ns, row.digest, self._number, settled=settled, edits=row.edits))

    def _put_segments(self, hour: Hour, *, add: Sequence[tuple[str, Kind]] = (), drop: Sequence[tuple[str, Kind]] = ()) -> None:
        for start in range(0, len(add), TRANSACTION_ROWS):
            self._mailbox.put_bulk(SegmentRows(hour, add=add[start : start + TRANSACTION_ROWS]))
        for start in range(0, len(drop), TRANSACTION_ROWS):
            self._mailbox.put_bulk(SegmentRows(hour, drop=drop[start : start + TRANSACTION_ROWS]))

    def _tell_mistake(self, hour: Hour, name: str) -> None:
        if (hour, name) not in self._mistakes and len(self._mistakes) < _MOST_MISTAKES_TOLD:
            self._mistakes.add((hour, name))
            self._audit.record(Event.MISTAKEN_NAME, mistake_message(hour, name), hour=hour, source=Source.RESCAN.value)

    def _put_back(self, root_fd: int, hour: Hour, stems: Sequence[str]) -> bool:
        """Put vanished tombstones back once they have been gone for long enough; True while some still wait."""
        now = time.monotonic()
        for marked in [m for m in self._missing if m.hour == hour and m.stem not in set(stems)]:
            del self._missing[marked]
        waiting = False
        for stem in stems:
            marked = Marked(hour, stem)
            since = self._missing.setdefault(marked, now)
            need = plan.reconcile(
                recorded=True, in_tree=True, present=False, hour_present=True, missing_for_s=now - since, open_deliveries=False
            )
            if need is plan.Need.PUT_BACK and self._restore(root_fd, marked):
                del self._missing[marked]
                continue
            waiting = True
            self._visit_again(hour, now, since)
        return waiting

    def _restore(self, root_fd: int, marked: Marked) -> bool:
        try:
            self._tree.place(root_fd, marked)
        except TreeRefused as exc:
            self._audit.record(Event.TREE_REFUSED, f"a vanished tombstone cannot be put back: {exc}", marked=marked)
            return False
        self._metrics.restored.inc()
        self._audit.record(
            Event.RESTORED,
            f"put back: {printable(marked.path)} (it is still marked; `tombsync unmark` takes a mark back, not rm)",
            marked=marked,
            source=Source.RESCAN.value,
        )
        return True

    def _visit_again(self, hour: Hour, now: float, since: float) -> None:
        at = since + plan.PUT_BACK_AFTER_S
        with self._lock:
            self._due.setdefault(hour, at if at > now else now + plan.PUT_BACK_AFTER_S)

    # -- hours that are gone ------------------------------------------------------------------------------------------

    def _lost(self, place: tuple[str, str], was_own_mount: bool) -> bool:
        """Whether a place without any hour looks unmounted: then its rows stay as they are."""
        with self._tree.open_believed(self._identity) as root_fd:
            own_mount = is_own_mount(root_fd, *place)
        lost = plan.looks_unmounted(was_own_mount=was_own_mount, is_own_mount=bool(own_mount), present=own_mount is not None)
        if lost and place not in self._lost_places:
            self._lost_places.add(place)
            self._audit.record(
                Event.PLACE_LOST,
                f"{printable('/'.join(place))} looks unmounted: its tombstones and listings stay as they were"
                " (`tombsync adopt-root` says that it is meant to be gone)",
                hour=None,
            )
        elif not lost:
            self._lost_places.discard(place)
        return lost

    def _visit_gone(self, hour: Hour) -> None:
        """An hour directory is not there, in a tree that was believed before: believe it only if it still is."""
        with self._tree.open_believed(self._identity):
            pass
        reader = self._require_reader()
        if reader.hour_row(hour) is None:
            self._gone.pop(hour, None)
            return
        self._put_segments(hour, drop=sorted(reader.segments(hour)))
        markers = [stem for stem, in_tree in reader.markers(hour).items() if in_tree]
        now = time.monotonic()
        since = self._gone.setdefault(hour, now)
        if markers:
            need = plan.reconcile(
                recorded=True, in_tree=True, present=False, hour_present=False, missing_for_s=now - since, open_deliveries=False
            )
            if need is not plan.Need.FORGET:
                self._visit_again(hour, now, since)
                return
            for start in range(0, len(markers), TRANSACTION_ROWS):
                part = markers[start : start + TRANSACTION_ROWS]
                self._mailbox.put_bulk(MarkersForgotten(hour, part, lambda stems: self._tell_gone(hour, stems)))
        self._mailbox.put_bulk(HourGone(hour))
        del self._gone[hour]

    def _tell_gone(self, hour: Hour, stems: Sequence[str]) -> None:
        if stems:
            self._audit.record(
                Event.HOUR_GONE, f"{printable(hour.path)} is gone: {len(stems)} tombstones are forgotten", hour=hour, count=len(stems)
            )

    def _require_reader(self) -> Reader:
        assert self._reader is not None, "a turn makes it first"
        return self._reader

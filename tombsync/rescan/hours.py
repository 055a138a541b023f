"""One hour: what its directory and its rows say differently, and what follows from that."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from tombsync import plan
from tombsync.audit import Audit, Event
from tombsync.errors import TreeRefused
from tombsync.index import Facts, HourGone, HourListed, HourRow, MarkersForgotten, Reader, SegmentRows, mistakes_key
from tombsync.metrics import Metrics
from tombsync.names import Hour, Marked, classify, mistake_message, printable
from tombsync.rescan.places import Places
from tombsync.tree import Listing, Tree, open_below, purged_of
from tombsync.work import TRANSACTION_ROWS, Mailbox, Sighting, Source

log = logging.getLogger(__name__)

_MOST_MISTAKES_TOLD = 10_000


@dataclass
class PassState:
    """What a listing has to know of the rescan that it is part of."""

    number: int
    first_of_process: int
    settleable: int = 0  # a listing of this pass or an earlier one of this process may settle now
    left_unsettled: bool = False
    unreadable: int = 0  # hours of this pass that could not be listed


class HourVisitor:
    """Compares single hours. Belongs to the rescan's thread; raises RootMissing, RootNotBelieved."""

    def __init__(
        self,
        *,
        tree: Tree,
        identity: str,
        reader: Reader,
        places: Places,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        visit_again: Callable[[Hour, float], None],
        on_found: Callable[[], None],
        held_back: Callable[[int], bool],
    ) -> None:
        """`visit_again`: asked to bring an hour at a monotonic time; `on_found`: a tombstone was first seen here;
        `held_back`: whether a person may be taking the mark of this key back just now.
        """
        self._tree = tree
        self._identity = identity
        self._reader = reader
        self._places = places
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._visit_again = visit_again
        self._on_found = on_found
        self._held_back = held_back
        self._listing = Listing()
        self._missing: dict[Hour, dict[str, float]] = {}  # recorded tombstones that are gone, since when (monotonic)
        self._gone: dict[Hour, float] = {}  # hours with tombstones that are gone, since when
        self._mistakes: set[tuple[Hour, str]] = set()
        self._unreadable: set[Hour] = set()
        self._returned: dict[tuple[Hour, str], int] = {}  # data that came back -> the purge that it came back from

    def visit(self, hour: Hour, row: HourRow | None, state: PassState) -> None:
        """Compare one hour; `row` is what the index said of it a moment ago."""
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
            except (FileNotFoundError, NotADirectoryError):
                fd = None
            except OSError as exc:
                self._cannot_read(hour, exc, state)
                return
            if fd is not None:
                self._gone.pop(hour, None)
                try:
                    self._compare(root_fd, fd, hour, row, state)
                except OSError as exc:
                    self._cannot_read(hour, exc, state)
                finally:
                    os.close(fd)
                return
        self._visit_gone(hour)

    def look_for_files(self) -> Iterator[None]:
        """Find tombstones that were a directory or a link and are a file now: that changed no name; yields often."""
        below: int | None = None
        while rows := self._reader.unpushable(below=below, limit=TRANSACTION_ROWS):
            below = rows[-1].marker
            for row in rows:
                sight = None if row.marked.unsafe else self._tree.sight(row.marked)
                if sight is not None and sight.regular and sight.ctime_ns is not None:
                    self._mailbox.put_sightings([Sighting(row.marked, Source.RESCAN, time.monotonic_ns())])
            yield

    def _cannot_read(self, hour: Hour, exc: OSError, state: PassState) -> None:
        state.unreadable += 1
        if hour not in self._unreadable:
            self._unreadable.add(hour)
            log.warning("%s cannot be listed: %s", printable(hour.path), exc.strerror)

    def _compare(self, root_fd: int, fd: int, hour: Hour, row: HourRow | None, state: PassState) -> None:
        mtime_ns = os.fstat(fd).st_mtime_ns
        if row is not None and row.digest and (digest := self._listing.read(fd, keep=False)) == row.digest:
            self._still_known(hour, row, digest, mtime_ns, state)
            return
        row = self._reader.hour_row(hour)  # the rows before the listing: see plan.diff_hour
        segments = self._reader.segments(hour) if row else set()
        markers = self._reader.markers(hour)
        mtime_ns = os.fstat(fd).st_mtime_ns
        digest = self._listing.read(fd)
        diff = plan.diff_hour(
            self._listing.names(),
            segments=segments,
            markers={stem for stem, in_tree in markers.items() if in_tree},
        )
        if diff.markers_found:
            seen_ns = time.monotonic_ns()
            self._mailbox.put_sightings(
                [Sighting(Marked(hour, stem), Source.RESCAN, seen_ns) for stem in diff.markers_found]
            )
            self._on_found()
        self._put_segments(hour, add=diff.add, drop=diff.drop)
        for name in diff.mistakes:
            self._tell_mistake(hour, name)
        self._note_mistakes(hour, found=bool(diff.mistakes))  # before the hour can settle with them
        if markers or diff.markers_found:
            self._look_for_returned(root_fd, fd, hour, markers.keys() | diff.markers_found)
        waiting = self._put_back(root_fd, hour, diff.markers_missing)
        state.left_unsettled = True
        if not waiting:  # else the hour has to be visited again, whatever its mtime says
            # Each that is new is an edit, whoever tells it first; one that only came by an inbox before is none.
            edits = (row.edits if row else 0) + len(set(diff.markers_found) - markers.keys())
            self._mailbox.put_bulk(HourListed(hour, mtime_ns, digest, state.number, settled=False, edits=edits))

    def _still_known(self, hour: Hour, row: HourRow, digest: bytes, mtime_ns: int, state: PassState) -> None:
        """The entries are those that the rows were made of."""
        self._missing.pop(hour, None)  # they are there again, under the very inodes that they had
        if row.settled and row.mtime_ns == mtime_ns:
            return
        settled = row.mtime_ns == mtime_ns and state.first_of_process <= row.pass_number <= state.settleable
        if not settled:
            state.left_unsettled = True
        self._mailbox.put_bulk(HourListed(hour, mtime_ns, digest, state.number, settled=settled, edits=row.edits))

    def _put_segments(self, hour: Hour, *, add: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        for start in range(0, len(add), TRANSACTION_ROWS):
            self._mailbox.put_bulk(SegmentRows(hour, add=add[start : start + TRANSACTION_ROWS]))
        for start in range(0, len(drop), TRANSACTION_ROWS):
            self._mailbox.put_bulk(SegmentRows(hour, drop=drop[start : start + TRANSACTION_ROWS]))

    def _tell_mistake(self, hour: Hour, name: str) -> None:
        if (hour, name) not in self._mistakes and len(self._mistakes) < _MOST_MISTAKES_TOLD:
            self._mistakes.add((hour, name))
            self._audit.record(Event.MISTAKEN_NAME, mistake_message(hour, name), hour=hour, source=Source.RESCAN.value)

    def _note_mistakes(self, hour: Hour, *, found: bool) -> None:
        """To the archive such names are tombstones of other stems: who lists the hour has to look at the directory."""
        if found != self._reader.has_mistakes(hour):
            self._mailbox.put_bulk(Facts({mistakes_key(hour): 1 if found else None}))

    def _look_for_returned(self, root_fd: int, fd: int, hour: Hour, marked: Collection[str]) -> None:
        """Tell once of each data file that was purged and stands there again, beside its tombstone."""
        try:
            purged = purged_of(root_fd, hour)
        except OSError as exc:
            log.warning("what was purged of %s cannot be read: %s", printable(hour.path), exc.strerror)
            return
        for name in self._listing.names() if purged else ():
            was = purged.get(name)
            if was is None or classify(name)[1] not in marked or self._returned.get((hour, name)) == was.at_ns:
                continue
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:  # gone again
                continue
            if found.st_ctime_ns == was.ctime_ns:  # the same file: it was not deleted after all, or is about to be
                continue
            self._returned[hour, name] = was.at_ns
            key = f"returned {json.dumps(f'{hour.path}/{name}')}"  # in the index, as the next process must not tell it
            if self._reader.fact(key) != was.at_ns:
                self._tell_returned(hour, name, found)
                self._mailbox.put_bulk(Facts({key: was.at_ns}))

    def _tell_returned(self, hour: Hour, name: str, found: os.stat_result) -> None:
        marked = Marked(hour, classify(name)[1])
        self._metrics.data_returned.inc()
        text = f"{printable(f'{hour.path}/{name}')} was purged and came back; it is hidden: who lists it still?"
        self._audit.record(
            Event.DATA_RETURNED,
            text,
            marked=marked,
            source=Source.RESCAN.value,
            actor=str(found.st_uid),
            bytes=found.st_size,
            file=name,
        )

    def _put_back(self, root_fd: int, hour: Hour, stems: Sequence[str]) -> bool:
        """Put vanished tombstones back once they have been gone for long enough; True while some still wait."""
        now = time.monotonic()
        before = self._missing.pop(hour, {})
        since = {stem: before.get(stem, now) for stem in stems if self._was_file(Marked(hour, stem))}
        for stem in list(since):
            need = plan.reconcile(
                recorded=True,
                in_tree=True,
                present=False,
                hour_present=True,
                missing_for_s=now - since[stem],
                open_deliveries=False,
            )
            marked = Marked(hour, stem)
            if need is plan.Need.PUT_BACK and not self._is_taken_back(marked) and self._restore(root_fd, marked):
                del since[stem]
        if since:
            self._missing[hour] = since
            self._visit_again(hour, plan.look_again_at(min(since.values()), now))
        return bool(since)

    def _was_file(self, marked: Marked) -> bool:
        """A directory or link that hid something goes on hiding; as a file it would go to every peer."""
        row = self._reader.marker(marked)
        return row is not None and (row.pushable or bool(marked.unsafe))

    def _is_taken_back(self, marked: Marked) -> bool:
        """Looked at right before it is put back: it would be marked anew, and go to every peer."""
        row = self._reader.marker(marked)
        return row is None or self._held_back(row.marker)

    def _restore(self, root_fd: int, marked: Marked) -> bool:
        try:
            self._tree.place(root_fd, marked)
        except TreeRefused as exc:
            self._audit.record(Event.TREE_REFUSED, f"a vanished tombstone cannot be put back: {exc}", marked=marked)
            return False
        self._metrics.restored.inc()
        self._audit.record(
            Event.RESTORED,
            f"put back: {printable(marked.path)} (rm does not take a mark back)",
            marked=marked,
            source=Source.RESCAN.value,
        )
        return True

    def _visit_gone(self, hour: Hour) -> None:
        """An hour directory is not there, in the known tree: believe it unless its place looks unmounted."""
        if self._places.lost((hour.channel, hour.quality)):
            return
        if self._reader.hour_row(hour) is None:
            self._gone.pop(hour, None)
            return
        self._missing.pop(hour, None)
        self._put_segments(hour, drop=sorted(self._reader.segments(hour)))
        markers = [stem for stem, in_tree in self._reader.markers(hour).items() if in_tree]
        now = time.monotonic()
        since = self._gone.setdefault(hour, now)
        if markers:
            need = plan.reconcile(
                recorded=True,
                in_tree=True,
                present=False,
                hour_present=False,
                missing_for_s=now - since,
                open_deliveries=False,
            )
            if need is not plan.Need.FORGET:
                self._visit_again(hour, plan.look_again_at(since, now))
                return
            for start in range(0, len(markers), TRANSACTION_ROWS):
                part = markers[start : start + TRANSACTION_ROWS]
                self._mailbox.put_bulk(MarkersForgotten(hour, part, lambda stems: self._tell_gone(hour, stems)))
        self._note_mistakes(hour, found=False)
        self._mailbox.put_bulk(HourGone(hour))
        del self._gone[hour]

    def _tell_gone(self, hour: Hour, stems: Sequence[str]) -> None:
        if stems:
            self._audit.record(
                Event.HOUR_GONE,
                f"{printable(hour.path)} is gone: {len(stems)} tombstones are forgotten",
                hour=hour,
                count=len(stems),
            )

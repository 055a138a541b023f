"""The observer: starts and stops watchdog's threads, and hands what was seen to the intake and the rescan."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver

from tombsync.audit import Audit, Event
from tombsync.index import SegmentRows
from tombsync.metrics import Metrics
from tombsync.names import Hour, mistake_message, printable
from tombsync.tree import Tree
from tombsync.watch.changes import Changes
from tombsync.watch.emitter import READ_TIMEOUT_S, HourEmitter
from tombsync.work import TRANSACTION_ROWS, Beats, Mailbox, Source

log = logging.getLogger(__name__)

_MOST_MISTAKES_TOLD = 10_000


class Watch:
    """Starts and stops the observer, and hands what it sees to the intake and the rescan."""

    def __init__(
        self,
        *,
        tree: Tree,
        identity: str,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        beats: Beats,
        on_death: Callable[[BaseException], None],
        on_missed: Callable[[], None],
        on_disturbed: Callable[[Hour], None],
        on_root_disturbed: Callable[[], None],
    ) -> None:
        """`on_missed`: events were lost, or told of more than single hours; `on_disturbed`: an hour lost something."""
        self._tree = tree
        self._observer = BaseObserver(
            HourEmitter,
            timeout=READ_TIMEOUT_S,
            tree=tree,
            identity=identity,
            on_marked=mailbox.put_sightings,
            on_death=on_death,
        )
        self._observer.daemon = True
        self._handler = _Handler(mailbox, audit, metrics, beats, on_missed, on_disturbed, on_root_disturbed)

    @property
    def walked(self) -> threading.Event:
        """Set when every directory that could be watched is."""
        return self._handler.walked

    @property
    def watches(self) -> int:
        """Directories watched now."""
        return sum(emitter.watches for emitter in list(self._observer.emitters) if isinstance(emitter, HourEmitter))

    def walk_again(self) -> None:
        """Look for directories that have no watch: something was missed."""
        for emitter in list(self._observer.emitters):
            if isinstance(emitter, HourEmitter):
                emitter.walk_again()

    def start(self) -> None:
        """Begin to watch. Raises WatchRefused, RootMissing."""
        self._observer.schedule(self._handler, self._tree.root, recursive=True)
        self._observer.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop watching; False where a thread is still running."""
        if not self._observer.is_alive():
            return True
        until = time.monotonic() + timeout_s
        # watchdog waits without bound for an emitter to end, and one may be stuck in a disk that does not answer.
        ending = threading.Thread(target=self._observer.stop, name="watch-end", daemon=True)
        ending.start()
        ending.join(timeout_s)
        self._observer.join(max(0.0, until - time.monotonic()))
        return not (ending.is_alive() or self._observer.is_alive())


class _Handler(FileSystemEventHandler):
    """Runs in the dispatcher's thread. It only enqueues, and is total: an exception would end it in silence."""

    def __init__(
        self,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        beats: Beats,
        on_missed: Callable[[], None],
        on_disturbed: Callable[[Hour], None],
        on_root_disturbed: Callable[[], None],
    ) -> None:
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._beats = beats
        self._on_missed = on_missed
        self._on_disturbed = on_disturbed
        self._on_root_disturbed = on_root_disturbed
        self.walked = threading.Event()
        self._repair_after_walk = False
        self._mistakes: set[tuple[Hour, str]] = set()

    def dispatch(self, event: FileSystemEvent) -> None:
        """Hand one read's worth of changes on."""
        if not isinstance(event, Changes):
            return
        self._beats.beat("watch")
        for batch in _batches(event.segments):
            if not self._mailbox.offer_bulk(batch):
                self._on_disturbed(batch.hour)
        for hour in event.disturbed:
            self._on_disturbed(hour)
        if event.root_disturbed:
            self._on_root_disturbed()
        if event.place_left:
            self._on_missed()
        if event.overflowed or event.limit_reached or event.unwatchable or event.mistakes:
            self._tell(event)
        if event.walked:
            self.walked.set()
            if self._repair_after_walk:
                self._repair_after_walk = False
                self._on_missed()

    def _tell(self, event: Changes) -> None:
        if event.overflowed:
            self._metrics.watch_overflows.inc()
            self._repair_after_walk = True  # the rescan begins when nothing new can be missed any more
            self._audit.record(Event.OVERFLOW, "the kernel dropped file events; a rescan of what changed follows")
        if event.limit_reached:
            self._metrics.watch_errors.inc()
            self._audit.record(
                Event.WATCH_LIMIT,
                f"no more than {event.limit_reached} directories may be watched: the oldest hours are left to the"
                " rescan. Raise fs.inotify.max_user_watches (sysctl)",
            )
        for path, reason in event.unwatchable:
            self._metrics.watch_errors.inc()
            log.warning("%s cannot be watched: %s", printable(path), reason)
        for hour, name in event.mistakes:
            # A new directory's listing and its events may both tell of one.
            if (hour, name) not in self._mistakes and len(self._mistakes) < _MOST_MISTAKES_TOLD:
                self._mistakes.add((hour, name))
                self._audit.record(
                    Event.MISTAKEN_NAME, mistake_message(hour, name), hour=hour, source=Source.WATCH.value
                )


def _batches(changes: Sequence[tuple[Hour, str, bool]]) -> Iterator[SegmentRows]:
    """Changes of segments as batches of one hour each; the last word on a name counts."""
    by_hour: dict[Hour, dict[str, bool]] = {}
    for hour, name, present in changes:
        by_hour.setdefault(hour, {})[name] = present
    for hour, names in by_hour.items():
        items = list(names.items())
        for start in range(0, len(items), TRANSACTION_ROWS):
            part = items[start : start + TRANSACTION_ROWS]
            yield SegmentRows(
                hour,
                add=[name for name, present in part if present],
                drop=[name for name, present in part if not present],
                watched=True,
            )

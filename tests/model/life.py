"""One life of an agent: its real parts, whose threads are turns that somebody else takes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tombsync.audit import Audit, Event
from tombsync.daemon.parts import believe_root, open_index
from tombsync.index import Checkpointer, Hidden, Reader, Writer
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour, Marked
from tombsync.peers import Connector
from tombsync.plan import Breaker
from tombsync.push import Pusher
from tombsync.rescan import Rescan, RescanKind
from tombsync.rescan.hours import HourVisitor
from tombsync.tree import Listing
from tombsync.watch import Watch
from tombsync.watch.emitter import HourEmitter
from tombsync.work import Beats, Mailbox

if TYPE_CHECKING:
    from tests.model.node import Node

INTERVAL_S = 45.0
FULL_INTERVAL_S = 400.0
VERIFY_INTERVAL_S = 120.0  # longer than a vanished tombstone is waited for, as always
_METRICS = Metrics()


@dataclass(frozen=True)
class Standing:
    """A tree at a moment: hours with the time since when, tombstones with the number of their making, those that
    vanished with the time of that; and how often events were lost before.
    """

    at_ns: int
    hours: dict[Hour, int]
    tombstones: dict[Marked, int]
    vanished: dict[Marked, int]
    losses: int


class Journal(Audit):
    """Counts the records that say that something changed."""

    def __init__(self) -> None:
        self.changes = 0

    def record(self, event: Event, message: str, **fields: Any) -> int:
        if event is not Event.RESCAN_COMPLETED:
            self.changes += 1
        return self.changes

    @property
    def written(self) -> int:
        """All of them, at once."""
        return self.changes

    @property
    def has_room(self) -> bool:
        """Always."""
        return True


class TurnedMailbox(Mailbox):
    """Tells whether it holds anything."""

    @property
    def empty(self) -> bool:
        return not (self._sightings or self._urgent or self._bulk)


class TurnedEmitter(HourEmitter):
    """Tells whether it has something to do."""

    @property
    def busy(self) -> bool:
        return self._walk is not None or self._walk_again.is_set() or bool(self._inotify.queue)


class TurnedWatch(Watch):
    """Its two threads' work, in turns."""

    def start(self) -> None:
        self._observer.schedule(self._handler, self._tree.root, recursive=True)
        for emitter in self._observer.emitters:
            emitter.on_thread_start()

    def turn(self) -> None:
        for emitter in self._observer.emitters:
            emitter.queue_events(0)
        events = self._observer.event_queue
        while not events.empty():
            self._observer.dispatch_events(events)

    @property
    def busy(self) -> bool:
        return any(cast(TurnedEmitter, emitter).busy for emitter in self._observer.emitters)


class TurnedListing(Listing):
    """Lets something else happen right before and right after a directory is listed."""

    def __init__(self, at: Callable[[str], None]) -> None:
        super().__init__()
        self._at = at

    def read(self, fd: int, *, keep: bool = True) -> bytes:
        self._at("before listing")
        try:
            return super().read(fd, keep=keep)
        finally:
            self._at("after listing")


class TurnedRescan(Rescan):
    """Reports the beginning and the end of each rescan that looks at the whole tree."""

    def __init__(self, *, standing: Callable[[], Standing], on_end: Callable[[Standing], None], **parts: Any) -> None:
        super().__init__(**parts)
        self._standing = standing
        self._on_end = on_end
        self.ended = 0

    def _run(self, visitor: HourVisitor, kind: RescanKind, begun: float) -> Any:
        before = self._standing()
        yield from super()._run(visitor, kind, begun)
        if kind is not RescanKind.SETTLE:
            self.ended += 1
            self._on_end(before)

    @property
    def running(self) -> bool:
        return self._pass is not None

    @property
    def waiting(self) -> list[Hour]:
        """Single hours that are to be looked at later."""
        return list(self._schedule._due)

    def due(self, now: float) -> bool:
        return self._pass is not None or self._schedule.next_at() <= now

    def close(self) -> None:
        if self._visitor is not None:
            self._reader.close()


class TurnedPusher(Pusher):
    """Tells whether it was woken and has not looked yet."""

    woken = False

    def wake(self) -> None:
        self.woken = True
        super().wake()

    def loop(self, now: float) -> None:
        self.woken = False
        super().loop(now)


class Life:
    """One life of an agent, built in the order of daemon.Agent."""

    def __init__(self, node: Node) -> None:
        path, ground, journal = node.index_path, node.ground, node.journal
        self.writer: Writer = open_index(path, journal)
        identity = believe_root(ground, self.writer, journal)
        self.writer.sync_peers({name: f"tree://{name}" for name in node.links})
        self.mailbox = TurnedMailbox()
        self.inotify = node.inotify()
        self.watch = TurnedWatch(
            tree=ground,
            identity=identity,
            mailbox=self.mailbox,
            audit=journal,
            metrics=_METRICS,
            beats=Beats(),
            on_death=_raise,
            on_missed=lambda: self.rescan.request(RescanKind.INTERVAL),
            on_disturbed=lambda hour: self.rescan.request_hour(hour),  # noqa: PLW0108 (made later)
            on_root_disturbed=lambda: None,
        )
        self.rescan = TurnedRescan(
            standing=node.standing,
            on_end=node.rescan_ended,
            tree=ground,
            identity=identity,
            index_path=path,
            mailbox=self.mailbox,
            audit=journal,
            metrics=_METRICS,
            interval_s=INTERVAL_S,
            full_interval_s=FULL_INTERVAL_S,
            first_pass=(self.writer.fact("pass") or 0) + 1,
            believed=lambda: True,
            may_begin=self.watch.walked.is_set,
            on_missed=self.watch.walk_again,
            accept_lost=lambda: False,
        )
        self.peer_ids = self.writer.peer_ids()
        self.pushers = {
            name: TurnedPusher(
                peer=self.peer_ids[name],
                connector=cast(Connector, link),
                index_path=path,
                mailbox=self.mailbox,
                audit=journal,
                metrics=_METRICS,
                believed=lambda: True,
                verify_interval_s=VERIFY_INTERVAL_S,
            )
            for name, link in node.links.items()
        }
        self.checkpointer = Checkpointer(path)
        self.intake = Intake(
            tree=ground,
            writer=self.writer,
            mailbox=self.mailbox,
            audit=journal,
            metrics=_METRICS,
            on_news=self._offer,
            watch_answers=self.rescan.first_done.is_set,
            breaker=Breaker(1_000_000),
            on_written=self.checkpointer.note_written,
        )
        self.reader = Reader(path)
        self.raw = sqlite3.connect(path, isolation_level=None)
        self._raw_version: int | None = None
        self.watch.start()

    def committed(self) -> bool:
        """Whether anything was committed since the last call."""
        (version,) = self.raw.execute("PRAGMA data_version").fetchone()
        before, self._raw_version = self._raw_version, version
        return bool(before != version)

    def _offer(self, news: Sequence[Hidden]) -> None:
        rows = [hidden.due() for hidden in news if hidden.pushable]
        for pusher in self.pushers.values():
            pusher.offer(rows)

    def close(self) -> None:
        """What the kernel does at the end of a process, and no more."""
        for pusher in self.pushers.values():
            pusher._telling._untold.clear()  # a killed process tells nobody
            pusher.close()
        self.rescan.close()
        self.checkpointer.close()
        self.reader.close()
        self.raw.close()
        self.writer.close()


def _raise(exc: BaseException) -> None:
    raise exc

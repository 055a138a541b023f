"""Finds segments that arrive within a takedown, tells of each once, and marks those of a sticky one.

What is marked is hidden in the index first. The row without a file is what is left to do, so that a kill, a full disk
or the end of the takedown loses nothing: the tombstone is made when it can be.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tombsync import precedence
from tombsync.audit import Audit, Event
from tombsync.errors import RootMissing, RootNotBelieved, TakedownUnreadable
from tombsync.index import Reader
from tombsync.metrics import Metrics
from tombsync.names import OWN_DIRECTORY, Hour, Marked, printable
from tombsync.takedown.late import Find, Reach, by_channel
from tombsync.takedown.placing import Placing
from tombsync.takedown.told import Told
from tombsync.takedown.under import Surroundings
from tombsync.tree import TAKEDOWNS, Takedown, Tree, open_below, read_takedowns, standing
from tombsync.work import IDLE_WAIT_S, WAIT_S, Flush, Mailbox, Sighting, Source

TURN_S = 0.2  # what one turn looks at ends after so long, at the end of an hour's names
LOOK_INTERVAL_S = 2.0  # at the records: one status of a directory
# A directory that was changed so shortly before it was read may change again under the same time (the kernel's tick).
SETTLED_AFTER_NS = 2_000_000_000
# What stood there before a takedown is left to the command that made it; where that ended early it is looked at then.
LEFT_TO_MARK_S = 60.0
MOST_NAMES = 20_000  # that wait; of more the hours are looked through instead


class LateSegments:
    """A worker. `note` is called by the intake, `wake` and `running` by any thread, every other method by its own."""

    name = "takedown"

    def __init__(
        self,
        *,
        tree: Tree,
        identity: str,
        state_dir: str,
        index_path: str,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        believed: Callable[[], bool],
    ) -> None:
        self._tree = tree
        self._identity = identity
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._believed = believed
        self._reaches: dict[str, tuple[Reach, ...]] = {}  # by channel; exchanged whole
        self._lock = threading.Lock()  # of the next three
        self._queue: deque[tuple[Hour, Sequence[str]]] = deque()
        self._queued_names = 0
        self._again: dict[Hour, None] = {}  # hours to look through, oldest first
        self._later: dict[Hour, None] = {}  # hours to look through at `_later_at`: what is left to `mark` until then
        self._later_at = _NEVER  # monotonic
        self._woken = threading.Event()
        self._placing = Placing(tree, mailbox, audit)
        self._hiding: Flush | None = None  # what was found last is on its way into the index: hidden when done
        self._look_at = 0.0  # monotonic
        self._seen: tuple[int, int] | None = None  # inode and mtime of the records' directory, when it had settled
        self._running: frozenset[str] = frozenset()
        self._unreadable: frozenset[str] = frozenset()
        self._told = Told(state_dir)
        self._reader: Reader | None = None

    def note(self, hour: Hour, names: Sequence[str]) -> None:
        """The index has these files of an hour. Never waits; without a takedown of the channel it is one look."""
        if not self._reaches or not any(hour.number in reach.hours for reach in self._reaches.get(hour.channel, ())):
            return
        with self._lock:
            if self._queued_names + len(names) > MOST_NAMES:
                self._again[hour] = None
            else:
                self._queue.append((hour, names))
                self._queued_names += len(names)
        self._woken.set()

    @property
    def running(self) -> list[Takedown]:
        """The takedowns that are followed now; from any thread."""
        return [reach.takedown for reaches in self._reaches.values() for reach in reaches]

    def wake(self) -> None:
        """End the wait of a turn; from any thread."""
        self._woken.set()

    def close(self) -> None:
        """Give up what is held, after the thread has ended."""
        if self._reader is not None:
            self._reader.close()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Go on with what is being hidden, or look at what came."""
        if not self._believed():
            self._wait(WAIT_S)
            return
        try:
            with self._tree.open_believed(self._identity) as root_fd:
                wait_s = self._turn(root_fd, now)
        except (RootMissing, RootNotBelieved):
            wait_s = WAIT_S  # the guard finds out for itself, and tells
        self._wait(wait_s)

    def _wait(self, timeout_s: float) -> None:
        if timeout_s > 0:
            self._woken.wait(timeout_s)
            self._woken.clear()  # before the next look at the queue

    def _turn(self, root_fd: int, now: float) -> float:
        """Returns how long the next one can wait where nothing comes."""
        if self._hiding is not None:
            if not self._hiding.done.wait(WAIT_S):
                return 0.0
            self._hiding = None
            self._placing.soon(now)
        if self._look_at <= now:
            self._look_at = now + LOOK_INTERVAL_S
            self._look_at_records(root_fd)
        if self._placing.due(now):
            self._placing.go_on(root_fd, self._read(), now)
        if self._later_at <= now:
            with self._lock:
                self._again.update(self._later)
            self._later, self._later_at = {}, _NEVER
        until = time.monotonic() + TURN_S
        found: dict[Marked, Find] = {}
        for hour, names in self._take():
            for find in self._judge(root_fd, hour, names):
                found.setdefault(Marked(find.piece.hour, find.piece.stem), find)
            precedence.give_way()
            if time.monotonic() >= until:
                break
        self._tell(found)
        sticky = [marked for marked, find in found.items() if find.reach.takedown.sticky]
        if sticky:
            self._hide(sticky)
        if sticky or self._queue or self._again:
            return 0.0
        return max(0.0, min(IDLE_WAIT_S, self._look_at - now, self._placing.due_at - now, self._later_at - now))

    def _read(self) -> Reader:
        if self._reader is None:  # made by the worker's own thread
            self._reader = Reader(self._index_path)
        return self._reader

    # -- which takedowns run ------------------------------------------------------------------------------------------

    def _look_at_records(self, root_fd: int) -> None:
        seen = _state_of_records(root_fd)
        if seen is not None and seen == self._seen:
            return
        if seen is None and not self._running and not self._unreadable:  # nobody ever made one, or they are gone
            return
        problems: list[TakedownUnreadable] = []
        takedowns = read_takedowns(root_fd, problems.append)
        self._tell_unreadable(problems)
        if any(problem.path == _PLACE for problem in problems):
            return  # nothing is known of what ended: those that ran go on
        settled = seen is not None and abs(time.time_ns() - seen[1]) > SETTLED_AFTER_NS
        self._seen = seen if settled else None
        self._take_up(takedowns)

    def _take_up(self, takedowns: Sequence[Takedown]) -> None:
        """Follow those that run; the hours of new ones are looked through, also for what came while nobody looked."""
        running = {takedown.id for takedown in takedowns if takedown.runs}
        self._told.keep_only(running)
        reaches = by_channel(takedowns)
        # First this: what is committed from now on is noted, and what was before is read from the index.
        self._reaches = reaches
        for channel in reaches:
            for reach in reaches[channel]:
                if reach.takedown.id not in self._running:
                    self._look_through(reach)
        self._running = frozenset(running)

    def _look_through(self, reach: Reach) -> None:
        hours = []
        for (channel, quality), (place, _) in self._read().places().items():
            if channel == reach.takedown.channel:
                rows = self._read().hour_rows(place, below=reach.hours.stop, least=reach.hours.start)
                hours += [Hour(channel, quality, row.number) for row in rows]
                precedence.give_way()
        with self._lock:
            self._again.update(dict.fromkeys(hours))

    def _tell_unreadable(self, problems: Sequence[TakedownUnreadable]) -> None:
        texts = {f"{printable(str(problem))}" for problem in problems}
        for text in sorted(texts - self._unreadable):
            self._audit.record(Event.TAKEDOWN_UNREADABLE, text)
        self._unreadable = frozenset(texts)

    # -- what arrived -------------------------------------------------------------------------------------------------

    def _take(self) -> Iterator[tuple[Hour, Sequence[str]]]:
        """Names that came, then whole hours, each once."""
        while True:
            with self._lock:
                if self._queue:
                    hour, names = self._queue.popleft()
                    self._queued_names -= len(names)
                elif self._again:
                    hour, names = next(iter(self._again)), ()
                    del self._again[hour]
                else:
                    return
            yield hour, names or self._read().listing(hour)

    def _judge(self, root_fd: int, hour: Hour, names: Sequence[str]) -> list[Find]:
        """What of these falls under a takedown, stands in the tree and is not marked."""
        reaches = [reach for reach in self._reaches.get(hour.channel, ()) if hour.number in reach.hours]
        if not reaches:
            return []
        around = Surroundings(self._read(), hour)
        return [
            find
            for find in around.judge(names, reaches)
            if not around.is_marked(find.piece.stem) and self._is_there(root_fd, find)
        ]

    def _is_there(self, root_fd: int, find: Find) -> bool:
        """Whether it stands without a tombstone. One that was there when twins were excluded did not arrive; what else
        was there is left to who made the takedown, for a while.
        """
        one, made_at_ns = find.piece, find.reach.made_at_ns
        try:
            found = standing(root_fd, Marked(one.hour, one.stem))
            if found.tombstone or not found.data:
                return False
            fd = open_below(root_fd, one.hour.channel, one.hour.quality, one.hour.text)
            try:
                ctime_ns = os.stat(one.name, dir_fd=fd, follow_symlinks=False).st_ctime_ns
            finally:
                os.close(fd)
        except OSError:  # gone again, or a disk that a rescan tells of
            return False
        if ctime_ns >= made_at_ns:
            return True
        if not find.reach.takedown.twins:
            return False
        left_s = LEFT_TO_MARK_S - (time.time_ns() - made_at_ns) / 1e9
        if not 0 < left_s <= LEFT_TO_MARK_S:
            return True
        self._later[one.hour] = None
        self._later_at = min(self._later_at, time.monotonic() + left_s)
        return False

    def _tell(self, found: dict[Marked, Find]) -> None:
        new = []
        for marked, find in found.items():
            takedown, entry = find.reach.takedown, (find.reach.takedown.id, find.piece.path)
            if entry in self._told:
                continue
            new.append(entry)
            self._metrics.twins_of_hidden[takedown.sticky].inc()
            follows = "it is hidden too" if takedown.sticky else "it is visible until it is marked"
            self._audit.record(
                Event.TWIN_OF_HIDDEN,
                f"{printable(find.piece.path)} arrived within the takedown {takedown.id} ({find.why}): {follows}",
                marked=marked,
                source=Source.TAKEDOWN.value,
                takedown=takedown.id,
                why=find.why.value,
                sticky=int(takedown.sticky),
            )
        if new:
            self._told.add(new)

    def _hide(self, stems: Sequence[Marked]) -> None:
        seen_ns = time.monotonic_ns()
        self._hiding = Flush()
        precedence.claim(precedence.HIDE)
        self._mailbox.put_sightings([Sighting(marked, Source.TAKEDOWN, seen_ns) for marked in stems])
        self._mailbox.put_urgent(self._hiding)  # sightings overtake it, so that it is done when they are committed


_NEVER = float("inf")
_PLACE = f"{OWN_DIRECTORY}/{TAKEDOWNS}"


def _state_of_records(root_fd: int) -> tuple[int, int] | None:
    """Inode and mtime of the records' directory, which change with each record that comes or ends; None without one."""
    try:
        fd = open_below(root_fd, OWN_DIRECTORY, TAKEDOWNS)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        return found.st_ino, found.st_mtime_ns
    finally:
        os.close(fd)

"""Takes what peers deliver. For each file, in this order: checked, hidden in the index, created in the tree and synced,
removed from the inbox. After a kill anywhere the name is still there, or the row without a file is, and the next start
goes on with it.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from inotify_simple import INotify, flags

from tombsync import plan, precedence
from tombsync.audit import Audit, Event
from tombsync.errors import RootMissing, RootNotBelieved
from tombsync.inbox.box import Box, BoxUnusable
from tombsync.inbox.checks import Refused, judge
from tombsync.inbox.placing import Placing
from tombsync.inbox.view import stale
from tombsync.index import Facts, Reader
from tombsync.metrics import Metrics
from tombsync.names import Canary, Hour, Marked, Offer, printable
from tombsync.tree import Tree
from tombsync.work import IDLE_WAIT_S, TRANSACTION_ROWS, WAIT_S, Flush, Mailbox, Sighting, Source

# Names of one inbox in one turn. Each hour directory among them is synced once, so more are cheaper each; the other
# inboxes wait for some 100 ms (benchmarks/inbox.py).
MOST_AT_ONCE = 1_000
LOOK_INTERVAL_S = 5.0  # into every inbox, whether or not something was seen to come
VIEW_INTERVAL_S = 60.0
TELL_INTERVAL_S = 60.0  # the same refusal of the same sender is told once in so long
_MASK = flags.CREATE | flags.MOVED_TO | flags.ONLYDIR | flags.DONT_FOLLOW
_NEVER = float("inf")
FACT = "inboxes"  # what `status` shows of them, as JSON


@dataclass
class _Batch:
    """Offers of one box on their way into the index: hidden when the flush is done."""

    box: Box
    offers: dict[str, Offer]  # by file name
    flush: Flush


class Inbox:
    """A worker. Every field belongs to its thread, except `_wake_fd`, which any may write."""

    name = "inbox"

    def __init__(
        self,
        *,
        tree: Tree,
        identity: str,
        boxes: Sequence[Box],
        view: str,
        index_path: str,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        believed: Callable[[], bool],
    ) -> None:
        self.boxes = tuple(boxes)  # exchanged whole
        self._wanted: tuple[Box, ...] | None = None  # set by any thread: what they are to be
        self._turns = deque(boxes)
        self._tree = tree
        self._identity = identity
        self._view = view
        self._index_path = index_path
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._believed = believed
        self._placing = Placing(tree, mailbox)
        self._batch: _Batch | None = None
        self._view_at = 0.0
        self._view_problem = ""
        self._awaited_at = 0.0
        self._told: dict[tuple[str, str], float] = {}  # (sender, reason) -> when that may be told again
        self._fact = ""
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, Box] = {}
        self._watched_as: dict[str, tuple[int, int]] = {}  # path -> device and inode of the directory that is watched
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._reader: Reader | None = None

    def wake(self) -> None:
        """End the wait of a turn; from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def change(self, boxes: Sequence[Box]) -> None:
        """Look after these from now on; one that is looked after already goes on with its quota. From any thread."""
        self._wanted = tuple(boxes)
        self.wake()

    def close(self) -> None:
        """Give up what is held, after the thread has ended."""
        self._inotify.close()
        os.close(self._wake_fd)
        if self._reader is not None:
            self._reader.close()

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Go on with the batch that is being hidden, or take the next from whichever inbox is due."""
        if not self._believed():
            self._wait(WAIT_S)
            return
        try:
            with self._tree.open_believed(self._identity) as root_fd:
                self._turn(root_fd, now)
        except (RootMissing, RootNotBelieved):
            self._wait(WAIT_S)  # the guard finds out for itself, and tells
        self._tell_state(now)

    def _turn(self, root_fd: int, now: float) -> None:
        if self._batch is not None:
            if self._batch.flush.done.wait(WAIT_S):
                batch, self._batch = self._batch, None
                self._finish(root_fd, batch, now)
            return
        if self._wanted is not None:
            self._exchange()
        if self._view_at <= now:
            self._look_at_view(root_fd, now)
        if self._awaited_at <= now:
            self._place_awaited(root_fd, now)
        self._see_events()
        if self._view_problem:
            self._wait(WAIT_S)
            return
        for _ in self.boxes:
            box = self._turns[0]
            self._turns.rotate(-1)  # so that each has its turn
            if box.due(now):
                self._visit(root_fd, box, now)
                return
        next_at = min((box.next_at() for box in self.boxes), default=_NEVER)
        self._wait(max(0.0, min(IDLE_WAIT_S, next_at - now)))

    def _exchange(self) -> None:
        wanted, self._wanted = self._wanted or (), None
        known = {(box.sender, box.account, box.path): box for box in self.boxes}
        boxes = []
        for box in wanted:
            kept = known.pop((box.sender, box.account, box.path), box)
            if kept is not box:
                kept.quota.change(box.quota.per_hour)
            boxes.append(kept)
        for box in known.values():
            self._watched_as.pop(box.path, None)
            for watch in [watch for watch, watched in self._watched.items() if watched is box]:
                del self._watched[watch]
                with suppress(OSError):  # its directory went, and the watch with it
                    self._inotify.rm_watch(watch)
        self.boxes = tuple(boxes)
        self._turns = deque(boxes)

    def _wait(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        poller.register(self._inotify.fileno(), select.POLLIN)
        for fd, _ in poller.poll(int(timeout_s * 1000 + 0.999)):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)

    # -- what came ----------------------------------------------------------------------------------------------------

    def _see_events(self) -> None:
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                for box in self.boxes:
                    box.changed = True
                continue
            watched = self._watched.get(event.wd)
            if watched is not None:
                watched.changed = True
                if event.mask & flags.IGNORED:
                    del self._watched[event.wd]
                    self._watched_as.pop(watched.path, None)

    def _watch(self, box: Box, fd: int) -> None:
        """Watch the directory that stands at the path now: a file system may have been mounted over the last one."""
        found = os.fstat(fd)
        if self._watched_as.get(box.path) != (found.st_dev, found.st_ino):
            self._watched[self._inotify.add_watch(f"/proc/self/fd/{fd}", _MASK & ~flags.DONT_FOLLOW)] = box
            self._watched_as[box.path] = (found.st_dev, found.st_ino)

    def _visit(self, root_fd: int, box: Box, now: float) -> None:
        try:
            with box.opened() as fd:
                if not box.listed:
                    box.changed = False
                    box.look_at = now + LOOK_INTERVAL_S
                    self._watch(box, fd)
                    box.listed = os.listdir(fd)  # after the watch: what comes later is told
                    box.waiting = len(box.listed)
                    box.unplaced = {name: box.unplaced[name] for name in box.listed if name in box.unplaced}
                if box.unplaced and box.place_at <= now:
                    self._place(root_fd, box, fd, dict(box.unplaced), now)
                self._take(root_fd, box, fd, box.uid(), now)
        except BoxUnusable as exc:
            self._tell_problem(box, str(exc))
        except OSError as exc:
            self._tell_problem(box, f"{box.path}: {exc.strerror}")
        else:
            self._tell_problem(box, "")

    def _take(self, root_fd: int, box: Box, fd: int, uid: int, now: float) -> None:
        waiting = [name for name in box.listed if name not in box.unplaced and name not in box.left]
        granted = box.quota.take(min(len(waiting), MOST_AT_ONCE), now)
        box.listed = waiting[granted:]
        if box.listed:
            box.changed = True  # there is more
            if granted < MOST_AT_ONCE:
                box.not_before = now + max(1.0, box.quota.until_next_s)
                if self._may_tell(box.sender, "quota", now):
                    text = f"{box.sender} is over its quota: {len(waiting) - granted} files wait in its inbox"
                    self._audit.record(Event.INBOX_HELD, text, peer=box.sender, waiting=len(waiting) - granted)
        offers: dict[str, Offer] = {}
        served: dict[tuple[str, str], bool] = {}
        for name in waiting[:granted]:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            asked = judge(name, found, uid=uid)
            if isinstance(asked, Offer) and not self._is_served(root_fd, asked.marked.hour, served):
                asked = Refused("not-served", "its channel or quality is not kept here")
            if isinstance(asked, Refused):
                self._refuse(box, fd, name, asked, now)
            elif isinstance(asked, Canary):
                self._remove(box, fd, name)
            else:
                offers[name] = asked
        if offers:
            self._hide(box, offers)

    def _is_served(self, root_fd: int, hour: Hour, known: dict[tuple[str, str], bool]) -> bool:
        place = (hour.channel, hour.quality)
        if place not in known:
            known[place] = self._tree.identity_of(root_fd, *place) is not None
        return known[place]

    def _refuse(self, box: Box, fd: int, name: str, refused: Refused, now: float) -> None:
        self._metrics.rejected.labels(Source.INBOX.value, refused.reason).inc()
        self._remove(box, fd, name)
        if self._may_tell(box.sender, refused.reason, now):
            text = f"{box.sender} delivered {printable(name)}, which is refused: {refused.text}"
            self._audit.record(
                Event.REJECTED,
                text,
                segment=name,
                peer=box.sender,
                source=Source.INBOX.value,
                reason=refused.reason,
            )

    def _remove(self, box: Box, fd: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        except OSError:  # a directory: no peer can make one, but an operator might
            box.left.add(name)

    def _may_tell(self, sender: str, reason: str, now: float) -> bool:
        """Once a minute: a stolen key must not wash the audit away."""
        if self._told.get((sender, reason), 0.0) > now:
            return False
        self._told[sender, reason] = now + TELL_INTERVAL_S
        return True

    # -- hiding and placing -------------------------------------------------------------------------------------------

    def _hide(self, box: Box, offers: dict[str, Offer]) -> None:
        seen_ns = time.monotonic_ns()
        flush = Flush()
        precedence.claim(precedence.HIDE)
        self._mailbox.put_sightings(
            [
                Sighting(offer.marked, Source.INBOX, seen_ns, sender=box.sender, origin=offer.origin)
                for offer in offers.values()
            ]
        )
        self._mailbox.put_urgent(flush)  # sightings overtake it, so that it is done when they are committed
        self._batch = _Batch(box, offers, flush)

    def _finish(self, root_fd: int, batch: _Batch, now: float) -> None:
        """They are hidden: put them into the tree, and take them away."""
        box = batch.box
        try:
            with box.opened() as fd:
                self._place(root_fd, box, fd, batch.offers, now)
        except BoxUnusable as exc:
            self._tell_problem(box, str(exc))
            self._awaited_at = now  # the rows without a file need no inbox

    def _place(self, root_fd: int, box: Box, fd: int, offers: dict[str, Offer], now: float) -> None:
        names: dict[Marked, list[str]] = {}
        for name, offer in offers.items():  # a tombstone has one name for each node of origin
            names.setdefault(offer.marked, []).append(name)
        trouble = ""
        for group, wrong in self._placing.place(root_fd, names):
            for name in [name for marked in group for name in names[marked]]:
                if wrong:
                    box.unplaced[name] = offers[name]
                else:
                    box.unplaced.pop(name, None)
                    self._remove(box, fd, name)
            trouble = wrong or trouble
        if trouble:
            if box.place_at <= now:  # not at those that came meanwhile: they must not put off the others' next try
                box.failures += 1
                box.place_at = now + plan.backoff_s(box.failures, 0.0, random=0.5)
            if trouble != box.trouble:
                text = f"received from {box.sender}, cannot write: {trouble}"
                self._audit.record(Event.TREE_REFUSED, text, peer=box.sender, source=Source.INBOX.value)
        elif not box.unplaced:
            box.failures = 0
        box.trouble = trouble if box.unplaced else ""

    def _place_awaited(self, root_fd: int, now: float) -> None:
        """Tombstones that were hidden before a kill or a power cut, and have no file: not only those still in a box."""
        self._awaited_at = now + VIEW_INTERVAL_S
        if self._reader is None:  # made by the worker's own thread
            self._reader = Reader(self._index_path)
        above = 0
        while rows := self._reader.awaited(above=above, limit=TRANSACTION_ROWS):
            above = rows[-1].marker
            for _ in self._placing.place(root_fd, [row.marked for row in rows]):
                pass

    # -- what to tell -------------------------------------------------------------------------------------------------

    def _look_at_view(self, root_fd: int, now: float) -> None:
        self._view_at = now + VIEW_INTERVAL_S
        problem = stale(self._tree, root_fd, self._view)
        if problem and problem != self._view_problem:
            self._audit.record(Event.VIEW_STALE, f"the peers' view is not the tree of this node: {problem}")
        elif self._view_problem and not problem:
            self._audit.record(Event.VIEW_RETURNED, "the peers see the tree of this node again")
        self._view_problem = problem
        if problem:
            self._view_at = now + LOOK_INTERVAL_S

    def _tell_problem(self, box: Box, problem: str) -> None:
        if problem and problem != box.problem:
            self._audit.record(Event.INBOX_MISSING, f"the inbox of {box.sender}: {problem}", peer=box.sender)
        elif box.problem and not problem:
            self._audit.record(Event.INBOX_RETURNED, f"the inbox of {box.sender} is there again", peer=box.sender)
        box.problem = problem

    def _tell_state(self, now: float) -> None:
        """Let the commands know, through the index."""
        state = [
            {
                "sender": box.sender,
                "unplaced": len(box.unplaced),
                "over_quota": box.not_before > now,
                "problem": self._view_problem or box.problem,
                "trouble": box.trouble and f"received, cannot write: {box.trouble}",
            }
            for box in self.boxes
        ]
        fact = json.dumps(state)
        if fact != self._fact:
            self._fact = fact
            self._mailbox.put_urgent(Facts({FACT: fact}))

    def waiting(self) -> Iterator[tuple[str, int]]:
        """(sender, names in its inbox at the last look); from any thread."""
        return ((box.sender, box.waiting) for box in self.boxes)

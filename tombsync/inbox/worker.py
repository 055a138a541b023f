"""Takes what peers deliver. For each file, in this order: checked, hidden in the index, created in the tree and synced,
removed from the inbox. After a kill anywhere the name is still there, or the row without a file is, and the next start
goes on with it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tombsync import plan, precedence
from tombsync.audit import Audit
from tombsync.errors import RootMissing, RootNotBelieved
from tombsync.inbox import placing
from tombsync.inbox.awaited import Awaited
from tombsync.inbox.box import Box, BoxUnusable
from tombsync.inbox.checks import Refused, judge
from tombsync.inbox.placing import Pass, Placing
from tombsync.inbox.served import Served
from tombsync.inbox.telling import Teller
from tombsync.inbox.view import stale
from tombsync.inbox.watching import Watching
from tombsync.index import Reader
from tombsync.metrics import Metrics
from tombsync.names import Canary, Marked, Offer
from tombsync.tree import Tree
from tombsync.work import IDLE_WAIT_S, WAIT_S, Flush, Mailbox, Sighting, Source

# Names of one inbox that are hidden together. Each hour directory among them is synced once, so more are cheaper each.
MOST_AT_ONCE = 1_000
LOOK_INTERVAL_S = 5.0  # into every inbox, whether or not something was seen to come
VIEW_INTERVAL_S = 60.0
_NEVER = float("inf")


class Inbox:
    """A worker. Every field belongs to its thread; `wake` may be called by any.

    Inboxes have their turns one after the other. No turn is long, whatever one sender delivers: what is hidden is put
    into the tree for a while (`placing.TURN_S`), and the rest of it when the others have had theirs.
    """

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
        self._believed = believed
        self._teller = Teller(audit, metrics, mailbox)
        self._placing = Placing(tree, mailbox)
        self._awaited = Awaited(self._placing, self._teller)
        self._watching = Watching()
        self._hiding: tuple[Box, Flush] | None = None  # whose files are on their way into the index: hidden when done
        self._view_at = 0.0
        self._view_problem = ""
        self._reader: Reader | None = None

    def wake(self) -> None:
        """End the wait of a turn; from any thread."""
        self._watching.wake()

    def change(self, boxes: Sequence[Box]) -> None:
        """Look after these from now on; one that is looked after already goes on with its quota. From any thread."""
        self._wanted = tuple(boxes)
        self.wake()

    def close(self) -> None:
        """Give up what is held, after the thread has ended."""
        self._watching.close()
        if self._reader is not None:
            self._reader.close()

    def waiting(self) -> Iterator[tuple[str, int]]:
        """(sender, names in its inbox); from any thread."""
        return ((box.sender, box.waiting) for box in self.boxes)

    # -- one turn -----------------------------------------------------------------------------------------------------

    def loop(self, now: float) -> None:
        """Go on with what is being hidden, or with whichever inbox is due."""
        if not self._believed():
            self._watching.wait(WAIT_S)
            return
        try:
            with self._tree.open_believed(self._identity) as root_fd:
                self._turn(root_fd, now)
        except (RootMissing, RootNotBelieved):
            self._watching.wait(WAIT_S)  # the guard finds out for itself, and tells
        self._teller.state(self.boxes, self._awaited.troubles, now)

    def _turn(self, root_fd: int, now: float) -> None:
        if self._hiding is not None:
            box, flush = self._hiding
            if flush.done.wait(WAIT_S):
                self._hiding = None
                self._visit(root_fd, box, now, take=False)
            return
        if self._wanted is not None:
            self._exchange()
        if self._view_at <= now:
            self._look_at_view(root_fd, now)
        if self._awaited.due(now):
            self._awaited.go_on(root_fd, self._read(), now, elsewhere=self._in_inboxes)
        self._watching.see_events()
        if self._view_problem:
            self._watching.wait(0.0 if self._awaited.due(now) else WAIT_S)
            return
        for _ in self.boxes:
            box = self._turns[0]
            self._turns.rotate(-1)  # so that each has its turn
            if box.due(now):
                self._visit(root_fd, box, now)
                return
        next_at = now if self._awaited.due(now) else min((box.next_at() for box in self.boxes), default=_NEVER)
        self._watching.wait(max(0.0, min(IDLE_WAIT_S, next_at - now)))

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
            self._watching.forget(box)
        self.boxes = tuple(boxes)
        self._turns = deque(boxes)

    def _look_at_view(self, root_fd: int, now: float) -> None:
        self._view_problem = stale(self._tree, root_fd, self._view)
        self._view_at = now + (LOOK_INTERVAL_S if self._view_problem else VIEW_INTERVAL_S)
        self._teller.view(self._view_problem)

    def _read(self) -> Reader:
        if self._reader is None:  # made by the worker's own thread
            self._reader = Reader(self._index_path)
        return self._reader

    def _in_inboxes(self) -> Iterator[Marked]:
        return (offer.marked for box in self.boxes for offer in box.unplaced.values())

    # -- one inbox ----------------------------------------------------------------------------------------------------

    def _visit(self, root_fd: int, box: Box, now: float, *, take: bool = True) -> None:
        """Put into the tree what is hidden; then, with `take`, what came since is looked at."""
        try:
            with box.opened() as fd:
                if take and box.placing is None:
                    self._look(box, fd, now)
                if box.placing is not None:
                    self._place(root_fd, box, fd, now)
                if take and box.placing is None:
                    self._take(root_fd, box, fd, now)
        except BoxUnusable as exc:
            self._put_off(box, str(exc), now)
        except OSError as exc:
            self._put_off(box, f"{box.path}: {exc.strerror}", now)
        else:
            self._teller.problem(box, box.not_removed())

    def _put_off(self, box: Box, problem: str, now: float) -> None:
        if box.put_off(now + LOOK_INTERVAL_S):
            self._awaited.soon(now)  # what is hidden needs no inbox
        self._teller.problem(box, problem)

    def _look(self, box: Box, fd: int, now: float) -> None:
        if not box.listed:
            box.changed = False
            box.look_at = now + LOOK_INTERVAL_S
            # Before the listing: what comes later is told. Without a watch each look is at its interval.
            self._teller.unwatched(box, self._watching.watch(box, fd), LOOK_INTERVAL_S)
            if box.see(os.listdir(fd)):
                self._awaited.soon(now)
            if not box.unplaced:  # also where its files were taken away by somebody else
                self._settle(box, "", now)
            if box.left and box.left_at <= now:
                box.left_at = now + LOOK_INTERVAL_S
                for name in list(box.left):
                    self._remove(box, fd, name)
        if box.unplaced and box.place_at <= now:
            box.try_again()

    def _take(self, root_fd: int, box: Box, fd: int, now: float) -> None:
        uid = box.uid()
        granted = box.quota.take(min(len(box.listed), MOST_AT_ONCE), now)
        names, box.listed = box.listed[:granted], box.listed[granted:]
        if box.listed and granted < MOST_AT_ONCE:
            box.not_before = now + max(1.0, box.quota.until_next_s)
            self._teller.over_quota(box, len(box.listed), now)
        offers: dict[str, Offer] = {}
        served = Served(self._tree, root_fd, recorded=lambda: self._read().places())
        for name in names:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            asked = judge(name, found, uid=uid)
            if isinstance(asked, Offer):
                asked = served.refusal(asked.marked.hour) or asked
            if isinstance(asked, Refused):
                self._remove(box, fd, name)
                self._teller.refused(box, name, asked, now)
            elif isinstance(asked, Canary):
                self._remove(box, fd, name)
            else:
                offers[name] = asked
        if offers:
            self._hide(box, offers)

    def _remove(self, box: Box, fd: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            box.left.pop(name, None)
        except OSError as exc:  # a directory, or an inbox that the kernel does not let this process write
            box.left[name] = os.strerror(exc.errno or 0)
        else:
            box.left.pop(name, None)

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
        box.placing = Pass(offers)
        self._hiding = box, flush

    def _place(self, root_fd: int, box: Box, fd: int, now: float) -> None:
        """Put some into the tree, and take them away from the inbox."""
        until = time.monotonic() + placing.TURN_S
        while box.placing:
            hour, offers = box.placing.take()
            wrong = self._placing.place(root_fd, hour, [offer.marked.stem for offer in offers.values()])
            if wrong:
                box.placing.trouble = wrong
                box.unplaced.update(offers)
            else:
                for name in offers:
                    self._remove(box, fd, name)
            if time.monotonic() >= until:
                break
        if box.placing is not None and not box.placing:
            trouble, box.placing = box.placing.trouble, None
            self._settle(box, trouble, now)

    def _settle(self, box: Box, trouble: str, now: float) -> None:
        if trouble:
            if box.place_at <= now:  # not at those that came meanwhile: they must not put off the others' next try
                box.failures += 1
                box.place_at = now + plan.backoff_s(box.failures, 0.0, random=0.5)
            box.trouble = trouble
            self._teller.cannot_write(box.sender, trouble, now)
        elif not box.unplaced:
            box.failures = 0
            if box.trouble:
                box.trouble = ""
                self._teller.can_write(box.sender)

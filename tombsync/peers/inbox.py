"""`delivery = "inbox"`: the tombstone is a name in an inbox there, and the peer's own agent puts it into the tree.

The account may create files in its inbox and lstat a read-only view of the tree, nothing else. The receiving agent
hides first, then makes the tombstone durable in the tree, and only then takes the name away: so where the name is gone
and the view shows the tombstone, the segment is hidden there and stays so.
"""

from __future__ import annotations

import heapq
import os
import stat
import time
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import paramiko

from tombsync.errors import BadName
from tombsync.names import Canary, Offer, canary_name, offer_name
from tombsync.peers import wire
from tombsync.peers.contract import Answer, Job
from tombsync.peers.session import SPARE, Asking, SftpSession, Steps, not_regular, not_served, refusal
from tombsync.plan import State

_MOST_UNTAKEN = 4_000  # names in the inbox at once: a third of what its file system holds
PATIENCE_S = 5.0  # then a name that is not taken is `received`, and asked for again later
PROBE_PATIENCE_S = 1.0  # of one that waited before
_CANARY_PATIENCE_S = 30.0
# How long the receiving agent takes is learnt: the first look comes a little after that (benchmarks/push.py, inbox).
_SOONEST_LOOK_S = 0.002
_FIRST_LOOK_S = 0.004
_LATEST_FIRST_LOOK_S = 0.25
_LATEST_LOOK_S = 0.5
_UNTAKEN = "in its inbox, and its agent has not taken it yet"


class _Look(NamedTuple):
    """Two requests in one round trip: whether the name is gone, and what the view has by then.

    Whichever the server answers first: the tombstone stands before the name goes, and stays.
    """

    name: bytes
    path: bytes


class InboxSession(SftpSession):
    """A session that offers tombstones and looks whether they were taken; a job may wait for the time of a look."""

    # As in the tree; but a name that was taken away keeps its inode of the inbox until its handle is closed.
    MOST_HANDLES = _MOST_UNTAKEN

    def __init__(
        self, peer: str, root: str, transport: paramiko.Transport, channel: paramiko.Channel, *, node: str
    ) -> None:
        """`node`: the name of this node, the origin of what was marked here."""
        super().__init__(peer, root, transport, channel)
        self._node = node
        self._looks: list[tuple[float, int, Steps]] = []  # a heap: when (monotonic), in which order
        self._looks_planned = 0
        self._looking = 0  # whose requests are on their way
        self._first_look_s = _FIRST_LOOK_S
        self._served: set[tuple[str, str]] = set()  # places that were seen in the view

    # -- waiting for a look -------------------------------------------------------------------------------------------

    @property
    def _parked(self) -> int:
        return len(self._looks) + self._looking

    def room(self, waiting: int, *, fresh: bool = False) -> int:
        """How many of `waiting` jobs to submit now; of `fresh` ones a few also where a backlog fills the inbox."""
        most = _MOST_UNTAKEN + (SPARE if fresh else 0)
        return max(0, min(super().room(waiting, fresh=fresh), most - len(self._jobs)))

    def due_in_s(self) -> float:
        """Seconds until the next look, or until a handle is closed."""
        due_s = super().due_in_s()
        if not self._looks or self._looking >= self._window:  # then an answer comes first
            return due_s
        return max(0.0, min(due_s, self._looks[0][0] - time.monotonic()))

    def _begin_due(self) -> None:
        # They hold no file of the server, and so have a window beside the one of what is being placed.
        now = time.monotonic()
        while self._looks and self._looks[0][0] <= now and self._looking < self._window:
            _, _, steps = heapq.heappop(self._looks)
            self._looking += 1
            self._advance(steps, wire.Reply(wire.OK))

    def _wait_for(self, steps: Steps, wanted: Any) -> None:
        if isinstance(wanted, _Look):
            replies: dict[bytes, wire.Reply] = {}
            for path in wanted:
                self._advance(self._half_of(wanted, path, replies, steps), None)
            return
        self._looks_planned += 1
        heapq.heappush(self._looks, (time.monotonic() + wanted, self._looks_planned, steps))

    def _half_of(self, look: _Look, path: bytes, replies: dict[bytes, wire.Reply], steps: Steps) -> Asking[Any]:
        """One of the two requests; the later answer goes on with the job."""
        replies[path] = yield (wire.lstat, path)
        if len(replies) == len(look):
            self._looking -= 1
            self._advance(steps, (replies[look.name], replies[look.path]))

    # -- the way of one job -------------------------------------------------------------------------------------------

    def _deliver(self, job: Job) -> Steps:
        stood = False
        # It had it once: a verify is answered by the view alone. So a receiver that has lost its index, and holds what
        # stands in its tree for a mass of marks, is not told again by whom it got that from: offering all of it at each
        # verify would be noise for ever on every link. It asks its own peers, which have it (push.Queue.held).
        if job.durable or not job.make_hour:
            answer, stood = yield from self._still_there(job)
            if answer is not None:
                return answer
        if not (yield from self._is_served(job)):
            return not_served(job)
        try:
            name = self._offer_name(job)
        except BadName as exc:
            return Answer(job.marker, State.REFUSED, exc.reason, "name")
        made = yield (wire.create, name)
        if made.code == wire.OK:
            self._close_later(made.handle)
        elif made.code == wire.FAILURE:  # it waits there already, or there is no room: only lstat tells
            waits = yield (wire.lstat, name)
            if waits.code == wire.NO_SUCH_FILE:
                return Answer(job.marker, State.PENDING, "cannot be created in its inbox: full?", "inbox-full")
        elif made.code == wire.NO_SUCH_FILE:
            return Answer(job.marker, State.REFUSED, "this account has no inbox there", "no-inbox")
        else:
            return refusal(job, made, "may not be created in its inbox")
        look = _Look(name, self._tombstone_path(job.marked))
        seen = yield from self._until_taken(look, PROBE_PATIENCE_S if job.probe else PATIENCE_S)
        if seen is None:
            return Answer(job.marker, State.RECEIVED, _UNTAKEN)
        return (yield from self._after_taken(job, seen, placed=made.code == wire.OK and not stood))

    def _look(self, job: Job) -> Steps:
        # Before the view: what its agent takes between the two looks is then found in the second.
        with suppress(BadName):  # too long a name for an inbox, so none waits there
            waits = yield (wire.lstat, self._offer_name(job))
            if waits.mode is not None:
                return Answer(job.marker, State.RECEIVED, _UNTAKEN)
        return (yield from super()._look(job))

    def _offer_name(self, job: Job) -> bytes:
        """What the file is called in the inbox. Raises BadName."""
        return os.fsencode(offer_name(Offer(job.marked, job.origin or self._node)))

    def _found(self, job: Job, path: bytes, mode: int) -> Steps:
        yield from ()  # its agent alone can make it durable, so there is nothing to ask for
        if not stat.S_ISREG(mode):
            return not_regular(job)
        if job.durable:
            return Answer(job.marker, State.CONFIRMED)
        return Answer(job.marker, State.NOT_DURABLE, "it stands there, and its agent has not confirmed it")

    def _still_there(self, job: Job) -> Asking[tuple[Answer | None, bool]]:
        """The answer where nothing has to be sent, None where it has; and whether the tombstone stands."""
        seen = yield (wire.lstat, self._tombstone_path(job.marked))
        if seen.mode is not None:
            if not stat.S_ISREG(seen.mode):
                return not_regular(job), False
            return (Answer(job.marker, State.CONFIRMED) if job.durable else None), True
        if seen.code != wire.NO_SUCH_FILE:
            return refusal(job, seen, "may not be asked for"), False
        if job.make_hour:
            return None, False
        answer = yield from self._without_hour(job)
        # PENDING: its hour is there, so it lost the tombstone alone
        return (None if answer.state is State.PENDING else answer), False

    def _is_served(self, job: Job) -> Asking[bool]:
        """Whether the view has the channel and quality; asked once a session."""
        place = job.marked.hour[:2]
        if place not in self._served:
            seen = yield (wire.lstat, self._path("/".join(place)))
            if seen.code != wire.OK:
                return False
            self._served.add(place)
        return True

    def _until_taken(self, look: _Look, patience_s: float) -> Asking[wire.Reply | None]:
        """Look now and then whether the name is gone, for as long as patience goes: what the view had then, or None."""
        begun = time.monotonic()
        wait_s = self._first_look_s
        first = True
        while True:
            yield wait_s
            answer: tuple[wire.Reply, wire.Reply] = yield look
            name, seen = answer
            gone = name.code == wire.NO_SUCH_FILE
            if first:
                factor = 0.95 if gone else 1.2
                self._first_look_s = min(_LATEST_FIRST_LOOK_S, max(_SOONEST_LOOK_S, self._first_look_s * factor))
            if gone:
                return seen
            waited_s = time.monotonic() - begun
            if waited_s >= patience_s:
                return None
            first = False
            wait_s = min(_LATEST_LOOK_S, waited_s / 2)  # so it is seen at most half as late again as it was taken

    def _after_taken(self, job: Job, seen: wire.Reply, *, placed: bool) -> Steps:
        if seen.mode is None:  # the view may have been looked at before the name
            seen = yield (wire.lstat, self._tombstone_path(job.marked))
        if seen.mode is not None:
            if stat.S_ISREG(seen.mode):
                return Answer(job.marker, State.CONFIRMED, placed=placed)
            return not_regular(job)
        self._served.discard(job.marked.hour[:2])
        if not (yield from self._is_served(job)):
            return not_served(job)
        what = "was taken from its inbox and is not in its view: refused there, or the view is stale"
        return Answer(job.marker, State.REFUSED, what, "not-applied")

    def _canary(self, *, marker_seen: bool) -> Steps:
        problem = yield from self._root_stands(marked=True)  # an agent runs there, which made it
        if not problem:
            problem = yield from self._send_canary()
        return Answer(0, State.CONFIRMED, problem)

    def _send_canary(self) -> Asking[str]:
        # One name for ever: where nobody takes it, no second one is left beside it.
        token = blake2b(self._node.encode(), digest_size=8).hexdigest()
        name = os.fsencode(canary_name(Canary(self._node, token)))
        made = yield (wire.create, name)
        if made.code == wire.OK:
            self._close_later(made.handle)
        elif made.code == wire.FAILURE:
            waits = yield (wire.lstat, name)
            if waits.code == wire.NO_SUCH_FILE:
                return "nothing can be created in its inbox: full?"
        else:
            return "this account has no inbox there, or may not create in it"
        taken = yield from self._until_taken(_Look(name, self._root), _CANARY_PATIENCE_S)
        return "its agent takes nothing from the inbox" if taken is None else ""

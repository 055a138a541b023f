"""What every session has: requests in flight over one channel, matched to whoever waits for the reply.

Each job is a generator that yields requests and is sent the replies, so that its way reads from top to bottom while
hundreds of them are in flight. How a job goes is said by the ways of delivery, `tree` and `inbox`.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

import paramiko

from tombsync import errors, precedence
from tombsync.names import EXTENSION, OWN_DIRECTORY, Hour, Kind, Marked, tombstone_name
from tombsync.peers import wire
from tombsync.peers.contract import Answer, Job
from tombsync.peers.greeting import greet
from tombsync.peers.packets import REPLY_TIMEOUT_S, Packets
from tombsync.peers.syncs import FEW_PLACING
from tombsync.plan import State, window

_LEAST_IN_FLIGHT = 256  # a fresh tombstone waits behind so many at most, about 10 ms of the server's time
_BATCHES = 4  # in one window: full ones halve the CPU that sending a few at a time costs (benchmarks/catchup.py)
MANY = 64  # of a backlog in flight: what is fresh does not wait for anybody
_MOST_IN_FLIGHT = 900  # an sshd with 1,024 files: each OPEN in flight may hold one (4,096 in flight failed 7 of 10)
_RESERVED_HANDLES = 100  # of the server's limit, for what it needs itself
SPARE = 256  # more than the window holds, for what is fresh
_FRESH_AT_ONCE = 32
CLOSED_AFTER_S = 0.02  # a few: not while the answer they gave is still on its way into the index (benchmarks/push.py)
_CLOSED_AT_ONCE = 256  # what is fresh waits behind so many, some ms; their replies are the sign for the next
_PLACE_S = 40e-6  # the server's time for one OPEN and CLOSE (measured by benchmarks/catchup.py)
# Others were answered meanwhile. A server that does one after the other is silent by then, and given up before.
LEFT_OUT_S = 3 * REPLY_TIMEOUT_S
_DATA = (EXTENSION[Kind.TS], EXTENSION[Kind.JSON])

NO_PLACE = "root, channel or quality is missing there"

Request = tuple[Any, ...]  # a builder of wire.py and its arguments behind the id
T = TypeVar("T")
Asking: TypeAlias = Generator[Any, Any, T]  # yields a Request and is sent its Reply; or what its way lets it wait for
Steps: TypeAlias = Asking[Answer]


class SftpSession:
    """A session over one channel. Every field belongs to the one thread that uses it; only `close` is for all.

    `can_sync`: the server has fsync@openssh.com. `root_there`: its tree stood there when the session began, and with
    `marker_there` the root marker in it (its directory: the name of the marker is known to that node alone).
    `canary_at`: when the way was last found to be whole (monotonic), None where it never was; `canary_problem`: what
    was wrong with it the last time.
    """

    MOST_HANDLES = _MOST_IN_FLIGHT  # kept open at the server, where it allows so many

    def __init__(self, peer: str, root: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        self.peer = peer
        self._root = os.fsencode(root.rstrip("/"))
        self.packets = Packets(peer, transport, channel)
        self._out: list[bytes] = []
        self._next_id = 0
        self._waiting: dict[int, Steps | None] = {}  # request id -> who gets the reply; None: nobody needs it
        self._sample: tuple[int, float] | None = None  # one request and when it was sent, to measure the round trip
        self._answers: list[Answer] = []
        self._jobs: dict[Steps, Job] = {}
        self._last_hour: Hour | None = None
        self._last_hour_path = b""
        self._to_close: list[bytes] = []  # handles that are done with
        self._close_at = 0.0  # when (monotonic)
        self.can_sync = False
        self.root_there = self.marker_there = False
        self._most_handles = self._most_in_flight = _MOST_IN_FLIGHT
        self.round_trip_s = 0.0
        self._last_heard = time.monotonic()
        self._oldest: tuple[int | None, float] = (None, 0.0)  # request that waits, and since when it is the oldest
        self.canary_at: float | None = None
        self.canary_problem = ""
        self._canary_running = False

    # -- what a way of delivery says ----------------------------------------------------------------------------------

    def _deliver(self, job: Job) -> Steps:
        """The way of one job that is to be delivered."""
        raise NotImplementedError

    def _found(self, job: Job, path: bytes, mode: int) -> Steps:
        """The answer where something stands at the tombstone's path."""
        raise NotImplementedError

    def _wait_for(self, steps: Steps, wanted: Any) -> None:
        """Let a job wait for something that is no reply."""
        raise NotImplementedError

    def _begin_due(self) -> None:
        """Start what is due although nothing arrived."""

    def due_in_s(self) -> float:
        """Seconds until the next call has something to send although nothing arrives."""
        if self._to_close and self._placing <= FEW_PLACING:
            return max(0.0, self._close_at - time.monotonic())
        return float("inf")

    @property
    def _parked(self) -> int:
        """Jobs that wait for something that is no reply."""
        return 0

    def _canary(self, *, marker_seen: bool) -> Steps:
        """Walk the way without a file in any hour directory; the answer's detail says what is wrong."""
        raise NotImplementedError

    # -- the contract -------------------------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Jobs submitted and not yet answered."""
        return len(self._jobs)

    @property
    def _placing(self) -> int:
        """Jobs whose requests are on their way."""
        return len(self._jobs) - self._parked

    @property
    def _window(self) -> int:
        """How many may be on their way: it grows with the round-trip time."""
        wanted = window(self.round_trip_s, _PLACE_S, least=_LEAST_IN_FLIGHT, most=_MOST_IN_FLIGHT)
        return min(self._most_in_flight, wanted)

    def room(self, waiting: int, *, fresh: bool = False) -> int:
        """How many of `waiting` jobs to submit now; of `fresh` ones a few also where a backlog fills the window."""
        most = self._window
        spare = min(SPARE, self._most_handles // 4)
        # Each one on its way, and each handle that stays behind `submit`, is an open file there.
        handles = self._most_handles - len(self._to_close) + self._closing
        room = min(most, handles - spare) - self._placing
        if fresh:
            room = max(room, min(_FRESH_AT_ONCE, min(most + spare, handles) - self._placing))
        elif room < min(waiting, most // _BATCHES):
            return 0
        return max(0, min(waiting, room))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs. Raises PeerError."""
        self._close_handles()
        begun = [(self._asked(job) if job.ask_only or job.ask_data else self._deliver(job), job) for job in jobs]
        for steps, job in begun:  # all of them first: each hour's crowd decides how its tombstones are synced
            self._jobs[steps] = job
            self._enter(job)
        for steps, _ in begun:
            self._advance(steps, None)
        self._begin_due()
        self._flush()

    def ping(self) -> None:
        """Ask for the root, so that a dead session shows within REPLY_TIMEOUT_S. Raises PeerError."""
        self._request(None, (wire.lstat, self._root))
        self._flush()

    def walk_canary(self, *, marker_seen: bool = False) -> None:
        """Begin to see whether the whole way stands; nothing where that is still going on. Raises PeerError."""
        if not self._canary_running:
            self._canary_running = True
            self._advance(self._run_canary(marker_seen=marker_seen), None)
            self._flush()

    def _run_canary(self, *, marker_seen: bool) -> Steps:
        answer = yield from self._canary(marker_seen=marker_seen)
        self._canary_running = False
        self.canary_problem = answer.detail
        if not answer.detail:
            self.canary_at = time.monotonic()
        return answer

    def fileno(self) -> int:
        """Polls as readable when something arrived or the channel ended."""
        return self.packets.descriptor

    def collect(self, now: float) -> list[Answer]:
        """Handle what arrived. Raises PeerTimeout, PeerLost, PeerProtocol."""
        self._close_handles()
        self._begin_due()  # not behind what arrives: first the caller submits what there is room for then
        heard = False
        with self.packets.protocol():
            for kind, request, body in self.packets.arrived():
                heard = True
                self._handle(kind, request, body)
                if len(self._jobs) > MANY:
                    precedence.give_way()
        if heard or not self._waiting:
            self._last_heard = now
        elif now - self._last_heard > REPLY_TIMEOUT_S:
            raise errors.PeerTimeout(self.peer, f"{len(self._waiting)} requests wait")
        self._see_left_out(now)
        self._flush()
        answers, self._answers = self._answers, []
        return answers

    def _see_left_out(self, now: float) -> None:
        """A request without an answer must not keep its job for ever, where the server goes on with others."""
        oldest = next(iter(self._waiting), None)
        if oldest != self._oldest[0]:
            self._oldest = (oldest, now)
        elif oldest is not None and now - self._oldest[1] > LEFT_OUT_S:
            raise errors.PeerTimeout(self.peer, "it answers others, and leaves one request out")

    def close(self) -> None:
        """End the session; from any thread."""
        self.packets.close()

    def begin(self, deadline: float) -> None:
        """Agree on the version, learn limits and round trip. Raises PeerError."""
        learnt = greet(self.packets, self.peer, self._root, deadline)
        self.can_sync = wire.FSYNC in learnt.extensions
        if learnt.handles:
            self._most_handles = max(1, min(self.MOST_HANDLES, learnt.handles - _RESERVED_HANDLES))
            self._most_in_flight = min(_MOST_IN_FLIGHT, self._most_handles)
        self.round_trip_s = learnt.round_trip_s
        self.root_there, self.marker_there = learnt.root_there, learnt.marker_there
        self._last_heard = time.monotonic()

    # -- what every way of delivery asks ------------------------------------------------------------------------------

    def _asked(self, job: Job) -> Steps:
        """The way of a job that asks for more than that its tombstone is there, or for less."""
        answer = yield from self._look(job) if job.ask_only else self._deliver(job)
        if job.ask_data:
            answer = answer._replace(data=(yield from self._has_data(job)))
        return answer

    def _look(self, job: Job) -> Steps:
        """Whether the tombstone is there; nothing is created."""
        path = self._tombstone_path(job.marked)
        reply = yield (wire.lstat, path)
        if reply.mode is not None:
            return (yield from self._found(job, path, reply.mode))
        if reply.code != wire.NO_SUCH_FILE:
            return refusal(job, reply, "may not be asked for")
        answer = yield from self._without_hour(job)
        return Answer(job.marker, State.PENDING, "it is not there") if answer.state is State.PENDING else answer

    def _has_data(self, job: Job) -> Asking[bool | None]:
        """Whether the peer has data of the stem; None where that is not answered."""
        for extension in _DATA:
            reply = yield (wire.lstat, self._path(job.marked.path + extension))
            if reply.mode is not None:
                return True
            if reply.code != wire.NO_SUCH_FILE:
                return None
        return False

    def _without_hour(self, job: Job) -> Steps:
        """The peer had the tombstone once and its hour is missing: is the hour gone, or more than that?"""
        hour = job.marked.hour
        reply = yield (wire.lstat, self._path(hour.path))
        if reply.code == wire.OK:
            return Answer(job.marker, State.PENDING, "its hour came back", "failure")
        reply = yield (wire.lstat, self._path(f"{hour.channel}/{hour.quality}"))
        if reply.code == wire.OK:
            return Answer(job.marker, State.HOUR_GONE, "the hour is no longer kept there")
        return not_served(job)

    def _root_stands(self, *, marked: bool) -> Asking[str]:
        """What is wrong with the peer's tree; "" where it stands. `marked`: it has to have its root marker."""
        marker = yield (wire.lstat, self._path(OWN_DIRECTORY))
        self.marker_there = marker.mode is not None and stat.S_ISDIR(marker.mode)
        if self.marker_there:
            return ""
        root = yield (wire.lstat, self._root)
        if root.code != wire.OK:
            return "its segment tree is missing there"
        return "its segment tree has no root marker: is it mounted there?" if marked else ""

    # -- driving the generators ---------------------------------------------------------------------------------------

    def _advance(self, steps: Steps, reply: Any) -> None:
        try:
            wanted = next(steps) if reply is None else steps.send(reply)
        except StopIteration as end:
            job = self._jobs.pop(steps, None)
            if job is not None:
                self._answers.append(end.value)
                self._leave(job)
            return
        if type(wanted) is tuple:
            self._request(steps, wanted)
        else:
            self._wait_for(steps, wanted)

    def _enter(self, job: Job) -> None:
        """A job begins."""

    def _leave(self, job: Job) -> None:
        """A job was answered."""

    def _request(self, steps: Steps | None, wanted: Request) -> None:
        self._next_id = request = (self._next_id + 1) & 0xFFFFFFFF
        self._waiting[request] = steps
        if self._sample is None:
            self._sample = (request, time.monotonic())
        self._out.append(wanted[0](request, *wanted[1:]))

    def _close_later(self, handle: bytes) -> None:
        """Soon: first the caller learns what was answered."""
        if not self._to_close:
            self._close_at = time.monotonic() + CLOSED_AFTER_S
        self._to_close.append(handle)

    @property
    def _closing(self) -> int:
        """How many handles to close next: behind what is still to be placed, while the server has enough for both."""
        lacking = len(self._to_close) + self._window - self._most_handles
        if lacking < 0:
            if self._placing > FEW_PLACING:
                return 0
            if len(self._to_close) < MANY and time.monotonic() < self._close_at:
                return 0
        return min(len(self._to_close), max(_CLOSED_AT_ONCE, lacking))

    def _close_handles(self) -> None:
        if count := self._closing:
            closing, self._to_close = self._to_close[:count], self._to_close[count:]
            for handle in closing:
                self._request(None, (wire.close, handle))

    def _path(self, relative: str) -> bytes:
        return self._root + b"/" + os.fsencode(relative)

    def _tombstone_path(self, marked: Marked) -> bytes:
        """As `_path`, at less cost: a catch-up asks for thousands in one hour."""
        if marked.hour != self._last_hour:
            self._last_hour, self._last_hour_path = marked.hour, self._path(marked.hour.path) + b"/"
        return self._last_hour_path + os.fsencode(tombstone_name(marked.stem))

    def _handle(self, kind: int, request: int, body: bytes) -> None:
        try:
            steps = self._waiting.pop(request)
        except KeyError:
            raise wire.NotSftp("a reply to nothing that was asked") from None
        if self._sample and self._sample[0] == request:
            taken = time.monotonic() - self._sample[1]
            self._sample = None
            # The least of what was seen lately: queueing at the server must not widen the window that causes it.
            self.round_trip_s = (
                taken if taken < self.round_trip_s else self.round_trip_s + (taken - self.round_trip_s) * 0.01
            )
        if steps is not None:
            self._advance(steps, wire.parse_reply(kind, body))

    def _flush(self) -> None:
        if self._out:
            data, self._out = b"".join(self._out), []
            self.packets.send(data)


def refusal(job: Job, reply: wire.Reply, what: str) -> Answer:
    if reply.code == wire.PERMISSION_DENIED:
        return Answer(job.marker, State.REFUSED, f"{what} there: permission denied", "permission")
    return Answer(job.marker, State.REFUSED, f"{what} there: {reply.message or reply.code}", "refused")


def not_served(job: Job) -> Answer:
    """The answer where there is no place for the tombstone."""
    return Answer(job.marker, State.NOT_SERVED, NO_PLACE, "not-served")


def not_regular(job: Job) -> Answer:
    """The answer where something else has the tombstone's name."""
    return Answer(job.marker, State.REFUSED, "a directory, link or device has its name there", "not-regular")

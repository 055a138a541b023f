"""The network: directed links, each with an SFTP server's answers at its end and every fault that a network has."""

from __future__ import annotations

import os

from tests.model.ground import Ground
from tombsync.errors import PeerError, PeerLost, PeerTimeout, PeerUnreachable
from tombsync.names import Marked
from tombsync.peers import REPLY_TIMEOUT_S, Answer, Job, Target
from tombsync.plan import KEEP_STATES, State

_WINDOW = 3
_SPARE = 1  # for what is fresh
_NOTHING_TO_READ = os.eventfd(
    0, os.EFD_NONBLOCK | os.EFD_CLOEXEC
)  # sessions are asked again and again: none wakes anybody


class Link:
    """From one node to a peer of it, and the peer's SFTP server, which acts on the peer's tree.

    What the machine sets: `up`; `requests_wait`, `answers_wait` (until `move`); `backwards` (answers come in another
    order). `confirmed`: of what the server has ever said that it stands there durably; `answered`: what it has given
    any last answer to.
    """

    def __init__(self, name: str, ground: Ground, *, can_sync: bool) -> None:
        self.target = Target(name, "peer.invalid", 22, "tombsync", "/nonexistent", "/nonexistent", "/segments")
        self.up = True
        self.requests_wait = self.answers_wait = self.backwards = False
        self.session: ModelSession | None = None
        self.late: list[Job] = []  # requests of ended sessions that the server may still act on
        self.confirmed: set[Marked] = set()
        self.answered: set[Marked] = set()
        self.steps = 0  # counts what was connected, submitted and answered
        self.placed = 0
        self.acts: list[tuple[Job, Answer]] = []
        self.ground = ground
        self._can_sync = can_sync

    # -- a connector --------------------------------------------------------------------------------------------------

    def connect(self) -> ModelSession:
        """A new session. Raises PeerUnreachable."""
        if not self.up:
            raise PeerUnreachable(self.target.name)
        self.steps += 1
        self.session = ModelSession(self)
        return self.session

    def abort(self) -> None:
        """Nothing waits in here."""

    @property
    def quick(self) -> bool:
        """Whether the link has no fault."""
        return self.up and not (self.requests_wait or self.answers_wait)

    # -- faults -------------------------------------------------------------------------------------------------------

    def move(self, *, request: bool) -> None:
        """One request that waits is acted on, or one answer that waits arrives."""
        if self.session is not None:
            self.session.move(request=request)

    def cut(self) -> None:
        """End the session, as a fault does."""
        if self.session is not None:
            self.session.end(PeerLost(self.target.name))

    def act_late(self) -> None:
        """The server acts on what an ended session had sent."""
        for job in self.late:
            self.act(job)
        self.late.clear()

    def forget(self) -> None:
        """What is asked of the server from now on does not know what it said before."""
        self.confirmed.clear()
        self.answered.clear()

    def heal(self) -> None:
        """End every fault."""
        self.up = True
        self.requests_wait = self.answers_wait = self.backwards = False
        self.act_late()

    # -- the server ---------------------------------------------------------------------------------------------------

    def act(self, job: Job) -> Answer:
        """Do a job in the peer's tree, as peers.contract says."""
        answer = self._act(job)
        self.placed += answer.placed
        self.acts.append((job, answer))
        if answer.state is State.CONFIRMED and self.ground.holds(job.marked):
            self.confirmed.add(job.marked)
        if answer.state not in KEEP_STATES:
            self.answered.add(job.marked)
        return answer

    def _act(self, job: Job) -> Answer:
        hour = job.marked.hour
        if self.ground.holds(job.marked):
            return self._held(job, placed=False)
        if hour not in self.ground.kept:
            if not self.ground.serves(hour):
                return Answer(job.marker, State.NOT_SERVED, "channel or quality is missing there", "not-served")
            if not job.make_hour:
                return Answer(job.marker, State.HOUR_GONE, "the hour is no longer kept there")
            self.ground.add_hour(hour)
        self.ground.touch(job.marked)
        return self._held(job, placed=True)

    def _held(self, job: Job, *, placed: bool) -> Answer:
        if self._can_sync or (job.durable and not placed):
            return Answer(job.marker, State.CONFIRMED, placed=placed)
        return Answer(job.marker, State.NOT_DURABLE, "it cannot sync", placed=placed)


class ModelSession:
    """A session over a Link; see peers.contract.Session."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._failure: PeerError | None = None
        self._requests: list[Job] = []  # sent, and not acted on
        self._answers: list[Answer] = []  # on their way
        self._arrived: list[Answer] = []
        self._pinged = False
        self.marker_there = True
        self.canary_at: float | None = None
        self.canary_problem = ""
        self._heard_at: float | None = None

    @property
    def outstanding(self) -> int:
        """Jobs submitted and not yet answered."""
        return len(self._requests) + len(self._answers) + len(self._arrived)

    def due_in_s(self) -> float:
        """Never: what was submitted is on its way."""
        return float("inf")

    def walk_canary(self, *, marker_seen: bool = False) -> None:
        """Nothing: the model has no canaries."""

    def room(self, waiting: int, *, fresh: bool = False) -> int:
        """How many of `waiting` jobs to submit now."""
        return max(0, min(waiting, _WINDOW + _SPARE * fresh - self.outstanding))

    def submit(self, jobs: list[Job]) -> None:
        """Send jobs. Raises PeerError."""
        self._require_open()
        self._requests.extend(jobs)
        self._link.steps += len(jobs)

    def ping(self) -> None:
        """Wait for an answer to nothing. Raises PeerError."""
        self._require_open()
        self._pinged = True

    def collect(self, now: float) -> list[Answer]:
        """Take what arrived. Raises PeerError."""
        self._require_open()
        link = self._link
        if link.up:
            while self._requests and not link.requests_wait:
                self.move(request=True)
            while self._answers and not link.answers_wait:
                self.move(request=False)
        answers, self._arrived = self._arrived, []
        if answers or (link.up and not self.outstanding):
            self._pinged, self._heard_at = False, now
        elif self._heard_at is None:
            self._heard_at = now
        elif (self.outstanding or self._pinged) and now - self._heard_at > REPLY_TIMEOUT_S:
            raise PeerTimeout(link.target.name)
        link.steps += len(answers)
        return answers

    def move(self, *, request: bool) -> None:
        """One request is acted on, or one answer arrives."""
        queue: list[Job] | list[Answer] = self._requests if request else self._answers
        if not queue:
            return
        item = queue.pop(-1 if self._link.backwards else 0)
        if isinstance(item, Job):
            self._answers.append(self._link.act(item))
        else:
            self._arrived.append(item)

    def fileno(self) -> int:
        """Never readable: see the Pusher's turns in agent.py."""
        return _NOTHING_TO_READ

    def close(self) -> None:
        """End the session."""
        self.end(PeerLost(self._link.target.name))

    def end(self, failure: PeerError) -> None:
        """What was sent may still be acted on; answers are lost."""
        if self._failure is None:
            self._failure = failure
            self._link.late.extend(self._requests)
            if self._link.session is self:
                self._link.session = None

    def _require_open(self) -> None:
        if self._failure is not None:
            raise self._failure

"""What a pusher asks of a peer, whatever the way of delivery (the contract in prose: this package's docstring)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tombsync.names import Marked
from tombsync.plan import State


class Job(NamedTuple):
    """One tombstone to deliver or to ask for.

    `probe`: ask whether it is there before creating it (a backlog, a verify). `make_hour`: a missing HOUR directory may
    be made (a first delivery). `durable`: the peer was known to hold it durably, so seeing it again is enough.
    `origin`: the node that marked it first. `ask_data`: ask also whether data of its stem is there. `ask_only`: create
    nothing; the answer is PENDING where it is not there and could be.
    """

    marker: int
    marked: Marked
    probe: bool = False
    make_hour: bool = True
    durable: bool = False
    origin: str = ""
    ask_data: bool = False
    ask_only: bool = False


class Answer(NamedTuple):
    """What became of a job; PENDING means that it has to be tried again.

    `reason`: a short word for the metric of failures. `placed`: it was not there, and this job created it (a first
    delivery by inbox does not ask whether it was there). `data`: whether the peer has data of the stem; None where that
    was not asked.
    """

    marker: int
    state: State
    detail: str = ""
    reason: str = ""
    placed: bool = False
    data: bool | None = None


class Session(Protocol):
    """An open session with one peer, owned by one thread."""

    @property
    def root_there(self) -> bool:
        """Whether the peer's tree, or by inbox the view of it, stood there when the session began."""

    @property
    def marker_there(self) -> bool:
        """Whether its root marker stood there, at the beginning and then at the last walk of the canary.

        An agent makes one in its tree. Without it the tree may be an empty mount point.
        """

    def room(self, waiting: int, *, fresh: bool = False) -> int:
        """How many jobs may be submitted now, of `waiting`; of `fresh` ones a few also where a backlog fills it."""

    def due_in_s(self) -> float:
        """Seconds until the next call has something to send although nothing arrives; inf where it has not."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs. Raises PeerError."""

    def ping(self) -> None:
        """Ask something harmless, so that a dead session shows within REPLY_TIMEOUT_S. Raises PeerError."""

    def walk_canary(self, *, marker_seen: bool = False) -> None:
        """Begin to see whether the whole way stands, without a file in any hour directory. Raises PeerError.

        `marker_seen`: its root marker stood there once, so it has to stand there; by inbox it always has to.
        """

    @property
    def canary_at(self) -> float | None:
        """When it was last found to stand (monotonic); None where it never was."""

    @property
    def canary_problem(self) -> str:
        """What was wrong with it the last time; "" where nothing was."""

    def collect(self, now: float) -> list[Answer]:
        """Take what was answered, without waiting. `now` is the monotonic clock. Raises PeerError."""

    def fileno(self) -> int:
        """A descriptor that polls as readable when `collect` has something to do."""

    @property
    def outstanding(self) -> int:
        """Jobs submitted and not yet answered."""

    def close(self) -> None:
        """End the session; from any thread."""

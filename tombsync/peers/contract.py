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
    """

    marker: int
    marked: Marked
    probe: bool = False
    make_hour: bool = True
    durable: bool = False


class Answer(NamedTuple):
    """What became of a job; PENDING means that it has to be tried again.

    `reason`: a short word for the metric of failures. `placed`: it was not there, and this job created it.
    """

    marker: int
    state: State
    detail: str = ""
    reason: str = ""
    placed: bool = False


class Session(Protocol):
    """An open session with one peer, owned by one thread."""

    def room(self, waiting: int) -> int:
        """How many jobs may be submitted now, of `waiting`."""

    @property
    def unsent(self) -> bool:
        """Whether the next call has something to send although nothing arrives: it should come soon."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs. Raises PeerError."""

    def ping(self) -> None:
        """Ask something harmless, so that a dead session shows within REPLY_TIMEOUT_S. Raises PeerError."""

    def collect(self, now: float) -> list[Answer]:
        """Take what was answered, without waiting. `now` is the monotonic clock. Raises PeerError."""

    def fileno(self) -> int:
        """A descriptor that polls as readable when `collect` has something to do."""

    @property
    def outstanding(self) -> int:
        """Jobs submitted and not yet answered."""

    def close(self) -> None:
        """End the session; from any thread."""

"""A peer without a network: a segment tree in memory, and sessions that answer as the contract of `peers` says.

The conformity suite (tests/contract/test_peer_contract.py) runs on it as on real servers, so that tests of whoever
pushes may rely on it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tombsync.errors import PeerError, PeerLost
from tombsync.names import OWN_DIRECTORY, Hour
from tombsync.peers import Answer, Job, Target
from tombsync.plan import State

DIRECTORY, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644

_SPARE = 32  # for what is fresh


class Entry(NamedTuple):
    """What stands at a path: `mode` as st_mode, `content` of a file or the target of a link."""

    mode: int
    content: bytes = b""
    changed: int = 0  # of a file: differs after every change; in here a count, in a real tree the mtime


class MemoryPeer:
    """The peer, and its connector in one: `target`, `connect` and `abort` are what a pusher asks for.

    What a test may set at any time: `down` (what `connect` raises), `window` (jobs in flight at most), `answers_a_turn`
    (how many jobs one `collect` answers at most; 0 holds all answers back), `can_sync`, `full`, `unwritable` (paths of
    directories), `canary_problem` (what a walk of the canary finds). `on_connect` and `on_collect` run at the beginning
    of each such call. `submitted` is every job in the order in which it was submitted, `logins` counts the connects.
    Use `with`, or `close`: sessions hold descriptors.
    """

    def __init__(self, name: str = "peer", *, known_hosts: str = "/nonexistent", window: int = 64) -> None:
        self.target = Target(name, "peer.invalid", 22, "tombsync", "/nonexistent", known_hosts, "/segments")
        self.window = window
        self.down: PeerError | None = None
        self.answers_a_turn = 1_000_000
        self.can_sync = True
        self.full = False
        self.canary_problem = ""
        self.unwritable: set[str] = set()
        self.on_connect: Callable[[], None] = lambda: None
        self.on_collect: Callable[[], None] = lambda: None
        self.aborted = threading.Event()
        self.logins = 0
        self.submitted: list[Job] = []
        self.sessions: list[MemorySession] = []
        self._entries: dict[str, Entry] = {"": Entry(DIRECTORY)}
        self._changes = 0

    def __enter__(self) -> MemoryPeer:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self.sessions:
            session.release()

    # -- a connector --------------------------------------------------------------------------------------------------

    def connect(self) -> MemorySession:
        """A new session. Raises what `down` says."""
        self.logins += 1
        self.on_connect()
        if self.aborted.is_set():
            raise PeerLost(self.target.name, "stopping")
        if self.down is not None:
            raise self.down
        session = MemorySession(self)
        self.sessions.append(session)
        return session

    def abort(self) -> None:
        """From any thread: no connect succeeds any more."""
        self.aborted.set()

    # -- the tree -----------------------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            self._entries.setdefault("/".join(parts[:depth]), Entry(DIRECTORY))

    def make_file(self, path: str, content: bytes = b"") -> None:
        """Make or replace a file."""
        self._entries[path] = self._entry(FILE, content)

    def make_link(self, path: str, target: str) -> None:
        """Make a symlink."""
        self._entries[path] = self._entry(stat.S_IFLNK | 0o777, os.fsencode(target))

    def make_fifo(self, path: str) -> None:
        """Make a named pipe."""
        self._entries[path] = self._entry(stat.S_IFIFO | 0o644)

    def remove(self, path: str) -> None:
        """Remove a path with all below it; "" takes the root away."""
        for known in list(self._entries):
            if not path or known == path or known.startswith(f"{path}/"):
                del self._entries[known]

    def look(self) -> dict[str, Entry]:
        """Everything that stands there, by path."""
        return dict(self._entries)

    @property
    def marked(self) -> bool:
        """Whether the tree has its root marker."""
        return self._is_directory(OWN_DIRECTORY)

    @contextlib.contextmanager
    def without_room(self) -> Iterator[None]:
        """Nothing can be created inside of the block."""
        self.full = True
        yield
        self.full = False

    @contextlib.contextmanager
    def without_right(self, path: str) -> Iterator[None]:
        """Nothing may be created in one directory, inside of the block."""
        self.unwritable.add(path)
        yield
        self.unwritable.remove(path)

    def _entry(self, mode: int, content: bytes = b"") -> Entry:
        self._changes += 1
        return Entry(mode, content, self._changes)

    # -- what becomes of a job ----------------------------------------------------------------------------------------

    def answer(self, job: Job) -> Answer:
        """Do a job at once."""
        answer = self._look(job) if job.ask_only else self._deliver(job)
        return answer._replace(data=self._has_data(job)) if job.ask_data else answer

    def _look(self, job: Job) -> Answer:
        if job.marked.tombstone_path in self._entries:
            return self._deliver(job)
        answer = None
        if not self._is_directory(job.marked.hour.path):
            answer = self._without_hour(job._replace(make_hour=False), job.marked.hour)
        return answer or Answer(job.marker, State.PENDING, "it is not there")

    def _has_data(self, job: Job) -> bool:
        return any(job.marked.path + extension in self._entries for extension in (".ts", ".json"))

    def _deliver(self, job: Job) -> Answer:
        path, hour = job.marked.tombstone_path, job.marked.hour
        found = self._entries.get(path)
        if found is not None:
            if not stat.S_ISREG(found.mode):
                return Answer(job.marker, State.REFUSED, "something else has its name there", "not-regular")
            return self._held(job, placed=False)
        if not self._is_directory(hour.path):
            if refusal := self._without_hour(job, hour):
                return refusal
            self.make_directory(hour.path)
        if refusal := self._room_in(hour.path, job):
            return refusal
        self.make_file(path)
        return self._held(job, placed=True)

    def _without_hour(self, job: Job, hour: Hour) -> Answer | None:
        place = f"{hour.channel}/{hour.quality}"
        if not self._is_directory(place):
            return Answer(job.marker, State.NOT_SERVED, "root, channel or quality is missing there", "not-served")
        if hour.path in self._entries:
            return Answer(job.marker, State.PENDING, "something else has its hour's name there", "failure")
        if not job.make_hour:
            return Answer(job.marker, State.HOUR_GONE, "the hour is no longer kept there")
        return self._room_in(place, job)

    def _room_in(self, directory: str, job: Job) -> Answer | None:
        if directory in self.unwritable:
            return Answer(job.marker, State.REFUSED, "permission denied there", "permission")
        if self.full:
            return Answer(job.marker, State.PENDING, "full", "failure")
        return None

    def _held(self, job: Job, *, placed: bool) -> Answer:
        if self.can_sync or (job.durable and not placed):
            return Answer(job.marker, State.CONFIRMED, placed=placed)
        return Answer(job.marker, State.NOT_DURABLE, "it cannot sync", placed=placed)

    def _is_directory(self, path: str) -> bool:
        found = self._entries.get(path)
        return found is not None and stat.S_ISDIR(found.mode)


class MemorySession:
    """A session with a MemoryPeer; see `peers.contract.Session`. Jobs are done by the `collect` that answers them.

    `failure` is what the next call raises; `lose` sets it as a broken network would. `pings` counts.
    """

    def __init__(self, peer: MemoryPeer) -> None:
        self.failure: PeerError | None = None
        self.pings = 0
        self.root_there = "" in peer.look()
        self.marker_there = peer.marked
        self.canary_at: float | None = None
        self.canary_problem = ""
        self._peer = peer
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()  # held while the descriptor is made to say what is the case
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def outstanding(self) -> int:
        """Jobs submitted and not yet answered."""
        return len(self._waiting)

    def due_in_s(self) -> float:
        """Never: what was submitted is on its way."""
        return float("inf")

    def room(self, waiting: int, *, fresh: bool = False) -> int:
        """How many of `waiting` jobs to submit now."""
        return max(0, min(waiting, self._peer.window + _SPARE * fresh - len(self._waiting)))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; one that waits for its answer already must not come again. Raises PeerError."""
        self._require_open()
        again = {job.marker for job in self._waiting} & {job.marker for job in jobs}
        assert not again, f"submitted while in flight: {sorted(again)}"
        self._peer.submitted.extend(jobs)
        self._waiting.extend(jobs)
        self._show()

    def ping(self) -> None:
        """Count it. Raises PeerError."""
        self._require_open()
        self.pings += 1

    def walk_canary(self, *, marker_seen: bool = False) -> None:
        """Find what the peer says of its way, and whether its tree stands there. Raises PeerError."""
        self._require_open()
        self.marker_there = self._peer.marked
        self.canary_problem = self._peer.canary_problem
        if "" not in self._peer.look():
            self.canary_problem = "its segment tree is missing there"
        elif marker_seen and not self.marker_there:
            self.canary_problem = "its segment tree has no root marker: is it mounted there?"
        if not self.canary_problem:
            self.canary_at = time.monotonic()

    def collect(self, now: float) -> list[Answer]:
        """Do some jobs and answer them. Raises PeerError."""
        self._peer.on_collect()
        self._require_open()
        count = min(len(self._waiting), self._peer.answers_a_turn)
        answers = [self._peer.answer(self._waiting.popleft()) for _ in range(count)]
        self._show()
        return answers

    def fileno(self) -> int:
        """Readable when `collect` has something to do or to raise."""
        return self._descriptor

    def lose(self, failure: PeerError | None = None) -> None:
        """End the session as a fault would; from any thread."""
        with self._lock:
            self.failure = failure or PeerLost(self._peer.target.name)
            os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """End the session; from any thread."""
        self.lose()

    def release(self) -> None:
        """Give the descriptor back, when nobody can be waiting for it any more."""
        os.close(self._descriptor)

    def _require_open(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _show(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._waiting and self._peer.answers_a_turn:
                os.eventfd_write(self._descriptor, 1)
            elif self.failure is None:
                os.eventfd_read(self._descriptor)

"""`delivery = "tree"`: the tombstone is created at its place in the peer's segment tree.

What makes a tombstone durable follows behind the placing: alone in its hour it is synced by its own handle; where
several of an hour wait, one sync of the hour directory covers them all (one journal commit instead of one for each, and
it needs no right to read the files).
"""

from __future__ import annotations

import stat
import time
from typing import Any

import paramiko

from tombsync import precedence
from tombsync.names import Hour
from tombsync.peers import wire
from tombsync.peers.contract import Answer, Job
from tombsync.peers.session import MANY, SftpSession, Steps, not_regular, not_served, refusal
from tombsync.peers.syncs import Syncs
from tombsync.plan import State

_NO_FSYNC = "the server has no fsync@openssh.com"


class TreeSession(SftpSession):
    """A session that creates tombstones in the peer's tree; a job may wait for a sync of its hour directory."""

    # While there is more to place: closing costs the server half as much as placing does (benchmarks/catchup.py).
    MOST_HANDLES = 16_384

    def __init__(self, peer: str, root: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        super().__init__(peer, root, transport, channel)
        self._in_hour: dict[Hour, int] = {}  # jobs in flight by hour
        self._syncs: Syncs[Steps] = Syncs()

    @property
    def _parked(self) -> int:
        return self._syncs.members

    @property
    def _sync_due(self) -> bool:
        return self._syncs.due(time.monotonic(), placing=self._placing, round_trip_s=self.round_trip_s)

    def due_in_s(self) -> float:
        """Seconds until the next call has something to send although nothing arrives."""
        return 0.0 if self._sync_due else super().due_in_s()

    def _begin_due(self) -> None:
        while self._sync_due:
            self._advance(self._sync_hour(self._syncs.next()), None)

    def _wait_for(self, steps: Steps, wanted: Any) -> None:
        self._syncs.wait(wanted, steps, time.monotonic())

    def _enter(self, job: Job) -> None:
        self._in_hour[job.marked.hour] = self._in_hour.get(job.marked.hour, 0) + 1

    def _leave(self, job: Job) -> None:
        hour = job.marked.hour
        left = self._in_hour[hour] - 1
        if left:
            self._in_hour[hour] = left
        else:
            del self._in_hour[hour]

    def _canary(self, *, marker_seen: bool) -> Steps:
        return Answer(0, State.CONFIRMED, (yield from self._root_stands(marked=marker_seen)))

    # -- the way of one job -------------------------------------------------------------------------------------------

    def _deliver(self, job: Job) -> Steps:
        path = self._tombstone_path(job.marked)
        if job.probe:
            reply = yield (wire.lstat, path)
            if reply.mode is not None:
                return (yield from self._found(job, path, reply.mode))
            if reply.code != wire.NO_SUCH_FILE:
                return refusal(job, reply, "may not be asked for")
        for _ in range(2):
            reply = yield (wire.create, path)
            if reply.code == wire.OK:
                return (yield from self._placed(job, path, reply.handle))
            if reply.code == wire.FAILURE:  # there already, disk full, read-only: only lstat tells
                found = yield (wire.lstat, path)
                if found.mode is not None:
                    return (yield from self._found(job, path, found.mode))
                return Answer(job.marker, State.PENDING, "cannot be created there: full or read-only?", "failure")
            if reply.code != wire.NO_SUCH_FILE:
                return refusal(job, reply, "may not be created")
            if not job.make_hour:
                return (yield from self._without_hour(job))
            made = yield (wire.mkdir, self._path(job.marked.hour.path))
            if made.code == wire.NO_SUCH_FILE:
                return not_served(job)
            if made.code not in (wire.OK, wire.FAILURE):  # FAILURE: somebody else has just made it
                return refusal(job, made, "its hour may not be made")
        return Answer(job.marker, State.PENDING, "its hour cannot be made there: full or read-only?", "failure")

    def _placed(self, job: Job, path: bytes, handle: bytes) -> Steps:
        """It stands and hides there; now make it durable."""
        if self.can_sync and self._in_hour[job.marked.hour] == 1 and self._syncs.may_run(self.round_trip_s):
            self._syncs.running += 1
            reply = yield (wire.fsync, handle)
            self._syncs.running -= 1
            self._close_later(handle)
            return self._durability(job, reply, placed=True)
        self._close_later(handle)
        return (yield from self._synced(job, path, placed=True))

    def _found(self, job: Job, path: bytes, mode: int) -> Steps:
        if not stat.S_ISREG(mode):
            return not_regular(job)
        if job.durable:
            return Answer(job.marker, State.CONFIRMED)
        return (yield from self._synced(job, path, placed=False))

    def _synced(self, job: Job, path: bytes, *, placed: bool) -> Steps:
        if not self.can_sync:
            return Answer(job.marker, State.NOT_DURABLE, _NO_FSYNC, placed=placed)
        reply = yield job.marked.hour  # wait for a sync of the hour directory
        if reply.handle:
            return self._durability(job, reply, placed=placed)
        opened = yield (wire.open_existing, path)  # no handle on the directory was to be had
        if opened.code != wire.OK:
            what = "it stands there, and may not be opened to be synced"
            return Answer(job.marker, State.NOT_DURABLE, what, placed=placed)
        reply = yield (wire.fsync, opened.handle)
        self._close_later(opened.handle)
        return self._durability(job, reply, placed=placed)

    def _durability(self, job: Job, reply: wire.Reply, *, placed: bool) -> Answer:
        if reply.code == wire.OK:
            return Answer(job.marker, State.CONFIRMED, placed=placed)
        if reply.code == wire.OP_UNSUPPORTED:
            self.can_sync = False
            return Answer(job.marker, State.NOT_DURABLE, _NO_FSYNC, placed=placed)
        return Answer(job.marker, State.PENDING, f"placed, but its fsync failed: {reply.message}", "fsync", placed)

    def _sync_hour(self, hour: Hour) -> Steps:
        """One sync of an hour directory, for all that wait when the fsync is sent. Its replies carry the handle."""
        opened = yield (wire.open_existing, self._path(hour.path))
        members = self._syncs.take(hour)
        reply = wire.Reply(opened.code)
        if opened.code == wire.OK:
            reply = yield (wire.fsync, opened.handle)
            self._close_later(opened.handle)
            reply = reply._replace(handle=opened.handle)
        self._syncs.ended(hour, time.monotonic())
        for steps in members:
            self._advance(steps, reply)
            if len(members) > MANY:
                precedence.give_way()
        return Answer(0, State.CONFIRMED)

"""Doing jobs in a session of `tombsync.peers`, as tests of the contract and of faults do."""

from __future__ import annotations

import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from tests.support.sshd import Sshd
from tombsync.peers import Answer, Job, Session, Target

WAIT_S = 30.0  # a bound for a loaded machine


def target_of(server: Sshd, root: Path | None = None) -> Target:
    """A test server as a connector takes it."""
    key, known_hosts = str(server.key_path), str(server.known_hosts_path)
    return Target("peer", server.host, server.port, server.user, key, known_hosts, str(root or server.root))


def wait_readable(session: Session, until: float) -> None:
    """Wait as a pusher does; fail the test at `until` (monotonic)."""
    due_s = session.due_in_s()
    if due_s <= 0:
        return
    poller = select.poll()
    poller.register(session.fileno(), select.POLLIN)
    left_s = until - time.monotonic()
    assert left_s > 0, f"{session.outstanding} jobs are not answered"
    poller.poll(min(left_s, due_s) * 1000 + 1)


def exchange(session: Session, jobs: Sequence[Job]) -> list[Answer]:
    """Do jobs in one session, as many at once as it has room for; their answers, in the jobs' order.

    Fails the test where a job gets no answer or more than one. Raises PeerError.
    """
    waiting, answers = deque(jobs), list[Answer]()
    until = time.monotonic() + WAIT_S
    while waiting or session.outstanding:
        room = session.room(len(waiting))
        assert 0 <= room <= len(waiting)
        if room:
            before = session.outstanding
            session.submit([waiting.popleft() for _ in range(room)])
            assert session.outstanding == before + room
        else:
            wait_readable(session, until)
        answers += session.collect(time.monotonic())
    assert not session.collect(time.monotonic())
    assert Counter(answer.marker for answer in answers) == Counter(job.marker for job in jobs)
    by_marker = {answer.marker: answer for answer in answers}
    return [by_marker[job.marker] for job in jobs]

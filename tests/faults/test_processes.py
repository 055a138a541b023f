"""Each thread of the agent stalls, or raises: the agent says that it is not healthy, and ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.broken_worker import TURNS
from tests.support.agent import AgentProcess, make_hour, peer_table
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

LONGEST_S = 90.0  # a stall counts after 30 s, and the end may take some more; many processes start at once
TOLD_AS = {"push": "push-node-b", "watch emitter": "watch", "watch dispatcher": "watch"}


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


class Broken:
    """An agent with a thread that breaks when it is told to."""

    def __init__(self, base: Path, server: Sshd, thread: str, how: str) -> None:
        base.mkdir()
        self.name = TOLD_AS.get(thread, thread)
        self.trigger = base / "break"
        self.agent = AgentProcess(
            base,
            peers=[peer_table("node-b", server)],
            program=[sys.executable, "-m", "tests.faults.broken_worker", thread, how, str(self.trigger)],
        )
        make_hour(self.agent.root)
        self.unhealthy = False

    def ended(self) -> bool:
        """Whether it has; until then, what /healthz says of it."""
        assert self.agent.process is not None
        if self.agent.process.poll() is not None:
            return True
        status, body = self.agent.get("/healthz")
        if status == 503:
            assert f'"{self.name}"' in body
            self.unhealthy = True
        return False


def run(base: Path, server: Sshd, threads: Sequence[str], how: str) -> list[Broken]:
    """One agent for each thread, all at once, until all have ended."""
    agents = [Broken(base / thread.replace(" ", "-"), server, thread, how) for thread in threads]
    with contextlib.ExitStack() as stack:
        for broken in agents:
            stack.enter_context(broken.agent.ending())
            broken.agent.start(ready=False)
        for broken in agents:
            wait_for(broken.agent.is_ready, f"the agent with {broken.name} to be ready", LONGEST_S)
            wait_for(lambda: broken.agent.records("peer-up"), "its peer to be up")
        for broken in agents:
            broken.trigger.touch()
        # Each is asked by itself: one that is ending may keep its client waiting.
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(lambda broken: wait_for(broken.ended, f"{broken.name} to end", LONGEST_S), agents))
    for broken in agents:
        assert broken.agent.wait() == 1
        (record,) = broken.agent.records("worker-died")
        assert record["TOMBSYNC_WORKER"] == broken.name
        (told,) = [
            line for line in broken.agent.log.read_text().splitlines() if line.startswith("tombsync: the worker")
        ]
        assert told.startswith(f"tombsync: the worker {broken.name} died: ")
    return agents


@pytest.mark.timeout(3 * LONGEST_S)
def test_a_thread_that_stalls_is_unhealthy_and_ends_the_agent(server: Sshd, tmp_path: Path) -> None:
    # A server that stalls answers nothing, which is all that its clients need to know.
    for broken in run(tmp_path, server, [thread for thread in TURNS if thread != "http"], "stalls"):
        assert broken.unhealthy, broken.name


@pytest.mark.timeout(3 * LONGEST_S)
def test_a_thread_that_raises_ends_the_agent(server: Sshd, tmp_path: Path) -> None:
    for broken in run(tmp_path, server, list(TURNS), "raises"):
        assert "broken on purpose" in broken.agent.log.read_text()

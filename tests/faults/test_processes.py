"""Each thread of the agent stalls, or raises: the agent says that it is not healthy, and ends."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.broken_worker import TURNS
from tests.support.agent import AgentProcess, make_hour, peer_table
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

LONGEST_S = 90.0  # a stall counts after 30 s, and the end may take some more; many processes start at once
TOLD_AS = {"push": "push-node-b", "watch emitter": "watch", "watch dispatcher": "watch"}


class Broken:
    """An agent with a thread that breaks when it is told to."""

    def __init__(self, base: Path, server: Sshd, thread: str, how: str) -> None:
        base.mkdir()
        self.name = TOLD_AS.get(thread, thread)
        self.trigger = base / "break"
        self.agent = AgentProcess(
            base,
            peers=[peer_table("node-b", server), f'[inbox]\njail = "{base}/jail"\n[[sender]]\nname = "node-b"\n'],
            program=[sys.executable, "-m", "tests.faults.broken_worker", thread, how, str(self.trigger)],
        )
        make_hour(self.agent.root)
        (base / "jail/inbox/tombsync-node-b").mkdir(parents=True)
        self.blamed: set[str] = set()

    def ended(self) -> bool:
        """Whether it has; until then, keeps what /healthz says where it is not well."""
        assert self.agent.process is not None
        if self.agent.process.poll() is not None:
            return True
        status, body = self.agent.get("/healthz")
        if status == 503:
            self.blamed |= set(json.loads(body)["stalled"])
        return False


CASES = [(thread, how) for how in ("stalls", "raises") for thread in TURNS]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Broken]]:
    """One agent for each, all at once, each told to break and waited for: a stall takes its time."""
    base = tmp_path_factory.mktemp("broken")

    def start(case: tuple[str, str]) -> Broken:
        broken = Broken(base / "-".join(case).replace(" ", "-"), server, *case)
        stack.enter_context(broken.agent.ending())
        broken.agent.start(ready=False)
        return broken

    def wait(broken: Broken) -> None:
        wait_for(broken.agent.is_ready, f"the agent with {broken.name} to be ready", LONGEST_S)
        wait_for(lambda: broken.agent.records("peer-up"), "its peer to be up", LONGEST_S)
        broken.trigger.touch()
        # Each is asked by itself: one that is ending may keep its client waiting.
        with contextlib.suppress(AssertionError):  # the test itself says which one did not
            wait_for(broken.ended, f"{broken.name} to end", LONGEST_S)

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Sshd())
        agents = {case: start(case) for case in CASES}
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(wait, agents.values()))
        yield agents


@pytest.mark.timeout(3 * LONGEST_S)
@pytest.mark.parametrize(("thread", "how"), CASES)
def test_a_thread_that_breaks_ends_the_agent(thread: str, how: str, ended: dict[tuple[str, str], Broken]) -> None:
    broken = ended[thread, how]
    log = broken.agent.log.read_text()
    assert broken.agent.process is not None
    assert broken.agent.process.poll() == 1, log[-3000:]
    (record,) = broken.agent.records("worker-died")
    assert record["TOMBSYNC_WORKER"] == broken.name
    (told,) = [line for line in log.splitlines() if line.startswith("tombsync: the worker")]
    assert told.startswith(f"tombsync: the worker {broken.name} died: ")
    if how == "raises":
        assert "broken on purpose" in log
    elif thread != "http":  # which answers nobody then
        assert broken.blamed <= {broken.name}  # for the moment until the next look at the workers


@pytest.mark.timeout(3 * LONGEST_S)
def test_who_stalls_is_seen_in_healthz(ended: dict[tuple[str, str], Broken]) -> None:
    """Of so many some are asked within the two seconds before they end."""
    assert any(ended[thread, "stalls"].blamed for thread in TURNS)

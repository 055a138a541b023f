"""The agent is killed before each single change that it makes to a file system; after every restart all promises hold.

Of the several hundred points a normal run takes a sample, another one each time; with CI=true, or with
TOMBSYNC_ALL_CRASH_POINTS set, it takes them all.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import click
import pytest

from tests.faults.calls import CHANGES, Call, Fault, need_injection
from tests.faults.world import World, stem, tombstones
from tests.faults.zygote import Zygote
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

EVERY_POINT = os.environ.get("CI") == "true" or "TOMBSYNC_ALL_CRASH_POINTS" in os.environ
SAMPLE = 24  # points of each scenario in a normal run
WORLDS = 6  # lives at once: most of each is waiting

KNOWN, VANISHED, TOUCHED, ABSENT, MARKED = stem(0), stem(1), (stem(2), stem(3)), stem(20), stem(4)


class Scenario:
    """What happens during each life, on a world that `prepare` has brought to its beginning."""

    def __init__(self, *, warm: bool) -> None:
        self.warm = warm
        self.stems = {KNOWN, VANISHED, *TOUCHED, ABSENT, MARKED} if warm else {*TOUCHED, ABSENT, MARKED}

    def prepare(self, world: World) -> None:
        """Make the state that each life begins with."""
        if self.warm:
            world.warm_up(KNOWN, VANISHED)
            (world.hour / f"{VANISHED}.tombstone").unlink()
        world.keep()

    def live(self, world: World, at: int) -> Fault:
        """One life that ends before its change number `at`, and a second one that puts everything right."""
        world.reset()
        agent = world.agent
        agent.fault = fault = Fault(CHANGES, under=[f"{world.base}/"], at=at)
        agent.start(ready=False)
        wait_for(lambda: not agent.alive or agent.records("rescan-completed"), "the agent to be ready or dead")
        for one in (*TOUCHED, ABSENT):
            world.touch(one)
        world.arrive(ABSENT)
        code, done, told = world.mark(MARKED)
        assert (code, done) == (0, {MARKED}), told
        wait_for(lambda: not agent.alive or self._all_done(world), "the agent to have done everything or to be dead")
        agent.signal(signal.SIGTERM)
        code = agent.wait()
        fault.join()
        assert code == (-signal.SIGKILL if fault.hit else 0)

        hidden, _ = world.check_promises(done)
        if not fault.hit:
            assert hidden == self.stems
        agent.start(ready=False)
        wait_for(lambda: world.converges(self.stems, hidden), "everything to be hidden and confirmed")
        wait_for(agent.is_ready)
        visible = {path.stem for path in world.hour.glob("*.ts")} - self.stems
        wait_for(lambda: world.visible() == visible, "the listing to be that of the directory")
        agent.kill()
        world.check_promises(self.stems)
        assert tombstones(world.peer_root) == self.stems
        world.check_journal()
        assert world.hidden_told() >= self.stems - {KNOWN, VANISHED}  # those were told before each life
        return fault

    def _all_done(self, world: World) -> bool:
        return set(world.told("delivered")) >= self.stems - {KNOWN, VANISHED} and tombstones(world.root) == self.stems


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    need_injection()
    with Sshd() as server:
        yield server


@contextlib.contextmanager
def worlds(scenario: Scenario, server: Sshd, base: Path) -> Iterator[SimpleQueue[World]]:
    """Several worlds to live in at once."""
    free: SimpleQueue[World] = SimpleQueue()

    def prepare(zygote: Zygote, number: int) -> World:
        world = World(zygote, server, base / f"{number}")
        scenario.prepare(world)
        return world

    with contextlib.ExitStack() as stack:
        zygotes = [stack.enter_context(Zygote()) for _ in range(WORLDS)]
        with ThreadPoolExecutor(WORLDS) as pool:
            for world in pool.map(prepare, zygotes, range(WORLDS)):
                stack.enter_context(world.agent.ending())
                free.put(world)
        yield free


@pytest.mark.timeout(900)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
def test_killed_before_any_of_its_own_changes_the_agent_loses_nothing(
    *, warm: bool, server: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = Scenario(warm=warm)
    with worlds(scenario, server, tmp_path) as free:

        def live(at: int) -> Fault:
            world = free.get()
            try:
                return scenario.live(world, at)
            except BaseException as exc:
                exc.add_note(f"killed at {at}; its journal: {world.agent.log}")
                raise
            finally:
                free.put(world)

        whole = live(0)
        assert whole.hit is None
        count = len(whole.seen)
        points = list(range(1, count + 1))
        if not EVERY_POINT:
            seed = random.randrange(1 << 32)
            points = sorted(random.Random(seed).sample(points, min(SAMPLE, count)))
        with ThreadPoolExecutor(WORLDS) as pool:
            killed = [fault.hit for fault in pool.map(live, points)]
        if EVERY_POINT:  # threads take turns as they like, so a life may be some calls longer than the first
            while hit := live(len(killed) + 1).hit:
                killed.append(hit)
    met = [hit for hit in killed if hit is not None]
    with capsys.disabled():
        click.echo(
            f"\n{len(met)} points of about {count}: {_summary(met)}" + ("" if EVERY_POINT else f" (seed {seed})")
        )
    assert len(met) > 0.8 * len(points)
    if EVERY_POINT:
        assert {call.name for call in met} >= {"openat", "pwrite64", "write", "ftruncate", "fdatasync", "unlink"}


def _summary(calls: list[Call]) -> str:
    counts = Counter(f"{call.name} {os.path.basename(call.path)}" for call in calls)
    return ", ".join(f"{count} {what}" for what, count in counts.most_common(8))


def test_killed_before_any_of_its_own_changes_mark_has_promised_nothing_that_is_not_there(
    server: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = (stem(0), stem(1))
    with Zygote() as zygote:
        world = World(zygote, server, tmp_path / "world")
        world.keep()
        killed: list[Call] = []
        while True:
            world.reset()
            fault = Fault(CHANGES, under=[f"{world.base}/"], at=len(killed) + 1)
            code, done, told = world.mark(*stems, fault=fault)
            fault.join()
            world.check_tree()
            assert done <= tombstones(world.root) <= set(stems)
            if fault.hit is None:
                assert code == 0, told
                break
            assert code == -signal.SIGKILL
            killed.append(fault.hit)
            code, done, told = world.mark(*stems)  # once more, as whoever was interrupted does
            assert (code, done) == (0, set(stems)), told
            assert tombstones(world.root) == set(stems)
    with capsys.disabled():
        click.echo(f"\n{len(killed)} points: {_summary(killed)}")
    assert {call.name for call in killed} == {"linkat", "write", "fsync"}
    assert {call.path for call in killed} >= {str(world.hour), f"{world.hour}/{stem(0)}.tombstone"}

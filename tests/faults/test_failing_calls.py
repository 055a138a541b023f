"""Each single call that the agent or `tombsync mark` makes to a file system fails once, in each way that it can.

What has to follow is a retry, or an end that says why in one line; and with the fault over, everything converges. Of
the many points a normal run takes a sample, another one each time; with CI=true, or with TOMBSYNC_ALL_FAILING_CALLS
set, it takes them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

import click
import pytest

from tests.faults.calls import CHANGES, Fault, need_injection
from tests.faults.world import World, looks, stem, tombstones
from tests.faults.zygote import Zygote
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync import errors

EVERY_POINT = os.environ.get("CI") == "true" or "TOMBSYNC_ALL_FAILING_CALLS" in os.environ
SAMPLE = 8  # points of each kind of failure in a normal run
WORLDS = 6  # lives at once: most of each is waiting
TRIES = 3  # for each point, to be met
STRIDE = 16  # of what is tried again at once, a life bears more than one

KNOWN, VANISHED, TOUCHED, MARKED = stem(0), stem(1), stem(2), stem(3)
STEMS = {KNOWN, VANISHED, TOUCHED, MARKED}


class Failure(NamedTuple):
    """Which calls fail, and how."""

    error: int
    calls: tuple[str, ...]

    def __str__(self) -> str:
        return errno.errorcode[self.error]


READS = ("read", "pread64", "getdents64")
OPENS = ("open", "openat")
FAILURES = (
    Failure(errno.ENOSPC, tuple(call for call in CHANGES if call not in ("unlink", "unlinkat", "rmdir"))),
    Failure(errno.EIO, (*CHANGES, *OPENS, *READS)),
    Failure(errno.EROFS, tuple(call for call in CHANGES if "write" not in call and "sync" not in call)),
    Failure(errno.EMFILE, OPENS),
    Failure(errno.EINTR, (*CHANGES, *OPENS, *READS)),
)


def in_place(world: World) -> bool:
    """Whether everything is hidden, in the tree and at the peer."""
    stems = STEMS
    if world.agent.records("index-set-aside"):  # a tombstone that somebody removed was known to the index alone
        stems = STEMS - {VANISHED} | tombstones(world.root)
    return looks(world, stems)


def live(world: World, failure: Failure, at: int, every: int = 0) -> Fault:
    """One life in which the call number `at` fails; if that ends it, a second one puts everything right."""
    world.reset()
    agent = world.agent
    agent.fault = fault = Fault(failure.calls, under=[f"{world.base}/"], at=at, error=failure.error, every=every)
    agent.start(ready=False)
    wait_for(lambda: not agent.alive or agent.records("rescan-completed"), "the agent to be ready or to have ended")
    world.touch(TOUCHED)
    code, done, told = world.mark(MARKED)
    assert (code, done) == (0, {MARKED}), told
    wait_for(lambda: not agent.alive or in_place(world), "everything to be in its place, or an end")
    agent.signal(signal.SIGTERM)
    code = agent.wait()
    fault.join()
    said = agent.log.read_text(errors="replace")
    assert "Traceback" not in said
    if code != 0:
        # Nothing failed, but the signal met the main thread in a call that was being handed over, which ends that call.
        interrupted = said.endswith(f"tombsync: {os.strerror(errno.EINTR)}\n")
        assert fault.hit is not None or interrupted
        # SIGTERM: the agent was just ending by itself, and had said why.
        assert code in (errors.EXIT_FAILED, errors.EXIT_RESTART, -signal.SIGTERM)
        assert any(line.startswith("tombsync: ") for line in said.splitlines())
        agent.start(ready=False)
        wait_for(lambda: in_place(world), "everything to be in its place after a restart")
        agent.kill()
    world.check_tree()
    return fault


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    need_injection()
    with Sshd() as server:
        yield server


@pytest.fixture(scope="module")
def worlds(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleQueue[World]]:
    """Some worlds to live in at once: two tombstones are known, and one of them was removed."""
    free: SimpleQueue[World] = SimpleQueue()

    def prepare(zygote: Zygote) -> World:
        # What cannot be listed is listed by the next rescan, and nobody waits five minutes for that.
        world = World(zygote, server, tmp_path_factory.mktemp("world"), settings="[rescan]\ninterval_s = 1\n")
        world.warm_up(KNOWN, VANISHED)
        (world.hour / f"{VANISHED}.tombstone").unlink()
        world.keep()
        return world

    with contextlib.ExitStack() as stack:
        zygotes = [stack.enter_context(Zygote()) for _ in range(WORLDS)]
        with ThreadPoolExecutor(WORLDS) as pool:
            for world in pool.map(prepare, zygotes):
                stack.enter_context(world.agent.ending())
                free.put(world)
        yield free


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_the_agent_survives_any_failure_or_ends_with_its_reason(
    failure: Failure, worlds: SimpleQueue[World], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(at: int, every: int = 0) -> Fault:
        world = worlds.get()
        try:
            return live(world, failure, at, every)
        except BaseException as exc:
            log = world.agent.log.read_text(errors="replace")
            exc.add_note(f"{failure} at {at}, every {every}; its journal:\n{log[:1000]}\n…\n{log[-5000:]}")
            raise
        finally:
            if world.agent.alive:
                world.agent.kill()
            worlds.put(world)

    whole = run(0)
    count = len(whole.seen)
    points = [call.number for call in whole.seen]
    seed = random.randrange(1 << 32)
    if not EVERY_POINT:
        points = sorted(random.Random(seed).sample(points, min(SAMPLE, len(points))))
    met: set[int] = set()
    with ThreadPoolExecutor(WORLDS) as pool:
        if EVERY_POINT and failure.error == errno.EINTR:
            for fault in pool.map(lambda at: run(at, STRIDE), range(1, STRIDE + 1)):
                met |= {call.number for call in fault.hits}
        for _ in range(TRIES):  # one life has some calls more than another: it may have another rescan before its end
            alone = [point for point in points if point not in met]
            met |= {fault.hit.number for fault in pool.map(run, alone) if fault.hit is not None}
    if EVERY_POINT:  # until a life that meets none
        while count + 1 in met or run(count + 1).hit is not None:
            count += 1
            met.add(count)
    unmet = sorted(set(points) - met)
    with capsys.disabled():
        click.echo(f"\n{failure}: {len(met)} points of about {count}" + ("" if EVERY_POINT else f" (seed {seed})"))
    # Every call up to one that lives as short as some of these do not come to.
    assert all(point > 0.9 * len(whole.seen) for point in unmet), unmet


def mark_until_nothing_fails(world: World, failure: Failure, *, agent_runs: bool) -> int:
    """One `tombsync mark` for each of its calls, which fails in it; how many."""
    count = 0
    world.reset()
    if agent_runs:
        world.agent.start()
    while True:
        stems = {stem(100 + 2 * count), stem(101 + 2 * count)}
        for one in stems:
            world.arrive(one)
        fault = Fault(failure.calls, under=[f"{world.base}/"], at=count + 1, error=failure.error)
        code, done, told = world.mark(*sorted(stems), fault=fault)
        fault.join()
        assert done <= tombstones(world.root)
        assert "Traceback" not in told
        assert code in (0, errors.EXIT_FAILED, errors.EXIT_IN_PART), told
        world.check_tree()
        if fault.hit is None:
            assert (code, done) == (0, stems), told
            break
        count += 1
        if code == 0:
            assert done == stems, fault.hit
            assert failure.error == errno.EINTR or "sync" not in fault.hit.name
        else:
            assert told.startswith("tombsync: ") or fault.hit.path.endswith(".err")
        code, done, told = world.mark(*sorted(stems))  # once more, as whoever reads that does
        assert (code, done) == (0, stems), told
        assert stems <= tombstones(world.root)
    if agent_runs:
        everything = {stem(100 + number) for number in range(2 * count + 2)}
        wait_for(lambda: everything <= world.confirmed(), "all of them to be hidden and confirmed")
        world.check_journal()
    return count


@pytest.fixture(scope="module")
def marks(worlds: SimpleQueue[World]) -> Iterator[dict[tuple[Failure, bool], Future[int]]]:
    """What became of each, some at a time."""

    def run(failure: Failure, agent_runs: bool) -> int:
        world = worlds.get()
        try:
            return mark_until_nothing_fails(world, failure, agent_runs=agent_runs)
        finally:
            if world.agent.alive:
                world.agent.kill()
            worlds.put(world)

    with ThreadPoolExecutor(WORLDS) as pool:
        yield {(each, up): pool.submit(run, each, up) for each in FAILURES for up in (False, True)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("agent_runs", [False, True], ids=["agent-down", "agent-up"])
@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_mark_never_says_done_of_what_failed(
    failure: Failure,
    agent_runs: bool,
    marks: dict[tuple[Failure, bool], Future[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = marks[failure, agent_runs].result()
    assert count
    with capsys.disabled():
        click.echo(f"\n{failure}: {count} points")

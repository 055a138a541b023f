"""An index that somebody spoils while nobody runs, or exchanges or removes under the running agent."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.faults.world import World, looks, run_until, stem
from tests.faults.zygote import Zygote
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync import errors
from tombsync.index import index_path

AT_ONCE = 5


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


# -- the index, spoilt while the agent is stopped ----------------------------------------------------------------------


def overwrite(path: Path, begin: float, end: float) -> None:
    """Noise over a part of the file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(int(size * begin))
        file.write(random.randbytes(int(size * (end - begin))))


def another_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE somebody (elses)")
    connection.commit()
    connection.close()


def log_of_noise(path: Path) -> None:
    path.with_name(path.name + "-wal").write_bytes(random.randbytes(100_000))


Harm = Callable[[Path], object]
SPOILT: dict[str, Harm] = {
    "removed": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "all but a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "noise": partial(overwrite, begin=0.0, end=1.0),
    "noise behind its header": partial(overwrite, begin=0.1, end=1.0),
    "noise at its end": partial(overwrite, begin=0.8, end=1.0),
    "text": lambda path: path.write_text("not an index\n" * 1000),
    "another database": another_database,
    "noise as its log": log_of_noise,
}


def spoil_and_start(world: World, harm: Harm) -> None:
    stems = {stem(100 + number) for number in range(40)}
    world.warm_up(*stems)
    with world.agent.ending():
        harm(Path(index_path(str(world.agent.state_dir))))
        world.touch(stem(0))
        code, done, told = world.mark(stem(1))  # which needs no index
        assert (code, done) == (0, {stem(1)}), told
        stems |= {stem(0), stem(1)}
        run_until(world, lambda: looks(world, stems), "everything to be hidden and confirmed")
        assert world.agent.stop() == 0
        world.check_tree()


@pytest.fixture(scope="module")
def spoilt(zygote: Zygote, server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """What became of each, some at a time: most of it is waiting."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            name: pool.submit(spoil_and_start, World(zygote, server, tmp_path_factory.mktemp("spoilt")), harm)
            for name, harm in SPOILT.items()
        }


@pytest.mark.parametrize("harm", SPOILT)
def test_an_index_spoilt_while_nobody_ran_is_rebuilt(harm: str, spoilt: dict[str, Future[None]]) -> None:
    spoilt[harm].result()


# -- the index, taken away while the agent runs ------------------------------------------------------------------------


def remove(*suffixes: str) -> Harm:
    def harm(path: Path) -> None:
        for suffix in suffixes:
            path.with_name(path.name + suffix).unlink()

    return harm


def exchange(content: bytes | None) -> Harm:
    def harm(path: Path) -> None:
        other = path.with_name("other")
        if content is None:
            shutil.copyfile(path, other)
        else:
            other.write_bytes(content)
        other.rename(path)

    return harm


TAKEN: dict[str, Harm] = {
    "index removed": remove(""),
    "index and side files removed": remove("", "-wal", "-shm"),
    "log removed": remove("-wal"),
    "shared memory removed": remove("-shm"),
    "side files removed": remove("-wal", "-shm"),
    "exchanged for a copy": exchange(None),
    "exchanged for noise": exchange(random.Random(0).randbytes(100_000)),
    "exchanged for nothing": exchange(b""),
    "state directory removed": lambda path: shutil.rmtree(path.parent),
    "state directory moved away": lambda path: path.parent.rename(path.parent.with_name("moved")),
}


def take_away_and_start(world: World, harm: Harm) -> None:
    stems = {stem(100 + number) for number in range(10)}
    world.warm_up(*stems)
    agent = world.agent
    with agent.ending():
        agent.start()
        harm(Path(index_path(str(agent.state_dir))))
        world.touch(stem(0))
        assert agent.wait() == errors.EXIT_FAILED
        (record,) = agent.records("worker-died")
        assert "it was removed or replaced under the running agent" in record["MESSAGE"]
        assert "Traceback" not in agent.log.read_text()
        world.touch(stem(1))
        stems |= {stem(0), stem(1)}
        agent.start(ready=False)
        wait_for(lambda: looks(world, stems), "everything to be hidden and confirmed")
        assert agent.stop() == 0
        world.check_tree()


@pytest.fixture(scope="module")
def taken(zygote: Zygote, server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """What became of each, some at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            name: pool.submit(take_away_and_start, World(zygote, server, tmp_path_factory.mktemp("taken")), harm)
            for name, harm in TAKEN.items()
        }


@pytest.mark.parametrize("harm", TAKEN)
def test_an_index_taken_away_under_the_running_agent_ends_it_and_is_rebuilt(
    harm: str, taken: dict[str, Future[None]]
) -> None:
    taken[harm].result()


def test_noise_in_the_index_of_a_running_agent_costs_a_restart_at_most(
    zygote: Zygote, server: Sshd, tmp_path: Path
) -> None:
    world = World(zygote, server, tmp_path / "node")
    stems = {stem(100 + number) for number in range(40)}
    world.warm_up(*stems)
    with world.agent.ending():
        world.agent.start()
        overwrite(Path(index_path(str(world.agent.state_dir))), 0.0, 1.0)
        world.touch(stem(0))
        code, done, told = world.mark(stem(1))
        assert (code, done) == (0, {stem(1)}), told
        stems |= {stem(0), stem(1)}
        codes = run_until(world, lambda: looks(world, stems), "all to be well")
        assert len(codes) <= 1
        world.agent.kill()
        run_until(world, lambda: looks(world, stems), "all to be well after a kill, too")
        world.check_tree()

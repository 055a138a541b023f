"""Disks that are full or read-only, under the state directory and under the tree."""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.world import CONSTANTS, World, looks, run_until, stem, tombstones
from tests.faults.zygote import Zygote
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.trees import need_root
from tests.support.waiting import wait_for
from tombsync import errors


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@contextlib.contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    """A file system of its own for the time of a `with` block."""
    need_root()
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run([need("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run([need("umount"), "--lazy", str(at)], check=True, capture_output=True)


def remount(at: Path, options: str) -> None:
    """Change what may be done on a mounted file system."""
    subprocess.run([need("mount"), "-o", f"remount,{options}", str(at)], check=True, capture_output=True)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """No room for another byte."""
    ballast = directory / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def no_more_files(directory: Path) -> Iterator[None]:
    """No room for another file."""
    made = []
    with pytest.raises(OSError, match="No space left") as caught:
        for number in range(1_000_000):
            (directory / f"ballast-{number}").touch()
            made.append(directory / f"ballast-{number}")
    assert caught.value.errno == errno.ENOSPC
    try:
        yield
    finally:
        for path in made:
            path.unlink()


# -- the state directory -----------------------------------------------------------------------------------------------


def test_with_a_full_state_directory_hiding_is_tried_again_until_there_is_room(
    zygote: Zygote, server: Sshd, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "state", "size=2m") as state:
        world = World(zygote, server, tmp_path / "node", state_dir=state)
        agent = world.agent
        with agent.ending():
            agent.start()
            stems: set[str] = set()
            silent = 0
            for outage in (1, 2):
                with full(state):

                    def refused(least: int) -> bool:
                        """Whether so many more tries failed than were told of: of each outage the first is told."""
                        stems.add(one := stem(1000 + len(stems)))
                        world.touch(one)  # until the index has to grow
                        return agent.metric("index_retries_total") >= len(agent.records("state-refused")) + least

                    wait_for(partial(refused, silent + 3), "the full disk to be noticed, and some more tries", 60)
                    assert agent.records("state-refused")
                    assert not stems <= world.recorded()
                    assert agent.get("/healthz")[0] == 200
                    stems.add(one := stem(outage))
                    code, done, told = world.mark(one)
                    assert (code, done) == (0, {one})
                    assert "has not hidden it in time" in told
                wait_for(partial(world.converges, stems, set()), "everything to be hidden and confirmed")
                silent = int(agent.metric("index_retries_total")) - len(agent.records("state-refused"))
            assert agent.stop() == 0
            world.check_tree()
            assert set(world.told("hidden")) == stems
            assert max(world.told("hidden").values()) == 1


@pytest.mark.parametrize("known", [False, True])
def test_a_start_on_a_full_state_directory_says_so_or_works(
    known: bool, zygote: Zygote, server: Sshd, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "state", "size=2m") as state:
        world = World(zygote, server, tmp_path / "node", state_dir=state)
        agent = world.agent
        with agent.ending():
            if known:
                world.warm_up(stem(0))
            stems = tombstones(world.root) | {stem(1)}
            with full(state):
                world.touch(stem(1))
                agent.start(ready=False)
                wait_for(lambda: not agent.alive or agent.records("state-refused") or agent.records("hidden"))
                if not agent.alive:
                    assert agent.wait() == errors.EXIT_FAILED
                    assert re.search("No space left|is full|disk I/O error", agent.log.read_text())
            run_until(world, lambda: looks(world, stems), "everything to be hidden and confirmed")
            assert agent.records("index-set-aside") == []


def test_a_rescan_that_waits_for_room_is_no_stalled_worker(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    constants = {**CONSTANTS, "tombsync.daemon.crew.STALLED_AFTER_S": 12.0}  # no idle turn is longer than 6 s
    with tmpfs(tmp_path / "state", "size=16m") as state:
        world = World(zygote, server, tmp_path / "node", state_dir=state, constants=constants)
        agent = world.agent
        with agent.ending():
            agent.start()
            agent.kill()  # so that its log is there, which could not be made on a full disk
            for number in range(100, 10_000):  # more rows than may wait for the writer
                world.arrive(stem(number))
            world.touch(stem(0))
            with full(state):
                agent.start(ready=False)
                wait_for(lambda: (agent.metric_if_up("index_retries_total") or 0) >= 15, "many seconds to go by", 40)
                assert agent.get("/healthz")[0] == 200
                assert agent.get("/readyz")[0] == 503
            wait_for(lambda: world.converges({stem(0)}, set()), "it to go on")
            wait_for(agent.is_ready)
            assert len(world.visible()) == len(world.data) - 1
            assert agent.records("worker-died") == []


def test_a_state_directory_that_is_read_only_ends_nothing(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state", "size=8m") as state:
        world = World(zygote, server, tmp_path / "node", state_dir=state / "tombsync")
        agent = world.agent
        world.warm_up(stem(0))
        with agent.ending():
            remount(state, "ro")
            agent.start(ready=False)
            assert agent.wait() == errors.EXIT_FAILED
            assert agent.log.read_text().splitlines()[-2:] == [
                f"tombsync: {agent.state_dir}: Read-only file system",
                "  hint: check the free space, the owner and the mode of the state directory",
            ]
            world.touch(stem(1))
            code, done, told = world.mark(stem(2))
            assert (code, done) == (0, {stem(2)}), told
            remount(state, "rw")
            run_until(world, lambda: world.converges({stem(0), stem(1), stem(2)}, {stem(0)}), "it to go on")
            assert agent.records("index-set-aside") == []


# -- the tree ----------------------------------------------------------------------------------------------------------


def check_refusals(world: World, reason: str) -> None:
    """Nothing can be created: `mark` says so in one line, and what vanished is put back as soon as it can be."""
    code, done, told = world.mark(stem(2))
    assert (code, done) == (errors.EXIT_FAILED, set())
    assert told.splitlines() == [
        f"tombsync: {world.hour}/{stem(2)}.tombstone: cannot be created: {reason}",
        "  hint: check the owner, the mode and the free space and inodes of that directory",
    ]
    assert tombstones(world.root) == {stem(0)}
    wait_for(lambda: world.agent.records("tree-refused"), "the put-back to be refused")
    (record, *_) = world.agent.records("tree-refused")
    assert record["TOMBSYNC_SEGMENT"] == world.relative(stem(1))
    assert reason in record["MESSAGE"]
    assert world.recorded() == {stem(0), stem(1)}


def test_in_a_full_tree_mark_says_so_and_the_put_back_is_tried_again(
    zygote: Zygote, server: Sshd, tmp_path: Path
) -> None:
    with tmpfs(tmp_path / "segments", "size=8m,nr_inodes=200") as root:
        world = World(zygote, server, tmp_path / "node", root=root)
        world.warm_up(stem(0), stem(1))
        with world.agent.ending():
            (world.hour / f"{stem(1)}.tombstone").unlink()
            with no_more_files(root):
                world.agent.start()
                check_refusals(world, "No space left on device")
            wait_for(lambda: tombstones(root) == {stem(0), stem(1)}, "the tombstone to be put back")
            code, done, told = world.mark(stem(2))
            assert (code, done) == (0, {stem(2)}), told
            wait_for(lambda: world.converges({stem(0), stem(1), stem(2)}, {stem(0), stem(1)}))
            assert world.agent.stop() == 0
            world.check_tree()


def test_a_tree_that_is_read_only_for_a_while(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "segments", "size=8m") as root:
        world = World(zygote, server, tmp_path / "node", root=root)
        world.warm_up(stem(0), stem(1))
        with world.agent.ending():
            world.agent.start()
            (world.hour / f"{stem(1)}.tombstone").unlink()
            remount(root, "ro")
            check_refusals(world, "Read-only file system")
            assert world.agent.records("root-lost") == []
            remount(root, "rw")
            wait_for(lambda: tombstones(root) == {stem(0), stem(1)}, "the tombstone to be put back")
            code, done, told = world.mark(stem(2))
            assert (code, done) == (0, {stem(2)}), told
            wait_for(lambda: world.converges({stem(0), stem(1), stem(2)}, {stem(0), stem(1)}))
            assert world.agent.stop() == 0
            world.check_tree()

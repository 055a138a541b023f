"""A power cut: the file system stops at once, nothing more reaches the disk, and what was not durable is gone.

EXT4_IOC_SHUTDOWN without a flush of the journal is that, as far as the disk is concerned; mounting again replays what
the journal had.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import HOUR, World, stem, tombstones
from tests.faults.zygote import ForkedAgent, Zygote
from tests.support.agent import make_hour
from tests.support.sshd import Sshd
from tests.support.trees import RELEASED_WITHIN_S, Disk, disk
from tests.support.waiting import wait_for

CUTS = 5  # of each kind, at random moments
BURST = 200
_SHUTDOWN, _NO_FLUSH_OF_THE_LOG = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH


class Plug:
    """A disk that can lose its power."""

    def __init__(self, disk: Disk, at: Path) -> None:
        self._disk = disk
        self.at = at
        at.mkdir(parents=True, exist_ok=True)
        disk.mount(at)

    def pull(self) -> None:
        """From here on nothing reaches the disk, and everything fails with EIO."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_FLUSH_OF_THE_LOG))
        finally:
            os.close(fd)

    def put_in(self) -> None:
        """Mount what survived. Nobody may use the dead file system any more."""
        wait_for(lambda: self._disk.unmount().returncode == 0, "the dead file system to be let go")
        # Also not in a mount namespace that another process has made meanwhile: it would be the dead one again.
        wait_for(self._disk.is_released, "its loop device to be free", RELEASED_WITHIN_S)
        self._disk.mount(self.at)


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    with disk(tmp_path / "disk.img", megabytes=64) as made:
        yield Plug(made, tmp_path / "disk")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def test_a_file_that_was_not_synced_is_gone(plug: Plug) -> None:
    """The measure itself: a cut that took nothing away would prove nothing below."""
    os.sync()
    (plug.at / "careless").write_bytes(b"")
    with (plug.at / "synced").open("wb") as file:
        os.fsync(file.fileno())
    (plug.at / "late").write_bytes(b"")
    plug.pull()
    plug.put_in()
    assert (plug.at / "synced").exists()
    assert not (plug.at / "late").exists()


@pytest.mark.timeout(180)
def test_what_mark_printed_as_done_is_there(plug: Plug, zygote: Zygote, tmp_path: Path) -> None:
    agent = ForkedAgent(zygote, tmp_path / "node", root=plug.at / "segments")
    cut_short = 0
    for cut in range(CUTS):
        hour = make_hour(agent.root, f"desertbus/source/2019-11-13T{cut:02d}", segments=BURST)
        os.sync()
        output = tmp_path / "printed"
        paths = [str(hour / f"{stem(number)}.ts") for number in range(BURST)]
        life = zygote.start(["mark", *paths, "--config", str(agent.config)], output)
        printed_before = random.randrange(5, BURST // 2)
        wait_for(lambda: output.read_bytes().count(b"\nmarked ") >= printed_before, "the burst to be under way")
        plug.pull()
        code = life.wait(60)
        plug.put_in()
        text = output.read_text()
        output.unlink()
        done = {line.split()[1].rpartition("/")[2] for line in text.splitlines() if line.startswith("marked ")}
        there = {path.name.removesuffix(".tombstone") for path in hour.glob("*.tombstone")}
        assert done <= there
        assert "Traceback" not in text
        if len(done) < BURST:
            cut_short += 1
            assert code != 0
        assert {path.read_bytes() for path in hour.glob("*.ts")} == {b"segment"}
        assert {path.suffix for path in hour.iterdir()} == {".ts", ".tombstone"}
    assert cut_short


@pytest.mark.timeout(180)
def test_an_index_that_lost_power_opens_or_is_set_aside_and_converges(
    plug: Plug, zygote: Zygote, tmp_path: Path
) -> None:
    """Only the state is on the disk that loses power: what was touched is in the tree, and in the end in the index."""
    with Sshd() as server:
        world = World(zygote, server, tmp_path / "node", state_dir=plug.at / "state")
        with world.agent.ending():
            stems: set[str] = set()
            for cut in range(CUTS):
                world.agent.start(ready=bool(cut % 2))
                for number in range(random.randrange(30)):
                    stems.add(one := stem(100 * cut + number))
                    world.touch(one)
                plug.pull()
                stems.add(one := stem(100 * cut + 99))
                world.touch(one)
                assert stems >= set(world.told("hidden"))
                # Nothing can be written any more: it says so and goes on trying, or says so and ends.
                wait_for(
                    lambda: world.agent.records("state-refused") or not world.agent.alive, "the dead disk to be noticed"
                )
                assert "Traceback" not in world.agent.log.read_text(errors="replace")
                world.agent.kill()
                plug.put_in()
                world.agent.start()
                wait_for(lambda: world.converges(stems, set()), "everything to be hidden and confirmed again")
                assert world.agent.stop() == 0
                world.check_tree()
                world.agent.log.unlink()


@pytest.mark.timeout(180)
def test_what_a_peer_confirmed_is_there(plug: Plug, zygote: Zygote, tmp_path: Path) -> None:
    cut_short = 0
    with Sshd() as server:
        for cut in range(CUTS):
            peer_root = plug.at / f"peer-{cut}"
            world = World(zygote, server, tmp_path / f"node-{cut}", peer_root=peer_root)
            (peer_root / HOUR).mkdir()
            os.sync()
            with world.agent.ending():
                world.agent.start()
                least = random.randrange(1, 60)
                stems = {stem(100 + number) for number in range(BURST)}
                for one in sorted(stems):
                    world.touch(one)
                    if len(world.told("delivered")) >= least:
                        break
                stems = tombstones(world.root)
                wait_for(lambda: len(world.told("delivered")) >= least, "the burst to be under way")
                plug.pull()
                wait_for(lambda: world.recorded() == stems, "everything to be hidden here")
                world.agent.kill()
                confirmed = world.confirmed()
                server.kill_sessions()
                plug.put_in()
                assert set(world.told("delivered")) <= confirmed <= tombstones(peer_root)
                cut_short += len(confirmed) < len(stems)
                world.agent.start()
                wait_for(lambda: world.converges(stems, stems), "the peer to have everything")
                assert world.agent.stop() == 0
                world.check_journal()
    assert cut_short


@pytest.mark.timeout(180)
def test_an_agent_whose_whole_disk_loses_power_says_so_and_hides_everything_afterwards(
    plug: Plug, zygote: Zygote, tmp_path: Path
) -> None:
    with Sshd() as server:
        world = World(zygote, server, tmp_path / "node", root=plug.at / "segments", state_dir=plug.at / "state")
        os.sync()
        with world.agent.ending():
            world.agent.start()
            wait_for(lambda: world.agent.records("ready"))
            code, done, told = world.mark(stem(0), stem(1))
            assert (code, done) == (0, {stem(0), stem(1)}), told
            plug.pull()
            code, done, told = world.mark(stem(2))
            assert (code, done) == (1, set())
            assert len(told.splitlines()) <= 3
            assert "Traceback" not in told
            wait_for(lambda: world.agent.records("root-lost") or not world.agent.alive, "the dead disk to be noticed")
            assert "Traceback" not in world.agent.log.read_text(errors="replace")
            world.agent.signal(signal.SIGTERM)
            world.agent.wait()
            plug.put_in()
            world.agent.start()
            wait_for(lambda: world.converges({stem(0), stem(1)}, set()), "both to be hidden and confirmed")
            world.check_tree()

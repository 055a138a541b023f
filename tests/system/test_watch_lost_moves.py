"""The kernel dropped the events that told of a move: what is marked in the directory that moved away hides nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem
from tests.support.trees import hour_of, marked
from tests.support.waiting import wait_for

OTHER = "other/source/2019-11-13T02"


def overflow(agent: AgentProcess, meanwhile: Callable[[], None]) -> None:
    """Lose the events of what happens meanwhile; returns after the rescan that repairs it."""
    (most,) = map(int, Path("/proc/sys/fs/inotify/max_queued_events").read_text().split())
    rescans = agent.metric("rescan_seconds_count", kind="interval")
    agent.signal(signal.SIGSTOP)
    for number in range(most + 1_000):  # some may still be read before it has stopped
        (agent.root / OTHER / f"{number}.ts").touch()
    meanwhile()
    agent.signal(signal.SIGCONT)
    wait_for(lambda: agent.metric("watch_overflows_total") >= 1, "the overflow")
    wait_for(lambda: agent.metric("rescan_seconds_count", kind="interval") > rescans, "the rescan that follows")


def inodes(agent: AgentProcess) -> set[int]:
    return {inode for _, inode in agent.watched()}


@pytest.mark.parametrize("level", ["desertbus/source/2019-11-13T02", "desertbus/source", "desertbus"])
def test_a_directory_that_was_moved_away_unseen_speaks_for_its_path_no_more(tmp_path: Path, level: str) -> None:
    agent, outside = AgentProcess(tmp_path), tmp_path / "outside"
    hour = make_hour(agent.root)
    make_hour(agent.root, OTHER)
    below = hour.relative_to(agent.root / level)
    stem = segment_stem(2)
    with agent:
        wait_for(lambda: agent.metric("rescan_last_completed_timestamp_seconds", kind="full"), "an idle agent")

        def move() -> None:
            (agent.root / level).rename(outside)
            make_hour(agent.root)

        overflow(agent, move)
        wait_for(lambda: hour.stat().st_ino in inodes(agent), "the new hour to be watched")
        wait_for(lambda: (outside / below).stat().st_ino not in inodes(agent), "the old one to be watched no more")
        (outside / below / f"{stem}.tombstone").touch()
        (hour / f"{segment_stem(1)}.tombstone").touch()  # behind it in the kernel's queue
        wait_for(lambda: agent.hides(marked(hour, segment_stem(1))), "what is marked in the tree to be hidden")
        assert not agent.hides(marked(hour, stem))
        assert f"{stem}.ts" in agent.listing(hour_of(hour))


def test_every_watch_that_still_speaks_for_its_path_is_kept(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hours = [make_hour(agent.root, f"desertbus/source/2019-11-13T{number:02d}") for number in range(20)]
    make_hour(agent.root, OTHER)
    with agent:
        wait_for(lambda: agent.metric("rescan_last_completed_timestamp_seconds", kind="full"), "an idle agent")
        before = agent.watched()
        overflow(agent, lambda: None)
        assert agent.watched() == before
        for hour in hours:
            (hour / f"{segment_stem(1)}.tombstone").touch()
        wait_for(lambda: all(agent.hides(marked(hour, segment_stem(1))) for hour in hours), "all to be hidden")
        assert agent.metric("missed_by_watch_total") == 0

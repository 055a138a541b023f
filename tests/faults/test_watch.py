"""The watcher and many directories at once: an overflow over a large tree, and thousands of hours that appear."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.zygote import ForkedAgent, Zygote
from tests.support.agent import segment_stem
from tests.support.waiting import wait_for
from tombsync.names import hour_number, hour_text

LAST_HOUR = hour_number("2019-11-13T02")
WATCHED = 20_000
BURST = 5_000
WITHIN_S = 120.0
STEM = segment_stem(0)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def queue_length() -> int:
    """How many events the kernel keeps for one reader."""
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def make_hours(root: Path, place: str, count: int, *, stem: str | None = None) -> list[Path]:
    """So many hours of a place, the newest last, each with a tombstone at once where a stem is given."""
    made = []
    (root / place).mkdir(parents=True, exist_ok=True)
    for number in range(LAST_HOUR - count + 1, LAST_HOUR + 1):
        hour = root / place / hour_text(number)
        hour.mkdir()
        if stem is not None:
            (hour / f"{stem}.tombstone").touch()
        made.append(hour)
    return made


def hidden(agent: ForkedAgent) -> set[str]:
    """The paths that are hidden."""
    reader = agent.reader()
    try:
        return {row.marked.path for row in reader.marker_rows(limit=1 << 30)}
    finally:
        reader.close()


def paths(agent: ForkedAgent, hours: list[Path], stem: str) -> set[str]:
    """What hidden() has to say of a stem in these hours."""
    return {f"{hour.relative_to(agent.root)}/{stem}" for hour in hours}


def wait_until_hidden(agent: ForkedAgent, count: int, what: str) -> None:
    """Asked of /metrics, which costs the agent nothing."""
    wait_for(lambda: agent.metric("tombstones") >= count, what, WITHIN_S)
    assert agent.metric("tombstones") == count


@pytest.mark.timeout(3 * WITHIN_S)
def test_an_overflow_over_many_directories_costs_no_watch_and_no_tombstone(zygote: Zygote, tmp_path: Path) -> None:
    agent = ForkedAgent(zygote, tmp_path)
    channels = 4
    hours = [
        hour
        for channel in range(channels)
        for hour in make_hours(agent.root, f"channel-{channel}/source", WATCHED // channels)
    ]
    with agent.ending():
        agent.start(within_s=WITHIN_S)
        before = agent.watched()
        assert len(before) == len(hours) + 2 * channels + 1

        agent.signal(signal.SIGSTOP)
        more = queue_length() // len(hours)  # of each hour, so that some of these are lost however long the queue is
        for hour in hours:
            (hour / f"{STEM}.tombstone").touch()
            for number in range(more):
                (hour / f"{number}.ts").touch()
        new = make_hours(agent.root, "channel-new/source", 10, stem=STEM)  # and all of these
        agent.signal(signal.SIGCONT)

        wait_until_hidden(agent, len(hours) + len(new), "everything to be hidden")
        assert hidden(agent) == paths(agent, hours + new, STEM)
        assert agent.metric("watch_overflows_total") == 1
        assert len(agent.records("overflow")) == 1
        assert agent.watched() >= before
        inodes = {hour.stat().st_ino for hour in new}
        wait_for(lambda: inodes <= {inode for _, inode in agent.watched()}, "the new hours to be watched", WITHIN_S)

        # From then on everything is seen, everywhere.
        some = [*hours[:: WATCHED // 500], *new]
        for hour in some:
            (hour / "afterwards.tombstone").touch()
        wait_until_hidden(agent, len(hours) + len(new) + len(some), "marks after the overflow to be hidden")
        assert paths(agent, some, "afterwards") <= hidden(agent)
        assert agent.metric("watch_overflows_total") == 1
        assert agent.stop() == 0


@pytest.mark.timeout(3 * WITHIN_S)
@pytest.mark.parametrize("how", ["made one by one", "renamed into place"])
def test_thousands_of_hours_at_once_are_watched_and_miss_nothing(how: str, zygote: Zygote, tmp_path: Path) -> None:
    """Each with a tombstone that is there before anybody can watch the directory."""
    agent = ForkedAgent(zygote, tmp_path)
    make_hours(agent.root, "desertbus/source", 1)
    with agent.ending():
        agent.start()
        before = len(agent.watched())
        if how == "made one by one":
            hours = make_hours(agent.root, "desertbus/new", BURST, stem=STEM)
        else:
            outside = make_hours(tmp_path / "outside", "new", BURST, stem=STEM)
            os.rename(tmp_path / "outside" / "new", agent.root / "desertbus" / "new")
            hours = [agent.root / "desertbus" / "new" / hour.name for hour in outside]
        wait_until_hidden(agent, BURST, "everything to be hidden")
        assert hidden(agent) == paths(agent, hours, STEM)
        wait_for(lambda: len(agent.watched()) == before + 1 + BURST, "all of them to be watched", WITHIN_S)
        for hour in hours[::10]:
            (hour / "afterwards.tombstone").touch()
        wait_until_hidden(agent, BURST + BURST // 10, "marks in the new hours to be hidden")
        # A rescan of what is new may be quicker here and there; then an event still follows.
        assert paths(agent, hours[::10], "afterwards") <= hidden(agent)
        assert agent.metric("missed_by_watch_total") == 0
        assert agent.stop() == 0

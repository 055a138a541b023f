"""The whole agent as a process: starts, ends, kills, damaged indexes, trees that go and come back, rescans.

What takes a minute of patience is driven inside this process, with the rescan's clock in the test's hand.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.trees import disk, hour_of, listed, make_large_tree, marked, need_root
from tests.support.waiting import wait_for
from tombsync import confine
from tombsync.audit import Audit, Record
from tombsync.index import Reader, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour, hour_number, hour_text
from tombsync.rescan import Rescan, RescanKind
from tombsync.tree import Tree
from tombsync.work import Beats, Driver, Flush, Mailbox

HOUR = "desertbus/source/2019-11-13T02"
FIRST_HOUR = hour_number("2019-11-13T02")
MARK = f"{HOUR}/{segment_stem(0)}"


def completed(agent: AgentProcess, kind: str) -> float:
    """When a rescan of this kind last ended."""
    return agent.metric("rescan_last_completed_timestamp_seconds", kind=kind)


def idle(agent: AgentProcess) -> AgentProcess:
    """An agent whose first rescans are over."""
    wait_for(lambda: completed(agent, "full"), "the first full rescan")
    return agent


def rescan(agent: AgentProcess, kind: str = "full") -> None:
    """Ask for a rescan, and wait for it."""
    before = completed(agent, kind)
    agent.signal(signal.SIGUSR2 if kind == "full" else signal.SIGUSR1)
    wait_for(lambda: completed(agent, kind) > before, "a rescan")


def mark(directory: Path, stem: str = segment_stem(0)) -> Path:
    """A tombstone."""
    path = directory / f"{stem}.tombstone"
    path.touch()
    return path


def told_hidden(agent: AgentProcess) -> Counter[str]:
    """How often the journal says of each segment that it was hidden."""
    return Counter(record["TOMBSYNC_SEGMENT"] for record in agent.records("hidden"))


def is_true(agent: AgentProcess, *directories: Path) -> bool:
    """Whether the index lists these hours as the archive does."""
    return all(
        agent.listing(hour_of(directory), tombstones=tombstones) == listed(directory, tombstones=tombstones)
        for directory in directories
        for tombstones in (False, True)
    )


# -- starting, killing ----------------------------------------------------------------------------------------------------


def test_a_mark_made_with_the_agent_down_is_found_at_the_start(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR)
    with agent:
        assert is_true(agent, hour)
        assert agent.stop() == 0
        mark(hour)
        agent.start()
        assert agent.hidden(MARK)
        assert is_true(agent, hour)
        row = agent.marker(MARK)
        assert row is not None
        assert row.source == "rescan"
        assert agent.metric("missed_by_watch_total") == 0  # nobody watched
        assert told_hidden(agent) == {MARK: 1}


@pytest.mark.parametrize("down_between", [False, True])
def test_a_tombstone_hides_a_segment_that_comes_later(tmp_path: Path, down_between: bool) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR, segments=0)
    with agent:
        mark(hour)
        wait_for(lambda: agent.hidden(MARK), "the mark to be recorded")
        if down_between:
            agent.stop()
        make_hour(agent.root, HOUR, segments=2)
        if down_between:
            agent.start()
        wait_for(lambda: agent.listing(hour_of(hour)), "the other segment to be listed")
        assert is_true(agent, hour)
        wait_for(lambda: agent.metric("segments", state="hidden") == 1, "the segment to be counted as hidden")


def test_after_a_kill_hidden_stays_hidden_and_is_not_told_again(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR, segments=50)
    with agent:
        for second in range(0, 60, 2):
            mark(hour, segment_stem(second))
        wait_for(lambda: len(agent.records("hidden")) == 30, "all of them to be told")
        for _ in range(3):
            agent.kill()
            assert is_true(agent, hour)  # as any reader sees it, with the agent dead
            idle(agent.start())
            rescan(agent)
        assert is_true(agent, hour)
        assert agent.metric("tombstones") == 30
        assert told_hidden(agent) == {f"{HOUR}/{segment_stem(second)}": 1 for second in range(0, 60, 2)}


class Archive(threading.Thread):
    """Writes segments into a tree, marks many of them and removes some, until it is told to stop."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.hours: list[Path] = []
        self.marks: list[str] = []
        self._enough = threading.Event()
        self._dice = random.Random(20191113)

    def run(self) -> None:
        number = 0
        while not self._enough.wait(0.001):  # some hundreds a second
            if number % 100 == 0:
                self.hours.append(self.root / "desertbus/source" / hour_text(FIRST_HOUR + number // 100))
                self.hours[-1].mkdir(parents=True)
            hour = self.hours[-1]
            (hour / f".{number}.temp").touch()
            (hour / f".{number}.temp").rename(hour / f"{number}.ts")
            if self._dice.random() < 0.5:
                mark(hour, str(number))
                self.marks.append(f"{'/'.join(hour.parts[-3:])}/{number}")
            elif self._dice.random() < 0.5:
                (hour / f"{number}.ts").unlink()
            number += 1

    def end(self) -> None:
        self._enough.set()
        self.join()


@pytest.mark.timeout(120)
def test_killed_at_any_moment_of_a_busy_run_nothing_is_lost(tmp_path: Path) -> None:
    dice = random.Random(7)
    agent = AgentProcess(tmp_path)
    archive = Archive(agent.root)
    with agent.ending():
        archive.start()
        try:
            for _ in range(20):
                # In the middle of its start, of its first rescan, of hiding.
                until = len(archive.marks) + dice.randrange(200)
                agent.start(ready=False)
                wait_for(lambda until=until: len(archive.marks) >= until, "the moment to kill")  # type: ignore[misc]
                agent.kill()
        finally:
            archive.end()
        agent.start()
        wait_for(lambda: agent.metric("tombstones") == len(archive.marks), "all of them to be hidden")
        assert all(agent.hidden(path) for path in archive.marks)
        wait_for(lambda: is_true(agent, *archive.hours), "the index to be true")
        told = told_hidden(agent)
        assert set(told.values()) == {1}
        assert told.keys() <= set(archive.marks)
        assert not agent.records("index-set-aside")


def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        idle(agent)
        second = agent.run("run", expect=1)
        assert second.stderr.splitlines()[0] == (
            f"tombsync: another agent (process {agent.pid}) already uses the state directory {agent.state_dir}"
        )
        assert "Traceback" not in second.stderr
        assert agent.is_ready()  # its socket, its index and its lock are still its own
        mark(make_hour(agent.root, HOUR))
        wait_for(lambda: agent.hidden(MARK), "the first one to go on")


# -- the index ------------------------------------------------------------------------------------------------------------


def make_noise(index: Path) -> None:
    index.write_bytes(random.Random(3).randbytes(100_000))


def cut_in_half(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


def make_foreign(index: Path) -> None:
    index.unlink()
    with sqlite3.connect(index) as connection:
        connection.execute("CREATE TABLE wedding_guests (name)")
    connection.close()


def drop_a_table(index: Path) -> None:
    with sqlite3.connect(index) as connection:
        connection.execute("DROP TABLE marker")
    connection.close()


def make_half_noise(index: Path) -> None:
    """The header is as it was, the rest is not."""
    size = index.stat().st_size
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(4).randbytes(size - 4096))


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent that knows an hour with a mark, and was stopped."""
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR, segments=200)
    mark(hour)
    with agent:
        assert is_true(agent, hour)
        idle(agent)
        assert agent.stop() == 0
        assert sorted(os.listdir(agent.state_dir)) == ["agent.lock", "index.sqlite", "tmp"]  # all is in the one file
        yield agent


@pytest.mark.parametrize("damage", [make_noise, cut_in_half, make_foreign, drop_a_table, make_half_noise])
def test_a_damaged_index_is_set_aside_and_rebuilt(stopped: AgentProcess, damage: Callable[[Path], None]) -> None:
    agent, index = stopped, Path(index_path(str(stopped.state_dir)))
    damage(index)
    damaged = index.read_bytes()
    agent.start(ready=False)
    # What a start does not notice, the first rescan does: then the process ends and is started again.
    wait_for(lambda: agent.process and (agent.process.poll() is not None or agent.get("/readyz")[0] == 200), "an end or a start")
    if agent.process and agent.process.poll() is not None:
        assert agent.wait() == 1
        assert agent.records("worker-died")
        agent.start()
    (told,) = wait_for(lambda: agent.records("index-set-aside"), "it to be told")
    (aside,) = agent.state_dir.glob("index.sqlite.set-aside-*[0-9Z]")
    assert str(aside) in told["MESSAGE"]
    assert aside.read_bytes() == damaged
    hour = agent.root / HOUR
    wait_for(lambda: is_true(agent, hour), "the index to be true")
    assert agent.hidden(MARK)


@pytest.mark.parametrize("killed", [False, True])
def test_a_deleted_index_costs_one_rescan(tmp_path: Path, killed: bool) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR, segments=200)
    with agent:
        mark(hour)
        wait_for(lambda: agent.hidden(MARK), "the mark to be hidden")
        if killed:
            agent.kill()  # and its write-ahead log is left behind
        else:
            agent.stop()
        Path(index_path(str(agent.state_dir))).unlink()
        agent.start()
        assert is_true(agent, hour)
        assert agent.hidden(MARK)
        assert not agent.records("index-set-aside")
        assert len(agent.records("root-adopted")) == 2  # the same tree, under the identity that it has
        assert len(os.listdir(agent.root / ".tombsync")) == 1


def remove_index(agent: AgentProcess) -> None:
    Path(index_path(str(agent.state_dir))).unlink()


def remove_state(agent: AgentProcess) -> None:
    shutil.rmtree(agent.state_dir)


def replace_index(agent: AgentProcess) -> None:
    index = Path(index_path(str(agent.state_dir)))
    shutil.copyfile(index, index.with_suffix(".copy"))
    index.with_suffix(".copy").rename(index)


@pytest.mark.parametrize("harm", [remove_index, remove_state, replace_index])
def test_an_index_lost_while_the_agent_runs_ends_it(tmp_path: Path, harm: Callable[[AgentProcess], None]) -> None:
    """SQLite would go on with a file that nobody else can open; the process ends, and the next one rebuilds it."""
    agent = AgentProcess(tmp_path)
    hours = [make_hour(agent.root, f"desertbus/source/{hour_text(FIRST_HOUR + n)}", segments=200) for n in range(20)]
    with agent:
        mark(hours[0])
        wait_for(lambda: agent.hidden(MARK), "the mark to be hidden")
        idle(agent)
        harm(agent)
        number = 0

        def ended() -> bool:
            nonlocal number
            number += 1  # work for all of the index
            (hours[number % 20] / f"{number}.tombstone").touch()
            return agent.process is not None and agent.process.poll() is not None

        wait_for(ended, "the agent to end")
        assert agent.wait() == 1
        (told,) = agent.records("worker-died")
        assert told["TOMBSYNC_WORKER"] == "intake"
        assert "it was removed or replaced under the running agent" in told["MESSAGE"]
        assert "tombsync: the worker intake died" in agent.log.read_text()
        agent.start()
        wait_for(lambda: is_true(agent, *hours), "the index to be true")
        assert all(agent.hides(marked(hours[n % 20], str(n))) for n in range(1, number + 1))


STALLING_INTAKE = """
import threading
from tombsync.cli.main import main
from tombsync.daemon import agent

class StallingTree(agent.Tree):
    def sight(self, marked):
        threading.Event().wait()

agent.Tree = StallingTree
agent.STALLED_AFTER_S = 5.0  # more than any turn takes here
main()
"""


def test_a_worker_that_stalls_ends_the_process(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, program=[sys.executable, "-c", STALLING_INTAKE])
    with agent:
        idle(agent)
        mark(make_hour(agent.root, HOUR))
        wait_for(lambda: "intake" not in agent.get("/healthz")[1] or agent.metric("worker_beat_age_seconds", worker="intake") > 1)
        assert agent.wait() == 1
        (told,) = agent.records("worker-died")
        assert told["TOMBSYNC_WORKER"] == "intake"


PAUSED = """
from tombsync.cli.main import main
from tombsync.daemon import agent

agent.STALLED_AFTER_S = 3.0
agent.STOOD_STILL_AFTER_S = 2.5
main()
"""


def test_a_process_that_was_stopped_for_long_goes_on(tmp_path: Path) -> None:
    """As by a frozen cgroup or a paused machine: no worker is to blame, and none is."""
    agent = AgentProcess(tmp_path, program=[sys.executable, "-c", PAUSED])
    hour = make_hour(agent.root, HOUR)
    with agent:
        idle(agent)
        agent.signal(signal.SIGSTOP)
        until = time.monotonic() + 3.5
        wait_for(lambda: time.monotonic() > until)
        mark(hour)
        agent.signal(signal.SIGCONT)
        wait_for(lambda: agent.hidden(MARK), "it to go on")
        looked = time.monotonic() + 1
        wait_for(lambda: time.monotonic() > looked)
        assert agent.is_ready()
        assert not agent.records("worker-died")


def test_a_rescan_without_an_agent_leaves_word_of_itself(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR)
    mark(hour)
    for kind in ("interval", "full"):
        agent.run("rescan", *(["--full"] if kind == "full" else []))
        assert json.loads(agent.run("status", "--json").stdout)["rescan"]["completed_at"][kind]
    assert is_true(agent, hour)
    assert agent.hidden(MARK)


# -- patience ---------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time` in the rescan: its monotonic clock moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)

    time = staticmethod(time.time)
    time_ns = staticmethod(time.time_ns)


class Records:
    """A sink that keeps what was recorded."""

    def __init__(self) -> None:
        self.fields: list[dict[str, str]] = []

    def send(self, record: Record) -> None:
        self.fields.append(record.fields)

    def close(self) -> None:
        pass


class Rescanning:
    """The rescan with the index behind it, turn by turn, and no watcher."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        for module in ("hours", "worker"):
            monkeypatch.setattr(f"tombsync.rescan.{module}.time", self.clock)
        self.base = base
        self.root = base / "segments"
        self.root.mkdir()
        self.tree = Tree(str(self.root))
        self.path = index_path(str(base))
        self.identity = self.tree.adopt()
        self.peers: dict[str, str] = {}
        self._sink = Records()
        self.start()

    def start(self) -> None:
        """A new process's rescan on the same index."""
        self._writer = Writer(self.path)
        self._writer.sync_peers(self.peers)
        self.mailbox, self.metrics = Mailbox(), Metrics()
        self._audit = Audit("node-a", self._sink)
        self._audit.start()
        intake = Intake(
            tree=self.tree,
            writer=self._writer,
            mailbox=self.mailbox,
            audit=self._audit,
            metrics=self.metrics,
            wake_pushers=lambda: None,
            watch_answers=lambda: False,
        )
        self.rescan = Rescan(
            tree=self.tree,
            identity=self.identity,
            index_path=self.path,
            mailbox=self.mailbox,
            audit=self._audit,
            metrics=self.metrics,
            interval_s=300,
            full_interval_s=86400,
            first_pass=(self._writer.fact("pass") or 0) + 1,
            believed=lambda: True,
            may_begin=lambda: True,
            on_missed=lambda: None,
            accept_lost=lambda: False,
        )
        self._intake = Driver(intake, Beats(), lambda: None)
        self._intake.start()
        self.pass_time(10)

    def stop(self) -> None:
        self.mailbox.close()
        self._intake.stop()
        assert self._intake.join(10)
        assert not self._intake.failure
        self._audit.close()
        self.rescan.close()
        self._writer.close()

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass, with the turns that the rescan takes meanwhile."""
        end = self.clock.now_s + seconds
        while self.clock.now_s < end:
            self.clock.now_s = min(end, self.clock.now_s + 1.0)
            for _ in range(4):  # an asked hour, an interval, a full and a settling rescan may all be due
                self.rescan.wake()
                self.rescan.loop(self.clock.now_s)
        flush = Flush()
        self.mailbox.put_bulk(flush)
        assert flush.done.wait(20)

    def told(self, event: str) -> list[str]:
        """The segments, or else hours, of which this was recorded."""
        self._audit.close()
        self._audit = self._audit  # closed: all of it is written
        return [
            fields.get("TOMBSYNC_SEGMENT") or fields["TOMBSYNC_HOUR"]
            for fields in self._sink.fields
            if fields["TOMBSYNC_EVENT"] == event
        ]

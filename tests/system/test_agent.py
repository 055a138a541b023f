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

from tests.support.agent import AgentProcess, make_hour, peer_table, perhaps_told_before, segment_stem
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.trees import Disk, disk, hour_of, listed, make_large_tree, marked
from tests.support.waiting import wait_for
from tombsync import confine
from tombsync.audit import Audit, Event, Record
from tombsync.index import Reader, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import hour_number, hour_text, strict_path
from tombsync.plan import Breaker
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
    """Ask for a rescan, and wait for one that has begun since."""
    for _ in range(2):  # the first one that ends may have begun before; the second began after its end
        before = agent.metric("rescan_seconds_count", kind=kind)
        agent.signal(signal.SIGUSR2 if kind == "full" else signal.SIGUSR1)
        wait_for(lambda before=before: agent.metric("rescan_seconds_count", kind=kind) > before, "a rescan")  # type: ignore[misc]


def mark(directory: Path, stem: str = segment_stem(0)) -> Path:
    """A tombstone."""
    path = directory / f"{stem}.tombstone"
    path.touch()
    return path


def told_hidden(agent: AgentProcess) -> Counter[str]:
    """How often the journal says of each segment that it was hidden, perhaps once more after a kill."""
    told = [record for record in agent.records("hidden") if not perhaps_told_before(record)]
    return Counter(record["TOMBSYNC_SEGMENT"] for record in told)


def is_true(agent: AgentProcess, *directories: Path) -> bool:
    """Whether the index lists these hours as the archive does."""
    return all(
        agent.listing(hour_of(directory), tombstones=tombstones) == listed(directory, tombstones=tombstones)
        for directory in directories
        for tombstones in (False, True)
    )


# -- starting, killing ------------------------------------------------------------------------------------------------


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
        wait_for(lambda: told_hidden(agent) == {MARK: 1}, "it to be told once")


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
        every = {f"{HOUR}/{segment_stem(second)}": 1 for second in range(0, 60, 2)}
        wait_for(lambda: told_hidden(agent) == every, "each to be told once")


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
        wait_for(
            lambda: {record["TOMBSYNC_SEGMENT"] for record in agent.records("hidden")} == set(archive.marks),
            "all of them to be told, by one life or the next",
        )
        assert set(told_hidden(agent).values()) == {1}
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


# -- the index --------------------------------------------------------------------------------------------------------


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
    wait_for(
        lambda: agent.process and (agent.process.poll() is not None or agent.get("/readyz")[0] == 200),
        "an end or a start",
    )
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
        # the same tree, under the identity that it has
        wait_for(lambda: len(agent.records("root-adopted")) == 2, "it to be told")
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
from tombsync.daemon import agent, crew

class StallingTree(agent.Tree):
    def sight(self, marked):
        threading.Event().wait()

agent.Tree = StallingTree
crew.STALLED_AFTER_S = 12.0  # more than any turn takes here: of the watcher, which has the longest, up to 6 s
main()
"""


def test_a_worker_that_stalls_ends_the_process(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, program=[sys.executable, "-c", STALLING_INTAKE])
    with agent:
        idle(agent)
        mark(make_hour(agent.root, HOUR))

        def unhealthy() -> str:
            status, body = agent.get("/healthz")
            return body if status == 503 else ""

        # It is told for the moment until the next look at the workers, which may be over before anybody asks.
        seen = wait_for(lambda: unhealthy() or ("" if agent.is_running() else "ended"), "it to be told", 30)
        assert seen == "ended" or '"intake"' in seen
        assert agent.wait() == 1
        (told,) = agent.records("worker-died")
        assert told["TOMBSYNC_WORKER"] == "intake"


SLOW_INTAKE = """
import time
from tombsync.cli.main import main
from tombsync.daemon import agent, crew

class SlowTree(agent.Tree):
    def sight(self, marked):
        print("in a slow turn", flush=True)
        for _ in range(30):  # many sleeps, as a clock goes on while the process is stopped
            time.sleep(0.1)
        return super().sight(marked)

agent.Tree = SlowTree
crew.STALLED_AFTER_S = 12.0
main()
"""


def test_a_process_that_was_stopped_for_long_goes_on(tmp_path: Path) -> None:
    """As by a frozen cgroup or a paused machine, in the middle of a worker's turn: no worker is to blame for that."""
    agent = AgentProcess(tmp_path, program=[sys.executable, "-c", SLOW_INTAKE])
    hour = make_hour(agent.root, HOUR)
    with agent:
        idle(agent)
        mark(hour)
        wait_for(lambda: "in a slow turn" in agent.log.read_text(), "the intake's slow turn")
        agent.signal(signal.SIGSTOP)
        until = time.monotonic() + 12.5  # more than a turn may take
        wait_for(lambda: time.monotonic() > until)
        agent.signal(signal.SIGCONT)
        wait_for(lambda: agent.hidden(MARK), "it to go on")
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


# -- patience ---------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time` in the rescan: its monotonic clock moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)

    time_ns = staticmethod(time.time_ns)
    time = staticmethod(time.time)


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
            on_news=lambda _: None,
            watch_answers=lambda: False,
            breaker=Breaker(1_000_000),
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
        """The segments, or else hours, of which this was recorded so far."""
        self._audit.record(Event.READY, "so far")
        wait_for(lambda: self._sink.fields and self._sink.fields[-1]["MESSAGE"] == "so far", "the records so far")
        return [
            fields.get("TOMBSYNC_SEGMENT") or fields["TOMBSYNC_HOUR"]
            for fields in self._sink.fields
            if fields["TOMBSYNC_EVENT"] == event
        ]

    def count(self, kind: str) -> float:
        """How many rescans of a kind have ended."""
        return self.metrics.registry.get_sample_value("tombsync_rescan_seconds_count", {"kind": kind}) or 0.0

    def hides(self, path: str) -> bool:
        reader = Reader(self.path)
        try:
            return reader.marker(strict_path(path)) is not None
        finally:
            reader.close()

    def listing(self, directory: Path) -> list[str]:
        reader = Reader(self.path)
        try:
            return reader.listing(hour_of(directory))
        finally:
            reader.close()


@pytest.fixture
def rescanning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rescanning]:
    made = Rescanning(tmp_path, monkeypatch)
    made.pass_time(10)
    yield made
    made.stop()


def test_a_vanished_tombstone_is_put_back_after_a_minute(rescanning: Rescanning) -> None:
    hour = make_hour(rescanning.root, HOUR)
    tombstone = mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    tombstone.unlink()
    rescanning.rescan.request_hour(hour_of(hour))  # as the watcher does
    rescanning.pass_time(59)
    assert not tombstone.exists()
    assert rescanning.hides(MARK)
    rescanning.pass_time(5)
    assert tombstone.is_file()
    assert rescanning.listing(hour) == listed(hour)
    assert rescanning.told("restored") == [MARK]
    assert rescanning.told("hidden") == [MARK]
    rescanning.pass_time(400)
    assert rescanning.told("restored") == [MARK]


def test_a_tombstone_that_comes_back_by_itself_is_not_restored(rescanning: Rescanning) -> None:
    hour = make_hour(rescanning.root, HOUR)
    tombstone = mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    for _ in range(3):  # each time it has a new minute
        tombstone.unlink()
        rescanning.rescan.request_hour(hour_of(hour))
        rescanning.pass_time(40)
        tombstone.touch()
        rescanning.rescan.request_hour(hour_of(hour))
        rescanning.pass_time(10)
    assert rescanning.told("restored") == []
    assert rescanning.hides(MARK)


def test_an_hour_that_is_removed_is_not_made_again(rescanning: Rescanning) -> None:
    """With `rm -r`, which takes the tombstone first and the directory a little later."""
    hour = make_hour(rescanning.root, HOUR)
    tombstone = mark(hour)
    other = make_hour(rescanning.root, "desertbus/source/2019-11-13T03")
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    tombstone.unlink()
    rescanning.rescan.request_hour(hour_of(hour))
    rescanning.pass_time(30)
    shutil.rmtree(hour)
    rescanning.rescan.request_hour(hour_of(hour))
    rescanning.pass_time(31)
    assert rescanning.hides(MARK)  # it may have been moved away, to come back
    assert rescanning.listing(hour) == []
    rescanning.pass_time(60)
    assert not rescanning.hides(MARK)
    assert not hour.exists()
    assert rescanning.told("hour-gone") == ["2019-11-13T02"]
    assert rescanning.told("restored") == []
    assert rescanning.listing(other) == listed(other)
    rescanning.pass_time(700)
    assert not hour.exists()


def test_what_a_peer_does_not_have_yet_outlives_its_hour(rescanning: Rescanning) -> None:
    rescanning.stop()
    rescanning.peers = {"node-b": "tree://somewhere"}
    rescanning.start()
    hour = make_hour(rescanning.root, HOUR)
    mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    settled = rescanning.count("settle")
    shutil.rmtree(hour)
    rescanning.pass_time(1000)
    assert rescanning.count("settle") <= settled + 8  # it waits, and nothing is looked at every two seconds for that
    assert rescanning.hides(MARK)
    assert not hour.exists()
    assert rescanning.told("hour-gone") == []
    make_hour(rescanning.root, HOUR)  # it returns without the tombstone
    rescanning.pass_time(400)
    assert (hour / f"{segment_stem(0)}.tombstone").is_file()
    assert rescanning.listing(hour) == listed(hour)


def test_an_hour_that_goes_twice_has_a_minute_each_time(rescanning: Rescanning, tmp_path: Path) -> None:
    hour, outside = make_hour(rescanning.root, HOUR), tmp_path / "outside"
    mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    for _ in range(3):
        hour.rename(outside)
        rescanning.rescan.request_hour(hour_of(hour))
        rescanning.pass_time(40)
        assert rescanning.hides(MARK)
        assert rescanning.listing(hour) == []
        outside.rename(hour)
        rescanning.rescan.request_hour(hour_of(hour))
        rescanning.pass_time(40)
        assert rescanning.listing(hour) == listed(hour)
    assert rescanning.told("hour-gone") == []
    assert rescanning.told("hidden") == [MARK]


def test_an_hour_that_returns_without_its_tombstone_has_a_whole_minute(rescanning: Rescanning) -> None:
    hour = make_hour(rescanning.root, HOUR)
    tombstone = mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    tombstone.unlink()
    rescanning.rescan.request_hour(hour_of(hour))
    rescanning.pass_time(20)
    shutil.rmtree(hour)
    rescanning.rescan.request_hour(hour_of(hour))
    rescanning.pass_time(20)
    make_hour(rescanning.root, HOUR)
    rescanning.rescan.request_hour(hour_of(hour))
    rescanning.pass_time(55)
    assert not tombstone.exists()
    assert rescanning.hides(MARK)
    rescanning.pass_time(10)
    assert tombstone.is_file()
    assert rescanning.listing(hour) == listed(hour)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("kind", [RescanKind.INTERVAL, RescanKind.FULL])
def test_an_hour_that_returns_as_it_was_is_taken_up_again(
    rescanning: Rescanning, tmp_path: Path, kind: RescanKind, restarted: bool
) -> None:
    """Its mtime and its entries are those of the listing that settled, and nobody watched: its rows went meanwhile."""
    hour = make_hour(rescanning.root, HOUR)
    mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    hour.rename(tmp_path / "outside")
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    assert rescanning.listing(hour) == []
    assert rescanning.hides(MARK)
    if restarted:
        rescanning.stop()
    (tmp_path / "outside").rename(hour)
    if restarted:
        rescanning.start()
    rescanning.rescan.request(kind)
    rescanning.pass_time(10)
    assert rescanning.listing(hour) == listed(hour)


def test_an_hour_that_waits_for_a_tombstone_is_compared_again(rescanning: Rescanning) -> None:
    """Where a file system gives the same inode again, the entries may be those of the last listing to the last byte."""
    hour = make_hour(rescanning.root, HOUR)
    tombstone = mark(hour)
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    before = os.stat(hour)
    tombstone.unlink()
    (hour / "other.ts").touch()
    settled = rescanning.count("settle")
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(40)
    assert rescanning.count("settle") <= settled + 3
    assert rescanning.listing(hour) == [name for name in listed(hour) if segment_stem(0) not in name]
    (hour / "other.ts").unlink()
    tombstone.touch()
    os.utime(hour, ns=(before.st_atime_ns, before.st_mtime_ns))
    rescanning.rescan.request(RescanKind.INTERVAL)
    rescanning.pass_time(10)
    assert rescanning.listing(hour) == listed(hour)


@pytest.mark.timeout(180)
def test_a_minute_of_patience(tmp_path: Path) -> None:
    """The one test that really waits: the whole agent puts back what vanished, and only that."""
    agent = AgentProcess(tmp_path)
    hour, gone = make_hour(agent.root, HOUR), make_hour(agent.root, "desertbus/source/2019-11-13T03")
    tombstone, other = mark(hour), mark(gone)
    with agent:
        idle(agent)
        begun = time.monotonic()
        tombstone.unlink()
        shutil.rmtree(gone)
        assert agent.hidden(MARK)
        (told,) = wait_for(lambda: agent.records("restored"), "it to be put back", 120)
        assert time.monotonic() - begun >= 60
        assert told["TOMBSYNC_SEGMENT"] == MARK
        assert tombstone.is_file()
        assert is_true(agent, hour)
        wait_for(lambda: agent.records("hour-gone"), "the hour to be given up", 60)
        assert not gone.exists()
        assert not agent.hidden(f"desertbus/source/2019-11-13T03/{other.stem}")
        assert agent.metric("restored_total") == 1
        assert agent.metric("tombstones") == 1
        # Which it did although it had given up every right to write or remove a file of the tree.
        assert agent.records("confinement")[0]["TOMBSYNC_CONFINED"] == ("1" if confine.abi_version() else "0")


# -- the tree goes and comes back -------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[AgentProcess, Disk]]:
    """An agent, not started, and a disk with an hour and a mark, mounted at its root."""
    with disk(tmp_path / "image") as made:
        agent = AgentProcess(tmp_path)
        made.mount(agent.root)
        mark(make_hour(agent.root, HOUR))
        with agent.ending():
            yield agent, made


def assert_paused(agent: AgentProcess, expected: list[str]) -> None:
    """It answers, says that it is paused, and keeps everything."""
    wait_for(lambda: agent.get("/metrics")[0] == 200 and not agent.metric("root_believed"), "the loss to be noticed")
    wait_for(lambda: agent.records("root-lost"), "the loss to be told")
    assert agent.get("/healthz")[0] == 200
    assert "paused" in agent.get("/readyz")[1]
    rescan_asked = agent.run("rescan", expect=None)
    assert rescan_asked.returncode == 1
    assert agent.hidden(MARK)
    assert agent.listing(hour_of(agent.root / HOUR)) == expected
    assert agent.metric("tombstones") == 1


def test_an_idle_agent_lets_its_tree_be_unmounted_and_pauses_until_it_is_back(
    mounted: tuple[AgentProcess, Disk],
) -> None:
    agent, made = mounted
    idle(agent.start())
    expected = listed(agent.root / HOUR)
    assert len(expected) == 2
    wait_for(lambda: completed(agent, "settle"), "the agent to be idle")
    made.take_away()
    assert_paused(agent, expected)
    assert os.listdir(agent.root) == []  # nothing was made in the bare mount point
    assert len(agent.records("root-lost")) == 1

    made.mount(agent.root)
    assert agent.wait() == 75
    assert len(agent.records("root-returned")) == 1
    agent.start()
    assert is_true(agent, agent.root / HOUR)
    mark(agent.root / HOUR, segment_stem(2))
    wait_for(lambda: is_true(agent, agent.root / HOUR), "a new mark to be hidden")
    wait_for(lambda: told_hidden(agent) == {MARK: 1, f"{HOUR}/{segment_stem(2)}": 1}, "both to be told, once")


def test_an_agent_that_starts_without_its_tree_waits_for_it(mounted: tuple[AgentProcess, Disk]) -> None:
    agent, made = mounted
    agent.start()
    expected = listed(agent.root / HOUR)
    agent.stop()
    made.take_away()
    stray = make_hour(agent.root, HOUR, segments=9)  # a downloader writes into the bare mount point
    mark(stray, segment_stem(4))
    agent.start(ready=False)
    assert_paused(agent, expected)
    assert not agent.hidden(f"{HOUR}/{segment_stem(4)}")
    assert not (agent.root / ".tombsync").exists()
    assert agent.watched() == set()
    shutil.rmtree(agent.root / "desertbus")
    made.mount(agent.root)
    assert agent.wait() == 75


def test_an_agent_that_never_had_a_tree_says_that_there_is_none(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    agent.root.rmdir()
    done = agent.run("run", expect=1)
    assert [line for line in done.stderr.splitlines() if not line.startswith("{")] == [
        f"tombsync: the segment tree {agent.root} is not a directory that can be opened",
        "  hint: mount it, or name another with --root",
    ]


def test_another_tree_in_its_place_is_not_believed_until_a_person_says_so(
    mounted: tuple[AgentProcess, Disk], tmp_path: Path
) -> None:
    agent, made = mounted
    idle(agent.start())
    expected = listed(agent.root / HOUR)
    wait_for(lambda: completed(agent, "settle"), "the agent to be idle")
    made.take_away()
    with disk(tmp_path / "other") as other:
        other.mount(agent.root)
        theirs = make_hour(agent.root, "desertbus/source/2019-11-13T09", segments=4)
        mark(theirs, segment_stem(2))
        assert_paused(agent, expected)
        mark(theirs, segment_stem(4))
        rescan_refused = agent.run("rescan", "--full", expect=1)
        assert "has no identity, expected" in rescan_refused.stderr
        assert not agent.hides(marked(theirs, segment_stem(2)))
        assert sorted(os.listdir(agent.root)) == ["desertbus", "lost+found"]

        dry = agent.run("adopt-root", "--dry-run")
        assert "would" in dry.stdout
        assert agent.process is not None
        assert agent.process.poll() is None
        agent.run("adopt-root", "--yes")
        assert agent.wait() == 75
        agent.start()
        wait_for(lambda: is_true(agent, theirs), "the new tree to be taken up")
        assert agent.listing(hour_of(agent.root / HOUR)) == []
        assert agent.hides(marked(theirs, segment_stem(4)))
        (own,) = os.listdir(agent.root / ".tombsync")
        # the identity is still the index's
        wait_for(lambda: len(agent.records("root-adopted")) == 1, "it to be told")
        assert own == f"root-{agent.records('root-adopted')[0]['MESSAGE'].split()[-1]}"
        agent.kill()


@pytest.mark.parametrize("removed", [False, True])
def test_a_root_that_is_moved_away_or_removed_pauses_the_agent(tmp_path: Path, removed: bool) -> None:
    agent = AgentProcess(tmp_path)
    mark(make_hour(agent.root, HOUR))
    with agent:
        idle(agent)
        expected = listed(agent.root / HOUR)
        shutil.copytree(agent.root, tmp_path / "copy")
        if removed:
            shutil.rmtree(agent.root)
            # What was removed before the root was, went as any hour does: only the marks are kept for a while.
            wait_for(lambda: agent.records("root-lost"), "the loss to be told")
            assert agent.hidden(MARK)
        else:
            agent.root.rename(tmp_path / "moved")
            wait_for(lambda: agent.records("root-lost"), "the loss to be told")
            mark(tmp_path / "moved" / HOUR, segment_stem(2))
            assert agent.listing(hour_of(agent.root / HOUR)) == expected
        assert not agent.metric("root_believed")
        assert agent.get("/healthz")[0] == 200
        (tmp_path / "copy").rename(agent.root)
        assert agent.wait() == 75
        agent.start()
        wait_for(lambda: is_true(agent, agent.root / HOUR), "the copy, which has the same identity, to be taken up")


def test_a_quality_on_a_disk_of_its_own_that_is_unmounted_keeps_its_rows(tmp_path: Path) -> None:
    with disk(tmp_path / "image") as made:
        agent = AgentProcess(tmp_path)
        other = make_hour(agent.root, "desertbus/480p/2019-11-13T02")
        source = agent.root / "desertbus/source"
        source.mkdir()
        made.mount(source)
        hour = make_hour(agent.root, HOUR)
        mark(hour)
        with agent:
            idle(agent)
            expected = listed(hour)
            mark(hour, segment_stem(2))
            wait_for(lambda: agent.hides(marked(hour, segment_stem(2))), "the watcher to work")
            made.take_away()
            assert wait_for(lambda: agent.records("place-lost"), "the loss to be told")
            for kind in ("interval", "full"):
                rescan(agent, kind)
            mark(other)
            wait_for(lambda: is_true(agent, other), "the rest of the tree to go on")
            assert agent.listing(hour_of(hour)) == [name for name in expected if segment_stem(2) not in name]
            assert agent.hidden(MARK)
            wait_for(lambda: len(agent.records("place-lost")) == 1, "the loss to be told")
            assert agent.metric("root_believed") == 1
            assert os.listdir(source) == []

            made.mount(source)
            rescan(agent, "interval")
            inode = hour.stat().st_ino
            wait_for(lambda: inode in {found for _, found in agent.watched()}, "the hours to be watched again")
            (hour / "fresh.tombstone").touch()
            wait_for(lambda: agent.hides(marked(hour, "fresh")), "a fresh mark to be hidden")
            row = agent.marker(f"{HOUR}/fresh")
            assert row is not None
            assert row.source == "watch"
            assert is_true(agent, hour)
            assert not agent.records("restored")

            made.take_away()
            wait_for(lambda: len(agent.records("place-lost")) == 2, "the second loss to be told")
            agent.run("adopt-root", "--yes")  # this time it is meant
            rescan(agent, "interval")
            assert agent.listing(hour_of(hour)) == []


@pytest.mark.parametrize("level", ["desertbus", "desertbus/source", HOUR])
def test_what_may_not_be_read_any_more_is_not_taken_for_gone(tmp_path: Path, level: str) -> None:
    prefix = []
    if os.geteuid() == 0:  # root reads everything, unless it gave that up
        lacking = "-dac_override,-dac_read_search"
        prefix = [need("setpriv"), f"--bounding-set={lacking}", f"--inh-caps={lacking}"]
    agent = AgentProcess(tmp_path, prefix=prefix)
    hour = make_hour(agent.root, HOUR)
    mark(hour)
    with agent:
        idle(agent)
        expected = listed(hour)
        mode = (agent.root / level).stat().st_mode
        (agent.root / level).chmod(0)
        try:
            for kind in ("interval", "full"):
                rescan(agent, kind)
            assert agent.listing(hour_of(hour)) == expected
            assert agent.hidden(MARK)
            wait_for(lambda: "cannot be listed: Permission denied" in agent.log.read_text(), "it to be told")
        finally:
            (agent.root / level).chmod(mode)
        mark(hour, segment_stem(2))
        rescan(agent, "interval")
        wait_for(lambda: is_true(agent, hour), "the index to be true")


def test_a_directory_that_the_disk_cannot_read_costs_the_rest_nothing(mounted: tuple[AgentProcess, Disk]) -> None:
    agent, made = mounted
    other = make_hour(agent.root, "desertbus/480p/2019-11-13T02")
    agent.start()
    expected = listed(agent.root / HOUR)
    agent.stop()
    made.take_away()
    damage = ["-w", "-R", "zap_block -f /desertbus/source -p 85 0", str(made.image)]
    subprocess.run([need("debugfs"), *damage], check=True, capture_output=True)
    made.mount(agent.root)
    with pytest.raises(OSError):
        os.listdir(agent.root / "desertbus/source")

    idle(agent.start())
    rescan(agent)
    assert agent.listing(hour_of(agent.root / HOUR)) == expected
    assert agent.hidden(MARK)
    assert "desertbus/source cannot be listed: " in agent.log.read_text()
    mark(other)
    wait_for(lambda: is_true(agent, other), "the rest of the tree to go on")
    row = agent.marker(f"desertbus/480p/2019-11-13T02/{segment_stem(0)}")
    assert row is not None
    assert row.source == "watch"
    assert agent.stop() == 0


# -- large trees, long lives ------------------------------------------------------------------------------------------

LARGE_FILES, LARGE_HOURS = 200_000, 100
NEWEST = "desertbus/source/2019-11-17T00"  # of the large tree


@pytest.fixture(scope="module")
def large_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of 200,000 files, which are hard links to a few."""
    root = tmp_path_factory.mktemp("large") / "segments"
    make_large_tree(root, files=LARGE_FILES, hours=LARGE_HOURS)
    yield root
    shutil.rmtree(root)


def status(agent: AgentProcess) -> dict[str, object]:
    """What `tombsync status --json` says."""
    document: dict[str, object] = json.loads(agent.run("status", "--json").stdout)
    return document


# Each read of a directory takes this long, so that a first index lasts for seconds on any machine. -D: the agent is the
# child that is waited for, and strace looks on from outside.
SLOW_LISTING = ["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=getdents64"]
SLOW_LISTING += ["-e", "inject=getdents64:delay_exit=5000"]


def progress(agent: AgentProcess) -> dict[str, object] | None:
    """What the commands say of the running rescan once it has done some hours."""
    done = agent.run("status", "--json", expect=None)
    if done.returncode:  # no index yet
        return None
    seen: dict[str, object] = json.loads(done.stdout)
    rescan_seen = seen["rescan"]
    assert isinstance(rescan_seen, dict)
    return seen if rescan_seen["running"] and rescan_seen["running"]["done"] else None


@pytest.mark.timeout(150)
def test_the_progress_of_a_first_index_can_be_seen(tmp_path: Path, large_root: Path) -> None:
    agent = AgentProcess(tmp_path, root=large_root, prefix=[need("strace"), *SLOW_LISTING])
    with agent.ending():
        agent.start(ready=False)
        assert wait_for(lambda: agent.get("/readyz")[0], "an answer") == 503

        seen = wait_for(lambda: progress(agent), "some hours to be done", 60) or {}
        rescan_seen = seen["rescan"]
        assert isinstance(rescan_seen, dict)
        running = rescan_seen["running"]
        assert running["kind"] == "interval"
        assert 0 < running["done"] < running["total"] == LARGE_HOURS
        assert running["started_at"]
        assert rescan_seen["completed_at"] == {"interval": None, "full": None}
        assert seen["agent"] == {"running": True, "pid": agent.pid}
        assert agent.get("/healthz")[0] == 200

        wait_for(agent.is_ready, "it to be ready", 40)
        wait_for(lambda: agent.records("ready"), "it to be told")
        idle(agent)
        seen = status(agent)
        assert seen["segments"] == {"visible": LARGE_FILES, "hidden": 0}
        assert seen["hours"] == LARGE_HOURS
        rescan_seen = seen["rescan"]
        assert isinstance(rescan_seen, dict)
        assert rescan_seen["running"] is None or rescan_seen["running"]["kind"] == "settle"
        assert all(rescan_seen["completed_at"].values())
        assert json.loads(agent.get("/readyz")[1])["status"] == "ready"
        newest = large_root / NEWEST
        assert is_true(agent, newest)


@pytest.mark.parametrize("first_index", [True, False])
def test_sigterm_ends_it_in_the_middle_of_everything(tmp_path: Path, large_root: Path, first_index: bool) -> None:
    """A rescan of a large tree runs, and a peer is frozen: before it said a word, or with requests under way."""
    with Sshd() as peer:
        make_hour(peer.root, NEWEST)
        agent = AgentProcess(tmp_path, root=large_root, peers=[peer_table("node-b", peer)])
        with agent.ending():
            if first_index:
                peer.freeze()
                agent.start(ready=False)
                wait_for(lambda: "first scan" in agent.get("/readyz")[1], "the rescan to run")
            else:
                idle(agent.start())
                wait_for(lambda: agent.metric("peer_up", peer="node-b"), "the peer to be up")
                peer.freeze()
                tombstones = [mark(large_root / NEWEST, f"unknown{number}") for number in range(50)]
                wait_for(lambda: agent.metric("deliveries", peer="node-b", state="pending") == 50, "deliveries")

                def rescans() -> bool:
                    agent.signal(signal.SIGUSR2)
                    return "full rescan" in agent.get("/readyz")[1]

                wait_for(rescans, "the rescan to run")
                for tombstone in tombstones:
                    tombstone.unlink()
            assert agent.stop() == 0
            assert "still running at the end" not in agent.log.read_text()
            assert "Traceback" not in agent.log.read_text()
            wait_for(lambda: agent.records("stopping"), "it to be told")
            peer.thaw()


def test_damage_that_is_met_while_it_runs_ends_it_and_the_next_start_rebuilds(tmp_path: Path, large_root: Path) -> None:
    agent = AgentProcess(tmp_path, root=large_root)
    index = Path(index_path(str(agent.state_dir)))
    with agent:
        idle(agent)
        wait_for(lambda: index.stat().st_size > 10_000_000, "the write-ahead log to be moved into the file")
        make_half_noise(index)  # more of it than any cache holds

        hours = iter(list((large_root / "desertbus/source").iterdir()) * 1000)

        def ended() -> bool:
            """Reads and writes all over the index."""
            passing = next(hours) / "passing.ts"
            passing.touch()
            passing.unlink()
            return agent.process is not None and agent.process.poll() is not None

        tombstone = mark(large_root / NEWEST)
        try:
            wait_for(ended, "the damage to be met")
            assert agent.wait() == 1
            (told,) = agent.records("worker-died")
            assert "IndexDamaged" in told["MESSAGE"]
            agent.start()
            assert len(agent.records("index-set-aside")) == 1
            assert agent.hidden(f"{NEWEST}/{segment_stem(0)}")
            wait_for(lambda: is_true(agent, large_root / NEWEST), "the index to be true")
        finally:
            tombstone.unlink()


def test_signals_ask_for_rescans(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hour = make_hour(agent.root, HOUR)
    with agent:
        idle(agent)
        for number, kind in ((signal.SIGUSR1, "interval"), (signal.SIGUSR2, "full")):
            before = {name: completed(agent, name) for name in ("interval", "full")}
            agent.signal(number)
            wait_for(lambda kind=kind, before=before: completed(agent, kind) > before[kind], "it")  # type: ignore[misc]
            other = "full" if kind == "interval" else "interval"
            assert completed(agent, other) == before[other]
        assert is_true(agent, hour)


def kept_open(agent: AgentProcess) -> list[str]:
    """Its descriptors but those of HTTP clients; [] where a directory of the tree is just being looked at."""
    names = sorted(name for name in agent.descriptors() if not name.startswith("socket:"))
    return [] if any(name.startswith(str(agent.root)) for name in names) else names


@pytest.mark.timeout(120)
def test_no_descriptor_is_leaked_by_any_rescan(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    hours = [make_hour(agent.root, f"desertbus/source/{hour_text(FIRST_HOUR + n)}") for n in range(20)]
    with agent:
        idle(agent)
        index = Path(index_path(str(agent.state_dir)))
        wait_for(lambda: index.stat().st_size > 20_000, "the first checkpoint")
        before: list[str] = []
        for number in range(60):
            hour = hours[number % 20]
            if number % 5 == 0:
                shutil.rmtree(hour)
            else:
                mark(hour, str(number))
            rescan(agent, "full" if number % 2 else "interval")
            hour.mkdir(exist_ok=True)
            if number == 9:  # what is opened only once is open now
                before = wait_for(lambda: kept_open(agent), "its descriptors")
        assert wait_for(lambda: kept_open(agent), "its descriptors") == before
        wait_for(lambda: len(agent.descriptors()) <= len(before) + 1, "only the listening socket to be left of all")


def test_it_starts_confined(tmp_path: Path) -> None:
    if confine.abi_version() == 0:
        if os.environ.get("CI") == "true":
            pytest.fail("this kernel has no Landlock, and CI must not skip a test", pytrace=False)
        pytest.skip("this kernel has no Landlock")
    agent = AgentProcess(tmp_path, arguments=["--require-confinement"])
    hour = make_hour(agent.root, HOUR)
    with agent:
        (told,) = wait_for(lambda: agent.records("confinement"), "it to be told")
        assert told["TOMBSYNC_CONFINED"] == "1"
        assert "NoNewPrivs:\t1" in Path(f"/proc/{agent.pid}/status").read_text()
        # All that it makes for itself, it made under the confinement, and makes again after a crash.
        (own,) = os.listdir(agent.root / ".tombsync")
        assert own.startswith("root-")
        assert agent.socket.is_socket()
        agent.kill()
        agent.start()
        mark(hour)
        wait_for(lambda: is_true(agent, hour), "a mark to be hidden")
        assert agent.stop() == 0
        assert not agent.socket.exists()


IMPATIENT = """
from tombsync.cli.main import main
from tombsync.daemon import crew

crew.STALLED_AFTER_S = 12.0  # no idle turn is longer than 6 s
main()
"""


def test_a_full_disk_under_the_index_is_waited_out(tmp_path: Path) -> None:
    """What was seen waits for room, and so does the rescan that goes on seeing: that is no reason to end."""
    with disk(tmp_path / "image", megabytes=8) as made:
        agent = AgentProcess(tmp_path, program=[sys.executable, "-c", IMPATIENT])
        made.mount(agent.state_dir)
        with agent:
            idle(agent)
            filler = agent.state_dir / "filler"
            with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            hours = [
                make_hour(agent.root, f"desertbus/source/{hour_text(FIRST_HOUR + n)}", segments=1500) for n in range(5)
            ]
            mark(hours[0])
            wait_for(lambda: agent.records("state-refused"), "the refusal to be told")
            agent.signal(signal.SIGUSR2)
            retries = agent.metric("index_retries_total")
            wait_for(
                lambda: agent.metric("index_retries_total") >= retries + 14, "more seconds than any turn takes", 40
            )
            assert agent.get("/healthz")[0] == 200
            assert not agent.hidden(MARK)
            filler.unlink()
            wait_for(lambda: is_true(agent, *hours), "the index to be true")
            assert agent.hidden(MARK)
            assert agent.stop() == 0

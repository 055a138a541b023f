"""touch -> hidden (committed in the index), seen from another process; against a bare inotify read and bare commit.

python -m benchmarks.hide [--hours 556] [--touches 1000] [--only idle,rescan,first,catchup]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import load, trees
from benchmarks.common import (
    CommitWatch,
    Report,
    await_fast_creates,
    await_true,
    parser,
    percentile,
    spread,
    touch,
    work_directory,
)
from tests.support.agent import AgentProcess, peer_table
from tests.support.sshd import Sshd
from tombsync.names import Hour

BACKLOG, _BACKLOG_HOURS = 10_000, 10
_PAUSE_S = 0.003  # between touches, so that each meets an idle agent

_BARE = """
import os, sqlite3, sys
from inotify_simple import INotify, flags
connection = sqlite3.connect(sys.argv[2], isolation_level=None)
connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;"
                         "CREATE TABLE marker (id INTEGER PRIMARY KEY, stem TEXT)")
inotify = INotify()
inotify.add_watch(sys.argv[1], flags.CREATE)
print("ready", flush=True)
while True:
    for event in inotify.read():
        connection.execute("INSERT INTO marker (stem) VALUES (?)", (event.name,))
"""


def touches(
    directory: Path, watch: CommitWatch, count: int, *, prefix: str, while_: Callable[[], bool] = lambda: True
) -> list[float]:
    """Touch and wait for the commit, one by one; seconds each."""
    taken = []
    for number in range(count):
        if not while_():
            break
        before = watch.newest()
        begun = touch(directory / f"{prefix}{number}.tombstone")
        taken.append(watch.wait_newer(before) - begun)
        time.sleep(_PAUSE_S)
    return taken


def bare(base: Path, count: int) -> list[float]:
    """The limit: one process that reads inotify and commits one row, nothing else."""
    here = base / f"bare-{time.monotonic_ns()}"  # nothing is removed: creates would be slow for minutes
    directory, database = here / "tree", here / "state"
    for path in (directory, database):
        path.mkdir(parents=True)
    file = database / "index.sqlite"
    with subprocess.Popen([sys.executable, "-c", _BARE, str(directory), str(file)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            watch = CommitWatch(database)
            return touches(directory, watch, count, prefix="t")
        finally:
            process.kill()


def fresh_hour(root: Path) -> Path:
    """An hour of its own for the touches of one measurement."""
    number = trees.FIRST_HOUR + 60_000
    while (directory := root / Hour("desertbus", "source", number).path).exists():
        number += 1
    directory.mkdir(parents=True)
    return directory


def settle(agent: AgentProcess, *, warm: bool = False) -> None:
    """Wait until the rescans of the start are done; a warm index leaves nothing to settle."""
    kinds = ("full",) if warm else ("full", "settle")

    def settled() -> bool:
        return all(agent.metric("rescan_seconds_count", kind=kind) for kind in kinds)

    await_true(settled, "the rescans of the start", within_s=3600, pause_s=0.2)
    time.sleep(1)


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options_parser.add_argument("--touches", type=int, default=1000)
    options_parser.add_argument("--only", default="idle,rescan,first,catchup")
    options = options_parser.parse_args()
    report = Report("hide", options.json)
    wanted = options.only.split(",")
    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour)
        await_fast_creates(base)
        if "first" in wanted:
            first(report, base, root, options.touches)
        if {"idle", "rescan"} & set(wanted):
            steady(report, base, root, options.touches, wanted)
        if "catchup" in wanted:
            catch_up(report, base, options.touches)
    report.close()


def new_agent(base: Path, root: Path, name: str, **more: object) -> AgentProcess:
    """An agent with an empty index."""
    return AgentProcess(base / f"{name}-{time.monotonic_ns()}", root=root, **more)  # type: ignore[arg-type]


@contextmanager
def started(agent: AgentProcess) -> Iterator[None]:
    """The agent for the time of a `with` block, however long its first index takes."""
    try:
        agent.start(within_s=600)
        yield
    finally:
        agent.kill()


def steady(report: Report, base: Path, root: Path, count: int, wanted: list[str]) -> None:
    """Idle, then beside full rescans and arriving segments."""
    directory = fresh_hour(root)
    agent = new_agent(base, root, "steady")
    with started(agent):
        settle(agent)
        watch = CommitWatch(agent.state_dir)
        limit = bare(base, count)
        idle = touches(directory, watch, count, prefix="i")
        p50, p99 = percentile(idle, 0.5), percentile(idle, 0.99)
        ratio = p50 / percentile(limit, 0.5)
        report.add("bare", spread(limit))
        report.add("idle", spread(idle), must="p50 <= 0.5 ms, p99 <= 2 ms", ok=p50 <= 0.0005 and p99 <= 0.002)
        report.add("idle p50 / bare p50", round(ratio, 2), must="<= 3", ok=ratio <= 3)
        if "rescan" in wanted:
            busy = beside_rescans(agent, root, directory, watch, count)
            report.add(
                "full rescan + 2,000 segments/s", spread(busy), must="p99 <= 10 ms", ok=percentile(busy, 0.99) <= 0.010
            )
        watch.close()


def beside_rescans(agent: AgentProcess, root: Path, directory: Path, watch: CommitWatch, count: int) -> list[float]:
    """Full rescans one after another while segments arrive."""
    taken: list[float] = []
    with load.segments(root, 2000):
        rounds = 0
        while len(taken) < count:
            agent.signal(signal.SIGUSR2)
            rounds += 1
            few = min(50, count - len(taken))
            taken += touches(directory, watch, few, prefix=f"r{rounds}-")
    return taken


def first(report: Report, base: Path, root: Path, count: int) -> None:
    """While the index of the tree is made for the first time."""
    directory = fresh_hour(root)
    agent = new_agent(base, root, "first")
    agent.start(ready=False)
    try:
        while not agent.metric_if_up("watches") or not os.path.exists(agent.state_dir / "index.sqlite"):
            time.sleep(0.01)
        watch = CommitWatch(agent.state_dir)
        while not watch.newest() and not agent.get("/healthz")[0]:
            time.sleep(0.01)
        touch(directory / "begin.tombstone")
        watch.wait_newer(0)
        taken = touches(directory, watch, count, prefix="f", while_=Seldom(lambda: not agent.is_ready()))
        report.add("first index", spread(taken), must="p99 <= 50 ms", ok=percentile(taken, 0.99) <= 0.050)
        watch.close()
    finally:
        agent.kill()


class Seldom:
    """A condition that is asked ten times a second at most, as asking takes time from what is measured."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition
        self._asked_at, self._answer = 0.0, False

    def __call__(self) -> bool:
        if time.monotonic() - self._asked_at >= 0.1:
            self._answer, self._asked_at = self._condition(), time.monotonic()
        return self._answer


@contextmanager
def stalled_backlog(base: Path, name: str, count: int, peers: int) -> Iterator[AgentProcess]:
    """An agent that has `count` tombstones for each of some peers, which begin to take them when the block begins.

    The servers are stopped until then, for less than the time after which a session is given up. No relay: as a thread
    of this process it would hold up whoever measures.
    """
    root = base / f"{name}-tree-{time.monotonic_ns()}"
    with ExitStack() as stack:
        servers = [stack.enter_context(Sshd(kept_below=base)) for _ in range(peers)]
        for server in servers:
            (Path(server.root) / "desertbus" / "source").mkdir(parents=True)
        tables = [peer_table(f"node-{number}", server) for number, server in enumerate(servers)]
        for number in range(_BACKLOG_HOURS):
            (root / Hour("desertbus", "source", trees.FIRST_HOUR + number).path).mkdir(parents=True)
        with stack.enter_context(new_agent(base, root, name, peers=tables)) as agent:
            await_true(lambda: up(agent, peers) == peers, "the sessions")
            for server in servers:
                server.freeze()
            for index in range(count):
                number = index % _BACKLOG_HOURS
                hour = Hour("desertbus", "source", trees.FIRST_HOUR + number)
                touch(root / hour.path / f"{trees.stem(number, index)}.tombstone")
            await_true(lambda: agent.metric("tombstones") == count, "all to be hidden")
            for server in servers:
                server.thaw()
            yield agent


def up(agent: AgentProcess, peers: int) -> int:
    """How many sessions stand."""
    return int(sum(agent.metric("peer_up", peer=f"node-{number}") for number in range(peers)))


def catch_up(report: Report, base: Path, count: int) -> None:
    """While 10,000 tombstones go to each of three peers; as often as it takes for so many touches."""
    taken: list[float] = []
    while len(taken) < count:
        with stalled_backlog(base, "catchup", BACKLOG, 3) as agent:
            watch = CommitWatch(agent.state_dir)
            running = Seldom(lambda w=watch: w.open_deliveries() > BACKLOG // 10)  # type: ignore[misc]
            some = touches(fresh_hour(agent.root), watch, count - len(taken), prefix="c", while_=running)
            watch.close()
        if not some:
            raise RuntimeError("the catch-up was over before it could be measured")
        taken += some
    report.add(
        "catch-up of 10,000 to three peers", spread(taken), must="p99 <= 75 ms", ok=percentile(taken, 0.99) <= 0.075
    )


if __name__ == "__main__":
    main()

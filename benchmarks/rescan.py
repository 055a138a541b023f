"""First index, full and interval rescan, against a warm `find ROOT -name '*.tombstone'`; bytes a segment; a listing.

python -m benchmarks.rescan [--hours 556] [--per-hour 1800]     1,000,800 names
python -m benchmarks.rescan --hours 5560 --hard-links           10 million, as hard links
python -m benchmarks.rescan --hours 100000 --per-hour 10        the interval rescan of many hours
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.common import Report, measure, parser, percentile, rss_mib, warm_find, work_directory
from tests.support.agent import AgentProcess
from tests.support.waiting import wait_for
from tombsync.index import index_path
from tombsync.rescan import RescanKind


def await_end(agent: AgentProcess, kind: RescanKind, before: float) -> None:
    """Wait until one more rescan of this kind has ended."""
    while agent.metric("rescan_seconds_count", kind=kind.value) <= before:
        time.sleep(0.05)


def rescan(agent: AgentProcess, kind: RescanKind) -> float:
    """Seconds of one rescan, as the agent itself counts them."""
    count = agent.metric("rescan_seconds_count", kind=kind.value)
    total = agent.metric("rescan_seconds_sum", kind=kind.value)
    agent.signal(signal.SIGUSR2 if kind is RescanKind.FULL else signal.SIGUSR1)
    await_end(agent, kind, count)
    return agent.metric("rescan_seconds_sum", kind=kind.value) - total


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options_parser.add_argument("--hard-links", action="store_true")
    options_parser.add_argument("--rounds", type=int, default=3)
    options = options_parser.parse_args()
    report = Report("rescan", options.json)
    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour, hard_links=options.hard_links)
        names = options.hours * options.per_hour
        agent = AgentProcess(base / f"rescan-{time.monotonic_ns()}", root=root)
        find_s = warm_find(root)
        report.add("names", names)
        report.add("find", f"{find_s:.2f} s")
        try:
            first_index(report, agent, find_s, names)
            await_end(agent, RescanKind.SETTLE, 0)
            await_end(agent, RescanKind.FULL, 0)
            steady(report, agent, root, options.rounds)
            listing(report, agent)
            assert agent.process is not None
            report.add("RSS", f"{rss_mib(agent.process.pid):.0f} MiB")
        finally:
            agent.kill()
        start(report, agent)
    report.close()


def first_index(report: Report, agent: AgentProcess, find_s: float, names: int) -> None:
    """The first rescan of a new index."""
    agent.start(ready=False)
    wait_for(agent.is_ready, "the first index", 1800, pause_s=0.5)  # asking 200 times a second cost it a third
    first_s = agent.metric("rescan_seconds_sum", kind="interval")
    report.add("first index", f"{first_s:.2f} s")
    report.add("first index / find", round(first_s / find_s, 2), must="<= 5", ok=first_s <= 5 * find_s)
    size = sum(os.path.getsize(index_path(str(agent.state_dir)) + suffix) for suffix in ("", "-wal"))
    bytes_each = os.path.getsize(index_path(str(agent.state_dir))) / names
    report.add("index with its log", f"{size / 2**20:.0f} MiB")
    report.add("bytes a segment", round(bytes_each, 1), must="<= 100", ok=bytes_each <= 100)


def steady(report: Report, agent: AgentProcess, root: Path, rounds: int) -> None:
    """Nothing changed: each kind in turn with find, medians."""
    fulls, intervals, finds = [], [], []
    for _ in range(rounds):
        finds.append(warm_find(root, 1))
        fulls.append(rescan(agent, RescanKind.FULL))
        intervals.append(rescan(agent, RescanKind.INTERVAL))
    find_s, full_s, interval_s = (percentile(values, 0.5) for values in (finds, fulls, intervals))
    report.add("full rescan", f"{full_s:.2f} s, find {find_s:.2f} s")
    report.add("full rescan / find", round(full_s / find_s, 3), must="<= 0.85", ok=full_s <= 0.85 * find_s)
    report.add("interval rescan", f"{interval_s * 1e3:.0f} ms", must="100,000 hours <= 1 s", ok=interval_s <= 1)
    report.add("interval rescan / find", round(interval_s / find_s, 4), must="<= 0.01", ok=interval_s <= 0.01 * find_s)


def listing(report: Report, agent: AgentProcess) -> None:
    """One hour's visible names from the index."""
    reader = agent.reader()
    hour = next(trees.hours(1))
    reader.listing(hour)
    taken = [measure(lambda: reader.listing(hour)) for _ in range(100)]
    reader.close()
    middle_s = percentile(taken, 0.5)
    report.add("listing an hour", f"{middle_s * 1e3:.2f} ms", must="<= 3 ms", ok=middle_s <= 0.003)


def start(report: Report, agent: AgentProcess) -> None:
    """Start to ready, warm index, nothing changed."""
    begun = time.monotonic()
    agent.start(within_s=600)
    ready_s = time.monotonic() - begun
    report.add("start to ready, warm", f"{ready_s:.2f} s", must="<= 3 s", ok=ready_s <= 3)
    agent.stop(60)


if __name__ == "__main__":
    main()

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
from typing import Any

from benchmarks import trees
from benchmarks.common import Report, await_true, measure, parser, percentile, rss_mb, warm_find, work_directory
from tests.support.agent import AgentProcess
from tests.support.waiting import wait_for
from tombsync.index import index_path
from tombsync.rescan import RescanKind

_MANY_HOURS, _MANY_NAMES = 100_000, 5_000_000  # of trees for which other limits are set


def await_end(agent: AgentProcess, kind: RescanKind, before: float) -> None:
    """Wait until one more rescan of this kind has ended."""
    ended = agent.metric
    await_true(
        lambda: ended("rescan_seconds_count", kind=kind.value) > before, f"a {kind.value} rescan", within_s=3600,
        pause_s=0.05,
    )  # fmt: skip


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
    names = options.hours * options.per_hour
    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour, hard_links=options.hard_links)
        agent = AgentProcess(base / f"rescan-{time.monotonic_ns()}", root=root)
        find_s = warm_find(root)
        report.add("find", f"{find_s:.2f} s")
        try:
            first_index(report, agent, find_s, at_a_million=names < _MANY_NAMES and options.hours < _MANY_HOURS)
            await_end(agent, RescanKind.SETTLE, 0)
            await_end(agent, RescanKind.FULL, 0)
            steady(report, agent, root, options.rounds, options.hours)
            listing(report, agent)
            report.add("RSS", f"{rss_mb(agent.pid):.0f} MB")
            begun = time.monotonic()
            agent.stop(60)
            agent.start(within_s=600)
            report.add("stop and start to ready, warm", f"{time.monotonic() - begun:.2f} s")
            segments = indexed(agent)
            agent.stop(60)
        finally:
            agent.kill()
        # After a clean stop, when the log has moved into the file.
        bytes_each = os.path.getsize(index_path(str(agent.state_dir))) / segments
        dense = options.hours < _MANY_HOURS
        report.add("bytes a segment", round(bytes_each, 1), **_must("<= 100", bytes_each <= 100, dense))
    report.close()


def indexed(agent: AgentProcess) -> int:
    """Segments in its index; other benchmarks add some to a kept tree."""
    return int(sum(agent.metric("segments", quality=quality, state="visible") for quality in ("source", "480p")))


def first_index(report: Report, agent: AgentProcess, find_s: float, *, at_a_million: bool) -> None:
    """The first rescan of a new index."""
    agent.start(ready=False)
    wait_for(agent.is_ready, "the first index", 3600, pause_s=0.5)  # asking 200 times a second cost it a third
    first_s = agent.metric("rescan_seconds_sum", kind="interval")
    report.add("names", indexed(agent))
    report.add("first index", f"{first_s:.2f} s")
    ratio = first_s / find_s
    report.add("first index / find", round(ratio, 2), **_must("<= 5", ratio <= 5, at_a_million))
    size = sum(os.path.getsize(index_path(str(agent.state_dir)) + suffix) for suffix in ("", "-wal"))
    report.add("index with its log", f"{size / 2**20:.0f} MiB")


def steady(report: Report, agent: AgentProcess, root: Path, rounds: int, hours: int) -> None:
    """Nothing changed: each kind in turn with find, medians."""
    fulls, intervals, finds = [], [], []
    for _ in range(rounds):
        finds.append(warm_find(root, 1))
        fulls.append(rescan(agent, RescanKind.FULL))
        intervals.append(rescan(agent, RescanKind.INTERVAL))
    find_s, full_s, interval_s = (percentile(values, 0.5) for values in (finds, fulls, intervals))
    many_hours = hours >= _MANY_HOURS
    report.add("full rescan", f"{full_s:.2f} s, find {find_s:.2f} s")
    ratio = full_s / find_s
    report.add("full rescan / find", round(ratio, 3), **_must("<= 0.85", ratio <= 0.85, not many_hours))
    report.add(
        f"interval rescan of {hours} hours", f"{interval_s:.3f} s", **_must("<= 1 s", interval_s <= 1, many_hours)
    )
    ratio = interval_s / find_s
    report.add("interval rescan / find", round(ratio, 4), **_must("<= 0.01", ratio <= 0.01, not many_hours))


def _must(must: str, ok: bool, applies: bool) -> dict[str, Any]:
    """The limit of a figure, where the size of the tree is the one that it is set for."""
    return {"must": must, "ok": ok} if applies else {}


def listing(report: Report, agent: AgentProcess) -> None:
    """One hour's visible names from the index."""
    reader = agent.reader()
    hour = next(trees.hours(1))
    reader.listing(hour)
    taken = [measure(lambda: reader.listing(hour)) for _ in range(100)]
    reader.close()
    middle_s = percentile(taken, 0.5)
    report.add("listing an hour", f"{middle_s * 1e3:.2f} ms", must="<= 3 ms", ok=middle_s <= 0.003)


if __name__ == "__main__":
    main()

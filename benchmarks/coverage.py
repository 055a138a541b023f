"""Judging the coverage of a million segments: how fast, and what it does meanwhile to /metrics, hiding and memory.

python -m benchmarks.coverage [--hours 556] [--per-hour 1800] [--many-hours 100000]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import trees
from benchmarks.common import (
    CommitWatch,
    Report,
    await_fast_creates,
    await_true,
    measure,
    parser,
    percentile,
    rss_mb,
    spread,
    work_directory,
)
from benchmarks.hide import Seldom, fresh_hour, new_agent, started, touches
from benchmarks.scrape import scrapes
from tests.support.agent import AgentProcess
from tests.support.index import query
from tombsync.index import index_path

_MOST = 1_000_000  # more looks than there are while it judges
_MANY_PER_HOUR = 10


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options_parser.add_argument("--many-hours", type=int, default=100_000, help="of a tree for memory; 0: none")
    options_parser.add_argument("--hard-links", action="store_true")
    options = options_parser.parse_args()
    report = Report("coverage", options.json)
    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour, hard_links=options.hard_links)
        await_fast_creates(base)
        with judging(base, root, options.hours) as (agent, watch, begun):
            before_mb = rss_mb(agent.pid)
            taken = scrapes(agent, _MOST, Seldom(watch))
            await_true(lambda: not watch(), "all to be judged")
            report.add("judged", f"{options.hours * options.per_hour / (time.monotonic() - begun):.0f} segments/s")
            p99 = percentile(taken, 0.99)
            report.add("GET /metrics meanwhile", spread(taken), must="p99 <= 50 ms", ok=p99 <= 0.050)
            memory(report, agent, before_mb)
        with judging(base, root, options.hours) as (agent, watch, _):
            commits = CommitWatch(agent.state_dir)
            hides = touches(fresh_hour(root), commits, _MOST, prefix="c", while_=Seldom(watch))
            p99 = percentile(hides, 0.99)
            report.add("touch -> hidden meanwhile", spread(hides), must="p99 <= 20 ms", ok=p99 <= 0.020)
            commits.close()
        if options.many_hours:
            many = trees.kept(base, options.many_hours, _MANY_PER_HOUR, hard_links=True)
            with judging(base, many, options.many_hours) as (agent, watch, begun):
                before_mb = rss_mb(agent.pid)
                await_true(lambda: not watch(), "all to be judged", within_s=3600, pause_s=0.2)
                report.add(f"judged, {options.many_hours} hours", f"{time.monotonic() - begun:.1f} s")
                growth_mb = rss_mb(agent.pid) - before_mb
                figure, bounded = f"RSS growth, {options.many_hours} hours", growth_mb <= 10
                report.add(figure, f"{growth_mb:.1f} MB", must="<= 10 MB", ok=bounded)
    report.close()


@contextmanager
def judging(base: Path, root: Path, hours: int) -> Iterator[tuple[AgentProcess, Unjudged, float]]:
    """An agent that has just made its first index, and so begins to judge; what is left, and since when."""
    agent = new_agent(base, root, "coverage")
    with started(agent):
        begun = time.monotonic()
        yield agent, Unjudged(agent, hours), begun


class Unjudged:
    """Whether some hours are not judged yet."""

    def __init__(self, agent: AgentProcess, hours: int) -> None:
        self._path = index_path(str(agent.state_dir))
        self._hours = hours

    def __call__(self) -> bool:
        ((judged,),) = query(self._path, "SELECT count(*) FROM coverage")
        return bool(judged < self._hours)


def memory(report: Report, agent: AgentProcess, before_mb: float) -> None:
    """What judging takes, and then drawing a map for the first time, which imports the library that draws."""
    after_mb = rss_mb(agent.pid)
    both = f"{before_mb:.0f} and {after_mb:.0f} MB"
    report.add("RSS, not judged and judged", both, must="<= 90 MB", ok=after_mb <= 90)
    path = "/coverage/desertbus/source.png"
    first_s = measure(lambda: agent.fetch(path))
    again_s = [measure(lambda: agent.fetch(path)) for _ in range(50)]
    report.add("a map of a week, the first", f"{first_s * 1e3:.0f} ms")
    report.add("a map of a week, each other", spread(again_s))
    drawn_mb = rss_mb(agent.pid)
    report.add("RSS after maps", f"{drawn_mb:.0f} MB", must="<= 90 MB", ok=drawn_mb <= 90)


if __name__ == "__main__":
    main()

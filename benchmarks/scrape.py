"""GET /metrics: idle, beside a hundred open status pages, full rescans and 2,000 segments a second, and a catch-up.

python -m benchmarks.scrape [--scrapes 500]
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import load, trees
from benchmarks.common import CommitWatch, Report, await_fast_creates, parser, percentile, spread, work_directory
from benchmarks.hide import BACKLOG, Seldom, new_agent, settle, stalled_backlog, started
from tests.support.agent import AgentProcess

_PAUSE_S = 0.01
_OPEN_PAGES = 100


def scrapes(agent: AgentProcess, count: int, while_: Callable[[], bool] = lambda: True) -> list[float]:
    """Seconds of each scrape, one after another."""
    taken: list[float] = []
    while len(taken) < count and while_():
        begun = time.monotonic()
        status, text = agent.get("/metrics")
        taken.append(time.monotonic() - begun)
        assert status == 200 and "tombsync_tombstones" in text
        time.sleep(_PAUSE_S)
    return taken


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options_parser.add_argument("--scrapes", type=int, default=500)
    options = options_parser.parse_args()
    report = Report("scrape", options.json)
    with work_directory(options.work) as base:
        root = trees.kept(base, options.hours, options.per_hour)
        await_fast_creates(base)
        agent = new_agent(base, root, "scrape")
        with started(agent):
            settle(agent)
            report.add("idle", spread(scrapes(agent, options.scrapes)))
            report.add("status page", spread(pages(agent, options.scrapes)))
            with open_pages(agent):
                beside = scrapes(agent, options.scrapes)
            p99 = percentile(beside, 0.99)
            report.add("a hundred open status pages", spread(beside), must="p99 <= 20 ms", ok=p99 <= 0.020)
            busy = beside_rescans(agent, root, options.scrapes)
            p99 = percentile(busy, 0.99)
            report.add("full rescans + 2,000 segments/s", spread(busy), must="p99 <= 20 ms", ok=p99 <= 0.020)
        during: list[float] = []
        while len(during) < options.scrapes:  # one catch-up is over within some hundred scrapes
            during += beside_catch_up(base, options.scrapes - len(during))
        p99 = percentile(during, 0.99)
        report.add("catch-up of 10,000 to three peers", spread(during), must="p99 <= 50 ms", ok=p99 <= 0.050)
    report.close()


def pages(agent: AgentProcess, count: int) -> list[float]:
    """Seconds of each whole status page, one after another, a part of them made anew."""
    taken = []
    for _ in range(count):
        begun = time.monotonic()
        status, text = agent.get("/")
        taken.append(time.monotonic() - begun)
        assert status == 200 and "<h1>" in text
        time.sleep(_PAUSE_S)
    return taken


@contextmanager
def open_pages(agent: AgentProcess) -> Iterator[None]:
    """As many questions as a hundred open pages ask, each every 5 s."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(5 / _OPEN_PAGES):
            assert agent.get("/live")[0] == 200

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


def beside_rescans(agent: AgentProcess, root: Path, count: int) -> list[float]:
    """A full rescan is always running."""
    taken: list[float] = []
    with load.segments(root, 2000):
        while len(taken) < count:
            agent.signal(signal.SIGUSR2)
            taken += scrapes(agent, min(20, count - len(taken)))
    return taken


def beside_catch_up(base: Path, count: int) -> list[float]:
    """10,000 tombstones are due for each of three peers, from the start."""
    with stalled_backlog(base, "scrape", BACKLOG, 3) as agent:
        watch = CommitWatch(agent.state_dir)
        taken = scrapes(agent, count, Seldom(lambda: watch.open_deliveries() > BACKLOG // 10))
        watch.close()
    if not taken:
        raise RuntimeError("the catch-up was over before it could be measured")
    return taken


if __name__ == "__main__":
    main()

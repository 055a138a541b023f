"""Many watched hours and ten idle sessions: start to ready with a warm index, memory at a million segments and what it
grows to ten million, and CPU over a minute.

python -m benchmarks.idle [--hours 100000] [--per-hour 10] [--grown-per-hour 100] [--seconds 60]
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import trees
from benchmarks.common import Report, await_true, cpu_seconds, parser, rss_mb, work_directory
from benchmarks.hide import new_agent, settle, up
from tests.support.agent import AgentProcess, peer_table
from tests.support.sshd import Sshd

# What the agent imports, and no more.
_IMPORTS = """
import sys
sys.modules["invoke"] = None  # as `run` does
import tombsync.cli.main, tombsync.daemon.agent
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmRSS")))
"""


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=100_000)
    options_parser.add_argument("--per-hour", type=int, default=10)
    options_parser.add_argument("--grown-per-hour", type=int, default=100, help="segments of the larger tree; 0: none")
    options_parser.add_argument("--hard-links", action="store_true")
    options_parser.add_argument("--seconds", type=float, default=60)
    options_parser.add_argument("--peers", type=int, default=10)
    options = options_parser.parse_args()
    report = Report("idle", options.json)
    with work_directory(options.work) as base, ExitStack() as stack:
        servers = [stack.enter_context(Sshd(kept_below=base)) for _ in range(options.peers)]
        tables = [peer_table(f"node-{number}", server) for number, server in enumerate(servers)]
        imports = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True).stdout
        report.add("RSS, bare imports", f"{int(imports) * 1024 / 1e6:.0f} MB")
        root = trees.kept(base, options.hours, options.per_hour, hard_links=options.hard_links)
        count = options.hours * options.per_hour
        with warm(report, new_agent(base, root, "idle", peers=tables), options.hours, count, options.peers) as agent:
            memory_mb = rss_mb(agent.pid)
            report.add("RSS", f"{memory_mb:.0f} MB", must="<= 90 MB at a million", ok=memory_mb <= 90)
            used = cpu_seconds(agent.pid)
            time.sleep(options.seconds)
            share = (cpu_seconds(agent.pid) - used) / options.seconds
            report.add("idle CPU", f"{share * 100:.3f} % of a core", must="<= 0.2 %", ok=share <= 0.002)
        if options.grown_per_hour:
            root = trees.kept(base, options.hours, options.grown_per_hour, hard_links=options.hard_links)
            count = options.hours * options.grown_per_hour
            grown = new_agent(base, root, "grown", peers=tables)
            with warm(report, grown, options.hours, count, options.peers) as agent:
                growth_mb = rss_mb(agent.pid) - memory_mb
                report.add(f"RSS growth to {count}", f"{growth_mb:.1f} MB", must="<= 10 MB", ok=growth_mb <= 10)
    report.close()


@contextmanager
def warm(report: Report, agent: AgentProcess, hours: int, segments: int, peers: int) -> Iterator[AgentProcess]:
    """The agent with an index that another life of it has made, settled."""
    try:
        agent.start(within_s=3600)
        settle(agent)
        agent.stop(60)
        begun = time.monotonic()
        agent.start(within_s=600)
        ready_s = time.monotonic() - begun
        figure = f"start to ready, warm index, {segments} segments"
        report.add(figure, f"{ready_s:.2f} s", must="<= 3 s", ok=ready_s <= 3)
        settle(agent, warm=True)
        watches = int(agent.metric("watches"))
        report.add(f"directories watched, {segments} segments", watches, must=f">= {hours}", ok=watches >= hours)
        await_true(lambda: up(agent, peers) == peers, "the sessions")
        yield agent
    finally:
        agent.kill()


if __name__ == "__main__":
    main()

"""Many watched hours and ten idle sessions: start to ready with a warm index, memory, and CPU over a minute.

python -m benchmarks.idle [--hours 100000] [--per-hour 10] [--seconds 60]
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack

from benchmarks import trees
from benchmarks.common import Report, cpu_seconds, parser, rss_mib, work_directory
from benchmarks.hide import new_agent, settle
from tests.support.agent import peer_table
from tests.support.sshd import Sshd

# What the agent imports, and no more.
_IMPORTS = """
import tombsync.cli.main, tombsync.daemon.agent
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmRSS")))
"""


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=100_000)
    options_parser.add_argument("--per-hour", type=int, default=10)
    options_parser.add_argument("--hard-links", action="store_true")
    options_parser.add_argument("--seconds", type=float, default=60)
    options_parser.add_argument("--peers", type=int, default=10)
    options = options_parser.parse_args()
    report = Report("idle", options.json)
    with work_directory(options.work) as base, ExitStack() as stack:
        root = trees.kept(base, options.hours, options.per_hour, hard_links=options.hard_links)
        servers = [stack.enter_context(Sshd(kept_below=base)) for _ in range(options.peers)]
        tables = [peer_table(f"node-{number}", server) for number, server in enumerate(servers)]
        agent = new_agent(base, root, "idle", peers=tables)
        try:
            agent.start(within_s=1800)
            settle(agent)
            agent.stop(60)
            begun = time.monotonic()
            agent.start(within_s=600)
            ready_s = time.monotonic() - begun
            report.add("directories watched", agent.metric("watches"))
            report.add("segments", options.hours * options.per_hour)
            report.add("start to ready, warm index", f"{ready_s:.2f} s", must="<= 3 s", ok=ready_s <= 3)
            settle(agent, warm=True)
            assert agent.process is not None
            pid = agent.process.pid
            imports = (
                int(subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True).stdout)
                / 1024
            )
            report.add("RSS, bare imports", f"{imports:.0f} MiB")
            memory = rss_mib(pid)
            report.add("RSS", f"{memory:.0f} MiB", must="<= 90 MiB at a million", ok=memory <= 90)
            used = cpu_seconds(pid)
            time.sleep(options.seconds)
            share = (cpu_seconds(pid) - used) / options.seconds
            report.add("idle CPU", f"{share * 100:.3f} % of a core", must="<= 0.2 %", ok=share <= 0.002)
        finally:
            agent.kill()
    report.close()


if __name__ == "__main__":
    main()

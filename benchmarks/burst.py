"""20,000 touches while the agent is paused, past an overflow of the kernel's queue, with two peers.

python -m benchmarks.burst [--touches 20000]
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.common import Report, await_fast_creates, parser, touch, work_directory
from benchmarks.hide import new_agent, settle
from tests.support.agent import peer_table
from tests.support.sshd import Sshd
from tombsync.names import Hour

_HOURS = 20


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--touches", type=int, default=20_000)
    options = options_parser.parse_args()
    report = Report("burst", options.json)
    hours = [Hour("desertbus", "source", trees.FIRST_HOUR + number) for number in range(_HOURS)]
    with work_directory(options.work) as base, Sshd(kept_below=base) as one, Sshd(kept_below=base) as two:
        await_fast_creates(base)
        for server in (one, two):
            (Path(server.root) / "desertbus" / "source").mkdir(parents=True)
        root = base / f"burst-tree-{time.monotonic_ns()}"
        for hour in hours:
            (root / hour.path).mkdir(parents=True)
            touch(root / hour.path / f"{trees.stem(hour.number, 0)}.ts")
        agent = new_agent(base, root, "burst", peers=[peer_table("node-b", one), peer_table("node-c", two)])
        with agent:
            settle(agent)
            while agent.metric("peer_up", peer="node-b") + agent.metric("peer_up", peer="node-c") < 2:
                time.sleep(0.01)
            watches = agent.metric("watches")
            agent.signal(signal.SIGSTOP)
            for number in range(options.touches):
                hour = hours[number % _HOURS]
                touch(root / hour.path / f"{trees.stem(hour.number, number)}.tombstone")
            begun = time.monotonic()
            agent.signal(signal.SIGCONT)
            while agent.metric("tombstones") < options.touches:
                time.sleep(0.02)
            hidden_s = time.monotonic() - begun
            while any(placed(Path(server.root), hours) < options.touches for server in (one, two)):
                time.sleep(0.05)
            placed_s = time.monotonic() - begun
            while any(
                agent.metric("deliveries", peer=p, state="confirmed") < options.touches for p in ("node-b", "node-c")
            ):
                time.sleep(0.02)
            confirmed_s = time.monotonic() - begun
            report.add("all hidden", f"{hidden_s:.2f} s")
            report.add("all placed on two peers", f"{placed_s:.2f} s", must="<= 10 s", ok=placed_s <= 10)
            report.add("all confirmed by two peers", f"{confirmed_s:.2f} s")
            overflows = agent.metric("watch_overflows_total")
            report.add("overflows counted", overflows, must=">= 1", ok=overflows >= 1)
            lost = watches - agent.metric("watches")
            report.add("watches lost", lost, must="0", ok=lost == 0)
    report.close()


def placed(root: Path, hours: list[Hour]) -> int:
    """Tombstones that stand on a peer."""
    return sum(len(list((root / hour.path).iterdir())) for hour in hours if (root / hour.path).exists())


if __name__ == "__main__":
    main()

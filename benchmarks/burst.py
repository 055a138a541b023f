"""20,000 touches while the agent is paused, past an overflow of the kernel's queue, with two peers.

python -m benchmarks.burst [--touches 20000]
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.common import Report, await_fast_creates, await_true, parser, touch, work_directory
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
            await_true(lambda: all(agent.metric("peer_up", peer=f"node-{p}") for p in "bc"), "both peers")
            watched = agent.watched()
            agent.signal(signal.SIGSTOP)
            for number in range(options.touches):
                hour = hours[number % _HOURS]
                touch(root / hour.path / f"{trees.stem(hour.number, number)}.tombstone")
            begun = time.monotonic()
            agent.signal(signal.SIGCONT)
            await_true(lambda: agent.metric("tombstones") >= options.touches, "all to be hidden", pause_s=0.02)
            hidden_s = time.monotonic() - begun
            await_true(
                lambda: all(placed(Path(server.root), hours) >= options.touches for server in (one, two)),
                "all to be placed", pause_s=0.05,
            )  # fmt: skip
            placed_s = time.monotonic() - begun
            await_true(
                lambda: all(
                    agent.metric("deliveries", peer=peer, state="confirmed") >= options.touches
                    for peer in ("node-b", "node-c")
                ),
                "all to be confirmed", pause_s=0.05,
            )  # fmt: skip
            confirmed_s = time.monotonic() - begun
            report.add("all hidden", f"{hidden_s:.2f} s")
            report.add("all placed on two peers", f"{placed_s:.2f} s", must="<= 10 s", ok=placed_s <= 10)
            report.add("all confirmed by two peers", f"{confirmed_s:.2f} s")
            overflows = agent.metric("watch_overflows_total")
            report.add("overflows counted", overflows, must=">= 1", ok=overflows >= 1)
            lost = len(watched - agent.watched())
            report.add("watches lost", lost, must="0", ok=lost == 0)
    report.close()


def placed(root: Path, hours: list[Hour]) -> int:
    """Tombstones that stand on a peer."""
    return sum(len(list((root / hour.path).iterdir())) for hour in hours if (root / hour.path).exists())


if __name__ == "__main__":
    main()

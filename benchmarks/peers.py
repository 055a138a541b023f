"""Ten peers, one frozen, one at 200 ms: are the other eight held up? Interleaved pairs with and without the two.

python -m benchmarks.peers [--touches 100] [--pairs 5]
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import trees
from benchmarks.catchup import Through
from benchmarks.common import Report, await_fast_creates, parser, percentile, touch, work_directory
from benchmarks.hide import new_agent
from tests.support.agent import AgentProcess, peer_table
from tests.support.relay import Relay
from tests.support.sshd import Sshd
from tombsync.index import index_path
from tombsync.names import Hour
from tombsync.plan import State

_GOOD = 8
_HOUR = Hour("desertbus", "source", trees.FIRST_HOUR)
_PAUSE_S = 0.02


def round_of(agent: AgentProcess, touches: int, prefix: str) -> list[float]:
    """touch -> confirmed by each of the eight good peers; seconds, one value a peer and touch."""
    directory = agent.root / _HOUR.path
    connection = sqlite3.connect(f"file:{index_path(str(agent.state_dir))}?mode=ro", uri=True, isolation_level=None)
    good = [row[0] for row in connection.execute("SELECT id FROM peer WHERE name LIKE 'good-%'")]
    marks = ",".join("?" * len(good))
    taken = []
    for number in range(touches):
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM marker").fetchone()
        begun = touch(directory / f"{prefix}{number}.tombstone")
        waiting = set(good)
        while waiting:
            rows = connection.execute(
                f"SELECT peer FROM delivery WHERE marker > ? AND state = ? AND peer IN ({marks})",
                (last, State.CONFIRMED, *good),
            ).fetchall()
            now = time.monotonic()
            for (peer,) in rows:
                if peer in waiting:
                    waiting.discard(peer)
                    taken.append(now - begun)
            time.sleep(0.0002)
        time.sleep(_PAUSE_S)
    connection.close()
    return taken


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--touches", type=int, default=100)
    options_parser.add_argument("--pairs", type=int, default=5)
    options = options_parser.parse_args()
    report = Report("peers", options.json)
    without: list[float] = []
    with_bad: list[float] = []
    with work_directory(options.work) as base, ExitStack() as stack:
        await_fast_creates(base)
        servers = [stack.enter_context(Sshd(kept_below=base)) for _ in range(_GOOD + 2)]
        for server in servers:
            (Path(server.root) / _HOUR.path).mkdir(parents=True)
        slow = stack.enter_context(Relay((servers[-1].host, servers[-1].port), delay_s=0.1))
        frozen = servers[-2]
        good = [peer_table(f"good-{number}", server) for number, server in enumerate(servers[:_GOOD])]
        through = Through(servers[-1], slow, base / "known_hosts")
        bad = [peer_table("frozen", frozen), peer_table("slow", through)]  # type: ignore[arg-type]
        for pair in range(options.pairs):
            sides = [(good, without), (good + bad, with_bad)]
            for tables, results in sides if pair % 2 else reversed(sides):
                agent = new_agent(base, base / f"peers-tree-{time.monotonic_ns()}", "peers", peers=tables)
                (agent.root / _HOUR.path).mkdir(parents=True, exist_ok=True)
                with agent:
                    while sum(agent.metric("peer_up", peer=f"good-{number}") for number in range(_GOOD)) < _GOOD:
                        time.sleep(0.01)
                    if len(tables) > _GOOD:
                        while agent.metric("peer_up", peer="frozen") + agent.metric("peer_up", peer="slow") < 2:
                            time.sleep(0.05)
                        frozen.freeze()
                    try:
                        results.append(percentile(round_of(agent, options.touches, f"p{pair}-"), 0.99))
                    finally:
                        frozen.thaw()
    alone, beside = percentile(without, 0.5), percentile(with_bad, 0.5)
    report.add("p99 of eight peers alone", f"{alone * 1e3:.2f} ms")
    report.add(
        "p99 beside a frozen and a slow one", f"{beside * 1e3:.2f} ms", must="within 25 % or 2 ms",
        ok=beside <= max(alone * 1.25, alone + 0.002),
    )  # fmt: skip
    report.close()


if __name__ == "__main__":
    main()

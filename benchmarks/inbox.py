"""Delivery by inbox: touch -> hidden on two peers; a catch-up against `tree`; a million hostile names in an inbox.

python -m benchmarks.inbox [--touches 300] [--count 10000] [--names 1000000]
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import trees
from benchmarks.catchup import _HOURS, Through, fill, path_of
from benchmarks.common import (
    CommitWatch,
    Report,
    await_fast_creates,
    parser,
    percentile,
    spread,
    touch,
    work_directory,
)
from tests.faults import hostile_inbox
from tests.support.agent import AgentProcess, peer_table
from tests.support.inbox import ReceivingNode, account_of
from tests.support.relay import Relay
from tests.support.sshd import Sshd
from tombsync.index import index_path
from tombsync.names import Hour
from tombsync.plan import State

_HOUR = Hour("desertbus", "source", trees.FIRST_HOUR)
_SENDER = "node-a"


def prepare(node: ReceivingNode) -> None:
    """Its hours, and its agent."""
    for number in range(_HOURS):
        (node.root / path_of(number)).parent.mkdir(parents=True, exist_ok=True)


def table(node: ReceivingNode, relay: Relay, base: Path) -> str:
    """A receiving node behind a relay, as its sender's settings name it."""
    through = Through(node.server, relay, base / f"known_hosts-{relay.port}")
    return peer_table(node.name, through, node.view, user=account_of(_SENDER), delivery="inbox")  # type: ignore[arg-type]


def up(agent: AgentProcess, *peers: str) -> None:
    """Wait until the sessions stand."""
    while any(agent.metric("peer_up", peer=peer) < 1 for peer in peers):
        time.sleep(0.02)


def hidden(report: Report, base: Path, touches: int, rtt_ms: float, must: str, limit_s: float) -> None:
    """Seconds from a touch on A until both others have committed that it is hidden."""
    with ExitStack() as stack:
        nodes = [ReceivingNode(stack, name, [_SENDER], kept_below=base) for name in ("node-b", "node-c")]
        relays = [stack.enter_context(Relay((node.server.host, node.server.port))) for node in nodes]
        for node, relay in zip(nodes, relays, strict=True):
            prepare(node)
            node.agent.start()
            relay.set_delay(rtt_ms / 2e3)
        tables = [table(node, relay, base) for node, relay in zip(nodes, relays, strict=True)]
        agent = AgentProcess(base / f"inbox-{time.monotonic_ns()}", peers=tables)
        directory = agent.root / _HOUR.path
        directory.mkdir(parents=True)
        with agent:
            up(agent, "node-b", "node-c")
            watches = [CommitWatch(node.agent.state_dir) for node in nodes]
            taken = []
            for number in range(touches):
                newest = [watch.newest() for watch in watches]
                begun = touch(directory / f"{trees.stem(0, number)}.tombstone")
                taken.append(max(watch.wait_newer(key) for watch, key in zip(watches, newest, strict=True)) - begun)
                time.sleep(0.02)
            for watch in watches:
                watch.close()
    report.add(
        f"touch -> hidden on both, {rtt_ms:g} ms RTT", spread(taken), must=must, ok=percentile(taken, 0.5) <= limit_s
    )


def catch_up(base: Path, count: int, rtt_ms: float, delivery: str) -> float:
    """Seconds until all are confirmed, from the moment that a stalled session goes on; the peer has an agent."""
    await_fast_creates(base)
    with ExitStack() as stack:
        node = ReceivingNode(stack, "node-b", [_SENDER], settings="quota_per_hour = 1000000", kept_below=base)
        prepare(node)
        relay = stack.enter_context(Relay((node.server.host, node.server.port)))
        if delivery == "tree":
            node.server = stack.enter_context(Sshd(kept_below=base))  # by which the tree itself can be written
            relay = stack.enter_context(Relay((node.server.host, node.server.port)))
        node.agent.start()
        relay.set_delay(rtt_ms / 2e3)
        through = Through(node.server, relay, base / "known_hosts")
        one = (
            table(node, relay, base) if delivery == "inbox" else peer_table("node-b", through, node.root)  # type: ignore[arg-type]
        )
        agent = AgentProcess(base / f"inbox-{time.monotonic_ns()}", peers=[one])
        for number in range(_HOURS):
            (agent.root / path_of(number)).parent.mkdir(parents=True)
        with agent:
            up(agent, "node-b")
            relay.stall("up")
            fill(agent.root, count)
            while agent.metric("tombstones") < count:
                time.sleep(0.05)
            path = index_path(str(agent.state_dir))
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            query = f"SELECT count(*) FROM delivery WHERE state = {State.CONFIRMED:d}"
            begun = time.monotonic()
            relay.resume("up")
            while connection.execute(query).fetchone()[0] < count:
                time.sleep(0.02)
            taken_s = time.monotonic() - begun
            connection.close()
        return taken_s


def hostile(report: Report, base: Path, count: int) -> None:
    """Any name, through the checks alone and through the worker that takes from an inbox."""
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=base) as directory:
        result = hostile_inbox.run(Path(directory), count=count, seed=1)
    report.add("hostile names", count)
    report.add("placed of them, all inside", result.counts["placed"])
    report.add("names checked a second", round(count / result.checked_s))
    report.add("names taken from the inbox a second", round(count / result.taken_s))


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--touches", type=int, default=300)
    options_parser.add_argument("--count", type=int, default=10_000)
    options_parser.add_argument("--names", type=int, default=1_000_000)
    options_parser.add_argument("--rounds", type=int, default=3)
    options = options_parser.parse_args()
    report = Report("inbox", options.json)
    with work_directory(options.work) as base:
        await_fast_creates(base)
        hidden(report, base, options.touches, 0, "p50 <= 15 ms", 0.015)
        hidden(report, base, max(20, options.touches // 3), 20, "p50 <= 4 RTT", 0.080)
        pairs = [
            (catch_up(base, options.count, 50, "inbox"), catch_up(base, options.count, 50, "tree"))
            for _ in range(options.rounds)
        ]
        by_inbox, by_tree = (sorted(side)[len(side) // 2] for side in zip(*pairs, strict=True))
        report.add(f"{options.count} at 50 ms RTT", f"{by_inbox:.2f} s, tree {by_tree:.2f} s")
        report.add("inbox / tree", round(by_inbox / by_tree, 2), must="<= 1.2", ok=by_inbox <= 1.2 * by_tree)
        hostile(report, base, options.names)
    report.close()


if __name__ == "__main__":
    main()

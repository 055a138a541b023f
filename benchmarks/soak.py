"""Half an hour of churn: segments arrive and go, tombstones, rescans, a peer comes and goes. Memory, descriptors.

python -m benchmarks.soak [--minutes 30]
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.common import Report, cpu_seconds, parser, rss_mb, touch, work_directory
from benchmarks.hide import new_agent
from tests.support.agent import AgentProcess, peer_table
from tests.support.sshd import Sshd
from tombsync.names import Hour

_WARM_SHARE = 0.2  # of the time: caches fill, threads and buffers reach their size
_KEPT_HOURS = 6
_PEER_ROUNDS = 300  # of some 0.8 s: the peer is up for longer than a minute, so that each outage is one of its own
_SEGMENTS_A_ROUND = 400


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def churn(agent: AgentProcess, server: Sshd, turn: int) -> int:
    """One round of about a second: a new hour of segments with tombstones, the oldest removed. Returns touches."""
    hour = Hour("desertbus", "source", trees.FIRST_HOUR + turn)
    directory = agent.root / hour.path
    directory.mkdir(parents=True)
    for index in range(_SEGMENTS_A_ROUND):
        touch(directory / f"{trees.stem(hour.number, index)}.ts")
    for index in range(0, _SEGMENTS_A_ROUND, 40):
        touch(directory / f"{trees.stem(hour.number, index)}.tombstone")
    old = agent.root / hour._replace(number=hour.number - _KEPT_HOURS).path
    if old.exists():
        for name in os.listdir(old):
            os.unlink(old / name)
        old.rmdir()
    if turn % 10 == 5:
        agent.signal(signal.SIGUSR2 if turn % 20 == 5 else signal.SIGUSR1)
    if turn % _PEER_ROUNDS == _PEER_ROUNDS // 3:
        server.stop()
    if turn % _PEER_ROUNDS == 2 * _PEER_ROUNDS // 3:
        server.start()
    for path in ("/metrics", "/healthz", "/readyz"):
        assert agent.get(path)[0] == 200, path
    return _SEGMENTS_A_ROUND // 40


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--minutes", type=float, default=30)
    options = options_parser.parse_args()
    report = Report("soak", options.json)
    with work_directory(options.work) as base, Sshd(kept_below=base) as server:
        (Path(server.root) / "desertbus" / "source").mkdir(parents=True)
        root = base / f"soak-tree-{time.monotonic_ns()}"
        root.mkdir(parents=True)
        agent = new_agent(base, root, "soak", peers=[peer_table("node-b", server)])
        with agent:
            assert agent.process is not None
            pid = agent.process.pid
            samples: list[tuple[float, float, int]] = []
            begun, turn, touched = time.monotonic(), 0, 0
            used = cpu_seconds(pid)
            while (elapsed := time.monotonic() - begun) < options.minutes * 60:
                touched += churn(agent, server, turn)
                turn += 1
                samples.append((elapsed, rss_mb(pid), descriptors(pid)))
                time.sleep(0.5)
            warm = [s for s in samples if s[0] >= options.minutes * 60 * _WARM_SHARE]
            tenth = max(1, len(warm) // 10)
            first = sum(s[1] for s in warm[:tenth]) / tenth
            last = sum(s[1] for s in warm[-tenth:]) / tenth
            growth = (last - first) / first
            report.add("minutes", options.minutes)
            report.add("rounds, tombstones", f"{turn}, {touched}")
            report.add("RSS after warming up", f"{first:.1f} MB")
            report.add("RSS at the end", f"{last:.1f} MB")
            report.add("RSS growth", f"{growth * 100:.1f} %", must="< 5 %", ok=growth < 0.05)
            third = max(1, len(warm) // 3)  # in which the peer is up and down at least once
            opened, still_open = (max(s[2] for s in part) for part in (warm[:third], warm[-third:]))
            report.add(
                "most descriptors after warming up, at the end", f"{opened}, {still_open}", must="flat",
                ok=still_open <= opened + 1,
            )  # fmt: skip
            report.add("CPU", f"{(cpu_seconds(pid) - used) / (options.minutes * 60) * 100:.1f} % of a core")
            hidden = sum(agent.metric("hide_seconds_count", source=source) for source in ("watch", "rescan"))
            report.add("hidden", int(hidden), must=f"{touched}", ok=hidden == touched)
    report.close()


if __name__ == "__main__":
    main()

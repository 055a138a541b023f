"""touch -> placed on the peers, and -> confirmed (fsynced), on two loopback peers; against bare SFTP and lsyncd.

python -m benchmarks.push [--touches 500] [--lsyncd]
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from inotify_simple import INotify, flags

from benchmarks import trees
from benchmarks.common import (
    CommitWatch,
    Report,
    await_fast_creates,
    need,
    parser,
    percentile,
    spread,
    touch,
    work_directory,
)
from tests.support.agent import AgentProcess, peer_table
from tests.support.sshd import Sshd
from tombsync.names import Hour
from tombsync.peers import Connector, Target, wire

_PAUSE_S = 0.005
_HOUR = Hour("desertbus", "source", trees.FIRST_HOUR)


class Arrivals:
    """Sees from outside when a name appears in each of some directories."""

    def __init__(self, directories: list[Path]) -> None:
        self._inotify = INotify()
        self._names: dict[int, set[str]] = {
            self._inotify.add_watch(directory, flags.CREATE | flags.MOVED_TO): set() for directory in directories
        }

    def wait(self, name: str, timeout_s: float = 30.0) -> float:
        """The monotonic time at which the last of the directories had it."""
        deadline = time.monotonic() + timeout_s
        while not all(name in names for names in self._names.values()):
            for event in self._inotify.read(timeout=100):
                self._names[event.wd].add(event.name)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not arrive")
        return time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()


@contextmanager
def two_servers(base: Path) -> Iterator[list[Sshd]]:
    """Two sshd with the hour directory made."""
    with Sshd(kept_below=base) as one, Sshd(kept_below=base) as two:
        for server in (one, two):
            (Path(server.root) / _HOUR.path).mkdir(parents=True)
        yield [one, two]


class Bare:
    """One OPEN, and one OPEN and fsync, on an open session: nothing else in between."""

    def __init__(self, server: Sshd) -> None:
        target = Target(
            "bare",
            server.host,
            server.port,
            server.user,
            str(server.key_path),
            str(server.known_hosts_path),
            str(server.root),
        )
        self._session = Connector(target).connect()
        self._packets = self._session.packets
        self._directory = os.fsencode(f"{server.root}/{_HOUR.path}")
        self.opened: list[float] = []  # seconds
        self.synced: list[float] = []

    def once(self) -> None:
        """Make one file and sync it."""
        begun = time.monotonic()
        reply = self._ask(wire.create(1, self._directory + b"/bare%d" % len(self.opened)))
        self.opened.append(time.monotonic() - begun)
        self._ask(wire.fsync(2, reply.handle))
        self.synced.append(time.monotonic() - begun)
        self._ask(wire.close(3, reply.handle))

    def _ask(self, packet: bytes) -> wire.Reply:
        self._packets.send(packet)
        kind, _, body = self._packets.wait(time.monotonic() + 10)
        return wire.parse_reply(kind, body)

    def close(self) -> None:
        """End the session."""
        self._session.close()


def through_agent(base: Path, servers: list[Sshd], count: int, bare: Bare) -> tuple[list[float], list[float]]:
    """touch in the agent's tree -> on both peers, -> both confirmed in its index; each followed by a bare one."""
    tables = [peer_table(f"node-{n}", server) for n, server in enumerate(servers)]
    agent = AgentProcess(base / f"push-{time.monotonic_ns()}", peers=tables)
    directory = agent.root / _HOUR.path
    directory.mkdir(parents=True)
    placed, confirmed = [], []
    with agent:
        while agent.metric("peer_up", peer="node-0") < 1 or agent.metric("peer_up", peer="node-1") < 1:
            time.sleep(0.01)
        arrivals = Arrivals([Path(server.root) / _HOUR.path for server in servers])
        commits = CommitWatch(agent.state_dir)
        for number in range(count):
            begun = touch(directory / f"t{number}.tombstone")
            placed.append(arrivals.wait(f"t{number}.tombstone") - begun)
            confirmed.append(commits.wait_until(partial(commits.is_confirmed, number + 1)) - begun)
            time.sleep(_PAUSE_S)
            bare.once()
            time.sleep(_PAUSE_S)
        commits.close()
        arrivals.close()
    return placed, confirmed


def through_lsyncd(base: Path, server: Sshd, delay_s: int, count: int) -> list[float]:
    """The same by lsyncd over rsync and ssh to one peer."""
    source, config = base / f"lsyncd-{time.monotonic_ns()}", base / f"lsyncd-{delay_s}.lua"
    source.mkdir()
    target = Path(server.root) / f"lsyncd-{delay_s}"
    target.mkdir()
    options = f'{{ UserKnownHostsFile = "{server.known_hosts_path}" }}'
    ssh = f'{{ identityFile = "{server.key_path}", options = {options}, port = {server.port} }}'
    config.write_text(
        f'settings {{ nodaemon = true, logfile = "{base}/lsyncd.log", statusFile = "{base}/lsyncd.status" }}\n'
        f'sync {{ default.rsyncssh, source = "{source}", host = "{server.user}@{server.host}", targetdir = "{target}",'
        f" delay = {delay_s}, ssh = {ssh} }}\n"
    )
    process = subprocess.Popen(["lsyncd", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        arrivals = Arrivals([target])
        touch(source / "first")
        arrivals.wait("first")
        taken = []
        for number in range(count):
            begun = touch(source / f"t{number}")
            taken.append(arrivals.wait(f"t{number}") - begun)
            time.sleep(0.1)
        arrivals.close()
        return taken
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--touches", type=int, default=500)
    options_parser.add_argument("--lsyncd", action="store_true", help="compare with lsyncd (Debian's package)")
    options = options_parser.parse_args()
    if options.lsyncd:
        need("lsyncd", "rsync")
    report = Report("push", options.json)
    with work_directory(options.work) as base, two_servers(base) as servers:
        await_fast_creates(base)
        bare = Bare(servers[0])
        placed, confirmed = through_agent(base, servers, options.touches, bare)
        bare.close()
        opened, synced = bare.opened, bare.synced
        open_s, sync_s = percentile(opened, 0.5), percentile(synced, 0.5)
        place_s, confirm_s = percentile(placed, 0.5), percentile(confirmed, 0.5)
        report.add("bare OPEN", spread(opened))
        report.add("bare OPEN + fsync", spread(synced))
        report.add("touch -> placed on both", spread(placed), must="p50 <= 3 ms", ok=place_s <= 0.003)
        report.add("placed / bare OPEN", round(place_s / open_s, 2), must="<= 5", ok=place_s <= 5 * open_s)
        report.add(
            "touch -> confirmed by both",
            spread(confirmed),
            must="p99 <= 15 ms",
            ok=percentile(confirmed, 0.99) <= 0.015,
        )
        report.add(
            "confirmed / bare OPEN + fsync", round(confirm_s / sync_s, 2), must="<= 3", ok=confirm_s <= 3 * sync_s
        )
        if options.lsyncd:
            for delay_s in (0, 1):
                report.add(f"lsyncd, delay {delay_s}", spread(through_lsyncd(base, servers[0], delay_s, 20)))
    report.close()


if __name__ == "__main__":
    main()

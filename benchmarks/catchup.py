"""A catch-up of 10,000 tombstones to one peer over a delaying relay, session open, against rsync over the same relay.

python -m benchmarks.catchup [--count 10000] [--rtt 0,20,50] [--files 1024]
"""

from __future__ import annotations

import sqlite3
import subprocess
import time
from pathlib import Path

from inotify_simple import INotify, flags

from benchmarks import trees
from benchmarks.common import Report, await_fast_creates, await_true, measure, need, parser, touch, work_directory
from tests.support.agent import AgentProcess, peer_table
from tests.support.relay import Relay
from tests.support.sshd import Sshd
from tombsync.index import index_path
from tombsync.names import Hour
from tombsync.plan import State

_HOURS = 10


class Through:
    """A server seen through a relay."""

    def __init__(self, server: Sshd, relay: Relay, known_hosts: Path) -> None:
        self.host, self.port, self.user, self.root = relay.host, relay.port, server.user, server.root
        self.key_path, self.known_hosts_path = server.key_path, known_hosts
        known_hosts.write_text(Path(server.known_hosts_path).read_text().replace(str(server.port), str(relay.port)))


def path_of(number: int) -> str:
    """Where the tombstone of this number stands below a root."""
    hour = Hour("desertbus", "source", trees.FIRST_HOUR + number % _HOURS)
    return f"{hour.path}/{trees.stem(number % _HOURS, number)}.tombstone"


def fill(root: Path, count: int) -> None:
    """`count` tombstones in some hours."""
    for number in range(count):
        directory = (root / path_of(number)).parent
        if number < _HOURS:
            directory.mkdir(parents=True, exist_ok=True)
        touch(root / path_of(number))


class Arrivals:
    """Counts what appears in a peer's hours: the kernel does, as looking again and again would take a core away."""

    def __init__(self, root: Path) -> None:
        self._inotify = INotify()
        for directory in (root / "desertbus" / "source").iterdir():
            self._inotify.add_watch(directory, flags.CREATE)

    def wait(self, count: int, timeout_s: float = 300.0) -> float:
        """The monotonic time, to some 5 ms, at which so many had appeared; the kernel's queue holds 16,384."""
        deadline = time.monotonic() + timeout_s
        while count > 0:
            events = self._inotify.read(timeout=1000, read_delay=5)
            count -= len(events)
            if any(event.mask & flags.Q_OVERFLOW for event in events) or time.monotonic() > deadline:
                raise RuntimeError(f"{count} did not arrive, or were not seen")
        self._inotify.close()
        return time.monotonic()


def by_agent(base: Path, server: Sshd, relay: Relay, delay_s: float, count: int) -> tuple[float, float]:
    """Seconds until all are placed, and until all are confirmed: from the moment that the stalled session goes on."""
    through = Through(server, relay, base / "known_hosts")
    # A new directory each time: on ext4 creating is many times slower for a minute after a mass deletion.
    table = peer_table("node-b", through)  # type: ignore[arg-type] # it has all of a server that a table names
    agent = AgentProcess(base / f"catchup-{time.monotonic_ns()}", peers=[table])
    clear(server)
    for number in range(_HOURS):
        (agent.root / Hour("desertbus", "source", trees.FIRST_HOUR + number).path).mkdir(parents=True)
    relay.set_delay(delay_s)  # before the session begins, which measures the round trip then
    with agent:
        await_true(lambda: agent.metric("peer_up", peer="node-b") == 1, "the session")
        relay.stall("up")
        fill(agent.root, count)
        await_true(lambda: agent.metric("tombstones") >= count, "all to be hidden")
        connection = sqlite3.connect(f"file:{index_path(str(agent.state_dir))}?mode=ro", uri=True, isolation_level=None)
        query = f"SELECT count(*) FROM delivery WHERE state = {State.CONFIRMED:d}"
        arrivals = Arrivals(Path(server.root))
        begun = time.monotonic()
        relay.resume("up")
        placed_s = arrivals.wait(count) - begun
        await_true(lambda: connection.execute(query).fetchone()[0] >= count, "all to be confirmed", pause_s=0.02)
        confirmed_s = time.monotonic() - begun
        connection.close()
    return placed_s, confirmed_s


def clear(server: Sshd) -> None:
    """An empty tree; renamed away, as removing many files slows what follows on ext4."""
    root = Path(server.root)
    if (root / "desertbus").exists():
        (root / "desertbus").rename(root / f"old-{time.monotonic_ns()}")
    for number in range(_HOURS):
        (root / path_of(number)).parent.mkdir(parents=True)


def by_rsync(base: Path, source: Path, server: Sshd, relay: Relay, delay_s: float, *options: str) -> float:
    """Seconds of rsync over an open ssh connection through the relay."""
    through = Through(server, relay, base / "known_hosts")
    clear(server)
    control = base / "ssh-control"
    pinned = f"UserKnownHostsFile={through.known_hosts_path}"
    ssh = ["ssh", "-p", str(through.port), "-i", str(through.key_path), "-o", pinned, "-o", f"ControlPath={control}"]
    relay.set_delay(0)
    master = subprocess.Popen([*ssh, "-M", "-N", f"{through.user}@{through.host}"])
    try:
        while not control.exists():
            time.sleep(0.01)
        relay.set_delay(delay_s)
        target = f"{through.user}@{through.host}:{server.root}/"
        command = ["rsync", "-a", *options, "-e", " ".join(ssh), f"{source}/", target]
        return measure(lambda: subprocess.run(command, check=True))
    finally:
        master.terminate()
        master.wait()


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--count", type=int, default=10_000)
    options_parser.add_argument("--rtt", default="0,20,50", help="round-trip times in ms")
    options_parser.add_argument("--files", type=int, default=None, help="open files that the peer's sshd is allowed")
    options_parser.add_argument("--rounds", type=int, default=3)
    options = options_parser.parse_args()
    need("rsync", "ssh")
    report = Report("catchup", options.json)
    with work_directory(options.work) as base, Sshd(limit_open_files=options.files, kept_below=base) as server:
        await_fast_creates(base)
        source = base / f"rsync-source-{time.monotonic_ns()}"
        fill(source, options.count)
        with Relay((server.host, server.port)) as relay:
            for rtt_ms in (float(text) for text in options.rtt.split(",")):
                compare(report, base, source, server, relay, rtt_ms, options.count, options.rounds)
    report.close()


def compare(
    report: Report, base: Path, source: Path, server: Sshd, relay: Relay, rtt_ms: float, count: int, rounds: int
) -> None:
    """One round-trip time: medians of some rounds, each way in turn."""
    delay_s = rtt_ms / 2e3
    ours, plain, synced = [], [], []
    for _ in range(rounds):
        ours.append(by_agent(base, server, relay, delay_s, count))
        plain.append(by_rsync(base, source, server, relay, delay_s))
        synced.append(by_rsync(base, source, server, relay, delay_s, "--fsync"))
    middle = rounds // 2
    placed_s, confirmed_s = sorted(p for p, _ in ours)[middle], sorted(c for _, c in ours)[middle]
    plain_s, synced_s = sorted(plain)[middle], sorted(synced)[middle]
    at = f"{rtt_ms:g} ms RTT"
    report.add(f"{at}: placed", f"{placed_s:.2f} s, rsync -a {plain_s:.2f} s")
    report.add(f"{at}: placed / rsync -a", round(placed_s / plain_s, 2), must="<= 0.8", ok=placed_s <= 0.8 * plain_s)
    report.add(f"{at}: confirmed", f"{confirmed_s:.2f} s, rsync -a --fsync {synced_s:.2f} s")
    report.add(
        f"{at}: confirmed / rsync -a --fsync",
        round(confirmed_s / synced_s, 2),
        must="<= 0.8",
        ok=confirmed_s <= 0.8 * synced_s,
    )


if __name__ == "__main__":
    main()

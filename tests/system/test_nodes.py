"""Several nodes: real agents, each on a tree that a real sshd serves to the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, perhaps_told_before, segment_stem, touch
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.index import PeerRow
from tombsync.names import Marked, strict_hour, strict_path
from tombsync.plan import State

HOUR = "desertbus/source/2019-11-13T02"
# Where OpenSSH's packages put the program behind `Subsystem sftp`.
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
PLACED = re.compile(r'^open "(?P<path>.*)" flags \S*CREATE\S* ', re.MULTILINE)


def sftp_server() -> str:
    return next((path for path in SFTP_SERVERS if os.path.exists(path)), None) or need("sftp-server")


def stems(count: int, first: int = 0) -> list[str]:
    """Some different stems of one hour."""
    return [segment_stem(number) for number in range(first, first + count)]


def files(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything below a tree that is no tombstone: content, mtime and inode by relative path."""
    found = {}
    for directory, names, files_here in os.walk(root):
        names[:] = [name for name in names if name != ".tombsync"]
        for name in files_here:
            if not name.endswith(".tombstone"):
                path = Path(directory, name)
                status = path.lstat()
                found[str(path.relative_to(root))] = (path.read_bytes(), status.st_mtime_ns, status.st_ino)
    return found


def tombstones(root: Path) -> set[str]:
    """The tombstones in a tree, as the path of the stem."""
    return {str(path.relative_to(root)).removesuffix(".tombstone") for path in root.glob("*/*/*/*.tombstone")}


class Node:
    """A segment tree, an sshd that serves it, and an agent on it, which is not started yet."""

    def __init__(self, base: Path, name: str, stack: ExitStack, *, segments: int) -> None:
        base.mkdir()
        self.name = name
        self.requests = base / "sftp.log"  # what the peers asked for, one line a request
        log_them = f"ForceCommand {sftp_server()} -l VERBOSE -e 2>>{self.requests}"
        self.server = stack.enter_context(Sshd(config=[log_them]))
        self.root = self.server.root
        self.hour = make_hour(self.root, HOUR, segments) if segments else self.root / HOUR
        self.files = files(self.root)
        self.agent = AgentProcess(base, node=name, root=self.root)
        stack.push(self.agent)

    def peer_of(self, *nodes: Node, verify_interval_s: int = 3600) -> None:
        """Make other nodes the peers of this one; counts from the next start of its agent."""
        self.agent.write_settings(
            [peer_table(node.name, node.server, verify_interval_s=verify_interval_s) for node in nodes]
        )

    def confirmed(self, marked: Sequence[Marked], *peers: str) -> bool:
        """Whether exactly these peers have confirmed each of these tombstones."""
        wanted = dict.fromkeys(peers, "confirmed")
        return all(self.agent.states(one.path) == wanted for one in marked)

    def peer(self, name: str) -> PeerRow:
        """What the index says of a peer."""
        reader = self.agent.reader()
        try:
            return next(row for row in reader.peers() if row.name == name)
        finally:
            reader.close()

    def counts(self, peer: str) -> dict[State, int]:
        """The deliveries to a peer by state."""
        return self.peer(peer).counts

    def verified_again(self, peer: str, before_ns: int | None) -> bool:
        """Whether another verify than that one has ended."""
        return self.peer(peer).verified_at_ns != before_ns

    def hides(self, marked: Sequence[Marked]) -> bool:
        """Whether the index and the tree have each of these tombstones."""
        return {one.path for one in marked} <= tombstones(self.root) and all(self.agent.hides(one) for one in marked)

    def told(self, event: str) -> Counter[str]:
        """How many records of an event the journal has, by stem."""
        told = [record for record in self.agent.records(event) if not perhaps_told_before(record)]
        return Counter(record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in told)

    def told_at_all(self, event: str) -> set[str]:
        """The stems of which there is any record of an event."""
        return {record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in self.agent.records(event)}

    def placed(self) -> Counter[str]:
        """How often peers tried to create each tombstone here, by stem."""
        names = (Path(path).name for path in PLACED.findall(self.requests.read_text(errors="replace")))
        return Counter(name.removesuffix(".tombstone") for name in names)

    def status(self, *arguments: str) -> Any:
        """What `tombsync status --json` says."""
        return json.loads(self.agent.run("status", "--json", *arguments).stdout)

    def peer_status(self, peer: str) -> dict[str, Any]:
        """What `tombsync status --json` says of one peer."""
        return next(row for row in self.status()["peers"] if row["name"] == peer)


class Network:
    """The nodes of one test. At its end every segment is what it was at the beginning, and no agent has failed."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base = base
        self.stack = stack
        self.nodes: list[Node] = []

    def add(self, name: str, *, segments: int = 3) -> Node:
        """Another node; without segments it has no channel yet."""
        node = Node(self.base / name, name, self.stack, segments=segments)
        self.nodes.append(node)
        return node

    def chain(self) -> tuple[Node, Node, Node]:
        """Three running nodes, A - B - C, both ways; A and C know nothing of each other."""
        a, b, c = self.add("a"), self.add("b"), self.add("c")
        a.peer_of(b)
        b.peer_of(a, c)
        c.peer_of(b)
        start(a, b, c)
        return a, b, c

    def check(self) -> None:
        """Stop what still runs, and look at what is left."""
        agents = [node.agent for node in self.nodes if node.agent.process is not None]
        running = [agent for agent in agents if agent.process is not None and agent.process.poll() is None]
        for agent in running:
            agent.signal(signal.SIGTERM)
        assert [agent.wait() for agent in running] == [0] * len(running)
        for node in self.nodes:
            assert files(node.root) == node.files
        for agent in agents:
            assert agent.records("worker-died") == []
            assert "Traceback" not in agent.log.read_text(errors="replace")


def start(*nodes: Node) -> None:
    """Start agents side by side."""
    for node in nodes:
        node.agent.start(ready=False)
    for node in nodes:
        wait_for(node.agent.is_ready, f"the agent of {node.name} to be ready")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with ExitStack() as stack:
        network = Network(tmp_path, stack)
        yield network
        network.check()


# -- convergence -------------------------------------------------------------------------------------------------------


def test_a_chain_converges(network: Network) -> None:
    a, b, c = network.chain()
    marked = [touch(node.hour, stem) for node, stem in zip((a, b, c), stems(3), strict=True)]
    marked += [touch(a.hour, stem) for stem in stems(10, 100)]  # of segments that are not here yet
    for node in (a, b, c):
        wait_for(partial(node.hides, marked), f"{node.name} to hide everything")
    wait_for(lambda: a.confirmed(marked, "b") and b.confirmed(marked, "a", "c") and c.confirmed(marked, "b"))
    hour = strict_hour(*HOUR.split("/"))
    for node in (a, b, c):
        # Stems 0, 1 and 2 were marked; of the three segments, those of the seconds 0 and 2 are hidden by that.
        assert node.agent.listing(hour) == [f"{segment_stem(4)}.ts"]
        assert node.told("hidden") == Counter(one.stem for one in marked)


def test_a_tombstone_of_an_hour_that_the_others_do_not_have_yet_gets_there(network: Network) -> None:
    a, b, c = network.chain()
    later = make_hour(a.root, "desertbus/source/2019-11-13T03")
    a.files = files(a.root)
    marked = touch(later, segment_stem(0))
    wait_for(lambda: b.hides([marked]) and c.hides([marked]))


def test_a_ring_of_three_ends_in_silence(network: Network) -> None:
    a, b, c = network.add("a"), network.add("b"), network.add("c")
    ring = ((a, b), (b, c), (c, a))  # each delivers to the next, so each sshd has one client
    for node, following in ring:
        node.peer_of(following)
    start(a, b, c)
    marked = [touch(a.hour, stem) for stem in stems(5)] + [touch(b.hour, stem) for stem in stems(5, 5)]
    once = Counter(one.stem for one in marked)
    for node, following in ring:
        wait_for(partial(node.hides, marked))
        wait_for(partial(node.confirmed, marked, following.name))
    wait_for(lambda: all(sum(node.told("delivered").values()) >= len(marked) for node in (a, b, c)))
    for node in (a, b, c):
        assert node.told("delivered") == node.told("hidden") == once
        assert set(node.placed().values()) == {1}
    asked = [node.requests.read_text() for node in (a, b, c)]

    # Nothing of that begins again: not by itself, not by a rescan, not by another tombstone that goes round.
    for node in (a, b, c):
        node.agent.run("rescan", "--full")
    another = touch(c.hour, segment_stem(500))
    wait_for(lambda: all(node.confirmed([another], following.name) for node, following in ring))
    wait_for(lambda: all(node.told("delivered")[another.stem] for node in (a, b, c)))
    for node, before in zip((a, b, c), asked, strict=True):
        assert not any(one.stem in node.requests.read_text().removeprefix(before) for one in marked)
        assert node.told("delivered") == node.told("hidden") == once + Counter([another.stem])
        assert set(node.placed().values()) == {1}


def test_what_was_marked_with_a_note_arrives_empty(network: Network) -> None:
    a, b, c = network.chain()
    path = f"{HOUR}/{segment_stem(0)}.ts"
    a.agent.run("mark", "--reason", "shows a phone number", path)
    marked = strict_path(path)
    wait_for(lambda: a.confirmed([marked], "b") and b.confirmed([marked], "a", "c"))
    assert b'reason = "shows a phone number"' in (a.root / marked.tombstone_path).read_bytes()
    assert [(node.root / marked.tombstone_path).read_bytes() for node in (b, c)] == [b"", b""]


# -- outages -----------------------------------------------------------------------------------------------------------


def test_what_is_marked_while_a_peers_sshd_is_down_is_delivered_when_it_is_back(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.peer_of(b)
    start(a, b)
    before = touch(a.hour, segment_stem(0))
    wait_for(lambda: a.confirmed([before], "b"))
    b.server.stop()
    wait_for(lambda: a.agent.records("peer-down"), "the outage to be noticed")
    marked = [touch(a.hour, stem) for stem in stems(50, 10)]
    wait_for(lambda: a.hides(marked))
    assert a.counts("b") == {State.CONFIRMED: 1, State.PENDING: 50}
    assert a.peer_status("b")["up"] is False
    b.server.start()
    wait_for(lambda: b.hides(marked) and a.confirmed([before, *marked], "b"), "b to be caught up")
    assert b.told("hidden") == Counter(one.stem for one in [before, *marked])
    assert a.told("delivered") == Counter(one.stem for one in [before, *marked])


def test_what_arrives_while_an_agent_is_down_is_hidden_and_passed_on_at_its_start(network: Network) -> None:
    a, b, c = network.chain()
    assert b.agent.stop() == 0
    marked = [touch(a.hour, stem) for stem in stems(20)]
    wait_for(lambda: a.confirmed(marked, "b"), "b's sshd to take them")
    assert tombstones(c.root) == set()
    start(b)
    wait_for(lambda: b.hides(marked) and c.hides(marked), "b to hide them and to pass them on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restarts_in_the_middle_of_a_burst_lose_nothing(network: Network, number: signal.Signals) -> None:
    nodes = network.chain()
    marked = []
    for turn, stem in enumerate(stems(300)):
        marked.append(touch(nodes[turn % 3].hour, stem))
        victim = nodes[turn // 100].agent  # A, B and C in turn, each in the middle of its hundred
        if turn % 100 == 40:
            victim.signal(number)
        elif turn % 100 == 60:
            assert victim.wait() == (0 if number == signal.SIGTERM else -number)
            victim.start(ready=False)
        elif turn % 100 == 80:
            wait_for(victim.is_ready)
    a, b, c = nodes
    for node in nodes:
        wait_for(partial(node.hides, marked), f"{node.name} to hide all 300")
    wait_for(lambda: a.counts("b") == c.counts("b") == b.counts("a") == b.counts("c") == {State.CONFIRMED: 300})
    every = {one.stem for one in marked}
    for node in nodes:
        wait_for(lambda node=node: node.told_at_all("hidden") == every, "all to be told")  # type: ignore[misc]
        assert max(node.told("hidden").values()) == 1


def test_a_frozen_peer_slows_no_other(network: Network) -> None:
    a, b, c = network.add("a"), network.add("b"), network.add("c")
    a.peer_of(b, c)
    start(a)
    wait_for(lambda: len(a.agent.records("peer-up")) == 2)
    b.server.freeze()
    marked = [touch(a.hour, stem) for stem in stems(200)]
    wait_for(lambda: a.counts("c").get(State.CONFIRMED) == 200, "c to have all of them")
    assert a.agent.records("peer-down") == []  # the agent was still waiting for b
    assert a.counts("b") == {State.PENDING: 200}
    assert tombstones(b.root) == set()
    b.server.thaw()
    wait_for(lambda: a.counts("b") == {State.CONFIRMED: 200}, "b to have all of them")
    assert tombstones(b.root) == tombstones(c.root) == {one.path for one in marked}


def test_a_changed_host_key_stops_deliveries_until_known_hosts_is_corrected(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.peer_of(b)
    start(a)
    before = touch(a.hour, segment_stem(0))
    wait_for(lambda: a.confirmed([before], "b"))
    b.server.new_host_key()
    (record,) = wait_for(lambda: a.agent.records("host-key-changed"))
    assert record["TOMBSYNC_PEER"] == "b"
    logins = b.server.log().count("Accepted publickey")
    marked = touch(a.hour, segment_stem(2))
    wait_for(lambda: a.agent.hides(marked))
    shown = a.peer_status("b")
    assert (shown["up"], shown["pending"]) == (False, 1)
    assert "another host key" in shown["last_error"]
    assert "another host key" in a.agent.run("status").stdout
    assert a.agent.run("peer", "test", "b", expect=1).stderr.count("another host key") == 1
    assert b.server.log().count("Accepted publickey") == logins
    assert marked.path not in tombstones(b.root)
    # The agent itself has tried once, and does not knock again at a door that is somebody else's.
    assert a.agent.metric("push_failures_total", peer="b", reason="host-key-changed") == 1
    b.server.pin()
    wait_for(lambda: a.confirmed([before, marked], "b"), "the delivery after known_hosts was corrected")
    assert a.peer_status("b")["last_error"] is None


# -- what a peer keeps -------------------------------------------------------------------------------------------------


def test_a_peer_without_the_channel_is_not_served_and_gets_nothing_made(network: Network) -> None:
    a, b = network.add("a"), network.add("b", segments=0)
    a.peer_of(b)
    start(a)
    marked = [touch(a.hour, stem) for stem in stems(3)]
    wait_for(lambda: a.counts("b") == {State.NOT_SERVED: 3})
    assert os.listdir(b.root) == []
    assert a.peer_status("b")["deliveries"] == {"not-served": 3}
    assert "3 not-served" in a.agent.run("status").stdout
    assert "missing there" in a.agent.run("status", marked[0].stem).stdout
    (b.root / "desertbus" / "source").mkdir(parents=True)
    assert a.agent.stop() == 0  # instead of the minute until it asks again
    start(a)
    wait_for(lambda: a.confirmed(marked, "b"))
    assert tombstones(b.root) == {one.path for one in marked}


def test_a_lost_tombstone_is_pushed_again_at_the_next_verify(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.peer_of(b, verify_interval_s=1)
    start(a)
    marked = [touch(a.hour, stem) for stem in stems(3)]
    wait_for(lambda: a.confirmed(marked, "b"))
    lost = b.root / marked[1].tombstone_path
    lost.unlink()
    wait_for(lost.exists, "the tombstone to be pushed again")
    (record,) = wait_for(lambda: a.agent.records("restored"))
    assert (record["TOMBSYNC_SEGMENT"], record["TOMBSYNC_PEER"]) == (marked[1].path, "b")
    assert b.placed() == Counter({marked[0].stem: 1, marked[1].stem: 2, marked[2].stem: 1})
    wait_for(lambda: a.confirmed(marked, "b"))


def test_an_hour_that_a_peer_no_longer_keeps_is_not_made_again(network: Network) -> None:
    a, b = network.add("a"), network.add("b", segments=0)
    (b.root / "desertbus" / "source").mkdir(parents=True)
    a.peer_of(b, verify_interval_s=1)
    start(a)
    marked = touch(a.hour, segment_stem(0))
    wait_for(lambda: a.confirmed([marked], "b"))
    shutil.rmtree(b.root / HOUR)
    wait_for(lambda: a.agent.states(marked.path) == {"b": "hour-gone"})
    for _ in range(2):  # whole verifies more
        wait_for(partial(a.verified_again, "b", a.peer("b").verified_at_ns))
    assert os.listdir(b.root / "desertbus" / "source") == []
    assert a.agent.states(marked.path) == {"b": "hour-gone"}
    (b.root / HOUR).mkdir()
    wait_for(lambda: a.confirmed([marked], "b"), "the tombstone to follow where the hour is back")
    assert tombstones(b.root) == {marked.path}


def test_a_tree_that_comes_back_without_an_hour_does_not_get_the_hour_again(network: Network) -> None:
    a, b = network.add("a"), network.add("b", segments=0)
    quality = b.root / "desertbus" / "source"
    quality.mkdir(parents=True)
    a.peer_of(b, verify_interval_s=1)
    start(a)
    marked = touch(a.hour, segment_stem(0))
    wait_for(lambda: a.confirmed([marked], "b"))
    shutil.rmtree(b.root / "desertbus")  # as an unmounted disk
    wait_for(lambda: a.agent.states(marked.path) == {"b": "not-served"})
    quality.mkdir(parents=True)
    assert a.agent.stop() == 0  # instead of the minute until it asks again
    start(a)
    wait_for(lambda: a.agent.states(marked.path) == {"b": "hour-gone"})
    assert os.listdir(quality) == []


# -- peers that come and go --------------------------------------------------------------------------------------------


def test_a_new_peer_gets_every_known_tombstone(network: Network) -> None:
    a, b, c = network.add("a"), network.add("b"), network.add("c")
    a.peer_of(b)
    start(a)
    marked = [touch(a.hour, stem) for stem in stems(250)]  # more than one transaction's worth
    wait_for(lambda: a.counts("b") == {State.CONFIRMED: 250})
    assert a.agent.stop() == 0
    a.peer_of(b, c)
    start(a)
    wait_for(lambda: a.counts("c") == {State.CONFIRMED: 250})
    assert tombstones(c.root) == {one.path for one in marked}
    assert [record["TOMBSYNC_PEER"] for record in a.agent.records("peer-added")] == ["b", "c"]
    assert b.placed() == Counter(one.stem for one in marked)


def test_a_removed_peer_is_forgotten_and_told_of(network: Network) -> None:
    a, b, c = network.add("a"), network.add("b"), network.add("c")
    a.peer_of(b, c)
    start(a)
    before = touch(a.hour, segment_stem(0))
    wait_for(lambda: a.confirmed([before], "b", "c"))
    assert a.agent.stop() == 0
    a.peer_of(c)
    start(a)
    assert [record["TOMBSYNC_PEER"] for record in a.agent.records("peer-forgotten")] == ["b"]
    assert [peer["name"] for peer in a.status()["peers"]] == ["c"]
    after = touch(a.hour, segment_stem(2))
    wait_for(lambda: a.confirmed([before, after], "c"))
    assert tombstones(b.root) == {before.path}


def test_without_its_index_an_agent_asks_its_peers_again(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.peer_of(b)
    start(a, b)
    marked = [touch(a.hour, stem) for stem in stems(30)]
    once = Counter(one.stem for one in marked)
    wait_for(lambda: a.confirmed(marked, "b") and b.told("hidden") == once)
    there = {name: (b.root / f"{name}.tombstone").lstat() for name in tombstones(b.root)}
    assert a.agent.stop() == 0
    for file in a.agent.state_dir.glob("index.sqlite*"):
        file.unlink()
    start(a)
    wait_for(lambda: a.confirmed(marked, "b"), "b to confirm them all again")
    after = {name: (b.root / f"{name}.tombstone").lstat() for name in tombstones(b.root)}
    assert {name: (s.st_ino, s.st_ctime_ns) for name, s in after.items()} == {
        name: (s.st_ino, s.st_ctime_ns) for name, s in there.items()
    }
    another = touch(a.hour, segment_stem(100))
    wait_for(lambda: b.told("hidden")[another.stem])
    assert b.told("hidden") == once + Counter([another.stem])

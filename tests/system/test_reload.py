"""SIGHUP: a running agent takes up changed settings, or refuses them as a whole."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"


@pytest.fixture
def servers(stack: ExitStack) -> list[Sshd]:
    """Two nodes that are delivered to."""
    servers = [stack.enter_context(Sshd()) for _ in range(2)]
    for server in servers:
        make_hour(server.root)
    return servers


def started(stack: ExitStack, base: Path, peers: Sequence[str], settings: str = "") -> AgentProcess:
    agent = AgentProcess(base, peers=peers, settings=settings)
    make_hour(agent.root)
    stack.push(agent)
    return agent.start()


def reload(agent: AgentProcess, event: str = "reloaded") -> dict[str, str]:
    """SIGHUP; the record that says what came of it."""
    before = len(agent.records(event))
    agent.signal(signal.SIGHUP)
    wait_for(lambda: len(agent.records(event)) > before, event)
    record: dict[str, str] = agent.records(event)[-1]
    return record


def delivered(agent: AgentProcess, number: int, *peers: str) -> None:
    """Mark a segment, and wait until exactly these peers have it."""
    stem = segment_stem(number)
    touch(agent.root / HOUR, stem)
    wanted = dict.fromkeys(peers, "confirmed")
    wait_for(lambda: agent.states(f"{HOUR}/{stem}") == wanted, f"{stem} at {', '.join(peers)}")


def sessions(agent: AgentProcess, peer: str) -> int:
    """How often a session with a peer began."""
    return sum(record["TOMBSYNC_PEER"] == peer for record in agent.records("peer-up"))


def test_a_new_peer_gets_everything_and_the_other_keeps_its_session(
    stack: ExitStack, servers: list[Sshd], tmp_path: Path
) -> None:
    b, c = (peer_table(name, server) for name, server in zip(("node-b", "node-c"), servers, strict=True))
    agent = started(stack, tmp_path, [b])
    delivered(agent, 0, "node-b")
    held = servers[0].sessions()
    agent.write_settings([b, c])
    assert reload(agent)["TOMBSYNC_EXCHANGED"] == "node-c"
    wait_for(
        lambda: agent.states(f"{HOUR}/{segment_stem(0)}") == {"node-b": "confirmed", "node-c": "confirmed"},
        "the new peer to have what was marked before",
    )
    delivered(agent, 1, "node-b", "node-c")
    assert (sessions(agent, "node-b"), servers[0].sessions()) == (1, held)
    assert agent.metric("peer_up", peer="node-c") == 1
    assert agent.stop() == 0


def test_a_peer_that_is_taken_out_gets_nothing_any_more(stack: ExitStack, servers: list[Sshd], tmp_path: Path) -> None:
    b, c = (peer_table(name, server) for name, server in zip(("node-b", "node-c"), servers, strict=True))
    agent = started(stack, tmp_path, [b, c])
    delivered(agent, 0, "node-b", "node-c")
    agent.write_settings([c])
    reload(agent)
    wait_for(lambda: agent.records("peer-forgotten"), "the peer to be forgotten")
    wait_for(lambda: not servers[0].sessions(), "its session to end")
    delivered(agent, 1, "node-c")
    assert sessions(agent, "node-c") == 1
    assert 'peer="node-b"' not in agent.get("/metrics")[1]
    assert 'worker="push-node-b"' not in agent.get("/metrics")[1]
    assert not (servers[0].root / HOUR / f"{segment_stem(1)}.tombstone").exists()
    assert agent.stop() == 0


def test_a_peer_that_moved_is_another_one_and_one_reached_otherwise_is_the_same(
    stack: ExitStack, servers: list[Sshd], tmp_path: Path
) -> None:
    agent = started(stack, tmp_path, [peer_table("node-b", servers[0])])
    delivered(agent, 0, "node-b")
    agent.write_settings([peer_table("node-b", servers[0], verify_interval_s=7)])
    reload(agent)
    wait_for(lambda: sessions(agent, "node-b") == 2, "a session with the new settings")
    assert agent.records("peer-forgotten") == []
    agent.write_settings([peer_table("node-b", servers[1])])
    reload(agent)
    wait_for((servers[1].root / HOUR / f"{segment_stem(0)}.tombstone").exists, "the backlog to arrive")
    delivered(agent, 1, "node-b")
    assert not (servers[0].root / HOUR / f"{segment_stem(1)}.tombstone").exists()
    assert len(agent.records("peer-forgotten")) == 1
    assert agent.stop() == 0


def test_nothing_is_missed_while_settings_change(stack: ExitStack, servers: list[Sshd], tmp_path: Path) -> None:
    """Marks go on while a peer comes, changes and goes, over and over."""
    b = peer_table("node-b", servers[0])
    agent = started(stack, tmp_path, [b])
    stems = [segment_stem(number) for number in range(1, 600)]
    done = threading.Event()

    def mark_all() -> None:
        for stem in stems:
            touch(agent.root / HOUR, stem)
            done.wait(0.005)
        done.set()

    marking = threading.Thread(target=mark_all)
    marking.start()
    reloads = 0
    while not done.is_set():
        for more in ([peer_table("node-c", servers[1])], [peer_table("node-c", servers[1], verify_interval_s=7)], []):
            agent.write_settings([b, *more])
            reload(agent)
            reloads += 1
    marking.join()
    agent.write_settings([b, peer_table("node-c", servers[1])])
    reload(agent)
    wanted = {"node-b": "confirmed", "node-c": "confirmed"}
    wait_for(lambda: all(agent.states(f"{HOUR}/{stem}") == wanted for stem in stems), "all of them everywhere")
    assert reloads >= 3
    assert sessions(agent, "node-b") == 1
    assert agent.metric("missed_by_watch_total") == 0
    assert agent.stop() == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("nonsense = 1\n", "nonsense"),
        ("[[peer]]\n", "host"),
        ("= not TOML\n", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_and_the_old_settings_go_on(
    more: str, named: str, stack: ExitStack, servers: list[Sshd], tmp_path: Path
) -> None:
    b = peer_table("node-b", servers[0])
    agent = started(stack, tmp_path, [b])
    delivered(agent, 0, "node-b")
    agent.config.write_text(more + agent.config.read_text())
    assert named in reload(agent, "reload-refused")["MESSAGE"]
    delivered(agent, 1, "node-b")
    agent.write_settings([b])
    assert reload(agent)["TOMBSYNC_EXCHANGED"] == "none"
    assert sessions(agent, "node-b") == 1
    assert agent.stop() == 0


@pytest.mark.parametrize("key", ["root", "state_dir", "node", "http.listen"])
def test_what_cannot_change_is_refused_with_all_that_stands_beside_it(
    key: str, stack: ExitStack, servers: list[Sshd], tmp_path: Path
) -> None:
    agent = started(stack, tmp_path, [peer_table("node-b", servers[0])])
    delivered(agent, 0, "node-b")
    last = key.rpartition(".")[2]
    value = "unix:/run/elsewhere" if key == "http.listen" else "/elsewhere" if key != "node" else "node-x"
    lines = [f'{last} = "{value}"' if line.startswith(f"{last} =") else line for line in _lines(agent)]
    agent.config.write_text("\n".join([*lines, peer_table("node-c", servers[1])]))
    assert reload(agent, "reload-refused")["TOMBSYNC_KEYS"] == key
    delivered(agent, 1, "node-b")  # and to nobody else
    assert agent.stop() == 0


def _lines(agent: AgentProcess) -> list[str]:
    """The settings without their peers."""
    return agent.config.read_text().partition("[[peer]]")[0].splitlines()


def test_a_rescan_is_made_as_often_as_the_settings_say_now(stack: ExitStack, tmp_path: Path) -> None:
    agent = started(stack, tmp_path, [], "[rescan]\ninterval_s = 86400")
    wait_for(lambda: len(agent.records("rescan-completed")) == 2, "both rescans of the start")
    agent.write_settings([], "[rescan]\ninterval_s = 1")
    reload(agent)
    wait_for(lambda: len(agent.records("rescan-completed")) > 3, "rescans by the new interval")
    assert agent.stop() == 0


def test_a_mass_is_what_the_settings_say_now(stack: ExitStack, servers: list[Sshd], tmp_path: Path) -> None:
    b = peer_table("node-b", servers[0])
    agent = started(stack, tmp_path, [b])
    delivered(agent, 0, "node-b")
    agent.most_per_minute = 1
    agent.write_settings([b])
    reload(agent)
    touch(agent.root / HOUR, segment_stem(1))
    wait_for(lambda: agent.states(f"{HOUR}/{segment_stem(1)}") == {"node-b": "held"}, "the mark to be held")
    assert agent.stop() == 0


def test_an_inbox_can_come_and_go_where_there_was_one_at_the_start(stack: ExitStack, tmp_path: Path) -> None:
    receiver = ReceivingNode(stack, "node-r", ["node-a", "node-b"])
    make_hour(receiver.root)
    whole = receiver.agent.config.read_text()
    start, _, second = whole.rpartition("[[sender]]")
    receiver.agent.config.write_text(start)
    senders = []
    for number, name in enumerate(("node-a", "node-b")):
        agent = AgentProcess(tmp_path / name, node=name, peers=[receiver.table_for(name)])
        make_hour(agent.root)
        senders.append(stack.enter_context(agent))
        touch(agent.root / HOUR, segment_stem(number))
    with receiver.agent:
        one, other = (f"{HOUR}/{segment_stem(number)}" for number in range(2))
        wait_for(lambda: senders[0].states(one) == {"node-r": "confirmed"}, "the known sender's")
        wait_for(lambda: senders[1].states(other) == {"node-r": "received"}, "the other's to wait")
        receiver.agent.config.write_text(f"{start}[[sender]]{second}")
        reload(receiver.agent)
        wait_for(lambda: senders[1].states(other) == {"node-r": "confirmed"}, "the new sender's", 40)
        receiver.agent.config.write_text(start)
        reload(receiver.agent)
        wait_for(lambda: 'inbox_waiting{peer="node-b"}' not in receiver.agent.get("/metrics")[1], "it to be let go")
        touch(senders[0].root / HOUR, segment_stem(2))
        third = f"{HOUR}/{segment_stem(2)}"
        wait_for(lambda: senders[0].states(third) == {"node-r": "confirmed"}, "the known sender's")
        assert receiver.agent.stop() == 0


def test_the_first_sender_takes_a_restart(stack: ExitStack, tmp_path: Path) -> None:
    agent = started(stack, tmp_path, [])
    agent.write_settings([], "[[sender]]\nname = 'node-b'\n")
    assert "restart" in reload(agent, "reload-refused")["MESSAGE"]
    assert agent.stop() == 0


# -- by command --------------------------------------------------------------------------------------------------------


def test_the_command_returns_when_the_new_settings_count(stack: ExitStack, servers: list[Sshd], tmp_path: Path) -> None:
    b, c = (peer_table(name, server) for name, server in zip(("node-b", "node-c"), servers, strict=True))
    agent = started(stack, tmp_path, [b])
    agent.write_settings([b, c])
    assert agent.run("reload").stdout == "the agent has taken up its settings\n"
    assert agent.records("reloaded")[-1]["TOMBSYNC_EXCHANGED"] == "node-c"  # no wait: it is told already
    delivered(agent, 0, "node-b", "node-c")
    assert list((agent.state_dir / "requests").iterdir()) == []
    assert json.loads(agent.run("reload", "--json").stdout) == {"reloaded": True}


def test_the_command_fails_with_the_reason_where_the_settings_are_refused(
    stack: ExitStack, servers: list[Sshd], tmp_path: Path
) -> None:
    b = peer_table("node-b", servers[0])
    agent = started(stack, tmp_path, [b])
    name, agent.node = agent.node, "another"
    agent.write_settings([])
    refused = agent.run("reload", expect=1).stderr
    assert "the settings were not taken: a change of node takes a restart" in refused
    assert agent.records("reload-refused")[-1]["TOMBSYNC_KEYS"] == "node"
    agent.node = name
    agent.write_settings([b], "nonsense = 1\n")
    assert "nonsense" in agent.run("reload", expect=1).stderr
    assert list((agent.state_dir / "requests").iterdir()) == []
    delivered(agent, 0, "node-b")
    agent.write_settings([b])
    agent.run("reload")
    agent.stop()
    assert "no agent runs" in agent.run("reload", expect=1).stderr

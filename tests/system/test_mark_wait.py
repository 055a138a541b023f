"""`mark --wait`: a real agent, two peers behind real sshds, one of which may be down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, peer_table
from tests.support.moments import CHANNEL, put_minute, tombstones
from tests.support.programs import was_interrupted
from tests.support.sshd import Sshd
from tests.support.terminal import Terminal
from tests.support.waiting import wait_for

MINUTE = "2019-11-13T02:45"
SPAN = ("--channel", CHANNEL, "--from", f"{MINUTE}:10", "--to", f"{MINUTE}:14")


class Nodes:
    """A node with an agent, and two peers that keep the same hours."""

    def __init__(self, base: Path, b: Sshd, c: Sshd) -> None:
        self.b, self.c = b, c
        self.agent = AgentProcess(base, peers=[peer_table("node-b", b), peer_table("node-c", c)])
        for root in (self.agent.root, b.root, c.root):
            self.source = put_minute(root, MINUTE)
            self.small = put_minute(root, MINUTE, quality="160p")
        self.wanted = {*self.source[5:7], *self.small[5:7]}

    def take_c_down(self) -> None:
        """Until the agent has noticed it."""
        self.c.stop()
        wait_for(lambda: self.agent.records("peer-down"), "the outage to be noticed")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Sshd() as b, Sshd() as c:
        nodes = Nodes(tmp_path, b, c)
        with nodes.agent as agent:
            wait_for(lambda: all(agent.metric("peer_up", peer=peer) == 1 for peer in ("node-b", "node-c")))
            yield nodes


def test_it_stays_until_both_peers_have_confirmed(nodes: Nodes) -> None:
    done = nodes.agent.run("mark", *SPAN, "--wait", "--reason", "shows a face")
    assert done.stdout.splitlines()[-2:] == ["node-b: 4 confirmed", "node-c: 4 confirmed"]
    for root in (nodes.agent.root, nodes.b.root, nodes.c.root):
        assert tombstones(root) == nodes.wanted
    again = json.loads(nodes.agent.run("mark", *SPAN, "--wait", "--json").stdout)
    assert [result["outcome"] for result in again["results"]] == ["already-marked"] * 4
    confirmed = {"node-b": "confirmed", "node-c": "confirmed"}
    assert all(result["peers"] == confirmed for result in again["results"])


def test_paths_are_waited_for_too(nodes: Nodes) -> None:
    done = nodes.agent.run("mark", f"{nodes.source[0]}.ts", nodes.source[1], "--wait")
    assert done.stdout.splitlines()[-2:] == ["node-b: 2 confirmed", "node-c: 2 confirmed"]
    assert tombstones(nodes.c.root) == set(nodes.source[:2])
    (result,) = json.loads(nodes.agent.run("mark", nodes.source[0], "--json").stdout)
    assert "peers" not in result


def test_with_one_peer_down_it_ends_after_its_time_and_says_which(nodes: Nodes) -> None:
    nodes.take_c_down()
    done = nodes.agent.run("mark", *SPAN, "--wait", "--timeout", "2", expect=3)
    assert "node-b: 4 confirmed" in done.stdout.splitlines()
    assert "node-c: 4 pending" in done.stdout.splitlines()
    assert "tombsync: not confirmed by node-c: 4 pending" in done.stderr.splitlines()
    assert "node-b" not in done.stderr
    assert "tombsync status --pending" in done.stderr
    told = json.loads(nodes.agent.run("mark", *SPAN, "--wait", "--timeout", "1", "--json", expect=3).stdout)
    assert {tuple(result["peers"].items()) for result in told["results"]} == {
        (("node-b", "confirmed"), ("node-c", "pending"))
    }
    assert tombstones(nodes.agent.root) == tombstones(nodes.b.root) == nodes.wanted
    nodes.c.start()
    nodes.agent.run("mark", *SPAN, "--wait", "--timeout", "120")
    assert tombstones(nodes.c.root) == nodes.wanted


def test_ctrl_c_leaves_the_marks_and_says_how_to_look_again(nodes: Nodes) -> None:
    nodes.take_c_down()
    words = [*nodes.agent.program, "mark", "--config", str(nodes.agent.config), *SPAN, "--wait"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:  # told once it has answered: from then on it waits for the other
            if line == "node-b: 4 confirmed\n":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert was_interrupted(process.returncode)
    assert "tombsync status --pending" in err and "Traceback" not in err
    assert "node-c" not in out
    assert tombstones(nodes.agent.root) == nodes.wanted
    assert "node-c" in nodes.agent.run("status", "--pending").stdout


def test_on_a_terminal_it_is_a_table_that_changes(nodes: Nodes) -> None:
    nodes.take_c_down()
    words = [*nodes.agent.program, "mark", "--config", str(nodes.agent.config), *SPAN, "--wait", "--timeout", "100"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with Terminal(words, cwd=nodes.agent.base, env=env) as terminal:
        terminal.until(r"PEER.*IS.*CONFIRMED")
        terminal.until(r"node-b +up +4 of 4.*\n.*node-c +down: .*0 of 4 +4 pending")
        nodes.c.start()
        terminal.until(r"node-c +up +4 of 4", timeout_s=50.0)


def test_what_another_target_of_a_peer_confirmed_does_not_count(nodes: Nodes) -> None:
    elsewhere = peer_table("node-c", nodes.c, nodes.c.root / "elsewhere")
    nodes.agent.write_settings([peer_table("node-b", nodes.b), elsewhere])  # which the agent has not taken up
    done = nodes.agent.run("mark", *SPAN, "--wait", "--timeout", "1", expect=3)
    assert "not confirmed by node-c: 4 not on its way yet" in done.stderr
    assert "node-b: 4 confirmed" in done.stdout


def test_without_an_agent_nobody_is_waited_for(nodes: Nodes) -> None:
    assert nodes.agent.stop() == 0
    done = nodes.agent.run("mark", *SPAN, "--wait", expect=3)
    assert "no agent runs on the state directory" in done.stderr
    assert tombstones(nodes.agent.root) == nodes.wanted


def test_without_peers_nobody_is_waited_for(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    put_minute(agent.root, MINUTE)
    with agent:
        done = agent.run("mark", *SPAN, "--wait")
    assert "no peers are configured" in done.stderr


def test_the_agent_tells_of_each_what_it_tells_of_any_mark(nodes: Nodes) -> None:
    nodes.agent.run("mark", *SPAN, "--wait")
    wait_for(lambda: len(nodes.agent.records("delivered")) == 8, "all deliveries to be told")
    assert {record["TOMBSYNC_SEGMENT"] for record in nodes.agent.records("hidden")} == nodes.wanted
    assert {record["TOMBSYNC_PEER"] for record in nodes.agent.records("delivered")} == {"node-b", "node-c"}

"""`tombsync status STEM` and `--live`: what was answered last, and what is answered now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
STEM = segment_stem(0)


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        make_hour(server.root)
        yield server


@pytest.fixture
def agent(tmp_path: Path, server: Sshd) -> Iterator[AgentProcess]:
    """A node whose one mark its one peer has confirmed."""
    agent = AgentProcess(tmp_path, peers=[peer_table("node-b", server)])
    make_hour(agent.root)
    with agent:
        touch(agent.root / HOUR, STEM)
        wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-b": "confirmed"}, "the confirmation")
        yield agent


def peer(agent: AgentProcess, *options: str, expect: int = 0) -> dict[str, Any]:
    """What `status --json` says of the peer."""
    (document,) = json.loads(agent.run("status", STEM, "--json", *options, expect=expect).stdout)
    assert document["segment"] == f"{HOUR}/{STEM}"
    assert document["tombstone_here"] is document["data_here"] is True
    assert document["origin"] == "node-a"
    (found,) = document["peers"]
    assert isinstance(found, dict)
    return found


def test_without_live_it_is_the_last_answer_and_its_age(agent: AgentProcess, server: Sshd) -> None:
    (server.root / HOUR / f"{STEM}.tombstone").unlink()
    found = peer(agent)
    assert (found["state"], found["asked_now"]) == ("confirmed", False)
    told = agent.run("status", STEM).stdout
    assert " ago" in told
    assert "nodes that are not configured as peers were not asked" in told


def test_live_asks_now_and_creates_nothing(agent: AgentProcess, server: Sshd) -> None:
    found = peer(agent, "--live")
    assert (found["state"], found["asked_now"], found["data_there"]) == ("confirmed", True, True)
    (server.root / HOUR / f"{STEM}.tombstone").unlink()
    (server.root / HOUR / f"{STEM}.ts").unlink()
    found = peer(agent, "--live")
    assert (found["state"], found["data_there"]) == ("pending", False)
    assert "it confirmed it once" in found["detail"]
    assert not (server.root / HOUR / f"{STEM}.tombstone").exists()
    assert "asked now" in agent.run("status", STEM, "--live").stdout


def test_pending_lists_what_is_not_everywhere_and_why(agent: AgentProcess, server: Sshd) -> None:
    assert json.loads(agent.run("status", "--pending", "--json").stdout) == []
    assert "every peer has confirmed" in agent.run("status", "--pending").stdout
    server.stop()
    wait_for(lambda: agent.metric("peer_up", peer="node-b") == 0, "the peer to be down")
    others = [segment_stem(number) for number in (2, 4)]
    for stem in others:
        touch(agent.root / HOUR, stem)
        wait_for(lambda stem=stem: agent.hidden(f"{HOUR}/{stem}"), "it to be hidden")  # type: ignore[misc]
    documents = json.loads(agent.run("status", "--pending", "--json").stdout)
    assert [document["segment"] for document in documents] == [f"{HOUR}/{stem}" for stem in reversed(others)]
    assert {(document["peer"], document["state"]) for document in documents} == {("node-b", "pending")}
    assert all(document["why"] for document in documents)
    told = agent.run("status", "--pending", "--limit", "1").stdout.splitlines()
    assert others[1] in told[0] and "and more" in told[1]
    assert agent.run("status", "--pending", STEM, expect=2).returncode == 2


def test_pending_lists_what_is_placed_and_not_durable(tmp_path: Path) -> None:
    with Sshd(sftp_args="-P fsync") as server:
        make_hour(server.root)
        agent = AgentProcess(tmp_path, peers=[peer_table("node-b", server)])
        make_hour(agent.root)
        with agent:
            touch(agent.root / HOUR, STEM)
            wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-b": "not-durable"}, "the answer")
            (document,) = json.loads(agent.run("status", "--pending", "--json").stdout)
            assert (document["segment"], document["peer"]) == (f"{HOUR}/{STEM}", "node-b")
            assert document["state"] == "not-durable"
            assert "fsync" in document["why"]
            assert "every peer has confirmed" not in agent.run("status", "--pending").stdout


def test_pending_lists_marks_that_no_peer_is_sent(agent: AgentProcess) -> None:
    stem = segment_stem(2)
    (agent.root / HOUR / f"{stem}.tombstone").symlink_to("nowhere")
    wait_for(lambda: agent.hidden(f"{HOUR}/{stem}"), "it to be hidden")
    (document,) = json.loads(agent.run("status", "--pending", "--json").stdout)
    assert (document["segment"], document["peer"], document["state"]) == (f"{HOUR}/{stem}", None, None)
    assert "not sent to peers" in document["why"]
    told = agent.run("status", "--pending").stdout
    assert f"{HOUR}/{stem}\t-\t-" in told
    assert "every peer has confirmed" not in told


@pytest.mark.parametrize("moved", [False, True], ids=["new", "at another place"])
def test_pending_lists_peers_that_the_agent_does_not_know_yet(agent: AgentProcess, server: Sshd, moved: bool) -> None:
    tables = [peer_table("node-b", server, "/elsewhere" if moved else None)]
    if not moved:
        tables.append(peer_table("node-c", server, "/elsewhere"))
    agent.write_settings(tables)
    (document,) = json.loads(agent.run("status", "--pending", "--json").stdout)
    assert (document["segment"], document["peer"]) == (None, "node-b" if moved else "node-c")
    assert "restart it" in document["why"]
    assert "every peer has confirmed" not in agent.run("status", "--pending").stdout


def test_a_peer_that_cannot_be_asked_is_said_and_the_exit_code_too(agent: AgentProcess, server: Sshd) -> None:
    server.stop()
    found = peer(agent, "--live", expect=3)
    assert (found["state"], found["asked_now"]) == ("confirmed", False)
    assert "cannot be reached" in found["error"]
    assert "cannot be reached" in agent.run("status", STEM, "--live", expect=3).stderr
    assert "name some" in agent.run("status", "--live", expect=2).stderr

"""A mass of marks on a real node with real peers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
MOST, MASS = 20, 60
STEMS = [segment_stem(number) for number in range(MASS)]


@pytest.fixture
def agent(tmp_path: Path, peers: list[Sshd]) -> Iterator[AgentProcess]:
    """A node that holds more than MOST marks a minute; not started."""
    tables = [peer_table(f"node-{number}", server) for number, server in enumerate(peers)]
    agent = AgentProcess(tmp_path, peers=tables, most_per_minute=MOST)
    make_hour(agent.root)
    with agent.ending():
        yield agent


def placed(server: Sshd) -> int:
    return len(list((server.root / HOUR).glob("*.tombstone")))


def held(agent: AgentProcess) -> float:
    return agent.metric("deliveries", peer="node-0", state="held")


def test_a_mass_of_touches_is_hidden_and_waits_for_a_person(agent: AgentProcess, peers: list[Sshd]) -> None:
    for stem in STEMS:
        touch(agent.root / HOUR, stem)
    agent.start()
    wait_for(lambda: agent.metric("tombstones") == MASS, "all to be hidden")
    assert held(agent) > MASS - 2 * MOST
    wait_for(lambda: agent.records("mass-mark-held"), "it to be told")
    shown = json.loads(agent.run("release", "--dry-run", "--json").stdout)
    assert len(shown["held"]) == held(agent)
    assert shown["released"] is False
    assert "not done" in agent.run("release", expect=1).stderr
    assert held(agent) == len(shown["held"])
    before = [placed(server) for server in peers]
    assert max(before) < MASS
    status = json.loads(agent.run("status", "--json").stdout)
    assert status["peers"][0]["deliveries"]["held"] == len(shown["held"])
    assert "released" in agent.run("release", "--yes").stdout
    wait_for(lambda: [placed(server) for server in peers] == [MASS, MASS], "all to be delivered")
    wait_for(lambda: agent.metric("deliveries", state="confirmed", peer="node-1") == MASS, "all confirmations")
    (record,) = agent.records("released")
    assert record["TOMBSYNC_COUNT"] == str(len(shown["held"]))
    assert agent.run("release").stdout == "nothing is held\n"


def test_a_release_without_an_agent_is_done_by_its_next_start(agent: AgentProcess, peers: list[Sshd]) -> None:
    for stem in STEMS:
        touch(agent.root / HOUR, stem)
    agent.start()
    wait_for(lambda: held(agent) > 0, "some to be held")
    agent.stop()
    assert "next start" in agent.run("release", "--yes").stdout
    agent.start()
    wait_for(lambda: [placed(server) for server in peers] == [MASS, MASS], "all to be delivered")


def test_what_a_peer_has_already_is_no_mistake_and_goes_to_the_others(agent: AgentProcess, peers: list[Sshd]) -> None:
    """As on a fresh node that a stock backfiller has filled with the tombstones of the others."""
    for stem in STEMS:
        touch(agent.root / HOUR, stem)
        touch(peers[0].root / HOUR, stem)
    agent.start()
    wait_for(lambda: agent.metric("tombstones") == MASS, "all to be hidden")
    wait_for(lambda: placed(peers[1]) == MASS, "the holds to end", 60)
    wait_for(lambda: held(agent) == 0, "nothing to be held", 60)
    assert agent.records("hold-ended")


def test_marks_by_command_are_not_held(agent: AgentProcess, peers: list[Sshd]) -> None:
    agent.start()
    paths = [f"{HOUR}/{stem}" for stem in STEMS]
    refused = agent.run("mark", "--even-if-absent", *paths, expect=1)
    assert "60 segments would be hidden on every node" in refused.stderr
    assert agent.metric("tombstones") == 0
    agent.run("mark", "--even-if-absent", "--yes", *paths)
    wait_for(lambda: [placed(server) for server in peers] == [MASS, MASS], "all to be delivered")
    assert agent.records("mass-mark-held") == []

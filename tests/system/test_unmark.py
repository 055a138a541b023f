"""`tombsync unmark` with a real agent and real peers: a mark goes only while no other node has it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.names import strict_path

HOUR = "desertbus/source/2019-11-13T02"
MOST, MASS = 5, 30
STEMS = [segment_stem(2 * number) for number in range(MASS)]
AT_ONCE = ("--yes", "--no-wait")


@pytest.fixture
def agent(tmp_path: Path, peers: list[Sshd]) -> Iterator[AgentProcess]:
    """A node on which so much was touched within a minute that most of it waits for a person."""
    tables = [peer_table(f"node-{number}", server) for number, server in enumerate(peers)]
    agent = AgentProcess(tmp_path, peers=tables, most_per_minute=MOST)
    make_hour(agent.root, segments=MASS)
    with agent.ending():
        agent.start()
        for stem in STEMS:
            touch(agent.root / HOUR, stem)
        wait_for(lambda: agent.metric("tombstones") == MASS, "all to be hidden")
        wait_for(lambda: held(agent), "some to be held")
        # What was on its way when the mass became one is held for a moment, and then confirmed.
        wait_for(lambda: all(arrived(agent, number, peer) for number, peer in enumerate(peers)), "those on their way")
        yield agent


def arrived(agent: AgentProcess, number: int, peer: Sshd) -> bool:
    """Whether all that stands at a peer is known to do so."""
    there = [stem for stem in STEMS if stands(peer.root, stem)]
    return all(agent.states(f"{HOUR}/{stem}")[f"node-{number}"] == "confirmed" for stem in there)


def held(agent: AgentProcess) -> list[str]:
    """The stems that wait for a person at both peers, latest first."""
    return [stem for stem in reversed(STEMS) if set(agent.states(f"{HOUR}/{stem}").values()) == {"held"}]


def stands(root: Path, stem: str) -> bool:
    return (root / HOUR / f"{stem}.tombstone").exists()


def visible(agent: AgentProcess) -> list[str]:
    return agent.listing(strict_path(f"{HOUR}/{STEMS[0]}").hour)


def assert_goes_on_hiding(agent: AgentProcess, stem: str) -> None:
    assert agent.hidden(f"{HOUR}/{stem}")
    assert stands(agent.root, stem)
    assert set(agent.states(f"{HOUR}/{stem}").values()) == {"held"}


def test_one_is_taken_back_and_stays_so(agent: AgentProcess, peers: list[Sshd]) -> None:
    stem, *rest = held(agent)
    shown = agent.run("unmark", stem, "--dry-run").stdout
    assert "1 marks can be taken back: no peer has them" in shown
    assert_goes_on_hiding(agent, stem)
    assert "1 segments would be listed again" in agent.run("unmark", stem, expect=1).stderr
    assert_goes_on_hiding(agent, stem)

    done = agent.run("unmark", stem, "--reason", "the wrong minute", *AT_ONCE)
    assert "1 marks are taken back" in done.stdout
    (record,) = wait_for(lambda: agent.records("unmarked"), "it to be recorded")
    assert record["TOMBSYNC_SEGMENT"] == f"{HOUR}/{stem}"
    assert record["TOMBSYNC_REASON"] == "the wrong minute"
    assert record["TOMBSYNC_ACTOR"]
    assert visible(agent) == [f"{stem}.ts"]
    assert not stands(agent.root, stem)
    assert agent.metric("tombstones") == MASS - 1
    assert agent.metric("deliveries", peer="node-0", state="held") == len(rest)

    agent.run("rescan", "--full")
    agent.run("release", "--yes")
    wait_for(lambda: all(stands(server.root, rest[0]) for server in peers), "the others to be delivered")
    assert visible(agent) == [f"{stem}.ts"]
    assert not any(stands(server.root, stem) for server in peers)


def test_it_can_be_marked_again(agent: AgentProcess, peers: list[Sshd]) -> None:
    stem = held(agent)[0]
    agent.run("unmark", f"{HOUR}/{stem}.ts", *AT_ONCE)
    assert visible(agent) == [f"{stem}.ts"]
    agent.run("mark", f"{HOUR}/{stem}.ts")
    assert agent.hidden(f"{HOUR}/{stem}")
    wait_for(lambda: all(stands(server.root, stem) for server in peers), "it to be delivered")


def test_all_that_is_held_at_once(agent: AgentProcess, peers: list[Sshd]) -> None:
    stems = held(agent)
    document = json.loads(agent.run("unmark", "--held", "--json", *AT_ONCE).stdout)
    assert {entry["segment"] for entry in document["segments"] if entry["taken_back"]} == {
        f"{HOUR}/{stem}" for stem in stems
    }
    assert document["found_elsewhere"] == {}
    assert visible(agent) == sorted(f"{stem}.ts" for stem in stems)
    assert agent.run("unmark", "--held").stdout == "nothing is held\n"
    assert not any(stands(server.root, stem) for server in peers for stem in stems)


def test_what_a_peer_has_is_refused_by_name(agent: AgentProcess, peers: list[Sshd]) -> None:
    stem, other, *_ = held(agent)
    touch(peers[1].root / HOUR, stem)
    refused = agent.run("unmark", stem, other, *AT_ONCE, expect=1)
    assert "no mark was taken back" in refused.stderr
    assert "node-1" in refused.stderr  # perhaps with the other: what one has already is no mistake, and goes on
    assert_goes_on_hiding(agent, other)
    assert stands(agent.root, stem)


def test_what_was_delivered_is_refused(agent: AgentProcess) -> None:
    stem = held(agent)[0]
    agent.run("release", "--yes")
    wait_for(lambda: "confirmed" in agent.states(f"{HOUR}/{stem}").values(), "it to arrive")
    refused = agent.run("unmark", stem, *AT_ONCE, expect=1)
    assert "confirmed" in refused.stderr
    assert agent.hidden(f"{HOUR}/{stem}")
    assert stands(agent.root, stem)


def test_a_silent_peer_refuses_all(agent: AgentProcess, peers: list[Sshd]) -> None:
    stem = held(agent)[0]
    peers[1].stop()
    refused = agent.run("unmark", stem, *AT_ONCE, expect=1)
    assert "node-1" in refused.stderr
    assert_goes_on_hiding(agent, stem)


@pytest.mark.parametrize("mounted_at", ["desertbus", "desertbus/source"])
def test_a_peer_whose_tree_is_not_mounted_refuses_all(mounted_at: str, agent: AgentProcess, peers: list[Sshd]) -> None:
    """It says that it keeps no such place or hour, and may have the tombstone where it cannot be seen just now."""
    stem = held(agent)[0]
    mounted = peers[1].root / mounted_at
    mounted.rename(peers[1].root / "away")
    mounted.mkdir()  # what is below a mount
    refused = agent.run("unmark", stem, *AT_ONCE, expect=1)
    assert "node-1" in refused.stderr
    assert "mounted" in refused.stderr
    assert_goes_on_hiding(agent, stem)

    mounted.rmdir()
    (peers[1].root / "away").rename(mounted)
    assert "1 marks are taken back" in agent.run("unmark", stem, *AT_ONCE).stdout


def test_a_peer_that_does_not_keep_the_hour_is_believed_where_it_shows_another_of_that_place(
    agent: AgentProcess, peers: list[Sshd]
) -> None:
    agent.run("release", "--yes")
    wait_for(lambda: agent.metric("deliveries", peer="node-1", state="confirmed") == MASS, "what it can show")
    late = HOUR.replace("T02", "T03")
    stem = segment_stem(1)
    make_hour(agent.root, late)
    touch(agent.root / late, stem)
    wait_for(lambda: agent.hidden(f"{late}/{stem}"), "it to be hidden")
    assert set(agent.states(f"{late}/{stem}").values()) == {"held"}
    assert not any((server.root / late).exists() for server in peers)
    assert "1 marks are taken back" in agent.run("unmark", f"{late}/{stem}", *AT_ONCE).stdout


def test_it_needs_the_agent(agent: AgentProcess) -> None:
    stem = held(agent)[0]
    agent.stop()
    assert "no agent runs" in agent.run("unmark", stem, *AT_ONCE, expect=1).stderr
    assert_goes_on_hiding(agent, stem)
    assert agent.run("unmark", expect=2).returncode == 2
    assert agent.run("unmark", stem, "--held", expect=2).returncode == 2
    assert "no tombstone of this name" in agent.run("unmark", "nonsense", *AT_ONCE, expect=1).stderr


def test_peers_are_asked_once_more(agent: AgentProcess, peers: list[Sshd]) -> None:
    """As by a backfiller that had listed the tombstone before it was taken back."""
    stem = held(agent)[0]
    command = [*agent.program, "unmark", stem, "--config", str(agent.config), "--yes", "--again-after", "5s", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: visible(agent) == [f"{stem}.ts"], "it to be taken back")
        touch(peers[1].root / HOUR, stem)
        out, err = process.communicate(timeout=40)
    assert process.returncode == 3
    assert list(json.loads(out)["found_elsewhere"]) == ["node-1"]
    assert "unmark-overtaken" in err


def test_a_mark_that_was_never_sent_goes_on_where_it_is_refused(tmp_path: Path, peers: list[Sshd]) -> None:
    """Pending, not held: what holds it back for the command's time must not hold it for ever."""
    nobody = tmp_path / "known_hosts"
    nobody.touch()
    tables = [peer_table(f"node-{number}", server) for number, server in enumerate(peers)]
    unknown = [peer_table(f"node-{number}", server, known_hosts=str(nobody)) for number, server in enumerate(peers)]
    agent = AgentProcess(tmp_path, peers=tables)
    for_command = agent.config.rename(tmp_path / "for-command.toml")  # which can ask, and the agent cannot send
    agent.write_settings(unknown)
    make_hour(agent.root)
    stem = STEMS[0]
    with agent:
        touch(agent.root / HOUR, stem)
        wait_for(lambda: agent.hidden(f"{HOUR}/{stem}"), "it to be hidden")
        agent.signal(signal.SIGSTOP)  # so that the command is inside of the hold when a peer gets it
        command = [*agent.program, "unmark", stem, *AT_ONCE, "--config", str(for_command)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: list(agent.state_dir.glob("requests/hold-*.json")), "it to be held back")
            touch(peers[1].root / HOUR, stem)
            agent.signal(signal.SIGCONT)
            _, err = process.communicate(timeout=40)
        assert process.returncode == 1
        assert "no mark was taken back" in err
        assert "node-1" in err
        wait_for(lambda: set(agent.states(f"{HOUR}/{stem}").values()) == {"pending"}, "it to go on")
        assert stands(agent.root, stem)
        assert not list(agent.state_dir.glob("requests/hold-*"))

        (peers[1].root / HOUR / f"{stem}.tombstone").unlink()
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
        assert "1 marks are taken back" in done.stdout
        assert not agent.hidden(f"{HOUR}/{stem}")


def test_no_peer_at_all_must_be_said(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root)
    with agent:
        touch(agent.root / HOUR, STEMS[0])
        wait_for(lambda: agent.hidden(f"{HOUR}/{STEMS[0]}"), "it to be hidden")
        assert "no peer is configured" in agent.run("unmark", STEMS[0], *AT_ONCE, expect=1).stderr
        assert "1 marks are taken back" in agent.run("unmark", STEMS[0], "--no-peers", *AT_ONCE).stdout
        assert not agent.hidden(f"{HOUR}/{STEMS[0]}")

"""`tombsync purge` with a real agent and real peers: nothing goes unless every peer says now that it has the mark."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.index import database
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.names import OWN_DIRECTORY

PLACE = "desertbus/source"
HOUR = f"{PLACE}/2019-11-13T02"
LATER = f"{PLACE}/2019-11-13T05"
STEM, OTHER, VISIBLE = segment_stem(0), segment_stem(2), segment_stem(4)


@pytest.fixture
def servers() -> Iterator[list[Sshd]]:
    with ExitStack() as stack:
        servers = [stack.enter_context(Sshd()) for _ in range(2)]
        for server in servers:
            make_hour(server.root)
        yield servers


@pytest.fixture
def agent(tmp_path: Path, servers: list[Sshd]) -> Iterator[AgentProcess]:
    """A node of which two of three segments are marked, and both peers have confirmed them."""
    agent = AgentProcess(tmp_path, peers=[peer_table(f"node-{n}", server) for n, server in enumerate(servers)])
    make_hour(agent.root)
    with agent:
        for stem in (STEM, OTHER):
            touch(agent.root / HOUR, stem)
            wait_for(
                lambda stem=stem: set(agent.states(f"{HOUR}/{stem}").values()) == {"confirmed"},  # type: ignore[misc]
                "the confirmations",
            )
        yield agent


def here(agent: AgentProcess) -> set[str]:
    """What stands in the hour."""
    return {path.name for path in (agent.root / HOUR).iterdir()}


ALL = {f"{STEM}.ts", f"{OTHER}.ts", f"{VISIBLE}.ts", f"{STEM}.tombstone", f"{OTHER}.tombstone"}


def test_it_deletes_exactly_what_it_listed_and_keeps_the_tombstones(agent: AgentProcess) -> None:
    shown = json.loads(agent.run("purge", STEM, "--dry-run", "--json").stdout)
    assert [(file["file"], file["bytes"], file["deleted"]) for file in shown] == [(f"{HOUR}/{STEM}.ts", 7, False)]
    assert here(agent) == ALL
    done = json.loads(agent.run("purge", STEM, "--yes", "--json").stdout)
    assert [file["deleted"] for file in done] == [True]
    assert here(agent) == ALL - {f"{STEM}.ts"}
    assert "nothing to delete" in agent.run("purge", STEM, "--yes").stdout
    assert "deleted 1 files" in agent.run("purge", "--older-than", "1s", "--yes").stdout
    assert here(agent) == {f"{VISIBLE}.ts", f"{STEM}.tombstone", f"{OTHER}.tombstone"}


def test_it_asks_first_and_not_where_nobody_can_answer(agent: AgentProcess) -> None:
    refused = agent.run("purge", STEM, expect=1)
    assert "1 files would be deleted for good" in refused.stderr
    assert "no tombstone of this name" in agent.run("purge", STEM, "nonsense", "--yes", expect=1).stderr
    assert agent.run("purge", expect=2).returncode == 2
    assert agent.run("purge", STEM, "--older-than", "1s", expect=2).returncode == 2
    assert "nothing to delete" in agent.run("purge", "--older-than", "9d", "--yes").stdout
    assert here(agent) == ALL


def answer(agent: AgentProcess, typed: str) -> int:
    """Purge one stem on a terminal where a person types that; the exit code."""
    ours, theirs = pty.openpty()
    command = [*agent.program, "purge", STEM, "--config", str(agent.config)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        os.write(ours, typed.encode())
        code = process.wait(30)
    os.close(ours)
    os.close(theirs)
    return code


def test_on_a_terminal_it_asks(agent: AgentProcess) -> None:
    assert answer(agent, "n\n") != 0
    assert answer(agent, "\n") != 0
    assert here(agent) == ALL
    assert answer(agent, "y\n") == 0
    assert here(agent) == ALL - {f"{STEM}.ts"}


def records(done: subprocess.CompletedProcess[str], event: str) -> list[dict[str, Any]]:
    """What a command recorded, where the settings send the audit to stderr."""
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return [record for record in found if record["TOMBSYNC_EVENT"] == event]


def test_each_file_and_each_peer_that_was_left_out_is_journalled(agent: AgentProcess, servers: list[Sshd]) -> None:
    (agent.root / HOUR / f"{STEM}.json").write_bytes(b"four")
    servers[1].stop()
    dry = agent.run("purge", STEM, OTHER, "--dry-run", "--except-peer", "node-1")
    assert records(dry, "purged") == records(dry, "purge-excepted") == []
    done = agent.run("purge", STEM, OTHER, "--yes", "--except-peer", "node-1")
    purged = {record["TOMBSYNC_FILE"]: record for record in records(done, "purged")}
    assert {name: record["TOMBSYNC_BYTES"] for name, record in purged.items()} == {
        f"{STEM}.ts": "7", f"{STEM}.json": "4", f"{OTHER}.ts": "7"
    }  # fmt: skip
    assert {record["TOMBSYNC_SEGMENT"] for record in purged.values()} == {f"{HOUR}/{STEM}", f"{HOUR}/{OTHER}"}
    assert all(record["TOMBSYNC_ACTOR"] for record in purged.values())
    (excepted,) = records(done, "purge-excepted")
    assert excepted["TOMBSYNC_PEER"] == "node-1"


def test_with_the_agent_down_it_works_too(agent: AgentProcess) -> None:
    assert agent.stop() == 0
    assert "deleted 2 files" in agent.run("purge", STEM, OTHER, "--yes").stdout
    assert here(agent) == {f"{VISIBLE}.ts", f"{STEM}.tombstone", f"{OTHER}.tombstone"}


def test_a_mark_that_was_taken_back_keeps_the_data(agent: AgentProcess) -> None:
    assert agent.stop() == 0
    with database(agent.state_dir / "index.sqlite") as index:
        index.execute(
            "INSERT INTO marker (hour, stem, gen, source, hidden_at_ns) SELECT hour, stem, 1, source, hidden_at_ns"
            " FROM marker WHERE stem = ?",
            (STEM,),
        )
    assert "taken back" in agent.run("purge", STEM, "--yes", expect=1).stderr
    assert here(agent) == ALL
    wait_for(lambda: "deleted 1 files" in agent.run("purge", "--older-than", "1s", "--yes").stdout, "its second")
    assert here(agent) == ALL - {f"{OTHER}.ts"}


def test_leftovers_are_listed_and_stay(agent: AgentProcess) -> None:
    assert "no hour holds hidden data alone" in agent.run("purge", "--leftovers").stdout
    (agent.root / HOUR / f"{VISIBLE}.ts").unlink()
    agent.run("rescan", "--full")
    listed = json.loads(agent.run("purge", "--leftovers", "--json").stdout)
    assert [file["file"] for file in listed] == [f"{HOUR}/{STEM}.ts", f"{HOUR}/{OTHER}.ts"]
    assert "2 files, 14 bytes" in agent.run("purge", "--leftovers").stdout
    assert here(agent) == ALL - {f"{VISIBLE}.ts"}


def test_one_peer_that_is_down_keeps_everything(agent: AgentProcess, servers: list[Sshd]) -> None:
    servers[1].stop()
    refused = agent.run("purge", STEM, "--yes", expect=1)
    assert "node-1: cannot be reached" in refused.stderr
    assert here(agent) == ALL
    assert "deleted 1 files" in agent.run("purge", STEM, "--yes", "--except-peer", "node-1").stdout


def test_a_peer_that_lost_its_tombstone_keeps_everything(agent: AgentProcess, servers: list[Sshd]) -> None:
    (servers[0].root / HOUR / f"{STEM}.tombstone").unlink()
    refused = agent.run("purge", STEM, OTHER, "--yes", expect=1)
    assert f"node-0: {HOUR}/{STEM}: pending" in refused.stderr
    assert OTHER not in refused.stderr
    assert here(agent) == ALL


def test_a_peer_that_is_silent_keeps_everything(agent: AgentProcess, servers: list[Sshd]) -> None:
    servers[0].freeze()
    refused = agent.run("purge", STEM, "--yes", expect=1)
    assert "node-0: did not answer in time" in refused.stderr
    assert here(agent) == ALL


@pytest.mark.parametrize(
    ("gone", "empty", "reason"),
    [
        ("", False, "its segment tree is missing there"),
        ("", True, "it kept that channel and quality before"),
        ("desertbus", False, "it kept that channel and quality before"),
        ("desertbus", True, "it kept that channel and quality before"),
        (PLACE, True, "hour-gone: no tombstone of that channel and quality was seen there"),
        (HOUR, False, ""),
    ],
    ids=["root", "empty root", "channel", "empty channel", "empty quality", "hour"],
)
def test_a_peer_that_lost_more_than_a_tombstone(
    agent: AgentProcess, servers: list[Sshd], gone: str, empty: bool, reason: str
) -> None:
    """An hour goes with retention, as it should; what was kept there may only be a mount that is missing, and what is
    seen in its place the empty mount point.
    """
    make_hour(agent.root, LATER)
    touch(agent.root / LATER, VISIBLE)
    wait_for(lambda: set(agent.states(f"{LATER}/{VISIBLE}").values()) == {"confirmed"}, "the later confirmations")
    (servers[0].root / gone).rename(servers[0].directory / "lost")
    if empty:
        (servers[0].root / gone).mkdir()
    done = agent.run("purge", STEM, "--yes", expect=1 if reason else 0)
    assert reason in done.stderr
    assert here(agent) == (ALL if reason else ALL - {f"{STEM}.ts"})


def test_a_new_peer_whose_tree_is_not_mounted_keeps_everything(tmp_path: Path) -> None:
    """All that it ever showed is an empty mount point."""
    with Sshd() as server:
        agent = AgentProcess(tmp_path, peers=[peer_table("node-0", server)])
        make_hour(agent.root)
        with agent:
            touch(agent.root / HOUR, STEM)
            wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-0": "not-served"}, "the answer")
            assert "is its tree mounted?" in agent.run("purge", STEM, "--yes", expect=1).stderr
            assert (agent.root / HOUR / f"{STEM}.ts").exists()


def test_a_peer_that_never_kept_the_channel_is_in_nobodys_way(tmp_path: Path) -> None:
    with Sshd() as server:
        (server.root / OWN_DIRECTORY).mkdir()  # an agent of its own runs there, for other channels
        agent = AgentProcess(tmp_path, peers=[peer_table("node-0", server)])
        make_hour(agent.root)
        with agent:
            touch(agent.root / HOUR, STEM)
            wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-0": "not-served"}, "the answer")
            assert "deleted 1 files" in agent.run("purge", STEM, "--yes").stdout


def test_a_peer_with_another_host_key_keeps_everything(agent: AgentProcess, servers: list[Sshd]) -> None:
    known_hosts = servers[0].known_hosts_path
    known_hosts.write_text(known_hosts.read_text().replace(str(servers[0].port), str(servers[1].port)))
    text = servers[1].known_hosts_path.read_text().replace(str(servers[1].port), str(servers[0].port))
    known_hosts.write_text(text)
    assert "shows another host key" in agent.run("purge", STEM, "--yes", expect=1).stderr
    assert here(agent) == ALL


def test_a_peer_that_cannot_sync_keeps_everything(tmp_path: Path) -> None:
    with Sshd(sftp_args="-p open,close,lstat,mkdir") as server:
        make_hour(server.root)
        agent = AgentProcess(tmp_path, peers=[peer_table("node-0", server)])
        make_hour(agent.root)
        with agent:
            touch(agent.root / HOUR, STEM)
            wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-0": "not-durable"}, "it to be placed")
            assert "not-durable" in agent.run("purge", STEM, "--yes", expect=1).stderr
            assert (agent.root / HOUR / f"{STEM}.ts").exists()


def test_without_peers_it_has_to_be_said(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root)
    with agent:
        touch(agent.root / HOUR, STEM)
        wait_for(lambda: agent.hidden(f"{HOUR}/{STEM}"), "it to be hidden")
        assert "no peer is left" in agent.run("purge", STEM, "--yes", expect=1).stderr
        assert "deleted 1 files" in agent.run("purge", STEM, "--yes", "--no-peers").stdout


def test_a_tombstone_that_does_not_stand_here_protects_its_data(agent: AgentProcess) -> None:
    agent.stop()
    (agent.root / HOUR / f"{STEM}.tombstone").unlink()
    refused = agent.run("purge", STEM, "--yes", expect=1)
    assert "its tombstone does not stand in this node's tree" in refused.stderr
    assert f"{STEM}.ts" in here(agent)


def test_data_that_comes_back_is_told_at_the_next_rescan(agent: AgentProcess) -> None:
    agent.run("purge", STEM, "--yes")
    agent.run("rescan", "--full")
    assert agent.records("data-returned") == []
    (agent.root / HOUR / f"{STEM}.ts").write_bytes(b"it came back")
    agent.run("rescan", "--full")
    wait_for(lambda: agent.records("data-returned"), "it to be told")
    assert agent.metric("data_returned_total") == 1
    agent.run("rescan", "--full")
    assert len(agent.records("data-returned")) == 1

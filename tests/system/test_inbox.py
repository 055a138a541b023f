"""Delivery by inbox: real agents on both sides, a real sshd between them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, perhaps_told_before, segment_stem, touch
from tests.support.inbox import ReceivingNode, account_of
from tests.support.journal import Journal
from tests.support.programs import need
from tests.support.waiting import wait_for
from tombsync.names import Marked, Offer, offer_name, strict_path
from tombsync.peers import Connector, Target
from tombsync.push.canary import CANARY_INTERVAL_S, CANARY_LOST_AFTER_S, Canary
from tombsync.tree import Tree

HOUR = "desertbus/source/2019-11-13T02"
STEM = segment_stem(0)


@pytest.fixture
def receiver(stack: ExitStack) -> ReceivingNode:
    """A node that takes from node-a; its agent is not started."""
    node = ReceivingNode(stack, "node-b", ["node-a"])
    make_hour(node.root)
    return node


@pytest.fixture
def sender(stack: ExitStack, receiver: ReceivingNode, tmp_path: Path) -> AgentProcess:
    """A node that delivers to it; its agent is not started."""
    agent = AgentProcess(tmp_path, peers=[receiver.table_for("node-a")])
    make_hour(agent.root)
    stack.push(agent)
    return agent


def marked(stem: str = STEM, hour: str = HOUR) -> Marked:
    return strict_path(f"{hour}/{stem}")


def put(receiver: ReceivingNode, name: str, sender: str = "node-a", at: Path | None = None) -> Path:
    """A file in an inbox, or in another directory, as the sender's account makes it."""
    path = (at or receiver.inbox(sender)) / name
    if at is not None:
        at.mkdir()
        at.chmod(0o777)
    subprocess.run(
        [
            need("setpriv"),
            "--reuid",
            account_of(sender),
            "--regid",
            account_of(sender),
            "--clear-groups",
            "touch",
            path,
        ],
        check=True,
    )
    return path


def name_of(stem: str = STEM, hour: str = HOUR, origin: str = "node-a") -> str:
    return offer_name(Offer(marked(stem, hour), origin))


def stands(receiver: ReceivingNode, stem: str = STEM, hour: str = HOUR) -> bool:
    return (receiver.root / hour / f"{stem}.tombstone").is_file()


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_a_tombstone_is_hidden_there_stands_in_the_tree_and_is_confirmed(
    receiver: ReceivingNode, sender: AgentProcess
) -> None:
    before = {path: path.read_bytes() for path in (receiver.root / HOUR).glob("*.ts")}
    with receiver.agent, sender:
        touch(sender.root / HOUR, STEM)
        wait_for(lambda: sender.states(f"{HOUR}/{STEM}") == {"node-b": "confirmed"}, "the confirmation")
        assert receiver.agent.hidden(f"{HOUR}/{STEM}")
        assert stands(receiver)
        assert (receiver.root / HOUR / f"{STEM}.tombstone").stat().st_size == 0
        assert list(receiver.inbox("node-a").iterdir()) == []
        wait_for(lambda: receiver.agent.records("hidden"), "it to be told")
        (record,) = receiver.agent.records("hidden")
        assert record["TOMBSYNC_SOURCE"] == "inbox"
        assert record["TOMBSYNC_ACTOR"] == record["TOMBSYNC_PEER"] == "node-a"
        assert record["TOMBSYNC_ORIGIN"] == "node-a"
    assert {path: path.read_bytes() for path in (receiver.root / HOUR).glob("*.ts")} == before


def test_a_missing_hour_is_made(receiver: ReceivingNode, sender: AgentProcess) -> None:
    hour = "desertbus/source/2019-11-13T03"
    make_hour(sender.root, hour)
    with receiver.agent, sender:
        touch(sender.root / hour, STEM)
        wait_for(lambda: sender.states(f"{hour}/{STEM}") == {"node-b": "confirmed"}, "the confirmation")
        assert stands(receiver, hour=hour)


def test_a_backlog_arrives_and_nothing_is_left_in_the_inbox(receiver: ReceivingNode, sender: AgentProcess) -> None:
    stems = [segment_stem(number) for number in range(500)]
    for stem in stems:
        touch(sender.root / HOUR, stem)
    with receiver.agent, sender:
        wait_for(
            lambda: sender.metric("deliveries", peer="node-b", state="confirmed") == len(stems), "all confirmations"
        )
        assert all(stands(receiver, stem) for stem in stems)
        assert list(receiver.inbox("node-a").iterdir()) == []


def test_a_channel_that_is_not_kept_there_is_not_served(receiver: ReceivingNode, sender: AgentProcess) -> None:
    hour = "other/source/2019-11-13T02"
    make_hour(sender.root, hour)
    with receiver.agent, sender:
        touch(sender.root / hour, STEM)
        wait_for(lambda: sender.states(f"{hour}/{STEM}") == {"node-b": "not-served"}, "the answer")
        assert not receiver.agent.hidden(f"{hour}/{STEM}")


def test_an_agent_that_is_down_shows_as_received_and_takes_it_at_its_start(
    receiver: ReceivingNode, sender: AgentProcess
) -> None:
    with sender:
        touch(sender.root / HOUR, STEM)
        wait_for(lambda: sender.states(f"{HOUR}/{STEM}") == {"node-b": "received"}, "it to be received", 30)
        assert sender.metric("peer_up", peer="node-b") == 1
        assert not stands(receiver)
        with receiver.agent:
            wait_for(lambda: sender.states(f"{HOUR}/{STEM}") == {"node-b": "confirmed"}, "the confirmation", 60)
            assert stands(receiver)


def test_a_verify_restores_what_the_peer_lost_and_learns_of_its_data(
    receiver: ReceivingNode, sender: AgentProcess
) -> None:
    sender.write_settings([receiver.table_for("node-a", verify_interval_s=2)])
    with receiver.agent, sender:
        touch(sender.root / HOUR, STEM)
        wait_for(lambda: sender.states(f"{HOUR}/{STEM}") == {"node-b": "confirmed"}, "the confirmation")
        assert receiver.agent.stop() == 0
        (receiver.root / HOUR / f"{STEM}.tombstone").unlink()
        receiver.agent.start()
        wait_for(lambda: stands(receiver), "it to be there again", 90)

        def data() -> list[bool | None]:
            reader = sender.reader()
            try:
                row = reader.marker(marked())
                assert row is not None
                return [delivery.data for delivery in reader.deliveries(row.marker)]
            finally:
                reader.close()

        wait_for(lambda: data() == [True], "the answer about its data")


def test_the_canary_comes_back_from_a_receiver_that_takes(receiver: ReceivingNode, sender: AgentProcess) -> None:
    with receiver.agent, sender:
        wait_for(lambda: sender.metric("peer_up", peer="node-b") == 1, "the session")
        wait_for(lambda: 0 < sender.metric("canary_age_seconds", peer="node-b") < 20, "the canary to come back")
        assert receiver.agent.records("rejected") == []
        assert list(receiver.inbox("node-a").iterdir()) == []


def test_the_canary_shows_a_receiver_that_takes_nothing(
    receiver: ReceivingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sshd, its inbox and its view are there all the time."""
    monkeypatch.setattr("tombsync.peers.inbox._CANARY_PATIENCE_S", 0.2)
    server = receiver.server
    ours = (account_of("node-a"), str(server.key_path), str(server.known_hosts_path))
    target = Target("node-b", server.host, server.port, *ours, str(receiver.view), "inbox", "node-a")
    Tree(str(receiver.root)).adopt()
    now = time.monotonic()
    with Journal() as journal, contextlib.closing(Connector(target).connect()) as session:
        canary = Canary("node-b", journal.audit)

        def told(later_s: float) -> list[str]:
            """What is in the journal, so much later."""
            session.collect(time.monotonic())
            canary.look_after(session, now + later_s)
            return [record["TOMBSYNC_EVENT"] for record in journal.records()]

        assert told(0.0) == []
        wait_for(lambda: told(1.0) or session.canary_problem, "the first canary to be given up")
        assert told(CANARY_LOST_AFTER_S - 1.0) == []
        wait_for(lambda: told(CANARY_LOST_AFTER_S + 1.0) == ["canary-lost"], "it to be told")
        with receiver.agent:
            later_s = itertools.count(2 * CANARY_LOST_AFTER_S, CANARY_INTERVAL_S)
            wait_for(lambda: told(next(later_s)) == ["canary-lost", "canary-returned"], "it to be whole again")
            wait_for(lambda: list(receiver.inbox("node-a").iterdir()) == [], "the last one to be taken")
            assert receiver.agent.records("rejected") == []


def test_peer_test_says_at_which_step_it_fails(receiver: ReceivingNode, sender: AgentProcess) -> None:
    with receiver.agent:
        told = sender.run("peer", "test", "node-b").stdout
        assert "a canary went the whole way and came back" in told
        assert list(receiver.inbox("node-a").iterdir()) == []
        assert receiver.agent.stop() == 0
        failed = sender.run("peer", "test", "node-b", expect=1)
        assert "its segment tree is there" in failed.stdout
        assert "its agent takes nothing from the inbox" in failed.stderr
        assert "is its agent running" in failed.stderr


# -- what does not belong into an inbox --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symlink", "not-regular"),
        ("fifo", "not-regular"),
        ("socket", "not-regular"),
        ("content", "not-empty"),
        ("hard link", "linked"),
        ("owner", "owner"),
        ("newline", "name"),
        ("long", "name"),
        ("generation", "generation"),
        ("channel", "not-served"),
        ("dots", "name"),
    ],
)
def test_what_is_refused_is_taken_away_counted_told_and_changes_nothing(
    receiver: ReceivingNode, kind: str, reason: str
) -> None:
    box, name = receiver.inbox("node-a"), name_of()
    before = sorted(str(path) for path in receiver.root.rglob("*"))
    with receiver.agent as agent:
        if kind == "symlink":
            (box / name).symlink_to(receiver.root / HOUR / f"{STEM}.ts")
        elif kind == "fifo":
            os.mkfifo(box / name)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                os.symlink(box, receiver.base / "s")  # a socket's path is short
                listener.bind(f"{receiver.base}/s/{name[:60]}")
        elif kind == "content":
            whole = put(receiver, name, at=receiver.base / "outside")
            whole.write_bytes(b"x")
            whole.rename(box / name)
        elif kind == "hard link":
            outside = put(receiver, name, at=receiver.base / "outside")
            (box / name).hardlink_to(outside)
        elif kind == "owner":
            (box / name).touch()
        else:
            names = {
                "newline": f"{name}\nMESSAGE=forged",
                "long": "x" * 255,
                "generation": name.replace("1,0,", "1,2,", 1),
                "channel": name_of(hour="other/source/2019-11-13T02"),
                "dots": name.replace("desertbus", ".."),
            }
            put(receiver, names[kind])
        wait_for(lambda: agent.metric("rejected_total", source="inbox", reason=reason) > 0, "it to be counted")
        wait_for(lambda: not list(box.iterdir()), "it to be taken away")
        wait_for(lambda: agent.records("rejected"), "it to be told")
        record = agent.records("rejected")[0]
        assert record["TOMBSYNC_REASON"] == reason
        assert record["TOMBSYNC_PEER"] == "node-a"
        assert "\n" not in record["MESSAGE"]
        assert agent.metric("tombstones") == 0
    after = sorted(str(path) for path in receiver.root.rglob("*") if ".tombsync" not in path.parts)
    assert after == before


def test_a_refusal_is_told_once_a_minute_and_counted_each_time(receiver: ReceivingNode) -> None:
    with receiver.agent as agent:
        for number in range(20):
            put(receiver, f"nonsense-{number}")
        wait_for(lambda: agent.metric("rejected_total", source="inbox", reason="name") == 20, "all to be counted")
        wait_for(lambda: agent.records("rejected"), "it to be told")
        assert len(agent.records("rejected")) == 1


def test_over_its_quota_a_sender_waits_and_another_does_not(stack: ExitStack) -> None:
    node = ReceivingNode(stack, "node-b", ["node-a", "node-c"], settings="quota_per_hour = 5")
    make_hour(node.root)
    for number in range(50):
        put(node, name_of(segment_stem(number)))
    with node.agent as agent:
        wait_for(lambda: agent.metric("tombstones") == 5, "what the quota allows")
        put(node, name_of(segment_stem(100)), "node-c")
        wait_for(lambda: agent.hidden(f"{HOUR}/{segment_stem(100)}"), "the other sender's")
        assert agent.metric("inbox_waiting", peer="node-a") >= 40
        wait_for(lambda: agent.records("inbox-held"), "it to be told")
        (record,) = agent.records("inbox-held")
        assert record["TOMBSYNC_PEER"] == "node-a"


# -- trees that cannot be written, views that are stale, kills ---------------------------------------------------------


def test_a_tree_that_cannot_be_written_keeps_it_hidden_and_in_the_inbox(receiver: ReceivingNode) -> None:
    hour = receiver.root / HOUR
    need("chattr")
    with receiver.agent as agent:
        subprocess.run(["chattr", "+i", hour], check=True)
        try:
            path = put(receiver, name_of())
            wait_for(lambda: agent.hidden(f"{HOUR}/{STEM}"), "it to be hidden all the same")
            wait_for(lambda: agent.records("tree-refused"), "the refusal to be told")
            assert "received from node-a, cannot write" in agent.records("tree-refused")[0]["MESSAGE"]
            assert path.exists()
            wait_for(lambda: "received, cannot write" in agent.run("status").stdout, "status to say so")
            assert "its tombstone is not yet written here" in agent.run("status", STEM).stdout
            (segment,) = json.loads(agent.run("status", STEM, "--json").stdout)
            assert segment["tombstone_here"] is False
        finally:
            subprocess.run(["chattr", "-i", hour], check=True)
        wait_for(lambda: stands(receiver) and not path.exists(), "it to be written")
        assert "its tombstone stands here" in agent.run("status", STEM).stdout


def test_an_hour_that_the_archive_could_not_write_into_is_not_made(receiver: ReceivingNode) -> None:
    os.chown(receiver.root / "desertbus/source", 12345, 12345)
    hour = "desertbus/source/2019-11-13T09"
    with receiver.agent as agent:
        path = put(receiver, name_of(hour=hour))
        wait_for(lambda: agent.hidden(f"{hour}/{STEM}"), "it to be hidden")
        wait_for(lambda: agent.records("tree-refused"), "the reason to be told")
        assert path.exists()
        (receiver.root / hour).mkdir()  # as the archive does, some time
        wait_for(lambda: stands(receiver, hour=hour), "it to be made", 60)


def test_a_stale_view_leaves_the_inbox_alone(receiver: ReceivingNode) -> None:
    receiver.unmount()
    path = put(receiver, name_of())
    with receiver.agent as agent:
        wait_for(lambda: agent.records("view-stale"), "it to be told")
        assert path.exists()
        assert not agent.hidden(f"{HOUR}/{STEM}")
        receiver.mount()
        wait_for(lambda: stands(receiver), "it to be taken")
        wait_for(lambda: agent.records("view-returned"), "it to be told")


def test_a_receiver_killed_between_hiding_and_placing_goes_on_at_its_start(receiver: ReceivingNode) -> None:
    """Also where the inbox, a tmpfs, is empty after a power cut."""
    hour = receiver.root / HOUR
    with receiver.agent as agent:
        subprocess.run([need("chattr"), "+i", hour], check=True)
        try:
            path = put(receiver, name_of())
            wait_for(lambda: agent.records("hidden"), "it to be hidden and told")
            agent.signal(signal.SIGKILL)
            agent.wait()
        finally:
            subprocess.run(["chattr", "-i", hour], check=True)
        path.unlink()
        agent.start()
        wait_for(lambda: stands(receiver), "it to be placed")
        told = [perhaps_told_before(record) for record in agent.records("hidden")]
        assert told in ([False], [False, True])

"""`status --live`, `report`, `purge` and `unmark` where the peer takes from an inbox: it is asked through its view."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.waiting import wait_for
from tombsync.names import Offer, offer_name, strict_path

HOUR = "desertbus/source/2019-11-13T02"
NOT_KEPT = "elsewhere/source/2019-11-13T02"
STEM, OTHER = segment_stem(0), segment_stem(2)
MOST, MASS = 2, 8


@pytest.fixture
def receiver(stack: ExitStack) -> ReceivingNode:
    """A node that takes from node-a, and runs."""
    node = ReceivingNode(stack, "node-b", ["node-a"])
    make_hour(node.root)
    node.agent.start()
    return node


@pytest.fixture
def sender(stack: ExitStack, receiver: ReceivingNode, tmp_path: Path) -> AgentProcess:
    """A node that delivers to it, and runs."""
    agent = AgentProcess(tmp_path, peers=[receiver.table_for("node-a")])
    make_hour(agent.root)
    return stack.enter_context(agent)


def mark(sender: AgentProcess, stem: str = STEM, hour: str = HOUR, *, state: str = "confirmed") -> None:
    touch(sender.root / hour, stem)
    wait_for(lambda: sender.states(f"{hour}/{stem}") == {"node-b": state}, f"it to be {state}", 40)


def data(sender: AgentProcess, stem: str = STEM, hour: str = HOUR) -> bool:
    return (sender.root / hour / f"{stem}.ts").exists()


def peer_of(document: dict[str, Any]) -> tuple[str, bool, bool]:
    """What a status or a report says of the one peer: state, whether it was asked now, whether it has data."""
    (peer,) = document["peers"]
    assert peer["peer"] == "node-b"
    return peer["state"], peer["asked_now"], peer["data_there"]


def live(sender: AgentProcess, stem: str) -> list[tuple[str, bool, bool]]:
    """What a status says, and what a report does."""
    (status,) = json.loads(sender.run("status", stem, "--live", "--json").stdout)
    (report,) = json.loads(sender.run("report", stem, "--live", "--json").stdout)["segments"]
    return [peer_of(status), peer_of(report)]


def test_status_and_report_say_what_its_view_shows(receiver: ReceivingNode, sender: AgentProcess) -> None:
    mark(sender)
    assert live(sender, STEM) == [("confirmed", True, True)] * 2
    (receiver.root / HOUR / f"{STEM}.ts").unlink()
    assert live(sender, STEM) == [("confirmed", True, False)] * 2
    receiver.agent.stop()
    mark(sender, OTHER, state="received")
    assert live(sender, OTHER) == [("received", True, True)] * 2
    (pending,) = json.loads(sender.run("status", "--pending", "--json").stdout)
    assert (pending["segment"], pending["state"]) == (f"{HOUR}/{OTHER}", "received")


def test_purge_needs_what_stands_in_its_view(receiver: ReceivingNode, sender: AgentProcess) -> None:
    mark(sender)
    receiver.agent.stop()
    mark(sender, OTHER, state="received")
    assert "received" in sender.run("purge", OTHER, "--yes", expect=1).stderr
    receiver.unmount()
    assert "it kept that channel and quality before" in sender.run("purge", STEM, "--yes", expect=1).stderr
    receiver.mount()
    tombstone = receiver.root / HOUR / f"{STEM}.tombstone"
    tombstone.rename(receiver.base / "lost")
    assert f"node-b: {HOUR}/{STEM}: pending" in sender.run("purge", STEM, "--yes", expect=1).stderr
    assert data(sender) and data(sender, OTHER)
    (receiver.base / "lost").rename(tombstone)
    assert "deleted 1 files" in sender.run("purge", STEM, "--yes").stdout
    assert not data(sender) and data(sender, OTHER)
    assert (receiver.root / HOUR / f"{STEM}.ts").exists()


def test_purge_believes_that_a_channel_is_not_kept_only_where_the_tree_is_shown(
    receiver: ReceivingNode, sender: AgentProcess
) -> None:
    make_hour(sender.root, NOT_KEPT)
    mark(sender, hour=NOT_KEPT, state="not-served")
    receiver.unmount()
    assert "is its tree mounted?" in sender.run("purge", STEM, "--yes", expect=1).stderr
    assert data(sender, hour=NOT_KEPT)
    receiver.mount()
    assert "deleted 1 files" in sender.run("purge", STEM, "--yes").stdout
    assert not data(sender, hour=NOT_KEPT)


def test_unmark_refuses_what_is_there_or_on_its_way_there(
    stack: ExitStack, receiver: ReceivingNode, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path, peers=[receiver.table_for("node-a")], most_per_minute=MOST)
    make_hour(agent.root, segments=MASS)
    stack.enter_context(agent)
    stems = [segment_stem(2 * number) for number in range(MASS)]
    for stem in stems:
        touch(agent.root / HOUR, stem)

    def held() -> list[str]:
        return [stem for stem in stems if agent.states(f"{HOUR}/{stem}") == {"node-b": "held"}]

    def there(stem: str) -> bool:
        return (receiver.root / HOUR / f"{stem}.tombstone").exists()

    def settled() -> bool:
        """Nothing is on its way, and what stands there is known to do so."""
        states = {stem: agent.states(f"{HOUR}/{stem}").get("node-b") for stem in stems}
        return all(state == ("confirmed" if there(stem) else "held") for stem, state in states.items())

    wait_for(settled, "the mass to be held", 40)
    mine, waits, stands, *_ = held()
    agent.run("unmark", mine, "--yes", "--no-wait")
    assert not agent.hidden(f"{HOUR}/{mine}") and not there(mine)
    assert list(receiver.inbox("node-a").iterdir()) == []

    receiver.agent.stop()
    touch(receiver.root / HOUR, stands)
    (receiver.inbox("node-a") / offer_name(Offer(strict_path(f"{HOUR}/{waits}"), "node-a"))).touch()
    for stem in (stands, waits):
        refused = agent.run("unmark", stem, "--yes", "--no-wait", expect=1)
        assert "no mark was taken back" in refused.stderr
        assert "node-b: " in refused.stderr
        assert agent.hidden(f"{HOUR}/{stem}")

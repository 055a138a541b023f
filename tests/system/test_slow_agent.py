"""Commands beside an agent that holds its lock and does nothing for now."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.journal import Journal
from tests.support.waiting import wait_for
from tombsync.daemon.pushers import Pushers
from tombsync.daemon.requests import Requests
from tombsync.index import AgentLock, DeliveryOutcomes, Outcome, Writer, index_path
from tombsync.names import strict_path
from tombsync.plan import Breaker, State
from tombsync.tree import Tree
from tombsync.work import Batch, Mailbox, Sight, Sighting, Source

HOUR = "desertbus/source/2019-11-13T02"
STEMS = [segment_stem(2 * number) for number in range(3)]
PEER = '[[peer]]\nname = "node-b"\nhost = "peer.invalid"\nkey = "/nonexistent"\nknown_hosts = "/nonexistent"\n'


@pytest.fixture
def node(tmp_path: Path) -> AgentProcess:
    """Its settings and its tree; no agent of it is started."""
    node = AgentProcess(tmp_path, peers=[PEER])
    make_hour(node.root)
    return node


@pytest.fixture
def writer(node: AgentProcess) -> Iterator[Writer]:
    """The index of that agent, whose lock is held."""
    lock = AgentLock(str(node.state_dir))
    writer = Writer(index_path(str(node.state_dir)))
    writer.set_fact("root", Tree(str(node.root)).adopt())
    writer.sync_peers({"node-b": "x"})
    yield writer
    writer.close()
    lock.release()


def hold(writer: Writer, stem: str) -> int:
    """As when the agent saw the tombstone before the note in it."""
    sighting = Sighting(strict_path(f"{HOUR}/{stem}"), Source.WATCH, 0)
    (hidden,) = writer.hide([(sighting, Sight(regular=True, owner_uid=0, ctime_ns=1))], 0, Breaker(0))
    return hidden.marker


def test_what_mark_made_is_let_go_although_the_agent_was_slow_with_some(node: AgentProcess, writer: Writer) -> None:
    marker = hold(writer, STEMS[1])
    done = node.run("mark", *(f"{HOUR}/{stem}" for stem in STEMS))
    assert done.stderr.count("has not hidden it in time") == 1  # one wait is enough
    (request,) = (node.state_dir / "requests").iterdir()
    assert json.loads(request.read_text()) == {"kind": "resume", "markers": [marker]}


def test_a_dry_run_of_mark_asks_nothing_of_the_agent(node: AgentProcess, writer: Writer) -> None:
    hold(writer, STEMS[1])
    node.run("mark", "--dry-run", *(f"{HOUR}/{stem}" for stem in STEMS))
    assert not (node.state_dir / "requests").exists()


@pytest.mark.parametrize("state", [State.CONFIRMED, State.NOT_DURABLE])
def test_what_a_peer_had_once_is_not_taken_back(state: State, node: AgentProcess, writer: Writer) -> None:
    """It may have passed it on before it lost it."""
    marker = hold(writer, STEMS[0])
    for answer in (state, State.PENDING):
        writer.apply([DeliveryOutcomes(1, [Outcome(marker, answer, 1)], lambda _: None)])
    refused = node.run("unmark", STEMS[0], "--dry-run", expect=1)
    assert "node-b had it once" in refused.stderr


def test_what_a_sender_brought_too_is_not_taken_back(node: AgentProcess, writer: Writer) -> None:
    hold(writer, STEMS[0])
    sighting = Sighting(strict_path(f"{HOUR}/{STEMS[0]}"), Source.INBOX, 0, sender="node-c", origin="node-d")
    writer.hide([(sighting, Sight(regular=True, owner_uid=0, ctime_ns=1))], 0, Breaker(0))
    refused = node.run("unmark", STEMS[0], "--dry-run", expect=1)
    assert "node-c brought it too" in refused.stderr


def test_what_the_agent_cannot_forget_any_more_is_recorded_and_not_done_later(
    node: AgentProcess, tmp_path: Path
) -> None:
    """The agent dies when the tombstone is removed already, and before it was asked to forget it."""
    node.write_settings([])
    directory = make_hour(node.root)
    lock = AgentLock(str(node.state_dir))
    writer = Writer(index_path(str(node.state_dir)))
    writer.set_fact("root", Tree(str(node.root)).adopt())
    touch(directory, STEMS[0])
    hold(writer, STEMS[0])
    mailbox = Mailbox()
    with Journal() as journal:
        none = cast("Pushers", SimpleNamespace(all=(), look_again=lambda: None))
        requests = Requests(str(node.state_dir), mailbox, journal.audit, none, lambda _: True)
        command = [*node.program, "unmark", STEMS[0], "--no-peers", "--yes", "--no-wait", "--config", str(node.config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            left = node.state_dir / "requests"
            wait_for(lambda: list(left.glob("hold-*.json")), "it to ask for a hold")
            requests.take()
            writer.apply(cast("list[Batch]", mailbox.take(0.0)))
            wait_for(lambda: list(left.glob("take-back-*.json")), "it to ask for more")
            lock.release()
            _, err = process.communicate(timeout=40)
        assert process.returncode == 1
        assert "no agent runs" in err
        (record,) = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        assert record["TOMBSYNC_EVENT"] == "unmark-failed"
        assert record["TOMBSYNC_SEGMENT"] == f"{HOUR}/{STEMS[0]}"
        assert list(left.iterdir()) == []
        requests.take()
        assert mailbox.take(0.0) == []
        assert journal.records() == []
    writer.close()
    assert node.hidden(f"{HOUR}/{STEMS[0]}")

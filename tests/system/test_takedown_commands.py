"""`tombsync takedown` and what `unmark` makes of takedowns, with a real agent and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, segment_stem
from tests.support.waiting import wait_for
from tests.system.test_late import HOUR, PROBE, TAKEDOWN, TWIN, arrive, fill, is_followed, take_down

SPAN = "desertbus from 2019-11-13T02:00:02.608000Z to 2019-11-13T02:00:04.608000Z"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentProcess]:
    """A node whose agent does not run."""
    node = AgentProcess(tmp_path)
    fill(node)
    with node.ending():
        yield node


def test_they_are_listed_and_ended_with_the_agent_down(node: AgentProcess) -> None:
    assert node.run("takedown", "list").stdout == "no takedown runs here\n"
    take_down(node)
    take_down(node, replace(TAKEDOWN, id="other", sticky=False, qualities=("480p",), chat=True, reason="x" * 100))
    shown = node.run("takedown", "list").stdout
    assert [row.split()[0] for row in shown.splitlines()] == ["k7mq3", "other"]
    assert "480p,chat" in shown
    assert "x" * 41 not in shown

    assert node.run("takedown", "end", "k7mq3", "--dry-run").stdout == (
        f"would end k7mq3 ({SPAN}); its tombstones stay\n"
    )
    assert json.loads(node.run("takedown", "list", "--json").stdout)[0]["ended_at"] is None
    done = node.run("takedown", "end", "k7mq3")
    assert done.stdout == f"ended k7mq3 ({SPAN}); its tombstones stay\n"
    (record,) = (json.loads(line) for line in done.stderr.splitlines() if line.startswith("{"))
    assert record["TOMBSYNC_EVENT"] == "takedown-ended"
    assert record["TOMBSYNC_TAKEDOWN"] == "k7mq3"
    assert record["TOMBSYNC_CHANNEL"] == "desertbus"
    again = node.run("takedown", "end", "k7mq3")
    assert "already" in again.stdout
    assert "takedown-ended" not in again.stderr
    assert [entry["id"] for entry in json.loads(node.run("takedown", "list", "--json").stdout)] == ["other"]
    every = json.loads(node.run("takedown", "list", "--all", "--json").stdout)
    assert {entry["id"]: entry["ended_at"] is None for entry in every} == {"k7mq3": False, "other": True}
    assert "runs" in node.run("takedown", "list", "--all").stdout


def test_what_cannot_be_ended(node: AgentProcess) -> None:
    refused = node.run("takedown", "end", "zzzzz", expect=1)
    assert "no takedown of this name" in refused.stderr
    assert "takedown list" in refused.stderr
    take_down(node)
    in_part = node.run("takedown", "end", "../../x", "k7mq3", "--json", expect=3)
    assert [entry["outcome"] for entry in json.loads(in_part.stdout)] == ["failed", "ended"]
    assert "Traceback" not in in_part.stderr
    node.run("takedown", "end", expect=2)
    (node.root / ".tombsync/takedowns/bad22.json").write_text("{")
    listed = node.run("takedown", "list", "--all", expect=3)
    assert "bad22.json" in listed.stderr
    assert "k7mq3" in listed.stdout
    assert "bad22.json" in node.run("takedown", "end", "bad22", expect=1).stderr


def test_on_another_tree_than_the_known_one_nothing_is_done(node: AgentProcess) -> None:
    take_down(node)
    node.start()
    assert node.stop() == 0
    marker = next((node.root / ".tombsync").glob("root-*"))
    marker.rename(marker.with_name("root-0b5c0c5e-3b0e-4a31-9f57-6c1c2a1c7d9e"))
    assert "adopt-root" in node.run("takedown", "end", "k7mq3", expect=1).stderr
    marker.with_name("root-0b5c0c5e-3b0e-4a31-9f57-6c1c2a1c7d9e").rename(marker)
    assert json.loads(node.run("takedown", "list", "--json").stdout)[0]["id"] == "k7mq3"


def test_a_running_agent_ends_it(node: AgentProcess) -> None:
    take_down(node, replace(TAKEDOWN, sticky=False))
    node.start()
    is_followed(node)
    node.run("takedown", "end", "k7mq3")
    told = node.state_dir / "late-told"
    wait_for(lambda: told.read_bytes() == b"", "the agent to know")
    twin = arrive(node, TWIN)
    wait_for(lambda: node.metric("segments", state="visible") == 4, "it to be known")
    assert twin not in [record["TOMBSYNC_SEGMENT"] for record in node.records("twin-of-hidden")]


def test_unmark_refuses_what_a_sticky_takedown_would_mark_again(node: AgentProcess) -> None:
    take_down(node)
    node.start()
    path = f"{HOUR}/{segment_stem(2)}"
    wait_for(lambda: node.hidden(f"{HOUR}/{PROBE}"), "the takedown to be followed")
    for more in (["--dry-run"], ["--yes"]):
        refused = node.run("unmark", path, "--no-peers", "--no-wait", *more, expect=1)
        assert "the sticky takedown k7mq3 would mark it again" in refused.stderr
        assert "tombsync takedown end k7mq3" in refused.stderr
    assert node.hidden(path)
    assert (node.root / f"{path}.tombstone").exists()
    node.run("takedown", "end", "k7mq3")
    assert "1 marks are taken back" in node.run("unmark", path, "--no-peers", "--no-wait", "--yes").stdout
    assert not node.hidden(path)


def test_unmark_says_that_a_takedown_goes_on_telling(node: AgentProcess) -> None:
    take_down(node, replace(TAKEDOWN, sticky=False))
    node.start()
    path = f"{HOUR}/{segment_stem(2)}"
    done = node.run("unmark", path, "--no-peers", "--no-wait", "--yes")
    assert "the takedown k7mq3 still runs" in done.stderr
    assert not node.hidden(path)

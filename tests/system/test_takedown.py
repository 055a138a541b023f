"""Takedown of a span of time as an operator makes it, on real trees, with the agent down; and bad versions."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import inotify_simple
import pytest

from tests.support.agent import AgentProcess
from tests.support.journald import Journald
from tests.support.moments import CHANNEL, put, put_minute, tombstones
from tests.support.programs import need
from tests.support.waiting import wait_for
from tombsync.names import hour_number, hour_text
from tombsync.timeline import parse_time
from tombsync.tree import Tree, read_takedowns

MINUTE = "2019-11-13T02:45"
SPAN = ("--from", f"{MINUTE}:10", "--to", f"{MINUTE}:14")


class Node:
    """A tree of two qualities, and commands on it. Its agent does not run."""

    def __init__(self, base: Path) -> None:
        self.agent = AgentProcess(base)
        self.root = self.agent.root
        self.source = put_minute(self.root, MINUTE)
        self.small = put_minute(self.root, MINUTE, quality="160p")

    def mark(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """`tombsync mark --channel desertbus …`; no traceback, whatever it is."""
        done = self.agent.run("mark", "--channel", CHANNEL, *arguments, expect=expect)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, expect: int = 0) -> Any:
        """The same as JSON."""
        return json.loads(self.mark("--json", *arguments, expect=expect).stdout)

    def takedowns(self) -> list[Any]:
        """The records in the tree."""
        with Tree(str(self.root)).open_root() as root_fd:
            return list(read_takedowns(root_fd))

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """All of the tree, with modes, mtimes and content."""
        found = {}
        for path in [self.root, *self.root.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What it says is wrong, without warnings and hints."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("tombsync: ")]
    return [line for line in lines if not line.startswith("tombsync: warning: ")]


# -- what is marked ----------------------------------------------------------------------------------------------------


def test_every_file_that_carries_a_part_is_marked_and_the_neighbours_are_not(node: Node) -> None:
    suspect = put(node.root, f"{MINUTE}:12", kind="suspect")
    partial = put(node.root, f"{MINUTE}:10", kind="partial", duration_s=1.0)
    twin = put(node.root, "2019-11-13T03:10:00", quality="160p", content=f"source {MINUTE}:12 full 2.0")
    near = put(node.root, f"{MINUTE}:14.0", kind="partial", duration_s=0.5)
    temp = put(node.root, f"{MINUTE}:12", kind="temp")
    (node.root / CHANNEL / "source" / "2019-11-13T02" / "intro.ts").touch()
    done = node.mark(*SPAN, "--reason", "shows a phone number")
    wanted = {*node.source[5:7], *node.small[5:7], suspect, partial, twin}
    assert tombstones(node.root) == wanted
    assert near not in wanted and temp not in wanted
    assert "still being written" in done.stderr and "1 file in these hours" in done.stderr
    for path in wanted:
        note = tomllib.loads((node.root / f"{path}.tombstone").read_text())
        assert note["reason"] == "shows a phone number" and note["actor"]
    lines = done.stdout.splitlines()
    assert {line.split("\t")[0] for line in lines if "\t" in line} == {f"{path}.ts" for path in {*wanted, temp}}
    assert f"marked {len(wanted)}, 0 already marked" in lines[-1]


def test_it_says_what_it_costs_and_what_would_be_served_instead(node: Node) -> None:
    suspect = put(node.root, f"{MINUTE}:12", kind="suspect")
    told = node.json("--from", f"{MINUTE}:11.5", "--to", f"{MINUTE}:12.25", "--dry-run")
    assert told["cost"]["source"] == {
        "lost_within_s": 0.75, "lost_before_s": 1.5, "lost_after_s": 1.75, "left_within_s": 0.0,
    }  # fmt: skip
    found = {row["path"]: row for row in told["found"]}
    assert found[f"{node.source[6]}.ts"]["served"] is True
    assert found[f"{node.source[6]}.ts"]["instead"] == [f"{suspect}.ts"]
    assert found[f"{suspect}.ts"]["served"] is False
    assert found[f"{node.source[5]}.ts"]["instead"] == []
    text = node.mark("--from", f"{MINUTE}:11.5", "--to", f"{MINUTE}:12.25", "--dry-run").stdout
    assert "source: 0.75 s of the range go, and beyond it 1.5 s before and 1.75 s after" in text


def test_a_dry_run_lists_exactly_what_the_real_run_marks_and_changes_nothing(node: Node) -> None:
    (node.root / f"{node.source[5]}.tombstone").touch()
    put(node.root, f"{MINUTE}:12", kind="suspect")
    put(node.root, f"{MINUTE}:00", kind="chat", quality="chat")
    before = node.snapshot()
    dry_text = node.mark(*SPAN, "--dry-run").stdout
    dry = node.json(*SPAN, "--dry-run")
    assert node.snapshot() == before
    real = node.json(*SPAN)
    made = tombstones(node.root) - {node.source[5]}
    assert json.dumps(dry["marks"]) == json.dumps(real["marks"])
    assert sorted(dry["marks"]) == sorted(made)
    assert dry["found"] == real["found"] and dry["cost"] == real["cost"]
    for path in made:
        (node.root / f"{path}.tombstone").unlink()
    real_text = node.mark(*SPAN).stdout
    assert dry_text.rpartition("\nwould")[0] == real_text.rpartition("\ntakedown")[0]
    assert dry_text.endswith("would mark 4, 1 already marked\n")


def test_a_second_run_shows_what_is_hidden_and_marks_nothing(node: Node) -> None:
    node.mark(*SPAN)
    before = tombstones(node.root)
    again = node.json(*SPAN)
    assert {row["state"] for row in again["found"]} == {"already-marked"}
    assert again["marks"] == [] and again["cost"] == {}
    assert tombstones(node.root) == before


def test_qualities_and_twins_can_be_left_out(node: Node) -> None:
    copy = put(node.root, f"{MINUTE}:30", quality="480p", content=f"source {MINUTE}:12 full 2.0")
    near = put(node.root, f"{MINUTE}:09.996", duration_s=0.004)
    told = node.json(*SPAN, "--quality", "source", "--exclude-twins", "--dry-run")
    assert told["marks"] == node.source[5:7]
    told = node.json(*SPAN, "--quality", "source", "--dry-run")
    assert sorted(told["marks"]) == sorted([*node.source[5:7], copy, near])
    told = node.json(*SPAN, "--quality", "160p", "--quality", "160p", "--exclude-twins", "--dry-run")
    assert told["marks"] == node.small[5:7]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2019-11-12T23:59:59.5", "2019-11-13T00:00:00.5"),
        ("2019-11-13T00:59:59.5+01:00", "2019-11-13T01:00:00.500+01:00"),
        ("2019-11-12T18:59:59.5-05:00", "2019-11-13T00:00:00.5Z"),
    ],
)
def test_across_midnight_with_whatever_offset(tmp_path: Path, start: str, end: str) -> None:
    node = Node(tmp_path)
    across = [put(node.root, "2019-11-12T23:59:59", quality=quality) for quality in ("source", "160p")]
    after = put(node.root, "2019-11-13T00:00:01")
    before = put(node.root, "2019-11-12T23:59:57")
    node.mark("--from", start, "--to", end)
    assert tombstones(node.root) == set(across) and {before, after}.isdisjoint(across)
    (kept,) = node.takedowns()
    assert kept.start_us == parse_time("2019-11-12T23:59:59.5") and kept.end_us == kept.start_us + 1_000_000


def test_an_hour_of_the_span_that_is_not_there_is_told(node: Node) -> None:
    last = put(node.root, "2019-11-13T02:59:59")
    done = node.mark("--from", "2019-11-13T02:59:59.5", "--to", "2019-11-13T03:00:01")
    assert f"{CHANNEL}/2019-11-13T03 is not here" in done.stderr
    assert tombstones(node.root) == {last}


def test_what_plays_into_an_hour_that_is_not_there_is_found(node: Node) -> None:
    last = put(node.root, "2019-11-13T02:59:59")
    node.mark("--from", "2019-11-13T03:00:00", "--to", "2019-11-13T03:00:01")
    assert tombstones(node.root) == {last}


def test_chat_is_shown_and_marked_only_when_that_is_meant(node: Node) -> None:
    chat = put(node.root, f"{MINUTE}:00", kind="chat", quality="chat")
    done = node.mark(*SPAN, "--dry-run")
    assert f"{chat}.json\tcarries it\tnot marked: chat" in done.stdout
    assert "--chat marks them too" in done.stderr
    node.mark(*SPAN)
    assert chat not in tombstones(node.root)
    done = node.mark(*SPAN, "--chat")
    assert "can come back under another name" in done.stderr
    assert "can fail on an empty tombstone" in done.stderr
    assert "only a takedown with --sticky holds" in done.stderr
    assert chat in tombstones(node.root)
    plain, with_chat = node.takedowns()
    assert (plain.chat, with_chat.chat) == (False, True)
    assert set(with_chat.hashes) - set(plain.hashes) == {chat.rpartition("-")[2]} or chat.endswith(
        tuple(set(with_chat.hashes) - set(plain.hashes))
    )


# -- the record --------------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_asked_for_and_found(node: Node) -> None:
    told = node.json(*SPAN, "--quality", "source", "--exclude-twins", "--sticky", "--reason", "why \udcff not")
    (kept,) = node.takedowns()
    assert kept.id == told["takedown"]
    assert (kept.channel, kept.qualities, kept.sticky, kept.twins, kept.chat) == (
        CHANNEL,
        ("source",),
        True,
        False,
        False,
    )
    assert kept.hashes == tuple(sorted(path[-43:] for path in node.source[5:7]))
    assert kept.reason == "why ? not" and kept.node == "node-a" and kept.actor and kept.ended_at == ""


def test_the_journal_has_each_mark_with_who_why_and_the_takedown(node: Node) -> None:
    node.agent.config.write_text(node.agent.config.read_text().replace('journal = "stderr"', 'journal = "auto"'))
    with Journald() as journald:
        words = (*node.agent.program, "mark", "--config", str(node.agent.config), "--channel", CHANNEL, *SPAN)
        dry = journald.run(*words, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        done = journald.run(*words, "--reason", "shows a face")
        assert done.returncode == 0, done.stderr
        (kept,) = node.takedowns()
        wait_for(lambda: len(journald.records("TOMBSYNC_EVENT=marked")) >= 4, "the journal to have them")
        records = journald.records("TOMBSYNC_EVENT=marked")
    assert {record["TOMBSYNC_SEGMENT"] for record in records} == tombstones(node.root)
    assert len(records) == 4
    for record in records:
        assert (record["TOMBSYNC_REASON"], record["TOMBSYNC_ACTOR"]) == ("shows a face", kept.actor)
        assert record["MESSAGE"].endswith(f"(takedown {kept.id}): shows a face")


def test_the_record_stands_before_the_first_tombstone(node: Node) -> None:
    """By what inotify saw first: a kill in between must leave the takedown known."""
    own = node.root / ".tombsync" / "takedowns"
    own.mkdir(parents=True)
    flags = inotify_simple.flags
    with inotify_simple.INotify() as watch:
        for directory in (own, node.root / CHANNEL / "source" / "2019-11-13T02"):
            watch.add_watch(directory, flags.CREATE | flags.MOVED_TO)
        node.mark(*SPAN)
        names = [event.name for event in watch.read(timeout=0) if not event.name.startswith(".")]
    assert names[0].endswith(".json")
    assert sum(name.endswith(".tombstone") for name in names) == 2


def test_without_a_place_for_the_record_it_hides_all_the_same_but_for_a_sticky_one(node: Node) -> None:
    (node.root / ".tombsync").mkdir()
    (node.root / ".tombsync" / "takedowns").touch()  # no directory can be made there
    refused = node.mark(*SPAN, "--sticky", expect=1)
    assert len(complaints(refused)) == 1
    assert tombstones(node.root) == set()
    done = node.mark(*SPAN, expect=3)
    assert "without its record" in done.stderr
    assert len(tombstones(node.root)) == 4


def test_a_sticky_one_can_come_before_what_it_is_for(node: Node) -> None:
    node.mark("--from", "2019-11-13T02:50", "--to", "2019-11-13T02:51", "--sticky")
    (kept,) = node.takedowns()
    assert kept.sticky and kept.hashes == ()


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED = {
    "no such channel": (
        ("--from", f"{MINUTE}:10", "--to", f"{MINUTE}:11", "--channel", "nosuch"),
        "nosuch: there is no",
    ),
    "no such quality": ((*SPAN, "--quality", "source", "--quality", "720p"), f"{CHANNEL}/720p: there is no such"),
    "no such hour": (("--from", "2019-11-13T07:00", "--to", "2019-11-13T07:01"), f"{CHANNEL}/2019-11-13T07: no such"),
    "nothing there": (
        ("--from", "2019-11-13T02:50", "--to", "2019-11-13T02:51"),
        "carries any part of 2019-11-13T02:50",
    ),
    "no time": (("--from", "yesterday", "--to", f"{MINUTE}:14"), "'yesterday' is no time"),
    "no day": (("--from", f"{MINUTE}:10", "--to", "2019-02-30T00:00"), "is no time"),
    "a bare day": (("--from", "2019-11-13", "--to", f"{MINUTE}:14"), "is no time"),
    "end before start": (("--from", f"{MINUTE}:14", "--to", f"{MINUTE}:10"), "is not after"),
    "end at start": (("--from", f"{MINUTE}:14", "--to", "2019-11-13T03:45:14+01:00"), "is not after"),
    "too long": (("--from", "2019-11-13T02:00", "--to", "2019-11-13T03:00:00.1"), "more than the 3600 s"),
    "a channel that is none": ((*SPAN, "--channel", "../desertbus"), "begins with a dot"),
    "a hidden channel": ((*SPAN, "--channel", ".tombsync"), "begins with a dot"),
    "a quality with a slash": ((*SPAN, "--quality", "source/2019-11-13T02"), "holds a slash"),
    "an empty channel": ((*SPAN, "--channel", ""), "is empty"),
    "bytes that are no text": ((*SPAN, "--channel", "\udcff\n"), "control character"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_in_one_line_and_marks_nothing(node: Node, what: str) -> None:
    arguments, reason = REFUSED[what]
    before = node.snapshot()
    done = node.mark(*arguments, expect=1)
    (complaint,) = complaints(done)
    assert reason in complaint
    assert "\n  hint: " in done.stderr
    assert done.stdout == ""
    assert node.snapshot() == before


WRONG_USAGE = {
    "no end": ("--channel", CHANNEL, "--from", f"{MINUTE}:10"),
    "no time": ("--channel", CHANNEL),
    "a path besides": ("--channel", CHANNEL, *SPAN, "x"),
    "no channel": SPAN,
    "a quality of paths": ("--quality", "source", "x"),
    "sticky paths": ("--sticky", "x"),
    "absent ones": ("--channel", CHANNEL, *SPAN, "--even-if-absent"),
    "a timeout of nothing": ("--channel", CHANNEL, *SPAN, "--timeout", "5"),
    "no time to wait": ("--channel", CHANNEL, *SPAN, "--wait", "--timeout", "0"),
    "the rest of nothing": ("--channel", CHANNEL, *SPAN, "--mark-rest"),
    "bad versions of no channel": ("--bad-versions",),
    "chat without --chat": ("--channel", CHANNEL, *SPAN, "--quality", "chat"),
    "a wait for a list": ("--channel", CHANNEL, "--bad-versions", "--wait"),
    "nothing": (),
}


@pytest.mark.parametrize("what", WRONG_USAGE)
def test_wrong_usage_marks_nothing(node: Node, what: str) -> None:
    done = node.agent.run("mark", *WRONG_USAGE[what], expect=2)
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    assert tombstones(node.root) == set()


def test_a_long_one_when_that_is_meant(node: Node) -> None:
    told = node.json("--from", "2019-11-13T00:00", "--to", "2019-11-13T04:00", "--long", "--dry-run")
    assert sorted(told["marks"]) == sorted(node.source + node.small)


def test_very_many_are_asked_about(node: Node) -> None:
    node.agent.most_per_minute = 3
    node.agent.write_settings([])
    refused = node.mark(*SPAN, expect=1)
    assert "4 segments would be hidden on every node" in refused.stderr
    assert tombstones(node.root) == set() and node.takedowns() == []
    assert len(node.json(*SPAN, "--dry-run")["marks"]) == 4
    node.mark(*SPAN, "--yes")
    assert len(tombstones(node.root)) == 4


def test_links_are_not_followed_and_told(node: Node) -> None:
    (node.root / CHANNEL / "alias").symlink_to(node.root / CHANNEL / "source")
    (node.root / CHANNEL / "160p" / "2019-11-13T03").symlink_to("2019-11-13T02")
    done = node.mark(*SPAN)
    assert f"{CHANNEL}/alias is a link" in done.stderr and "160p/2019-11-13T03 is a link" in done.stderr
    assert "alias" not in done.stdout
    listed = node.mark("--bad-versions", "--from", f"{MINUTE}:00", "--to", "2019-11-13T03:10")
    assert f"{CHANNEL}/alias is a link" in listed.stderr and "160p/2019-11-13T03 is a link" in listed.stderr
    refused = node.mark(*SPAN, "--quality", "alias", expect=1)
    assert "links are not followed" in refused.stderr


def test_another_tree_at_the_root_is_not_marked(node: Node) -> None:
    node.agent.run("rescan")
    node.root.rename(node.root.with_name("real"))
    put_minute(node.root, MINUTE)
    before = node.snapshot()
    assert "has no identity" in node.mark(*SPAN, expect=1).stderr
    assert node.snapshot() == before


def test_only_the_hours_concerned_and_their_neighbours_are_read(node: Node) -> None:
    first = hour_number("2019-11-12T12")
    flags = inotify_simple.flags
    with inotify_simple.INotify() as watch:
        hours = {}
        for quality in ("source", "160p"):
            for number in range(first, first + 30):
                directory = node.root / CHANNEL / quality / hour_text(number)
                directory.mkdir(exist_ok=True)
                hours[watch.add_watch(directory, flags.OPEN)] = f"{quality}/{directory.name}"
            hours[watch.add_watch(node.root / CHANNEL / quality, flags.ACCESS)] = quality
        node.mark(*SPAN, "--dry-run")
        opened = {hours[event.wd] for event in watch.read(timeout=0) if not event.name}  # the directories themselves
    wanted = [hour_text(hour_number("2019-11-13T02") + offset) for offset in (-2, -1, 0, 1)]
    assert opened == {f"{quality}/{hour}" for quality in ("source", "160p") for hour in wanted}


def test_a_reader_that_goes_away_does_not_stop_the_marking(node: Node) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        words = [*node.agent.program, "mark", "--config", str(node.agent.config), "--channel", CHANNEL, *SPAN]
        done = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert len(tombstones(node.root)) == 4


def test_an_hour_that_cannot_be_read_is_not_taken_for_empty(node: Node) -> None:
    prefix = [need("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    hour = node.root / CHANNEL / "160p" / "2019-11-13T02"
    hour.chmod(0)
    words = [*node.agent.program, "mark", "--config", str(node.agent.config), "--channel", CHANNEL, *SPAN]
    done = subprocess.run(
        [*(prefix if os.geteuid() == 0 else []), *words], capture_output=True, text=True, timeout=50, check=False
    )
    hour.chmod(0o755)
    assert done.returncode == 1
    assert f"{CHANNEL}/160p/2019-11-13T02: Permission denied" in done.stderr
    assert tombstones(node.root) == set()


def test_what_only_the_index_hides_costs_nothing_and_is_marked_again(node: Node) -> None:
    node.agent.run("mark", *node.small[5:7])
    node.agent.run("rescan")
    for path in node.small[5:7]:
        (node.root / f"{path}.tombstone").unlink()
    told = node.json(*SPAN)
    assert set(told["cost"]) == {"source"}
    assert {row["served"] for row in told["found"] if row["quality"] == "160p"} == {None}
    assert sorted(told["marks"]) == sorted([*node.small[5:7], *node.source[5:7]])
    assert tombstones(node.root) == set(told["marks"])


# -- bad versions ------------------------------------------------------------------------------------------------------


def test_bad_versions_are_listed_and_the_rest_is_marked_on_request(node: Node) -> None:
    suspect = put(node.root, f"{MINUTE}:12", kind="suspect")
    long = put(node.root, "2019-11-13T05:00:00", duration_s=4.0)
    short = put(node.root, "2019-11-13T05:00:00", duration_s=2.0)
    before = node.snapshot()
    listed = node.json("--bad-versions")
    served = {instant["served"]: instant for instant in listed["instants"]}
    assert set(served) == {f"{node.source[6]}.ts", f"{long}.ts"}
    assert served[f"{long}.ts"]["reason"] == "the longest" and served[f"{long}.ts"]["rest"] == [f"{short}.ts"]
    text = node.mark("--bad-versions").stdout
    assert "served: full goes before suspect" in text and "--mark-rest marks them" in text
    within = node.json("--bad-versions", "--from", f"{MINUTE}:00", "--to", "2019-11-13T02:46")
    assert within["marks"] == [suspect]
    assert node.json("--bad-versions", "--quality", "160p")["instants"] == []
    assert "no instant" in node.mark("--bad-versions", "--quality", "160p").stdout
    node.mark("--bad-versions", "--mark-rest", "--dry-run")
    refused = node.mark("--bad-versions", "--mark-rest", expect=1)
    assert "2 segments would be hidden" in refused.stderr
    assert node.snapshot() == before
    node.mark("--bad-versions", "--mark-rest", "--yes")
    assert tombstones(node.root) == {suspect, short}
    assert node.json("--bad-versions")["instants"] == []


def test_bad_versions_of_what_is_not_there(node: Node) -> None:
    for arguments in (("--quality", "720p"), ("--from", "2019-11-13T09:00", "--to", "2019-11-13T09:10")):
        done = node.mark("--bad-versions", *arguments, expect=1)
        assert len(complaints(done)) == 1 and "\n  hint: " in done.stderr

"""`tombsync log` and the audit itself on a real journald."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.journald import Journald
from tests.support.trees import need_root
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
STEM = segment_stem(2)
TWIN = segment_stem(4)
LONG = 400_000  # characters of a message that no datagram takes
_WRITE = f"""
from tombsync.audit import Audit, Event, JournalSink
from tombsync.names import Marked, strict_hour
hour = strict_hour(*{HOUR.split("/")!r})
times = iter([1573613151.5, 1573613152.25, 1573613150, 1573613160, 1573613170, 1573613180, 1573613190])
a = Audit("node-a", JournalSink(), wall=lambda: next(times))
a.record(Event.HIDDEN, "hidden: it", marked=Marked(hour, {STEM!r}), source="watch", actor="ops", elapsed_ms=0.25)
a.record(Event.DELIVERED, "node-b holds it", marked=Marked(hour, {STEM!r}), peer="node-b", elapsed_ms=9)
a.record(Event.MARKED, "ops marked it", marked=Marked(hour, {STEM!r}), source="command")  # written late, made first
a.record(Event.HIDDEN, "hidden: the other", marked=Marked(hour, {TWIN!r}))
a.record(Event.REJECTED, "evil\\nPRIORITY=0 \\udcff\\x1b", segment="evil\\n\\udcff")
a.record(Event.RESCAN_COMPLETED, "x" * {LONG})
a.record(Event.HOUR_GONE, "the hour is gone", hour=hour, count=2)
assert a.close() == 0
"""


@pytest.fixture(scope="module")
def journald() -> Iterator[Journald]:
    need_root()
    with Journald() as journald:
        journald.python(_WRITE)
        yield journald


@pytest.fixture(scope="module")
def files(journald: Journald, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return journald.copy(tmp_path_factory.mktemp("log") / "journal")


def log(*words: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tombsync", "log", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, input=stdin, env=env)


def rows(done: subprocess.CompletedProcess[str], *, expect: int = 0) -> list[list[str]]:
    assert done.returncode == expect, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_a_real_journald_keeps_each_record_whole(journald: Journald) -> None:
    (long,) = journald.records("TOMBSYNC_EVENT=rescan-completed")
    assert long["MESSAGE"] == "x" * LONG
    (evil,) = journald.records("TOMBSYNC_EVENT=rejected")
    assert evil["MESSAGE"] == "evil\\nPRIORITY=0 \\xff\\x1b"
    assert evil["PRIORITY"] == "4"
    (delivered,) = journald.records("MESSAGE_ID=4fd3bca4a4c84ceead09b4c026ebc0d3")
    assert delivered["TOMBSYNC_ELAPSED_MS"] == "9.000"


def test_the_story_of_a_segment_by_its_stem_or_its_place(journald: Journald, files: Path) -> None:
    story = [
        ["2019-11-13 02:45:50Z", "node-a", "marked", "-", "ops marked it"],
        ["2019-11-13 02:45:51Z", "node-a", "hidden", "-", "hidden: it"],
        ["2019-11-13 02:45:52Z", "node-a", "delivered", "node-b", "node-b holds it"],
    ]
    for name in (STEM, f"{STEM}.ts", f"{STEM}.tombstone"):
        assert rows(log(name, "--journal", files)) == story
    end = ["2019-11-13 02:46:30Z", "node-a", "hour-gone", "-", "the hour is gone"]
    assert rows(log(f"{HOUR}/{STEM}.ts", "--root", "/segments", "--journal", files)) == [*story, end]
    (file,) = files.iterdir()
    assert rows(log(STEM, "--journal", file)) == story
    inside = journald.run(sys.executable, "-m", "tombsync", "log", STEM)  # the journal of the machine itself
    assert rows(inside) == story


def test_collected_journals_of_other_nodes_are_in_the_same_table(files: Path) -> None:
    """systemd-journal-remote puts them below /var/log/journal/remote."""
    with Journald() as other:
        other.python(_WRITE.replace('"node-a"', '"node-b"').replace("1573613152.25", "1573613152.75"))
        (theirs,) = files.iterdir()
        remote = other.path("/var/log/journal/remote")
        remote.mkdir(parents=True)
        (remote / "remote-node-a.journal").write_bytes(theirs.read_bytes())
        found = rows(other.run(sys.executable, "-m", "tombsync", "log", STEM))
    assert [(node, event) for _, node, event, *_ in found] == [
        ("node-a", "marked"), ("node-b", "marked"), ("node-a", "hidden"), ("node-b", "hidden"),
        ("node-a", "delivered"), ("node-b", "delivered"),
    ]  # fmt: skip


def test_journalctl_explains_a_record(journald: Journald) -> None:
    """The catalog, taken up where journald runs: what it means and what to do, with the fields of that record."""
    catalog = Path(__file__).parents[2] / "systemd" / "catalog" / "tombsync.catalog"
    done = journald.run(
        "sh", "-ec",
        "mkdir /run/catalog; cp \"$1\" /run/catalog; mount --bind /run/catalog /usr/lib/systemd/catalog;"
        "mount -t tmpfs tmpfs /var/lib/systemd/catalog; journalctl --update-catalog;"
        "journalctl --no-pager --catalog TOMBSYNC_EVENT=delivered",
        "sh", catalog,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout.replace("░░", "--")  # the prefix of a line, by the locale
    assert "-- Subject: A peer confirmed a tombstone" in told
    assert f"-- node-b answered that the tombstone of\n-- {HOUR}/{STEM}\n" in told


def test_every_record_for_programs_with_who_wrote_it(files: Path) -> None:
    done = log("--json", "--journal", files)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["event"] for record in records] == [
        "marked", "hidden", "delivered", "hidden", "rejected", "rescan-completed", "hour-gone",
    ]  # fmt: skip
    assert records[1]["written_by"]["uid"] == "0"
    del records[1]["written_by"]
    assert records[1] == {
        "time": "2019-11-13T02:45:51.500000Z",
        "message": "hidden: it",
        "actor": "ops",
        "channel": "desertbus",
        "elapsed_ms": "0.250",
        "event": "hidden",
        "hour": "2019-11-13T02",
        "node": "node-a",
        "quality": "source",
        "segment": f"{HOUR}/{STEM}",
        "source": "watch",
    }
    assert len(records[5]["message"]) == LONG


def test_the_newest_are_kept_and_the_rest_is_told_of(files: Path) -> None:
    done = log("--limit", "2", "--journal", files)
    assert [row[2] for row in rows(done)] == ["rescan-completed", "hour-gone"]
    assert "--limit shows more than 2" in done.stderr
    assert not log("--limit", "7", "--journal", files).stderr


def test_since(files: Path) -> None:
    """journalctl looks at when journald took a record, which was a moment ago."""
    assert len(rows(log("--since", "2019-11-13T02:45", "--journal", files))) == 7
    assert len(rows(log("--since", "1h", "--journal", files))) == 7
    assert rows(log("--since", "2199-01-01T00:00:00+01:00", "--journal", files)) == []
    done = log("--since", "yesterday", "--journal", files)
    assert done.returncode == 2
    assert "an age is a number and s, min, h or d" in done.stderr


def test_json_lines_of_an_agent_without_a_journal(journald: Journald, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "a")
    hour = make_hour(agent.root, HOUR)
    with agent:
        touch(hour, STEM)
        wait_for(lambda: agent.records("hidden"), "the record")
        assert agent.stop() == 0
    told = sorted(record["TOMBSYNC_EVENT"] for record in agent.records())
    with agent.log.open("a") as lines:
        lines.write("a library says this\n{no json\n{}\n")
    ((_, node, event, *_),) = rows(log(STEM, "--journal", agent.log))
    assert (node, event) == ("node-a", "hidden")
    every = rows(log("--journal", "-", stdin=agent.log.read_text()))
    assert sorted(row[2] for row in every) == told
    assert rows(log("--journal", "-", "--limit", "1", stdin=agent.log.read_text())) == every[-1:]
    assert rows(log("--journal", "-", "--since", "2199-01-01", stdin=agent.log.read_text())) == []
    printed = "".join(json.dumps(record) + "\n" for record in journald.records("TOMBSYNC_EVENT=marked"))
    assert [row[4] for row in rows(log("--journal", "-", stdin=printed))] == ["ops marked it"]


def test_what_cannot_be_read(journald: Journald, files: Path, tmp_path: Path) -> None:
    done = log(segment_stem(100), "--journal", files)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the journal has no record of it" in done.stderr
    (tmp_path / "empty").mkdir()
    done = log("--journal", tmp_path / "empty")
    assert done.returncode == 1
    assert "cannot be read: No journal files were found." in done.stderr
    assert "--journal FILE" in done.stderr
    done = log("--journal", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path / 'nothing'} cannot be read: No such file or directory" in done.stderr
    broken = tmp_path / "broken.journal"
    broken.write_bytes((next(files.iterdir())).read_bytes()[:100])
    done = log("--journal", broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{broken} cannot be read" in done.stderr
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    nobody = journald.run(*as_nobody, sys.executable, "-m", "tombsync", "log")
    assert nobody.returncode == 1
    assert "the journal cannot be read" in nobody.stderr
    done = log("--since", "1h", env={**os.environ, "PATH": "/nonexistent"})
    assert done.returncode == 1
    assert "the journal cannot be read: this machine has no journalctl" in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_follow(journald: Journald, as_json: bool) -> None:
    """A stem that has no record yet is waited for; the reader goes away, and so does the command."""
    words = ["--json"] if as_json else []
    stem = segment_stem(600 + as_json)
    command = [*journald.prefix, sys.executable, "-m", "tombsync", "log", stem, "--follow", *words]
    script = "from tombsync.audit import *; from tombsync.names import *; a = open_audit('node-a');"
    script += f" a.record(Event.HIDDEN, 'now', marked=strict_path({f'{HOUR}/{stem}'!r})); a.close()"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        journald.python(script)
        line = following.stdout.readline()
        assert (json.loads(line)["message"] if as_json else line.rstrip("\n").split("\t")[4]) == "now"
        following.stdout.close()
        journald.python(script)
        assert following.wait(20) == 0


@pytest.mark.timeout(150)
def test_a_restart_of_journald_loses_nothing(tmp_path: Path) -> None:
    count = 200
    with Journald() as journald:
        agent = AgentProcess(tmp_path / "a", prefix=journald.prefix)
        agent.config.write_text(agent.config.read_text().replace('journal = "stderr"\n', ""))
        hour = make_hour(agent.root, HOUR, segments=count)
        with agent:
            touch(hour, segment_stem(0))
            # What journald was sent and has not read yet goes with it: no sender learns that.
            wait_for(lambda: len(journald.records("TOMBSYNC_EVENT=hidden")) == 1, "the first", pause_s=0.1)
            journald.stop()
            for number in range(1, count):
                touch(hour, segment_stem(2 * number))
            wait_for(lambda: agent.metric("tombstones") == count, "all to be hidden without a journal")
            journald.start()
            wait_for(
                lambda: len(journald.records("TOMBSYNC_EVENT=hidden")) == count, "all records", 60, pause_s=0.1
            )  # up to 5 s until the agent tries again, and journald has its own start to do
            segments = {record["TOMBSYNC_SEGMENT"] for record in journald.records("TOMBSYNC_EVENT=hidden")}
            assert segments == {f"{HOUR}/{segment_stem(2 * number)}" for number in range(count)}
            assert agent.metric("journal_dropped") == 0

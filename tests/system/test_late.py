"""What arrives within a takedown after it was made, with a real agent: told once, and hidden where it is sticky."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.test_disk import no_more_files, remount, tmpfs
from tests.support.agent import HASH, AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.names import strict_hour
from tombsync.timeline import parse_time, time_text
from tombsync.tree import Takedown, Tree, end_takedown, write_takedown

HOUR = "desertbus/source/2019-11-13T02"
OTHER_HASH = "A" * 42 + "A"
# What the archive's own backfiller makes of a tombstoned twin: the same data, 0.4 ms away.
TWIN = segment_stem(2).replace("02.608000", "02.608400")
TAKEDOWN = Takedown(
    id="k7mq3",
    channel="desertbus",
    start_us=parse_time("2019-11-13T02:00:02.608"),
    end_us=parse_time("2019-11-13T02:00:04.608"),
    qualities=(),
    chat=False,
    sticky=True,
    twins=True,
    hashes=(HASH,),
    reason="a phone number",
    actor="ada",
    node="node-a",
    created_at="2019-11-13T03:00:00Z",
)


def other(second: int, *, kind: str = "full", hash: str = OTHER_HASH) -> str:
    """Another file of that second."""
    return segment_stem(second, kind=kind).replace(HASH, hash)


PROBE = other(2, kind="suspect", hash="B" * 42 + "A")


def take_down(agent: AgentProcess, takedown: Takedown = TAKEDOWN) -> None:
    with Tree(str(agent.root)).open_root() as fd:
        write_takedown(fd, takedown)


def end(agent: AgentProcess, id: str = TAKEDOWN.id) -> None:
    with Tree(str(agent.root)).open_root() as fd:
        end_takedown(fd, id, "ada")


def prepare(agent: AgentProcess, stem: str, *, hour: str = HOUR) -> str:
    """As the archive's programs do: under another name first. Its path without an extension."""
    directory = agent.root / hour
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f".{stem}.tmp").write_bytes(b"data")
    return f"{hour}/{stem}"


def put(agent: AgentProcess, path: str, extension: str = ".ts") -> None:
    """Give it its name."""
    hour, _, stem = path.rpartition("/")
    (agent.root / hour / f".{stem}.tmp").rename(agent.root / f"{path}{extension}")


def arrive(agent: AgentProcess, stem: str, *, hour: str = HOUR, extension: str = ".ts") -> str:
    """Both. Its path without the extension."""
    path = prepare(agent, stem, hour=hour)
    put(agent, path, extension)
    return path


def fill(agent: AgentProcess) -> None:
    """One segment is marked, and a probe stands in the same second that a takedown finds when it is followed."""
    directory = make_hour(agent.root, segments=0)
    for stem in (other(0), segment_stem(2), other(4), PROBE):
        (directory / f"{stem}.ts").write_bytes(b"segment")
    touch(directory, segment_stem(2))


def told(agent: AgentProcess) -> list[str]:
    return [record["TOMBSYNC_SEGMENT"] for record in agent.records("twin-of-hidden")]


def stands(root: Path, path: str) -> bool:
    return (root / f"{path}.tombstone").exists()


def is_hidden_for_good(agent: AgentProcess, path: str) -> bool:
    row = agent.marker(path)
    return row is not None and row.in_tree and stands(agent.root, path)


def is_followed(agent: AgentProcess) -> str:
    """Wait until the agent follows what was just taken down: it finds what was there already. The probe's path."""
    wait_for(lambda: f"{HOUR}/{PROBE}" in told(agent), "the takedown to be followed")
    return f"{HOUR}/{PROBE}"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """A node where one segment is marked, and a mass of marks by hand would be held."""
    agent = AgentProcess(tmp_path, most_per_minute=5)
    fill(agent)
    with agent.ending():
        yield agent.start()


def test_a_twin_that_comes_back_under_another_name_is_hidden_and_goes_to_the_peers(tmp_path: Path) -> None:
    with Sshd() as server:
        make_hour(server.root)
        agent = AgentProcess(tmp_path, peers=[peer_table("node-b", server)], most_per_minute=5)
        fill(agent)
        (agent.root / HOUR / f"{PROBE}.ts").unlink()
        with agent.ending():
            agent.start()
            wait_for(lambda: stands(server.root, f"{HOUR}/{segment_stem(2)}"), "the mark to be delivered")
            take_down(agent)
            twin = arrive(agent, TWIN)
            wait_for(lambda: is_hidden_for_good(agent, twin), "the twin to be hidden")
            assert (agent.root / f"{twin}.tombstone").stat().st_size == 0
            row = agent.marker(twin)
            assert row is not None
            assert row.source == "takedown"
            wait_for(lambda: stands(server.root, twin), "it to be delivered")
            wait_for(lambda: agent.states(twin) == {"node-b": "confirmed"}, "it to be confirmed")
            (record,) = wait_for(lambda: agent.records("twin-of-hidden"), "it to be told")
            assert record["TOMBSYNC_SEGMENT"] == twin
            assert record["TOMBSYNC_TAKEDOWN"] == "k7mq3"
            assert record["TOMBSYNC_WHY"] == "carries"
            assert agent.listing(strict_hour(*HOUR.split("/"))) == [f"{other(0)}.ts", f"{other(4)}.ts"]
            assert agent.metric("twins_of_hidden_total", sticky="true") == 1


def test_without_sticky_it_is_told_once_also_after_a_restart(agent: AgentProcess) -> None:
    take_down(agent, replace(TAKEDOWN, sticky=False))
    probe = is_followed(agent)
    twin = arrive(agent, TWIN)
    wait_for(lambda: twin in told(agent), "the twin to be told")
    assert agent.metric("twins_of_hidden_total", sticky="false") == 2
    assert agent.metric("twins_of_hidden_total", sticky="true") == 0
    assert agent.stop() == 0
    agent.start()
    later = arrive(agent, other(3))
    wait_for(lambda: later in told(agent), "the next to be told")
    assert sorted(told(agent)) == sorted([probe, twin, later])
    assert not any(agent.hidden(path) or stands(agent.root, path) for path in (probe, twin, later))


def test_what_falls_under_it_and_what_does_not(agent: AgentProcess) -> None:
    take_down(agent)
    is_followed(agent)
    falls = [
        arrive(agent, other(2, kind="partial")),
        arrive(agent, other(3)),  # overlaps
        arrive(agent, other(2), hour="desertbus/480p/2019-11-13T02"),
        arrive(agent, segment_stem(1800), hour="desertbus/source/2019-11-13T03"),  # a copy, in the next hour
        arrive(agent, segment_stem(1800), hour="desertbus/source/2019-11-13T00"),
    ]
    does_not = [
        arrive(agent, segment_stem(2), hour="otherbus/source/2019-11-13T02"),
        arrive(agent, segment_stem(1800), hour="desertbus/source/2019-11-13T05"),
        f"{HOUR}/{other(0)}",
        f"{HOUR}/{other(4)}",  # each touches the span only
        arrive(agent, other(6)),
        arrive(agent, f"00:02-{HASH}", hour="desertbus/chat/2019-11-13T02", extension=".json"),
        arrive(agent, "00:02.608000-2.0-temp-0b5c0c5e-3b0e-4a31-9f57-6c1c2a1c7d9e"),
        arrive(agent, "no-segment"),
    ]
    wait_for(lambda: all(is_hidden_for_good(agent, path) for path in falls), "them to be hidden")
    final = arrive(agent, other(2, hash="C" * 42 + "A"))
    wait_for(lambda: is_hidden_for_good(agent, final), "the last to be hidden")
    assert not any(agent.hidden(path) or stands(agent.root, path) for path in does_not)
    assert set(told(agent)) & set(does_not) == set()


def test_chat_only_where_it_was_asked_for(agent: AgentProcess) -> None:
    take_down(agent, replace(TAKEDOWN, chat=True, qualities=("480p",)))
    chat = arrive(agent, f"00:00-{OTHER_HASH}", hour="desertbus/chat/2019-11-13T02", extension=".json")
    low = arrive(agent, other(2), hour="desertbus/480p/2019-11-13T02")
    wait_for(lambda: is_hidden_for_good(agent, chat) and is_hidden_for_good(agent, low), "both to be hidden")
    high = arrive(agent, other(3))
    final = arrive(agent, other(3), hour="desertbus/480p/2019-11-13T02")
    wait_for(lambda: is_hidden_for_good(agent, final), "the last to be hidden")
    assert not agent.hidden(high)


def test_what_came_while_the_agent_was_down_and_a_new_index(agent: AgentProcess) -> None:
    take_down(agent)
    assert agent.stop() == 0
    twin = arrive(agent, TWIN)
    for path in agent.state_dir.glob("index.sqlite*"):
        path.unlink()
    agent.start()
    wait_for(lambda: is_hidden_for_good(agent, twin), "the twin to be hidden")
    wait_for(lambda: twin in told(agent), "it to be told")  # the journal has a thread of its own
    assert told(agent).count(twin) == 1


def test_its_end_ends_it_and_the_tombstones_stay(agent: AgentProcess) -> None:
    take_down(agent)
    probe = is_followed(agent)
    wait_for(lambda: is_hidden_for_good(agent, probe), "the probe to be hidden")
    end(agent)
    # Followed in its place: what falls under the new one alone shows that the end of the old one was read.
    elsewhere = replace(TAKEDOWN, id="zzzz2", start_us=parse_time("2019-11-13T02:00:00"), hashes=(), twins=False)
    elsewhere = replace(
        elsewhere, end_us=parse_time("2019-11-13T02:00:01"), created_at=time_text(parse_time("2019-11-13T03:00:00"))
    )
    take_down(agent, elsewhere)
    first = f"{HOUR}/{other(0)}"
    wait_for(lambda: is_hidden_for_good(agent, first), "the other takedown to be followed")
    twin = arrive(agent, TWIN)
    final = arrive(agent, segment_stem(0))
    wait_for(lambda: is_hidden_for_good(agent, final), "the last to be hidden")
    assert not agent.hidden(twin)
    assert twin not in told(agent)
    assert is_hidden_for_good(agent, probe)


def test_a_thousand_at_once_are_all_hidden_and_none_is_held(agent: AgentProcess) -> None:
    """More than `breaker.most_per_minute`: what a person meant to be hidden is no mass of mistakes."""
    take_down(agent, replace(TAKEDOWN, end_us=parse_time("2019-11-13T02:40:00")))
    is_followed(agent)
    paths = [arrive(agent, other(10 + 2 * number)) for number in range(1000)]
    wait_for(lambda: agent.metric("twins_of_hidden_total", sticky="true") >= 1002, "all to be found", 60.0)
    wait_for(lambda: all(stands(agent.root, path) for path in paths), "all to be hidden", 60.0)
    wait_for(lambda: agent.metric("tombstones") == 1003, "all to be in the index")
    assert agent.records("mass-mark-held") == []
    assert len(told(agent)) == len(set(told(agent)))


def test_a_damaged_record_is_told_and_the_others_are_followed(agent: AgentProcess) -> None:
    directory = agent.root / ".tombsync/takedowns"
    directory.mkdir()
    (directory / "aaaa2.json").write_text('{"version": 2}')
    take_down(agent)
    is_followed(agent)
    (record,) = wait_for(lambda: agent.records("takedown-unreadable"), "it to be told")
    assert "aaaa2.json" in record["MESSAGE"]
    assert "newer" in record["MESSAGE"]
    twin = arrive(agent, TWIN)
    wait_for(lambda: is_hidden_for_good(agent, twin), "the twin to be hidden")
    assert len(agent.records("takedown-unreadable")) == 1


@contextlib.contextmanager
def on_a_small_disk(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent whose tree is a file system of its own, with room for some more files."""
    with tmpfs(tmp_path / "segments", "nr_inodes=100") as root:
        agent = AgentProcess(tmp_path, root=root)
        fill(agent)
        with agent.ending():
            yield agent.start()


def test_without_room_for_the_file_it_is_hidden_and_tried_again_also_after_a_kill(tmp_path: Path) -> None:
    with on_a_small_disk(tmp_path) as agent:
        take_down(agent)
        wait_for(lambda: is_hidden_for_good(agent, is_followed(agent)), "the probe to be hidden")
        twin = prepare(agent, TWIN)
        with no_more_files(agent.root):
            put(agent, twin)
            wait_for(lambda: agent.hidden(twin), "it to be hidden")
            wait_for(lambda: agent.records("tree-refused"), "it to be told")
            assert f"{TWIN}.ts" not in agent.listing(strict_hour(*HOUR.split("/")))
            row = agent.marker(twin)
            assert row is not None
            assert not row.in_tree
            agent.kill()
        assert not stands(agent.root, twin)
        end(agent)  # what was hidden is finished all the same
        agent.start()
        wait_for(lambda: is_hidden_for_good(agent, twin), "the file to be made")
        assert len(agent.records("tree-refused")) == 1


def test_on_a_read_only_disk_it_is_hidden_and_the_file_follows(tmp_path: Path) -> None:
    with on_a_small_disk(tmp_path) as agent:
        take_down(agent)
        wait_for(lambda: is_hidden_for_good(agent, is_followed(agent)), "the probe to be hidden")
        agent.signal(signal.SIGSTOP)
        twin = arrive(agent, TWIN)
        remount(agent.root, "ro")
        agent.signal(signal.SIGCONT)
        wait_for(lambda: agent.hidden(twin), "it to be hidden")
        wait_for(lambda: agent.records("tree-refused"), "it to be told")
        assert not stands(agent.root, twin)
        remount(agent.root, "rw")
        wait_for(lambda: is_hidden_for_good(agent, twin), "the file to be made")
        assert len(agent.records("tree-refused")) == 1


def test_a_root_that_goes_away_meanwhile(agent: AgentProcess) -> None:
    take_down(agent)
    is_followed(agent)
    away = agent.base / "away"
    agent.root.rename(away)
    wait_for(lambda: agent.records("root-lost"), "it to be told")
    (away / HOUR / f"{TWIN}.ts").write_bytes(b"data")
    away.rename(agent.root)
    assert agent.wait() == 75
    agent.start()
    wait_for(lambda: is_hidden_for_good(agent, f"{HOUR}/{TWIN}"), "the twin to be hidden")


def test_nothing_touches_the_records(agent: AgentProcess) -> None:
    take_down(agent)
    probe = is_followed(agent)
    wait_for(lambda: is_hidden_for_good(agent, probe), "the probe to be hidden")
    before = (agent.root / ".tombsync/takedowns/k7mq3.json").read_bytes()
    agent.run("purge", probe, "--yes", "--no-peers")
    assert not (agent.root / f"{probe}.ts").exists()
    agent.run("rescan", "--full")
    assert agent.stop() == 0
    agent.run("adopt-root", "--yes")
    assert (agent.root / ".tombsync/takedowns/k7mq3.json").read_bytes() == before

"""What a live agent lists over HTTP, against what the archive's own listing service would say of the same tree."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem
from tests.support.nasty import above, all_of, make_nasty
from tests.support.trees import disk, listed
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """One that is not started yet."""
    with AgentProcess(tmp_path).ending() as made:
        yield made


def names(agent: AgentProcess, path: str, query: str = "") -> list[str]:
    """What it lists of a path below the root."""
    status, text = agent.get("/files" + quote(os.fsencode(f"/{path}" if path else "")) + query)
    assert status == 200, text
    found: list[str] = json.loads(text)
    assert found == sorted(set(found))
    return found


def both(agent: AgentProcess, directory: Path) -> tuple[list[str], list[str]]:
    """Both listings of an hour."""
    path = str(directory.relative_to(agent.root))
    return names(agent, path), names(agent, path, "?tombstones=true")


def is_true(agent: AgentProcess, hours: list[Path]) -> bool:
    """Whether it lists these hours, and all above them, as the archive does."""
    places = {"", *(str(directory.relative_to(agent.root).parent) for directory in hours), "desertbus", "no"}
    return all(names(agent, place) == above(agent.root / place) for place in places) and all(
        both(agent, directory) == all_of(directory) for directory in hours
    )


def read_from(agent: AgentProcess, directory: Path) -> str:
    """What the names of an hour are read from: `index` or `directory`."""
    path = quote(f"/files/{directory.relative_to(agent.root)}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(agent.socket))
        client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while part := client.recv(65536):
            head += part
    (found,) = (line for line in head.decode().splitlines() if line.lower().startswith("x-tombsync-read:"))
    return found.partition(": ")[2]


def await_settled(agent: AgentProcess, directory: Path) -> None:
    """Wait until an hour is answered from the index."""
    wait_for(lambda: read_from(agent, directory) == "index", "the hour to settle", 30)


def test_it_lists_what_the_archive_lists_before_and_after_the_first_rescan(agent: AgentProcess) -> None:
    hours = make_nasty(agent.root)
    agent.start(ready=False)
    wait_for(lambda: agent.get("/healthz")[0] == 200, "it to answer")
    assert is_true(agent, hours)
    wait_for(agent.is_ready, "the first rescan")
    assert is_true(agent, hours)
    await_settled(agent, hours[0])
    for quiet in hours[1:4]:
        assert read_from(agent, quiet) == "index"
    for odd in hours[4:6]:  # of what looks like tombstones to the archive alone there are no rows
        assert read_from(agent, odd) == "directory"
    assert is_true(agent, hours)
    agent.stop()
    (hours[0] / f"{segment_stem(0)}.tombstone").touch()
    (hours[4] / "z.ts.tombstone").unlink()
    agent.start()
    assert is_true(agent, hours)
    await_settled(agent, hours[4])
    assert is_true(agent, hours)


def test_each_change_is_listed_as_soon_as_it_is_made(agent: AgentProcess) -> None:
    """Whoever changes a directory and then asks is told of it: no wait for the watcher, or for a rescan."""
    hour = make_hour(agent.root, HOUR, segments=100)
    agent.start()
    await_settled(agent, hour)
    dice = random.Random(20191113)
    for number in range(60):
        stem = segment_stem(2 * dice.randrange(120))
        if dice.random() < 0.4:
            (hour / f"{stem}.tombstone").touch()
        elif dice.random() < 0.5:
            (hour / f"{stem}.ts").unlink(missing_ok=True)
        else:
            (hour / f"{stem}.json").touch()
        assert both(agent, hour) == all_of(hour), number


def test_during_a_rescan_of_many_hours(agent: AgentProcess) -> None:
    hours = [
        make_hour(agent.root, f"desertbus/source/2019-{11 + n // 240:02d}-{n // 24 % 10 + 1:02d}T{n % 24:02d}", 20)
        for n in range(400)
    ]
    agent.start(ready=False)
    wait_for(lambda: agent.get("/healthz")[0] == 200, "it to answer")
    asked = 0
    dice = random.Random(1)
    while not agent.is_ready() or asked < 100:
        hour = dice.choice(hours)
        (hour / f"{segment_stem(2 * dice.randrange(20))}.tombstone").touch()
        assert both(agent, hour) == all_of(hour)
        asked += 1


def test_with_the_root_unmounted_there_is_nothing(tmp_path: Path) -> None:
    with disk(tmp_path / "image") as mounted, AgentProcess(tmp_path, root=tmp_path / "mnt").ending() as agent:
        mounted.mount(agent.root)
        hour = make_hour(agent.root, HOUR)
        (hour / f"{segment_stem(0)}.tombstone").touch()
        agent.start()
        await_settled(agent, hour)
        assert names(agent, HOUR) == [f"{segment_stem(2)}.ts", f"{segment_stem(4)}.ts"]
        mounted.take_away()
        assert is_true(agent, [hour])
        assert names(agent, HOUR, "?tombstones=true") == []
        make_hour(
            agent.root, HOUR, segments=2
        )  # what stands in its place is listed, but for what is known to be marked
        assert both(agent, hour) == (
            [f"{segment_stem(2)}.ts"],
            [f"{segment_stem(0)}.tombstone", f"{segment_stem(2)}.ts"],
        )
        assert agent.is_running()
        shutil.rmtree(agent.root / "desertbus")


def test_links_to_directories_are_not_followed(agent: AgentProcess) -> None:
    make_hour(agent.root, HOUR)
    outside = make_hour(agent.base / "elsewhere", HOUR)
    (agent.root / "linked").symlink_to(outside.parents[1])
    (agent.root / "desertbus" / "linked").symlink_to(outside.parent)
    (agent.root / "desertbus" / "source" / "2019-11-13T03").symlink_to(outside)
    agent.start()
    assert names(agent, "") == ["desertbus", "linked"]
    assert names(agent, "desertbus") == ["linked", "source"]
    assert names(agent, "desertbus/source") == ["2019-11-13T02", "2019-11-13T03"]
    for path in (
        "linked",
        "linked/source",
        "linked/source/2019-11-13T02",
        "desertbus/linked",
        "desertbus/source/2019-11-13T03",
    ):
        assert names(agent, path) == []


def test_a_vanished_tombstone_goes_on_hiding(agent: AgentProcess) -> None:
    hour = make_hour(agent.root, HOUR)
    mark = hour / f"{segment_stem(0)}.tombstone"
    mark.touch()
    agent.start()
    mark.unlink()
    assert names(agent, HOUR) == [f"{segment_stem(2)}.ts", f"{segment_stem(4)}.ts"]
    assert mark.name in names(agent, HOUR, "?tombstones=true")


def test_an_index_that_is_removed_is_missed_by_nobody_who_asks(agent: AgentProcess) -> None:
    hours = make_nasty(agent.root)
    agent.start()
    await_settled(agent, hours[0])
    agent.stop()
    shutil.rmtree(agent.state_dir)
    agent.state_dir.mkdir()
    agent.start(ready=False)
    wait_for(lambda: agent.get("/healthz")[0] == 200, "it to answer")
    assert is_true(agent, hours)


def test_slow_readers_hold_nobody_up(agent: AgentProcess) -> None:
    hour = make_hour(agent.root, HOUR, segments=0)
    for number in range(10_000):
        (hour / f"{number:05d}-{'x' * 200}.ts").touch()
    agent.start()
    expected = names(agent, HOUR)
    assert len(expected) == 10_000
    slow = []
    for _ in range(12):  # three times as many as there are workers
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(str(agent.socket))
        client.sendall(f"GET /files/{quote(HOUR)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        slow.append(client)
    received = [bytearray() for _ in slow]
    for _ in range(50):
        for client, data in zip(slow, received, strict=True):
            data += client.recv(1)
        assert agent.get("/metrics")[0] == 200
        assert names(agent, HOUR) == expected
    with ThreadPoolExecutor(8) as pool:
        assert all(answer == expected for answer in pool.map(lambda _: names(agent, HOUR), range(16)))
    for client, data in zip(slow, received, strict=True):  # none of them was cut off
        assert len(data) == 50
        while part := client.recv(1 << 20):
            data += part
        client.close()
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body) == expected


def test_many_ask_while_segments_come_and_are_marked(agent: AgentProcess) -> None:
    """Nobody is ever shown what was marked before he asked, or not shown what was there and never marked."""
    hour = make_hour(agent.root, HOUR, segments=0)
    agent.start()
    marked: list[str] = []
    kept: list[str] = []
    ended = threading.Event()

    def ask() -> int:
        asked = 0
        while not ended.is_set() or not asked:
            hidden, there = len(marked), len(kept)
            found = set(names(agent, HOUR))
            assert found.isdisjoint(marked[:hidden])
            assert found.issuperset(kept[:there])
            asked += 1
        return asked

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask) for _ in range(6)]
        until = time.monotonic() + 3
        number = 0
        while time.monotonic() < until and not any(one.done() for one in asking):
            stem = f"{number:06d}"
            (hour / f"{stem}.ts").touch()
            if number % 2:
                (hour / f"{stem}.tombstone").touch()
                marked.append(f"{stem}.ts")
            else:
                kept.append(f"{stem}.ts")
            number += 1
        ended.set()
        assert all(one.result() for one in asking)
    assert names(agent, HOUR) == listed(hour) == kept

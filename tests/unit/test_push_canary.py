"""The canary over time: when a broken way is told, when that it is whole again, and what it insists on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.journal import Journal
from tests.support.memory_peer import MemoryPeer, MemorySession
from tombsync.names import OWN_DIRECTORY
from tombsync.push.canary import CANARY_INTERVAL_S, CANARY_LOST_AFTER_S, Canary

TOLD_WITHIN_S = 180.0  # what is promised of a broken way


class Way:
    """The way to a peer in memory. Its clock stands still but for `later`."""

    def __init__(self, journal: Journal) -> None:
        self.peer = MemoryPeer("node-b")
        self.journal = journal
        self.canary = Canary("node-b", journal.audit)
        self.session: MemorySession = self.peer.connect()
        self.now = time.monotonic()
        self.look()

    def look(self) -> None:
        self.canary.look_after(self.session, self.now)

    def later(self, seconds: float) -> None:
        """Time goes on, with a look each second as a pusher has it."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.look()

    def reconnect(self) -> None:
        self.session = self.peer.connect()
        self.look()

    def told(self) -> list[str]:
        return [record["TOMBSYNC_EVENT"] for record in self.journal.records()]


@pytest.fixture
def way() -> Iterator[Way]:
    with Journal() as journal:
        way = Way(journal)
        with way.peer:
            yield way


def test_a_way_that_stands_is_walked_each_minute_and_nothing_is_told(way: Way) -> None:
    walks = []
    way.session.walk_canary = lambda *, marker_seen=False: walks.append(way.now)  # type: ignore[method-assign]
    way.later(10 * CANARY_INTERVAL_S)
    assert len(walks) == 10
    assert way.told() == []


def test_a_broken_way_is_told_once_and_within_three_minutes(way: Way) -> None:
    way.peer.canary_problem = "its agent takes nothing from the inbox"
    way.later(CANARY_LOST_AFTER_S - 1)
    assert way.told() == []
    way.later(TOLD_WITHIN_S - CANARY_LOST_AFTER_S + 1)
    assert way.told() == ["canary-lost"]
    (record,) = way.journal.records()
    assert record["TOMBSYNC_REASON"] == "its agent takes nothing from the inbox"
    assert record["TOMBSYNC_PEER"] == "node-b"
    assert "the way to node-b is broken" in record["MESSAGE"]
    way.later(10 * CANARY_INTERVAL_S)
    assert way.told() == ["canary-lost"]


def test_one_that_fails_once_is_nothing_to_tell(way: Way) -> None:
    way.peer.canary_problem = "full?"
    way.later(CANARY_INTERVAL_S + 1)
    assert way.session.canary_problem == "full?"
    way.peer.canary_problem = ""
    way.later(CANARY_LOST_AFTER_S)
    assert way.told() == []


def test_a_way_that_is_whole_again_is_told_once(way: Way) -> None:
    way.peer.canary_problem = "its agent takes nothing from the inbox"
    way.later(TOLD_WITHIN_S)
    way.peer.canary_problem = ""
    way.later(2 * CANARY_INTERVAL_S)
    assert way.told() == ["canary-lost", "canary-returned"]
    assert "is whole again" in way.journal.records()[-1]["MESSAGE"]


def test_a_tree_without_a_root_marker_is_whole_where_it_never_had_one(way: Way) -> None:
    way.reconnect()
    way.later(TOLD_WITHIN_S)
    assert way.told() == []


@pytest.mark.parametrize("reconnect", [False, True], ids=["in one session", "over sessions"])
def test_a_root_marker_that_was_seen_once_is_wanted_from_then_on(way: Way, reconnect: bool) -> None:
    way.peer.make_directory(OWN_DIRECTORY)
    way.later(CANARY_INTERVAL_S + 1)
    way.peer.remove(OWN_DIRECTORY)
    if reconnect:
        way.reconnect()
    way.later(TOLD_WITHIN_S)
    assert way.told() == ["canary-lost"]
    assert "is it mounted there?" in way.journal.records()[0]["TOMBSYNC_REASON"]
    way.peer.make_directory(OWN_DIRECTORY)
    way.later(CANARY_INTERVAL_S + 1)
    assert way.told() == ["canary-lost", "canary-returned"]

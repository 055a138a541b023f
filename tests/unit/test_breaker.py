"""A mass of marks: told from single ones, and held until a person, or a peer that has them, says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.index import HOUR, assert_counts_are_true, query
from tombsync.index import HoldsEnded, Reader, Writer
from tombsync.names import Marked
from tombsync.plan import Breaker, State
from tombsync.work import Sight, Sighting, Source

SECOND = 1_000_000_000
PEERS = {"b": "x", "c": "y"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(str(path))
    writer.sync_peers(PEERS)
    yield writer
    assert_counts_are_true(path, writer.tally)
    writer.close()


def seen(number: int, at_s: float, source: Source = Source.WATCH, size: int = 0) -> tuple[Sighting, Sight]:
    sender = "b" if source is Source.INBOX else ""
    sighting = Sighting(Marked(HOUR, f"stem-{number:06d}"), source, 0, sender=sender, origin=sender)
    return sighting, Sight(regular=True, owner_uid=0, ctime_ns=int(at_s * SECOND), size_bytes=size)


def states(path: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for stem, state in query(path, "SELECT stem, state FROM delivery d JOIN marker m ON m.id = d.marker"):
        found.setdefault(stem, set()).add(state)
    return found


def held(path: Path) -> list[int]:
    """The numbers of the stems that are held, for every peer alike."""
    found = states(path)
    assert all(len(each) == 1 for each in found.values())
    return sorted(int(stem[5:]) for stem, (state,) in found.items() if state == State.HELD)


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 20))
def test_a_full_minute_is_found_whatever_the_order(seconds: list[int], most: int) -> None:
    breaker = Breaker(most)
    for number, second in enumerate(seconds):
        window = breaker.window(second * SECOND)
        full = max(
            (
                sum(first <= other // 10 * 10 < first + 60 for other in seconds[:number])
                for first in range(second // 10 * 10 - 50, second // 10 * 10 + 1, 10)
            ),
        )
        assert (window is not None) == (full >= most)
        if window is not None:
            assert window[0] <= second * SECOND <= window[1]
        breaker.count(second * SECOND)


def test_what_is_counted_is_bounded() -> None:
    breaker = Breaker(1)
    for step in range(30_000):
        breaker.count(step * Breaker.STEP_NS)
    assert breaker.window(0) is None
    assert breaker.window(29_999 * Breaker.STEP_NS) is not None


def test_single_marks_are_not_held(writer: Writer, path: Path) -> None:
    breaker = Breaker(3)
    for number in range(20):
        assert [h.held for h in writer.hide([seen(number, 100.0 + 61 * number)], 0, breaker)] == [False]
    assert held(path) == []


@pytest.mark.parametrize("at_once", [1, 7, 200])
def test_a_mass_is_hidden_and_all_that_is_not_yet_delivered_is_held(writer: Writer, path: Path, at_once: int) -> None:
    breaker = Breaker(5)
    marks = [seen(number, 1000.0 + number) for number in range(20)]
    news = []
    for start in range(0, 20, at_once):
        news += writer.hide(marks[start : start + at_once], 0, breaker)
    assert len(news) == 20
    assert held(path) == list(range(20))
    writer.hide([seen(100, 2000.0)], 0, breaker)
    assert held(path) == list(range(20))


def test_what_was_delivered_before_stays_delivered(writer: Writer, path: Path) -> None:
    breaker = Breaker(2)
    (first,) = writer.hide([seen(0, 1000.0)], 0, breaker)
    writer.hide([seen(1, 1000.0)], 0, breaker)
    with writer.transaction():
        writer.execute("UPDATE delivery SET state = ? WHERE marker = ?", (int(State.CONFIRMED), first.marker))
    writer.load()
    writer.hide([seen(2, 1000.0)], 0, breaker)
    assert held(path) == [1, 2]


@pytest.mark.parametrize("kind", ["inbox", "noted"])
def test_what_was_meant_is_not_held(writer: Writer, path: Path, kind: str) -> None:
    breaker = Breaker(3)
    source, size = (Source.INBOX, 0) if kind == "inbox" else (Source.WATCH, 20)
    for number in range(20):
        writer.hide([seen(number, 1000.0, source, size)], 0, breaker)
    assert held(path) == []


def test_a_release_lets_go_what_was_shown_and_nothing_newer(writer: Writer, path: Path) -> None:
    breaker = Breaker(0)
    first = writer.hide([seen(number, 1000.0) for number in range(3)], 0, breaker)
    writer.hide([seen(number, 1000.0) for number in range(3, 6)], 0, breaker)
    reader = Reader(str(path))
    assert [row.marked.stem for row in reader.held_markers(limit=2)] == ["stem-000005", "stem-000004"]
    assert len(reader.held(1, below=None, limit=10)) == 6
    ended: list[int] = []
    writer.apply([HoldsEnded(ended.append, up_to=first[-1].marker)])
    assert ended == [3]
    assert held(path) == [3, 4, 5]
    writer.apply([HoldsEnded(ended.append, markers=[first[-1].marker + 2])])
    assert ended == [3, 1]
    assert held(path) == [3, 5]
    reader.close()

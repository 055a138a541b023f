"""A mass of marks: told from single ones, and held until a person, or a peer that has them, says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.index import HOUR, assert_counts_are_true, database, query
from tombsync.errors import StateRefused
from tombsync.index import HoldsEnded, HoldsEndedUpTo, Reader, Writer
from tombsync.names import Marked
from tombsync.plan import Breaker, State
from tombsync.work import TRANSACTION_ROWS, Sight, Sighting, Source

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


def seen(
    number: int, at_s: float, source: Source = Source.WATCH, size: int = 0, sender: str = "b"
) -> tuple[Sighting, Sight]:
    sender = sender if source is Source.INBOX else ""
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
    for _ in range(2):
        writer.apply([HoldsEndedUpTo(first[-1].marker, ended.append)])
    assert ended == [3, 0]
    assert held(path) == [3, 4, 5]
    writer.apply([HoldsEnded([first[-1].marker + 2], ended.append)])
    assert ended == [3, 0, 1]
    assert held(path) == [3, 5]
    reader.close()


def test_a_release_of_very_many_is_done_in_small_transactions(writer: Writer, path: Path) -> None:
    marks = [seen(number, 1000.0) for number in range(2 * TRANSACTION_ROWS + 1)]
    last = writer.hide(marks, 0, Breaker(0))[-1].marker
    ended: list[int] = []
    while not ended or ended[-1]:
        writer.apply([HoldsEndedUpTo(last, ended.append)])
    assert ended == [TRANSACTION_ROWS, TRANSACTION_ROWS, 1, 0]
    assert held(path) == []


def test_to_end_some_holds_costs_as_much_however_many_are_held(tmp_path: Path) -> None:
    """Counted in steps of SQLite's machine: they are the same on every day."""

    def steps(held: int) -> int:
        writer = Writer(str(tmp_path / f"{held}.sqlite"))
        writer.sync_peers(PEERS)
        news = writer.hide([seen(number, 1000.0) for number in range(held)], 0, Breaker(0))
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        writer._connection.set_progress_handler(step, 1)
        writer.apply([HoldsEnded([hidden.marker for hidden in news[-20:]], lambda _: None)])
        writer.apply([HoldsEndedUpTo(news[0].marker, lambda _: None)])
        writer._connection.set_progress_handler(None, 1)
        writer.close()
        return count

    assert steps(4000) < 2 * steps(100)


def test_what_was_released_is_not_held_again_with_a_late_one_of_its_mass(writer: Writer, path: Path) -> None:
    marks = writer.hide([seen(number, 1000.0) for number in range(5)], 0, Breaker(0))
    writer.apply([HoldsEndedUpTo(marks[-1].marker, lambda _: None)])
    writer.hide([seen(5, 1001.0)], 0, Breaker(0))
    assert held(path) == [5]


# -- over a restart, and after a failure -------------------------------------------------------------------------------


def test_a_restart_forgets_no_mass(writer: Writer, path: Path) -> None:
    writer.hide([seen(number, 1000.0) for number in range(4)], 0, Breaker(5))
    again = Writer(str(path))
    breaker = Breaker(5)
    again.recall(breaker)
    assert not any(hidden.held for hidden in again.hide([seen(4, 1000.0)], 0, breaker))
    (last,) = again.hide([seen(5, 1000.0)], 0, breaker)
    assert last.held
    assert last.others_held
    writer.load()
    again.close()
    assert held(path) == list(range(6))


def test_only_what_may_be_a_slip_is_recalled(writer: Writer) -> None:
    noted = [seen(number, 1000.0, size=20) for number in range(5)]
    brought = [seen(number, 1000.0, Source.INBOX) for number in range(5, 10)]
    writer.hide([*noted, *brought, seen(10, 1000.0)], 0)
    breaker = Breaker(2)
    writer.recall(breaker)
    assert breaker.window(int(1000.0 * SECOND)) is None
    breaker.count(int(1000.0 * SECOND))
    assert breaker.window(int(1000.0 * SECOND)) is not None


def test_of_very_many_steps_the_latest_marks_are_recalled(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Breaker, "MOST_STEPS", 3)
    for number, at_s in enumerate([900.0, 300.0, 500.0, 100.0]):
        writer.hide([seen(number, at_s)], 0)
    breaker = Breaker(1)
    writer.recall(breaker)
    assert [breaker.window(int(at_s * SECOND)) is not None for at_s in (900.0, 300.0, 500.0, 100.0)] == [
        False,
        True,
        True,
        True,
    ]
    breaker.count(int(700.0 * SECOND))  # and the oldest of them goes first
    assert breaker.window(int(300.0 * SECOND)) is None


def refuse(path: Path, stem: str) -> None:
    """As a full disk does, in the middle of a transaction."""
    with database(path) as connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON marker WHEN NEW.stem = '{stem}'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )


def test_marks_that_could_not_be_written_are_counted_once(writer: Writer, path: Path) -> None:
    breaker = Breaker(6)
    writer.hide([seen(0, 1000.0)], 0, breaker)
    marks = [seen(number, 1000.0) for number in range(1, 4)]
    other = (Sighting(Marked(HOUR._replace(number=HOUR.number + 1), "refused"), Source.WATCH, 0), marks[0][1])
    refuse(path, "refused")
    for _ in range(3):
        with pytest.raises(StateRefused):
            writer.hide([*marks, other], 0, breaker)
    with database(path) as connection:
        connection.execute("DROP TRIGGER refuse")
    assert not any(hidden.held for hidden in writer.hide([*marks, other], 0, breaker))


def test_a_mass_that_could_not_be_written_holds_its_earlier_marks_when_it_can(writer: Writer, path: Path) -> None:
    breaker = Breaker(2)
    for number in range(2):
        writer.hide([seen(number, 1000.0)], 0, breaker)
    with database(path) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON delivery WHEN OLD.marker = 1 BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(StateRefused):
        writer.hide([seen(2, 1000.0)], 0, breaker)
    with database(path) as connection:
        connection.execute("DROP TRIGGER refuse")
    writer.hide([seen(2, 1000.0)], 0, breaker)
    assert held(path) == [0, 1, 2]


# -- what a sender brings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 10])
def test_what_a_sender_brings_too_is_no_mistake_of_this_node(at_once: int, writer: Writer, path: Path) -> None:
    """The sender need be no peer: nobody asks it."""
    breaker = Breaker(0)
    writer.hide([seen(number, 1000.0) for number in range(12)], 0, breaker)
    news = []
    for start in range(0, 10, at_once):
        marks = [seen(number, 1000.0, Source.INBOX, sender="ring") for number in range(start, start + at_once)]
        news += writer.hide(marks, 1, breaker)
    assert len(news) == 10
    assert all(hidden.hold_ended and not (hidden.first or hidden.pushable or hidden.held) for hidden in news)
    assert held(path) == [10, 11]
    reader = Reader(str(path))
    rows = {row.marked.stem: row for row in reader.marker_rows(limit=20)}
    reader.close()
    assert [rows[f"stem-{number:06d}"].also_from for number in (0, 9, 10)] == ["ring", "ring", ""]
    assert {(row.sender, row.origin, row.source) for row in rows.values()} == {("", "", "watch")}
    again = [seen(number, 1000.0, Source.INBOX, sender="other") for number in range(10)]
    assert writer.hide(again, 2, breaker) == []


def test_what_a_sender_brought_first_is_not_also_from_it(writer: Writer, path: Path) -> None:
    for source in (Source.INBOX, Source.WATCH, Source.INBOX):
        writer.hide([seen(0, 1000.0, source, sender="ring")], 0)
    assert query(path, "SELECT sender, also_from FROM marker") == [("ring", None)]

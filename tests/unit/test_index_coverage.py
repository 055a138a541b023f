"""The index's rows of coverage: which hours are due, what makes one old, and what is left when an hour goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.index import HOUR, NEXT_HOUR, STEM, add, drop, hide, query, stem_of
from tombsync.coverage.rows import of_row, to_batch
from tombsync.coverage.rules import Coverage, Reach, judge, sort_out
from tombsync.index import HourGone, HourListed, Made, Reader, Writer
from tombsync.names import Hour
from tombsync.timeline import HOUR_US

LATER_US = 1 << 62


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(str(path))
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: Writer, path: Path) -> Iterator[Reader]:
    reader = Reader(str(path))
    yield reader
    reader.close()


def due(reader: Reader) -> list[tuple[int, Made]]:
    return [
        (number - HOUR.number, made)
        for place, _ in reader.places().values()
        for number, made in reader.coverage_due(place, above=0, limit=100)
    ]


def due_hours(reader: Reader) -> list[int]:
    return [number for number, _ in due(reader)]


def cover(writer: Writer, reader: Reader, hour: Hour = HOUR, now_us: int = LATER_US) -> Coverage:
    """Judge an hour as it is in the index, and keep that."""
    row = reader.hour_row(hour)
    assert row is not None
    (hidden,) = query(writer.path, "SELECT hidden FROM hour WHERE id = ?", [writer.hour_id(hour)])[0]
    before = Reach(*reader.hour_reach(hour._replace(number=hour.number - 1)))
    found = judge(sort_out(hour, reader.segments(hour), reader.markers(hour)), before, now_us, lambda _: 1)
    writer.apply([to_batch(hour, Made(row.edits, row.files, hidden, row.digest), found)])
    return found


def row_of(reader: Reader, hour: Hour = HOUR) -> Coverage:
    place, _ = reader.places()[hour.channel, hour.quality]
    (row,) = reader.coverage_rows(place, first=hour.number, end=hour.number + 1, limit=2)
    return of_row(row)


def test_an_hour_comes_back_as_it_was_judged(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, f"{stem_of(5)}.ts", f"{stem_of(9)}.ts", "odd.ts")
    hide(writer, HOUR, stem_of(9))
    found = cover(writer, reader)
    assert found.tombstoned_us == found.covered_us == 2_000_000
    assert row_of(reader) == found


def test_an_hour_is_due_until_it_is_judged_and_whenever_it_changes(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, f"{STEM}.ts", "other.ts")
    assert due_hours(reader) == [0]
    changes: list[Callable[[], object]] = [
        lambda: add(writer, HOUR, f"{stem_of(5)}.ts", watched=True),
        lambda: drop(writer, HOUR, "other.ts"),
        lambda: hide(writer, HOUR, STEM),
        # As many files as before, which nobody watched: the digest tells.
        lambda: writer.apply([HourListed(HOUR, 1, b"other", 7, settled=False, edits=2)]),
    ]
    for change in changes:
        cover(writer, reader)
        assert due_hours(reader) == []
        change()
        assert due_hours(reader) == [0]


def test_an_hour_that_was_not_over_stays_due(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, f"{STEM}.ts")
    cover(writer, reader, now_us=HOUR.number * HOUR_US + HOUR_US - 1)
    assert due_hours(reader) == [0]
    cover(writer, reader, now_us=HOUR.number * HOUR_US + HOUR_US)
    assert due_hours(reader) == []


def test_a_look_at_unsettled_hours_finds_those_that_changed(writer: Writer, reader: Reader) -> None:
    for hour in (HOUR, NEXT_HOUR):
        add(writer, hour, f"{STEM}.ts")
        writer.apply([HourListed(hour, 1, b"x", 1, settled=True, edits=0)])
        cover(writer, reader, hour)
    assert reader.coverage_due_unsettled(above=0, limit=10) == []
    hide(writer, NEXT_HOUR, STEM)
    ((key, hour, made),) = reader.coverage_due_unsettled(above=0, limit=10)
    assert (hour, made) == (NEXT_HOUR, Made(1, 1, 1, None))
    assert reader.coverage_due_unsettled(above=key, limit=10) == []


def test_an_hour_that_reaches_otherwise_makes_the_next_one_due(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, f"{STEM}.ts")
    add(writer, NEXT_HOUR, f"{STEM}.ts")
    cover(writer, reader)
    assert cover(writer, reader, NEXT_HOUR).hole_us == HOUR_US - 2_000_000
    add(writer, HOUR, f"{stem_of(3598)}.ts")  # from 3598.608 on, 2 s long
    assert due_hours(reader) == [0]
    cover(writer, reader)
    assert due_hours(reader) == [1]
    assert cover(writer, reader, NEXT_HOUR).hole_us == HOUR_US - 2_608_000
    assert due_hours(reader) == []
    add(writer, HOUR, f"{stem_of(3000)}.ts")  # changes nothing at the border
    cover(writer, reader)
    assert due_hours(reader) == []


def test_an_hour_that_goes_takes_its_row_along_and_makes_the_next_one_due(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, f"{stem_of(3598)}.ts")
    add(writer, NEXT_HOUR, f"{STEM}.ts")
    cover(writer, reader)
    cover(writer, reader, NEXT_HOUR)
    drop(writer, HOUR, f"{stem_of(3598)}.ts")
    writer.apply([HourGone(HOUR)])
    assert query(writer.path, "SELECT count(*) FROM coverage") == [(1,)]
    assert due_hours(reader) == [1]
    assert cover(writer, reader, NEXT_HOUR).hole_us == HOUR_US - 2_000_000


def test_an_hour_that_is_gone_meanwhile_is_not_kept(writer: Writer, reader: Reader) -> None:
    add(writer, NEXT_HOUR, f"{STEM}.ts")
    found = judge(sort_out(HOUR, [f"{STEM}.ts"], ()), Reach(), LATER_US, lambda _: 1)
    writer.apply([to_batch(HOUR, Made(0, 1, 0, None), found)])
    assert query(writer.path, "SELECT count(*) FROM coverage") == [(0,)]


def test_sums_are_of_the_hours_asked_for(writer: Writer, reader: Reader) -> None:
    for hour in (HOUR, NEXT_HOUR):
        add(writer, hour, f"{STEM}.ts")
        cover(writer, reader, hour)
    place, _ = reader.places()[HOUR.channel, HOUR.quality]
    assert reader.coverage_sums(place)[:3] == (2, 2 * HOUR_US, 4_000_000)
    assert reader.coverage_sums(place, first=NEXT_HOUR.number)[:3] == (1, HOUR_US, 2_000_000)
    assert reader.coverage_sums(place, first=0, end=HOUR.number)[:3] == (0, 0, 0)
    assert reader.coverage_last(place, end=1 << 26) == NEXT_HOUR.number
    assert reader.coverage_last(place, end=NEXT_HOUR.number) == HOUR.number
    assert reader.coverage_last(place, end=HOUR.number) is None

"""Which file is served for an instant, what follows on what, and times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tombsync import errors
from tombsync.names import Hour, Kind, hour_number
from tombsync.timeline import (
    HOUR_US,
    Piece,
    best,
    best_by_start,
    continued,
    hours_of,
    iso,
    parse_time,
    piece,
    sequence,
    time_text,
    unix_moment_us,
    wall_ns,
)

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
BEGIN_US = HOUR.number * HOUR_US
SECOND_US = 1_000_000


def digest(letter: str) -> str:
    """A hash, as far as the grammar goes."""
    return letter * 42 + "A"


def made(start_s: float, duration_s: float = 2.0, type_: str = "full", letter: str = "a") -> Piece:
    """A piece of the hour that starts `start_s` into it."""
    start_us = BEGIN_US + round(start_s * SECOND_US)
    stem = f"{start_s}-{duration_s}-{type_}-{letter}"
    return Piece(start_us, start_us + round(duration_s * SECOND_US), type_, digest(letter), HOUR, stem, Kind.TS)


def no_size(one: Piece) -> int:
    """Of tests in which nobody may have to look at a file."""
    raise AssertionError(f"{one} was looked at")


def served(pieces: list[Piece], start_s: float, end_s: float) -> list[str | None]:
    """The stems of a sequence."""
    found = sequence(pieces, BEGIN_US + round(start_s * SECOND_US), BEGIN_US + round(end_s * SECOND_US), lambda _: 1)
    return [one and one.stem for one in found]


def test_a_piece_says_when_it_plays() -> None:
    one = piece(HOUR, Kind.TS, f"45:51.608000-2.002-full-{digest('a')}")
    assert one is not None
    assert time_text(one.start_us) == "2019-11-13T02:45:51.608000Z"
    assert one.duration_us == 2_002_000
    assert one.path == f"desertbus/source/2019-11-13T02/45:51.608000-2.002-full-{digest('a')}.ts"


def test_a_batch_of_chat_covers_a_minute() -> None:
    one = piece(HOUR, Kind.JSON, f"45:00-{digest('a')}")
    assert one is not None
    assert (one.type, one.duration_us, one.name) == ("chat", 60 * SECOND_US, f"45:00-{digest('a')}.json")


@pytest.mark.parametrize(
    ("kind", "stem"), [(Kind.TS, "intro"), (Kind.JSON, f"45:51.608000-2.0-full-{digest('a')}"), (Kind.TOMBSTONE, "x")]
)
def test_what_says_no_time_is_no_piece(kind: Kind, stem: str) -> None:
    assert piece(HOUR, kind, stem) is None


def test_full_before_suspect_before_partial_and_temp_never() -> None:
    kinds = [made(0, type_=type_) for type_ in ("temp", "partial", "suspect", "full")]
    for count, expected in ((1, None), (2, "partial"), (3, "suspect"), (4, "full")):
        found = best(kinds[:count], no_size)
        assert (found and found.type) == expected


def test_of_full_ones_the_longest_then_the_largest_then_the_highest_hash() -> None:
    short, a, b, c = made(0, 1.0, letter="z"), made(0, letter="a"), made(0, letter="b"), made(0, letter="c")
    assert best([short, a], no_size) == a
    sizes = {a: 5, b: 9, c: 5}
    assert best([a, b, c, short], sizes.__getitem__) == b
    assert best([a, b, c], lambda _: 7) == c


def test_of_partial_ones_the_largest_however_long_it_claims_to_be() -> None:
    long, large = made(0, 4.0, "partial", "a"), made(0, 2.0, "partial", "b")
    assert best([long, large], {long: 1, large: 2}.__getitem__) == large


def test_one_file_an_instant_in_order() -> None:
    pieces = [made(4), made(0, type_="partial"), made(2), made(0)]
    assert [one.stem for one in best_by_start(pieces, no_size)] == [made(0).stem, made(2).stem, made(4).stem]


def test_a_sequence_covers_the_span_and_no_more() -> None:
    pieces = [made(second) for second in range(0, 20, 2)]
    assert served(pieces, 3, 8) == [made(2).stem, made(4).stem, made(6).stem]
    assert served(pieces, 4, 8) == [made(4).stem, made(6).stem]


def test_breaks_are_shown() -> None:
    pieces = [made(2), made(6), made(8, type_="partial"), made(10)]
    assert served(pieces, 0, 14) == [
        None, made(2).stem, None, made(6).stem, made(8, type_="partial").stem, None, made(10).stem, None,
    ]  # fmt: skip
    assert served([], 0, 2) == [None]
    assert served([made(8)], 0, 2) == [None]


def test_ten_milliseconds_are_nothing() -> None:
    assert None not in served([made(0), made(2.01), made(4.0)], 0, 6)
    assert served([made(0), made(2.011)], 0, 4) == [made(0).stem, None, made(2.011).stem]
    assert served([made(0), made(1.989), made(2)], 0, 4) == [made(0).stem, made(2).stem]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-11-13T02:45:51.608", "2019-11-13T02:45:51.608000Z"),
        ("2019-11-13 02:45:51Z", "2019-11-13T02:45:51.000000Z"),
        ("2019-11-13T02:45", "2019-11-13T02:45:00.000000Z"),
        ("20191113T024551", "2019-11-13T02:45:51.000000Z"),
        ("2019-11-13T01:45:51+02:00", "2019-11-12T23:45:51.000000Z"),
    ],
)
def test_times_that_people_write(text: str, expected: str) -> None:
    assert time_text(parse_time(text)) == expected


@pytest.mark.parametrize("text", ["", "now", "2019-11-13", "02:45:51", "2019-13-01T00:00", "0001-01-01T00:00+09:00",
                                  "2019-W46-3T00:00", "2019-11-13T02:45:51 UTC"])  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(errors.BadTime) as caught:
        parse_time(text)
    assert caught.value.hint


def test_the_clock_counts_from_the_same_beginning() -> None:
    assert time_text(unix_moment_us(1_573_613_151_608_000_999)) == "2019-11-13T02:45:51.608000Z"


def test_the_hours_of_a_span_begin_one_before_it() -> None:
    number = HOUR.number
    assert list(hours_of(BEGIN_US, BEGIN_US + 1)) == [number - 1, number]
    assert list(hours_of(BEGIN_US + 5, BEGIN_US + HOUR_US)) == [number - 1, number]
    assert list(hours_of(BEGIN_US, BEGIN_US + HOUR_US + 1)) == [number - 1, number, number + 1]


def test_what_is_served_can_be_taken_up_again_behind_each_of_its_files() -> None:
    """A page ends behind any file: what follows is the same, no file twice and no break lost."""
    pieces = [
        made(0), made(2), made(4, type_="partial"), made(4.005, 0.001), made(6), made(7), made(8, 0.0), made(8),
        made(12), made(12, type_="suspect", letter="b"), made(13.995, type_="suspect"), made(16, 10), made(30),
    ]  # fmt: skip
    span = BEGIN_US + SECOND_US, BEGIN_US + 20 * SECOND_US
    whole = sequence(pieces, *span, lambda _: 1)
    assert None in whole[1:-1]
    ordered = best_by_start(pieces, lambda _: 1)
    for number, after in enumerate(whole):
        if after is not None:
            assert list(continued(ordered, *span, after=after)) == whole[number + 1 :]


def test_no_more_is_taken_than_is_served() -> None:
    taken = iter([made(0), made(2), made(4), made(6)])
    assert [one and one.start_us for one in continued(taken, BEGIN_US, BEGIN_US + 4 * SECOND_US)] == [
        BEGIN_US, BEGIN_US + 2 * SECOND_US
    ]  # fmt: skip
    assert next(taken) == made(4)


def test_moments_are_told_in_several_ways() -> None:
    one = made(10.5)
    assert (one.start, one.end - one.start) == (datetime(2019, 11, 13, 2, 0, 10, 500_000, tzinfo=UTC), timedelta(0, 2))
    now_ns = 1_573_613_000_123_456_789
    assert iso(now_ns) == "2019-11-13T02:43:20.123456Z"
    assert wall_ns(parse_time("2019-11-13T02:43:20.123456Z")) == 1_573_613_000_123_456_000
    assert wall_ns(parse_time("1969-12-31T23:59:59")) == -1_000_000_000
    assert iso(None) is None

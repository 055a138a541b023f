"""Which arriving segment falls under a takedown: decisions without a clock or a disk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tombsync.names import Hour, classify, hour_number
from tombsync.takedown.late import Late, Reach, by_channel, judge
from tombsync.timeline import HOUR_US, parse_time, piece
from tombsync.tree import Takedown

HASH, OTHER = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM", "A" * 43
HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
TAKEDOWN = Takedown(
    id="k7mq3",
    channel="desertbus",
    start_us=parse_time("2019-11-13T02:45:51.608"),
    end_us=parse_time("2019-11-13T02:45:55.608"),
    qualities=(),
    chat=False,
    sticky=False,
    twins=True,
    hashes=(HASH,),
    reason="",
    actor="ada",
    node="node-a",
    created_at="2019-11-13T03:00:00Z",
)


def why(name: str, hour: Hour = HOUR, takedown: Takedown = TAKEDOWN, marked: tuple[str, ...] = ()) -> Late | None:
    """Of one file; `marked`: stems of its quality, in the hour HOUR."""
    reach = Reach(takedown)
    starts = reach.starts_of(HOUR._replace(quality=hour.quality), marked)
    found = judge(hour, [name], [(reach, starts)])
    return found[0].why if found else None


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        ("45:51.608000", "2.0", Late.CARRIES),
        ("45:49.609000", "2.0", Late.CARRIES),  # ends 1 ms in
        ("45:49.608000", "2.0", None),  # ends where the span begins
        ("45:55.607999", "2.0", Late.CARRIES),
        ("45:55.608000", "2.0", None),
        ("45:00.000000", "3599.9", Late.CARRIES),
    ],
)
def test_the_span_is_half_open(start: str, duration: str, expected: Late | None) -> None:
    for kind in ("full", "suspect", "partial"):
        assert why(f"{start}-{duration}-{kind}-{OTHER}.ts") == expected


def test_every_quality_unless_some_are_named() -> None:
    name, low = f"45:52.000000-2.0-full-{OTHER}.ts", HOUR._replace(quality="480p")
    only = replace(TAKEDOWN, qualities=("source",))
    assert why(name, low) == Late.CARRIES
    assert why(name, low, only) is None
    assert why(name, HOUR, only) == Late.CARRIES
    assert why(name, HOUR._replace(channel="otherbus")) is None


def test_a_file_of_the_hour_before_that_reaches_into_the_span() -> None:
    at = replace(TAKEDOWN, start_us=HOUR.number * HOUR_US, end_us=HOUR.number * HOUR_US + 1_000_000)
    before = HOUR._replace(number=HOUR.number - 1)
    assert why(f"59:59.000000-2.0-full-{OTHER}.ts", before, at) == Late.CARRIES
    assert why(f"59:57.000000-2.0-full-{OTHER}.ts", before, at) is None


@pytest.mark.parametrize(
    ("offset", "expected"), [(-2, Late.COPY), (-1, Late.COPY), (1, Late.COPY), (2, None), (-3, None)]
)
def test_a_copy_counts_in_the_hours_around(offset: int, expected: Late | None) -> None:
    """A file stands in the hour in which it starts, so that those of the span are its own hour and the one before."""
    hour = HOUR._replace(number=HOUR.number + offset, quality="480p")
    assert why(f"10:00.000000-2.0-full-{HASH}.ts", hour) == expected
    assert why(f"10:00.000000-2.0-full-{HASH}.ts", hour, replace(TAKEDOWN, twins=False)) is None
    assert why(f"10:00.000000-2.0-full-{OTHER}.ts", hour) is None


MARKED = f"45:50.000000-2.0-full-{OTHER}"  # its second half is in the span


@pytest.mark.parametrize(
    ("start", "expected", "without_twins"),
    [
        ("45:50.000000", Late.INSTANT, Late.INSTANT),
        ("45:50.000400", Late.NEXT_TO, None),
        ("45:49.990000", Late.NEXT_TO, None),
        ("45:50.010000", Late.NEXT_TO, None),
        ("45:50.010001", None, None),
        ("45:49.989999", None, None),
    ],
)
def test_what_starts_with_or_next_to_a_marked_one(
    start: str, expected: Late | None, without_twins: Late | None
) -> None:
    """Each ends before the span begins, and would be served for an instant of which one was marked."""
    name = f"{start}-1.0-partial-{'B' * 42}A.ts"
    assert why(name, marked=(MARKED,)) == expected
    assert why(name, takedown=replace(TAKEDOWN, twins=False), marked=(MARKED,)) == without_twins
    assert why(name) is None


def test_a_mark_that_the_takedown_is_not_about_draws_nothing_in() -> None:
    elsewhere = f"10:00.000000-2.0-full-{OTHER}"
    assert why(f"10:00.000400-2.0-full-{'B' * 42}A.ts", marked=(elsewhere,)) is None
    copy = f"10:00.000000-2.0-full-{HASH}"
    assert why(f"10:00.000400-2.0-full-{'B' * 42}A.ts", marked=(copy,)) == Late.NEXT_TO


def test_chat_only_where_it_was_asked_for() -> None:
    chat = HOUR._replace(quality="chat")
    asked = replace(TAKEDOWN, chat=True, qualities=("480p",))
    assert why(f"45:00-{HASH}.json", chat) is None
    assert why(f"45:00-{OTHER}.json", chat, asked) == Late.CARRIES
    assert why(f"10:00-{HASH}.json", chat, asked) == Late.COPY
    assert why(f"10:00-{OTHER}.json", chat, asked) is None


@pytest.mark.parametrize(
    "name", ["45:52.000000-2.0-temp-0b5c0c5e-3b0e-4a31-9f57-6c1c2a1c7d9e.ts", "x.ts", f"45:52-{HASH}.ts", ""]
)
def test_what_is_being_written_or_says_no_time_is_left_alone(name: str) -> None:
    assert why(name) is None


def test_of_several_takedowns_the_sticky_one_counts() -> None:
    stem = f"45:52.000000-2.0-full-{OTHER}"
    reaches = [Reach(TAKEDOWN), Reach(replace(TAKEDOWN, id="sticky", sticky=True)), Reach(replace(TAKEDOWN, id="more"))]
    (find,) = judge(HOUR, [f"{stem}.ts"], [(reach, ()) for reach in reaches])
    assert find.reach.takedown.id == "sticky"
    assert find.piece == piece(HOUR, classify(f"{stem}.ts")[0], stem)


def test_only_those_that_run_are_held_against() -> None:
    ended = replace(TAKEDOWN, id="ended", ended_at="2019-11-14T00:00:00Z")
    other = replace(TAKEDOWN, id="other", channel="otherbus")
    found = by_channel([TAKEDOWN, ended, other])
    assert {channel: [reach.takedown.id for reach in reaches] for channel, reaches in found.items()} == {
        "desertbus": ["k7mq3"],
        "otherbus": ["other"],
    }
    assert by_channel([ended]) == {}


def test_when_it_was_made_is_unix_time() -> None:
    assert Reach(replace(TAKEDOWN, created_at="1970-01-02T01:00:00.5+01:00")).made_at_ns == 86_400_500_000_000

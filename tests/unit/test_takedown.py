"""Which files carry a moment, what hiding them costs, and which instants have several versions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tombsync.names import Hour, Kind, hour_number
from tombsync.takedown.cost import Cost, Visible, cost_of, instead_of
from tombsync.takedown.find import Asked, Files, Found, Why, find
from tombsync.takedown.look import visible
from tombsync.takedown.versions import versions
from tombsync.timeline import HOUR_US, TOLERANCE_US, Piece, hours_of, parse_time, piece

SECOND_US = 1_000_000
FIRST = hour_number("2019-11-12T22")
MIDNIGHT_US = parse_time("2019-11-13T00:00:00")
LETTERS = "abcdefgh"
TYPES = ("full", "suspect", "partial", "temp")


def made(
    start_us: int, duration_us: int = 2 * SECOND_US, type_: str = "full", letter: str = "", quality: str = "source"
) -> Piece:
    """A file as the tree names it; one without a letter is a copy of nothing."""
    hour = Hour("desertbus", quality, start_us // HOUR_US)
    kind = Kind.JSON if type_ == "chat" else Kind.TS
    digest = letter * 42 + "A" if letter else f"{quality}-{start_us}-{type_}-{duration_us}"
    return Piece(
        start_us, start_us + duration_us, type_, digest, hour, f"{start_us}-{duration_us}-{type_}-{digest}", kind
    )


def sorted_into(pieces: Iterable[Piece], marked: Iterable[Piece] = ()) -> list[Files]:
    """The hours that hold these files."""
    hours: dict[Hour, list[Piece]] = {}
    for one in pieces:
        hours.setdefault(one.hour, []).append(one)
    stems = frozenset(one.stem for one in marked)
    return [Files(hour, found, stems, stems) for hour, found in hours.items()]


def asked(start_s: float, end_s: float, *qualities: str, chat: bool = False, twins: bool = True) -> Asked:
    """A takedown of seconds that count from midnight."""
    start_us, end_us = (MIDNIGHT_US + round(s * SECOND_US) for s in (start_s, end_s))
    return Asked("desertbus", start_us, end_us, qualities, chat=chat, twins=twins)


def at(second: float, **more: object) -> Piece:
    """A file that starts so many seconds after midnight."""
    return made(MIDNIGHT_US + round(second * SECOND_US), **more)  # type: ignore[arg-type]


def reasons(found: Found) -> dict[Piece, Why]:
    return {match.piece: match.why for match in found.matches}


# -- which are found ---------------------------------------------------------------------------------------------------


def test_the_ends_of_a_span_are_exact() -> None:
    before, first, last, after = at(-2), at(-1.999999), at(3.999999), at(4)
    found = find(asked(0, 4, twins=False), sorted_into([before, first, last, after]))
    assert set(reasons(found)) == {first, last}


@pytest.mark.parametrize(("second", "is_found"), [(9.999, False), (10, True), (11, True), (12, False)])
def test_a_file_whose_name_says_no_length_counts_where_it_starts(second: float, is_found: bool) -> None:
    """There is something in it all the same."""
    assert bool(find(asked(10, 12, twins=False), sorted_into([at(second, duration_us=0)])).marks) is is_found


def test_what_plays_across_midnight_is_found_from_both_sides() -> None:
    across = at(-0.5)
    assert across.hour.text == "2019-11-12T23"
    for span in ((-0.5, 0.5), (-0.25, 0), (0, 0.001), (1.499999, 9)):
        assert set(reasons(find(asked(*span), sorted_into([across])))) == {across}
    assert asked(0, 0.001).span_hours == range(FIRST + 2, FIRST + 3)
    assert FIRST + 1 in asked(0, 0.001).hours


def test_every_quality_and_every_version_of_an_instant() -> None:
    pieces = [at(0, type_=type_, quality=quality) for type_ in TYPES[:3] for quality in ("source", "160p")]
    assert set(reasons(find(asked(1, 2), sorted_into(pieces)))) == set(pieces)
    source = find(asked(1, 2, "source"), sorted_into(pieces))
    assert {match.piece.hour.quality for match in source.matches} == {"source"}
    assert len(source.marks) == 3


@pytest.mark.parametrize("twins", [True, False])
def test_a_version_that_ends_before_the_span_is_what_would_be_served(twins: bool) -> None:
    full, partial = at(0), at(0, duration_us=SECOND_US, type_="partial")
    found = find(asked(1.5, 2, twins=twins), sorted_into([full, partial]))
    assert reasons(found) == {full: Why.CARRIES, partial: Why.INSTANT}


def test_twins_are_copies_anywhere_and_names_next_to_one() -> None:
    full = at(0, letter="a")
    copies = [at(-3000, letter="a"), at(3000, letter="a", quality="160p"), at(-5000, letter="a")]
    near, far = at(-2.01, duration_us=SECOND_US), at(-1.989999, duration_us=SECOND_US)
    start = at(-2, letter="b")
    others = [at(-2, quality="160p", duration_us=SECOND_US), at(3600)]
    files = sorted_into([full, *copies, near, far, start, *others])
    found = find(asked(-0.5, 1, "source"), files)
    assert reasons(found) == {
        full: Why.CARRIES,
        start: Why.CARRIES,
        near: Why.NEXT_TO,
        **dict.fromkeys(copies, Why.COPY),
    }
    assert {match.of for match in found.matches if match.why is Why.NEXT_TO} == {start}
    assert set(reasons(find(asked(-0.5, 1, "source", twins=False), files))) == {full, start}


def test_twins_of_a_twin_are_found() -> None:
    full, copy = at(0, letter="a"), at(1000, letter="a")
    beside = at(1000.004, letter="b")
    again = at(2000, letter="b", quality="160p")
    found = find(asked(0, 1), sorted_into([full, copy, beside, again]))
    assert reasons(found) == {full: Why.CARRIES, copy: Why.COPY, beside: Why.NEXT_TO, again: Why.COPY}


def test_temp_is_told_and_never_marked() -> None:
    temp = at(0, type_="temp")
    found = find(asked(0, 1), sorted_into([temp]))
    assert [match.piece for match in found.temps] == [temp]
    assert found.marks == [] and found.hashes == ()


def test_chat_is_shown_whatever_the_quality_and_marked_only_when_asked_for() -> None:
    chat = at(-30, duration_us=60 * SECOND_US, type_="chat", quality="chat", letter="c")
    copy = at(600, duration_us=60 * SECOND_US, type_="chat", quality="chat", letter="c")
    video = at(0, letter="c")  # no hash of a batch is one of a segment, and where it were, it says nothing
    files = sorted_into([chat, copy, video])
    found = find(asked(0, 1, "source"), files)
    assert [match.piece for match in found.marks] == [video]
    assert {match.piece for match in found.chat_left} == {chat, copy}
    with_chat = find(asked(0, 1, "source", chat=True), files)
    assert {match.piece for match in with_chat.marks} == {chat, copy, video}
    assert with_chat.chat_left == []


def test_what_is_marked_already_is_shown_as_such() -> None:
    first, second = at(0), at(2)
    found = find(asked(0, 4), sorted_into([first, second], [second]))
    assert [(match.piece, match.is_marked) for match in found.marks] == [(first, False), (second, True)]
    assert found.hashes == tuple(sorted([first.hash, second.hash]))


def test_files_without_a_time_count_in_the_hours_of_the_span_alone() -> None:
    def files(hour: int, quality: str) -> Files:
        return Files(Hour("desertbus", quality, hour), [], timeless=1 << (hour - FIRST))

    hours = [files(FIRST + number, quality) for number in range(4) for quality in ("source", "160p")]
    assert find(asked(0, 1), hours).timeless == 2 * 4
    assert find(asked(-1, 1, "source"), hours).timeless == 2 + 4


def test_the_first_and_the_last_hour_of_the_calendar_have_neighbours_with_names() -> None:
    for start, end in (("0001-01-01T00:00", "0001-01-01T00:01"), ("9999-12-31T23:58", "9999-12-31T23:59")):
        takedown = Asked("desertbus", parse_time(start), parse_time(end))
        assert all(Hour("desertbus", "source", number).text for number in takedown.hours)


# Starts on a grid that makes the same instant, and names just within and just beyond the tolerance, likely.
STARTS = st.builds(
    lambda second, offset_us: MIDNIGHT_US + second * SECOND_US + offset_us,
    st.integers(-7200, 7200),
    st.sampled_from([0, 1, TOLERANCE_US - 1, TOLERANCE_US, TOLERANCE_US + 1, -1, -TOLERANCE_US]),
) | st.builds(lambda second: MIDNIGHT_US + second * SECOND_US, st.integers(-4, 4))
PIECES = st.lists(
    st.builds(
        made,
        STARTS,
        st.sampled_from([1, SECOND_US, 2 * SECOND_US, 60 * SECOND_US]),
        st.sampled_from([*TYPES, "chat"]),
        st.sampled_from([*LETTERS, *[""] * 8]),
        st.sampled_from(["source", "160p"]),
    ),
    max_size=25,
    unique=True,
)


@given(PIECES, STARTS, st.integers(1, 3600 * SECOND_US), st.sampled_from([(), ("source",)]), st.booleans())
def test_all_that_carries_a_part_is_found_and_nothing_else_but_twins(
    pieces: list[Piece], start_us: int, length_us: int, qualities: tuple[str, ...], twins: bool
) -> None:
    takedown = Asked("desertbus", start_us, start_us + length_us, qualities, twins=twins)
    why = reasons(find(takedown, sorted_into(pieces)))
    carrying = {
        one
        for one in pieces
        if one.start_us < start_us + length_us
        and one.end_us > start_us
        and (one.type == "chat" or not qualities or one.hour.quality in qualities)
    }
    assert {one for one, reason in why.items() if reason is Why.CARRIES} == carrying
    wanted = set(carrying)
    while more := {one for one in pieces if one not in wanted and any(beside(one, of, twins) for of in wanted)}:
        wanted |= more
    assert set(why) == wanted
    assert {one.hour.number for one in carrying} <= set(hours_of(start_us, start_us + length_us))


def beside(one: Piece, of: Piece, twins: bool) -> bool:
    """The rule of twins and instants, by the letter."""
    if (one.type == "chat") is not (of.type == "chat"):
        return False
    apart_us = abs(one.start_us - of.start_us)
    if one.hour.quality == of.hour.quality and apart_us <= (TOLERANCE_US if twins else 0):
        return True
    return twins and one.hash == of.hash


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_the_cost_is_what_could_be_played_before() -> None:
    pieces = [at(2 * number) for number in range(5)]  # 0 to 10 s
    going = pieces[1:3]  # 2 to 6 s
    start_us, end_us = MIDNIGHT_US + 3 * SECOND_US, MIDNIGHT_US + 5 * SECOND_US
    cost = cost_of(pieces, going, start_us, end_us)
    assert cost == Cost(2 * SECOND_US, SECOND_US, SECOND_US, 0)
    assert cost.beyond_us == 2 * SECOND_US


def test_what_another_file_still_plays_is_not_lost() -> None:
    going = at(0)
    longer = at(-1, duration_us=2 * SECOND_US)
    cost = cost_of([going, longer, at(0, type_="temp")], [going], MIDNIGHT_US, MIDNIGHT_US + 2 * SECOND_US)
    assert cost == Cost(SECOND_US, 0, 0, SECOND_US)


@given(PIECES, st.data())
def test_the_cost_is_that_of_counting_every_moment(pieces: list[Piece], data: st.DataObject) -> None:
    shown = [one for one in pieces if one.hour.quality == "source" and one.type != "chat"]
    going = set(data.draw(st.lists(st.sampled_from(shown), unique=True))) if shown else set()
    start_us = data.draw(STARTS)
    end_us = start_us + data.draw(st.integers(1, 100 * SECOND_US))
    edges = sorted({start_us, end_us, *(us for one in shown for us in (one.start_us, one.end_us))})
    lost = {"within": 0, "before": 0, "after": 0, "left": 0}
    for first_us, last_us in pairwise(edges):
        playing = [one for one in shown if one.type != "temp" and one.overlaps(first_us, last_us)]
        where = "before" if last_us <= start_us else "after" if first_us >= end_us else "within"
        if playing and set(playing) <= going:
            lost[where] += last_us - first_us
        elif playing and where == "within":
            lost["left"] += last_us - first_us
    assert cost_of(shown, going, start_us, end_us) == Cost(lost["within"], lost["before"], lost["after"], lost["left"])


def test_what_is_served_instead_of_one_that_is_hidden_alone() -> None:
    full, suspect, near = at(2), at(2, type_="suspect"), at(2.004)
    around = Visible([at(0), full, suspect, near, at(4), at(2, type_="temp")], lambda _: 1)
    assert instead_of(around, full) == (True, [suspect])
    assert instead_of(around, suspect) == (False, [])
    assert instead_of(around, near) == (False, [])
    assert instead_of(Visible([at(0), full, near, at(4)], lambda _: 1), full) == (True, [near])
    assert instead_of(around, at(0)) == (True, [])


def test_a_long_file_that_starts_far_before_is_served_instead() -> None:
    long = at(-100, duration_us=500 * SECOND_US, type_="partial")
    full, before = at(0), at(-100)
    around = Visible([long, before, full], lambda _: 1)
    assert instead_of(around, full) == (
        True,
        [],
    )  # a full one is served from the same start, and the rest is passed over
    assert instead_of(Visible([long, full], lambda _: 1), long) == (True, [full])


def test_what_is_visible_leaves_out_what_is_hidden_and_chat() -> None:
    shown, hidden = at(0), at(2)
    chat = at(0, type_="chat", quality="chat")
    assert visible(sorted_into([shown, hidden, chat], [hidden])) == {"source": [shown], "chat": []}


# -- several versions --------------------------------------------------------------------------------------------------


def test_versions_say_which_is_served_and_why() -> None:
    sizes = {"a": 5, "b": 9, "c": 9}
    cases = [
        ([at(0), at(0, type_="suspect")], "full goes before suspect"),
        ([at(2, type_="partial"), at(2, type_="suspect")], "suspect goes before partial"),
        ([at(4), at(4, duration_us=SECOND_US)], "the longest"),
        ([at(6, letter="a"), at(6, letter="b")], "the largest"),
        ([at(8, letter="b"), at(8, letter="c")], "the highest hash"),
        ([at(10, type_="partial", letter="a"), at(10, type_="partial", letter="b")], "the largest"),
    ]
    single = [at(12), at(14, type_="partial"), at(14, type_="temp")]
    pieces = [one for same, _ in cases for one in same] + single
    found = versions(pieces, lambda one: sizes.get(one.hash[0], 0))
    assert [instant.reason for instant in found] == [reason for _, reason in cases]
    for (same, _), instant in zip(cases, found, strict=True):
        assert {instant.served, *instant.rest} == set(same)
    assert [instant.served.hash[0] for instant in found[3:]] == ["b", "c", "b"]


def test_a_size_is_asked_for_only_where_it_decides() -> None:
    def size_of(one: Piece) -> int:
        raise AssertionError(f"{one} was looked at")

    (instant,) = versions([at(0), at(0, type_="suspect"), at(2)], size_of)
    assert instant.served.type == "full"


def test_a_name_as_the_tree_has_it_is_found() -> None:
    hour = Hour("desertbus", "source", hour_number("2019-11-13T02"))
    one = piece(hour, Kind.TS, f"45:51.608000-2.0-full-{'a' * 42}A")
    assert one is not None
    start_us = parse_time("2019-11-13T04:45:52+02:00")
    found = find(Asked("desertbus", start_us, start_us + 1), [Files(hour, [one])])
    assert [match.piece for match in found.marks] == [one]

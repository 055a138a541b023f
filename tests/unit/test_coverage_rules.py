"""What an hour shows: the law of its sum, and the same as counting small cells of time one by one."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.index import CHAT_HOUR, HOUR
from tombsync.coverage.rules import (
    COVERED,
    HOLE,
    NOTHING,
    PARTIAL,
    PIXEL_US,
    PIXELS,
    TOMBSTONED,
    TYPES,
    Coverage,
    Files,
    Reach,
    judge,
    sort_out,
)
from tombsync.names import Hour, Kind, Segment, segment_stem
from tombsync.timeline import HOUR_US, TOLERANCE_US, Piece

START_US = HOUR.number * HOUR_US
LATER_US = START_US + 10 * HOUR_US
NO_REACH = Reach()
CELL_US = 20_000  # more than the tolerance, so that in whole cells it changes nothing
UUID = "0b9cf3ff-4e0d-4a0f-b5c8-0a2f3d6a4f10"


class Made(NamedTuple):
    """A file to judge: from which cell, for how many, and of which size."""

    cell: int
    cells: int
    type: str = "full"
    hidden: bool = False
    size_bytes: int = 1
    letter: str = "a"


def name(one: Made) -> str:
    seconds = one.cells * CELL_US / 1e6
    told = UUID[:-1] + one.letter if one.type == "temp" else one.letter * 42 + "A"
    return segment_stem(Segment(one.cell * CELL_US, seconds, one.type, told)) + ".ts"


def look(made: list[Made], *, before: Reach = NO_REACH, now_us: int = LATER_US, hour: Hour = HOUR) -> Coverage:
    """Judge files by their names; each has the size that it was made with."""
    names = {name(one): one for one in made}
    hidden = {name_.removesuffix(".ts") for name_, one in names.items() if one.hidden}
    return judge(sort_out(hour, names, hidden), before, now_us, lambda piece: names[piece.name].size_bytes)


def seconds(*lengths_us: int) -> tuple[float, ...]:
    return tuple(us / 1e6 for us in lengths_us)


def served_cells(made: list[Made]) -> tuple[set[int], set[int]]:
    """Cells that are covered, and those of full files: by the rule's words, instant by instant."""
    covered: set[int] = set()
    full: set[int] = set()
    for cell in {one.cell for one in made}:
        same = [one for one in made if one.cell == cell]
        for type_ in ("full", "suspect", "partial"):
            if kind := [one for one in same if one.type == type_]:
                if type_ == "full":
                    best = max(kind, key=lambda one: one.cells)
                    full |= set(range(best.cell, best.cell + best.cells))
                else:
                    best = max(kind, key=lambda one: (one.size_bytes, one.letter))
                covered |= set(range(best.cell, best.cell + best.cells))
                break
    return covered, full


MADE = st.lists(
    st.builds(
        Made,
        cell=st.integers(0, 60),
        cells=st.integers(0, 12),
        type=st.sampled_from(["full", "suspect", "partial", "temp"]),
        hidden=st.booleans(),
        size_bytes=st.integers(0, 3),
        letter=st.sampled_from("bcde"),
    ),
    max_size=14,
    unique_by=lambda one: (one.cell, one.type, one.letter),
)


@given(MADE)
def test_it_is_what_counting_cells_gives(made: list[Made]) -> None:
    found = look(made)
    covered, full = served_cells([one for one in made if not one.hidden])
    everything, _ = served_cells(made)
    assert found.covered_us == len(covered) * CELL_US
    assert found.partial_us == len(covered - full) * CELL_US
    assert found.tombstoned_us == len(everything - covered) * CELL_US
    assert found.hole_us == HOUR_US - len(covered | everything) * CELL_US
    visible = [one for one in made if not one.hidden]
    assert found.counts == tuple(sum(one.type == type_ for one in visible) for type_ in TYPES)
    assert found.hidden == len(made) - len(visible)


REACH = st.builds(lambda some: Reach(*some), st.tuples(*[st.integers(0, 3 * HOUR_US) | st.integers(0, 3_000_000)] * 4))
PIECES = st.lists(
    st.builds(
        lambda start_us, length_us, type_, number: Piece(
            START_US + start_us, START_US + start_us + length_us, type_, f"{number:03d}", HOUR, "stem", Kind.TS
        ),
        st.integers(0, HOUR_US - 1) | st.integers(0, 40).map(lambda many: many * 9_999),
        st.integers(0, 100_000) | st.integers(0, 2 * HOUR_US),
        st.sampled_from(["full", "suspect", "partial", "temp"]),
        st.integers(0, 200),
    ),
    max_size=12,
)


@given(PIECES, PIECES, REACH, st.integers(-HOUR_US, 3 * HOUR_US))
def test_the_parts_of_an_hour_are_the_whole(
    visible: list[Piece], hidden: list[Piece], before: Reach, now_us: int
) -> None:
    # Of the hour before, what is full or taken is covered, and what is covered would be so if nothing were hidden.
    any_us = max(before)
    covered_us = max(before.covered_us, before.full_us, before.taken_us)
    before = Reach(covered_us, before.full_us, any_us, before.taken_us)
    found = judge(Files(HOUR, visible, hidden), before, START_US + now_us, lambda piece: int(piece.hash))
    assert found.span_us == min(max(0, now_us), HOUR_US)
    assert found.covered_us + found.tombstoned_us + found.hole_us == found.span_us
    assert min(found.covered_us, found.tombstoned_us, found.hole_us) >= 0
    assert 0 <= found.partial_us <= found.covered_us
    assert 0 <= found.editable_us <= found.covered_us
    assert found.overlap_us >= found.overlaps * TOLERANCE_US
    strip = found.strip
    assert len(strip) == PIXELS
    assert strip.count(NOTHING) == PIXELS - -(-found.span_us // PIXEL_US)
    for state, length_us in ((HOLE, found.hole_us), (TOMBSTONED, found.tombstoned_us), (PARTIAL, found.partial_us)):
        if not length_us:  # no pixel shows what is not there
            assert state not in strip
        if state == HOLE:  # and a hole, the worst, is shown by each pixel that it touches
            assert strip.count(HOLE) >= length_us / PIXEL_US


@given(PIECES, PIECES, REACH)
def test_hiding_moves_time_from_covered_to_tombstoned_only(
    pieces: list[Piece], more: list[Piece], before: Reach
) -> None:
    """Hiding a file never makes a hole: what is neither covered nor tombstoned is so without tombstones too."""
    before = Reach(*[max(before)] * 4)
    shown = judge(Files(HOUR, pieces + more), before, LATER_US, lambda piece: int(piece.hash))
    hiding = judge(Files(HOUR, pieces, more), before, LATER_US, lambda piece: int(piece.hash))
    assert hiding.hole_us <= shown.hole_us
    assert hiding.reach.any_us == shown.reach.any_us


# -- what the archive's checker counts ---------------------------------------------------------------------------------


def test_what_overlaps_is_counted_from_the_furthest_end_so_far() -> None:
    """A long one over two short ones: each of them overlaps, the second too, although the first ended before it."""
    found = look([Made(0, 500), Made(100, 100), Made(250, 100), Made(500, 100)])
    assert (found.overlaps, found.overlap_us) == (2, 200 * CELL_US)
    assert (found.covered_us, found.editable_us) == (600 * CELL_US, 600 * CELL_US)


def test_what_the_cutter_passes_over_is_not_editable() -> None:
    # [0, 100) is taken; [90, 190) begins before its end and is passed over; [190, 290) is taken.
    found = look([Made(0, 100), Made(90, 100), Made(190, 100)])
    assert found.covered_us == 290 * CELL_US
    assert found.editable_us == 200 * CELL_US


def test_a_pixel_shows_the_worst_of_its_two_seconds() -> None:
    # 100 cells are a pixel: covered; covered and partial; partial and hidden; hidden and a hole; a hole.
    made = [
        Made(0, 150), Made(150, 100, "partial"), Made(250, 60, hidden=True),
    ]  # fmt: skip
    assert look(made).strip[:5] == bytes([COVERED, PARTIAL, TOMBSTONED, HOLE, HOLE])


@pytest.mark.parametrize(("now_s", "span_s"), [(-5, 0), (0, 0), (1.5, 1.5), (3600, 3600), (3601, 3600)])
def test_an_hour_that_runs_ends_now(now_s: float, span_s: float) -> None:
    found = look([], now_us=START_US + round(now_s * 1e6))
    assert seconds(found.span_us, found.covered_us, found.hole_us) == (span_s, 0, span_s)
    assert found.strip.count(HOLE) == -(-span_s // 2)
    assert set(found.strip) <= {HOLE, NOTHING}


def test_a_file_of_the_running_hour_counts_as_far_as_it_has_played() -> None:
    found = look([Made(0, 100)], now_us=START_US + 1_000_000)
    assert seconds(found.span_us, found.covered_us, found.hole_us) == (1, 1, 0)
    assert found.reach == Reach()


def test_how_far_an_hour_reaches_over_its_border() -> None:
    last = HOUR_US // CELL_US
    made = [Made(last - 10, 20, "partial"), Made(last - 20, 25), Made(last - 30, 60, hidden=True)]
    reach = look(made).reach
    # Covered by the partial, 10 cells; by the full one 5; by the hidden one 30; the partial begins before the full one
    # has ended, so the cutter takes only the full one.
    assert reach == Reach(10 * CELL_US, 5 * CELL_US, 30 * CELL_US, 5 * CELL_US)
    following = look([], before=reach, hour=HOUR)
    assert seconds(following.covered_us, following.partial_us, following.tombstoned_us, following.editable_us) == (
        0.2, 0.1, 0.4, 0.1,
    )  # fmt: skip
    assert following.reach == Reach()  # not of its own


def test_what_is_longer_than_an_hour_covers_the_next_one_and_no_more() -> None:
    long = look([Made(0, 3 * HOUR_US // CELL_US)])
    assert long.hole_us == 0
    second = look([], before=long.reach)
    assert (second.hole_us, second.reach) == (0, Reach())


def test_sizes_are_asked_only_where_it_matters_which_is_served() -> None:
    def none(piece: Piece) -> int:
        raise AssertionError(f"{piece} was looked at")

    twins = [Made(0, 100, letter=letter) for letter in "bcd"]
    twins += [Made(100, 50, "partial", letter=letter) for letter in "bc"]
    files = sort_out(HOUR, map(name, twins), ())
    found = judge(files, Reach(), LATER_US, none)
    assert (found.covered_us, found.overlaps) == (150 * CELL_US, 3)


def test_chat_is_its_batches_and_video_its_segments() -> None:
    batch, segment = f"10:00-{'a' * 42}A", name(Made(0, 100))
    chat = sort_out(CHAT_HOUR, [f"{batch}.json", segment], ())
    assert dict(chat.counts) == {"chat": 1, "bad": 1}
    video = sort_out(HOUR, [f"{batch}.json", segment, "x.tombstone", ".hidden.ts", "note.txt"], ())
    assert dict(video.counts) == {"full": 1, "bad": 1}
    assert video.hidden == chat.hidden == []


def test_long_work_gives_way_again_and_again() -> None:
    asked: list[None] = []
    names = [name(Made(100 * number, 100)) for number in range(1800)]
    files = sort_out(HOUR, names, (), lambda: asked.append(None))
    judge(files, NO_REACH, LATER_US, lambda _: 1, lambda: asked.append(None))
    assert len(asked) >= 2 * 1800 // 128

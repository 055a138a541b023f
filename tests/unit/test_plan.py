from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tombsync import plan
from tombsync.plan import Need, State, reconcile

# -- what a stem needs -------------------------------------------------------------------------------------------------

ANY = (False, True)
YES = (True,)
NO = (False,)
# recorded, in the tree once, present, hour present, gone for long, open deliveries -> what it needs
RULES: list[tuple[Any, ...]] = [
    (NO, ANY, NO, ANY, ANY, ANY, Need.NOTHING),
    (NO, ANY, YES, ANY, ANY, ANY, Need.HIDE),
    (YES, ANY, YES, ANY, ANY, ANY, Need.NOTHING),
    (YES, NO, NO, ANY, ANY, ANY, Need.WAIT),
    (YES, YES, NO, ANY, NO, ANY, Need.WAIT),
    (YES, YES, NO, YES, YES, ANY, Need.PUT_BACK),
    (YES, YES, NO, NO, YES, YES, Need.WAIT),
    (YES, YES, NO, NO, YES, NO, Need.FORGET),
]
CASES = list(itertools.product(ANY, repeat=6))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "".join("ny"[flag] for flag in case))
def test_every_case_of_a_stem_has_one_answer(case: tuple[bool, ...]) -> None:
    answers = [need for *rule, need in RULES if all(flag in flags for flag, flags in zip(case, rule, strict=True))]
    (need,) = answers
    recorded, in_tree, present, hour_present, long, open_deliveries = case
    for missing_for_s in (60.0, 1e9) if long else (0.0, 59.999):
        assert need is reconcile(
            recorded=recorded,
            in_tree=in_tree,
            present=present,
            hour_present=hour_present,
            missing_for_s=missing_for_s,
            open_deliveries=open_deliveries,
        )


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1e9))
@example(True, True, False, True, False, 60.0)
@example(True, True, False, False, False, 59.99)
def test_nothing_is_put_back_or_forgotten_too_early(
    recorded: bool, in_tree: bool, present: bool, hour_present: bool, open_deliveries: bool, missing_for_s: float
) -> None:
    need = reconcile(
        recorded=recorded,
        in_tree=in_tree,
        present=present,
        hour_present=hour_present,
        missing_for_s=missing_for_s,
        open_deliveries=open_deliveries,
    )
    assert (need is Need.HIDE) == (present and not recorded)
    if need in (Need.PUT_BACK, Need.FORGET):
        assert recorded
        assert not present
        assert missing_for_s >= 60.0
        assert hour_present == (need is Need.PUT_BACK)
    if need is Need.FORGET:
        assert not open_deliveries


@given(st.floats(0, 1e9), st.floats(0, 1e6))
@example(0.1, 60.0)
@example(0.0, 60.0)
def test_a_stem_that_waits_is_looked_at_again_in_time(since: float, waited_s: float) -> None:
    now = since + waited_s
    again = plan.look_again_at(since, now)
    assert now < again <= now + 60.0
    if waited_s < 59:
        assert again == since + 60.0
    # A turn begins a little after its time: then it is long enough, and the stem is not made to wait once more.
    missing_for_s = again + 1e-6 * max(1.0, since) - since
    assert Need.PUT_BACK is reconcile(
        recorded=True,
        in_tree=True,
        present=False,
        hour_present=True,
        missing_for_s=missing_for_s,
        open_deliveries=False,
    )


# -- the rows and the listing of an hour -------------------------------------------------------------------------------

# Few and alike, so that what belongs together meets and what does not is nearly the same.
STEMS = ["a", "ab", "a.", "A", "a b", "a\n", "\u00e9", os.fsdecode(b"a\xff")]
stems = st.sampled_from([*STEMS, "a.ts", "a.tombstone", ".a"])
endings = st.sampled_from([".ts", ".json", ".tombstone", "", ".tmp", ".ts.tombstone"])
file_names = st.builds(str.__add__, stems, endings) | st.sampled_from([".", "..", ".ts", ".tombstone"])
segment_names = st.builds(str.__add__, st.sampled_from([*STEMS, "a.ts"]), st.sampled_from([".ts", ".json"]))


def naive(names: set[str]) -> tuple[set[str], set[str], set[str]]:
    """Segments, marked stems and mistakes of a listing, name by name."""
    segments, markers, mistakes = set(), set(), set()
    for name in names:
        stem, _, ending = name.rpartition(".")
        if name.startswith("."):
            continue
        if ending in ("ts", "json"):
            segments.add(name)
        elif ending == "tombstone" and "." in stem and stem.rpartition(".")[2] in ("ts", "json", "tombstone"):
            mistakes.add(name)
        elif ending == "tombstone":
            markers.add(stem)
    return segments, markers, mistakes


@given(st.sets(file_names), st.sets(segment_names), st.sets(stems))
def test_after_a_diff_the_rows_are_the_listing(names: set[str], segments: set[str], markers: set[str]) -> None:
    before = set(segments), set(markers)
    diff = plan.diff_hour(iter(names), segments=segments, markers=markers)
    assert (segments, markers) == before
    found_segments, found_markers, mistakes = naive(names)
    assert (segments - set(diff.drop)) | set(diff.add) == found_segments
    assert not set(diff.add) & segments
    assert set(diff.drop) <= segments
    assert set(diff.markers_found) == found_markers - markers
    assert set(diff.markers_missing) == markers - found_markers
    assert diff.mistakes == sorted(mistakes)
    for part in (diff.add, diff.drop, diff.markers_found, diff.markers_missing):
        assert part == sorted(set(part))


@given(st.sets(file_names), st.sampled_from(STEMS))
def test_a_tombstone_hides_exactly_its_stem(names: set[str], stem: str) -> None:
    """I3, from the names in a directory to what can be seen of them."""

    def visible(names: set[str]) -> set[str]:
        diff = plan.diff_hour(names, segments=set(), markers=set())
        return {name for name in diff.add if name.rpartition(".")[0] not in diff.markers_found}

    without = names - {f"{stem}.tombstone"}
    assert visible(without) - visible(without | {f"{stem}.tombstone"}) == {f"{stem}.ts", f"{stem}.json"} & without


def test_an_unchanged_hour_needs_nothing() -> None:
    names = [".", "..", "a.ts", "b.json", "a.tombstone", "other"]
    diff = plan.diff_hour(names, segments={"a.ts", "b.json"}, markers={"a"})
    assert diff == plan.HourDiff([], [], [], [], [])


# -- mounts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was_own_mount", "is_own_mount", "present", "unmounted"),
    [
        (False, False, False, False),  # removed
        (False, False, True, False),  # emptied
        (False, True, True, False),  # mounted meanwhile, and empty
        (True, True, True, False),  # still mounted, and emptied
        (True, False, True, True),  # the mount point is left
        (True, False, False, True),  # not even that
    ],
)
def test_unmounted_or_emptied(was_own_mount: bool, is_own_mount: bool, present: bool, unmounted: bool) -> None:
    found = plan.looks_unmounted(was_own_mount=was_own_mount, is_own_mount=is_own_mount, present=present)
    assert found is unmounted


# -- backoff and window ------------------------------------------------------------------------------------------------

failures = st.integers(1, 10**9)
randoms = st.floats(0, 1, exclude_max=True)


@given(failures, st.floats(0, 1e9), randoms)
@example(1, 0.0, 0.0)
@example(10**9, 599.9, 0.0)
@example(1, 600.0, 0.0)
def test_backoff_is_bounded(count: int, dead_for_s: float, random: float) -> None:
    wait_s = plan.backoff_s(count, dead_for_s, random=random)
    assert 1.0 <= wait_s <= 75.0
    if dead_for_s >= 600.0:
        assert wait_s >= 60.0
    else:
        assert wait_s <= 60.0


@given(st.integers(2, 100), st.floats(0, 599))
def test_backoff_doubles_and_then_stays(count: int, dead_for_s: float) -> None:
    longest = plan.backoff_s(count, dead_for_s, random=0.999999)
    assert longest == pytest.approx(min(60.0, 2.0 ** (count - 1)), rel=1e-5)
    assert plan.backoff_s(count, dead_for_s, random=0.0) == pytest.approx(longest / 2, rel=1e-5)


@given(failures, st.floats(0, 1e9), randoms, randoms)
def test_jitter_spreads(count: int, dead_for_s: float, one: float, other: float) -> None:
    waits = [plan.backoff_s(count, dead_for_s, random=random) for random in sorted((one, other))]
    assert waits == sorted(waits)
    assert plan.backoff_s(count, dead_for_s, random=0.0) < plan.backoff_s(count, dead_for_s, random=0.9)


@given(failures, st.floats(0, 1e9), randoms, st.floats(0, 1e9))
def test_the_time_of_a_lost_session_counts_as_waited(count: int, dead_for_s: float, random: float, up: float) -> None:
    whole = plan.backoff_s(count, dead_for_s, random=random)
    rest = plan.backoff_s(count, dead_for_s, random=random, up_for_s=up)
    assert rest == max(1.0, whole - up)


round_trips = st.floats(0, 100)
services = st.floats(1e-6, 1)


@given(round_trips, round_trips, services, services, st.integers(1, 64), st.integers(64, 1000))
def test_the_window_grows_with_the_round_trip_and_shrinks_with_the_service(
    rtt_s: float, other_rtt_s: float, service_s: float, other_service_s: float, least: int, most: int
) -> None:
    near, far = sorted((rtt_s, other_rtt_s))
    quick, slow = sorted((service_s, other_service_s))
    assert least <= plan.window(near, quick, least=least, most=most) <= most
    assert plan.window(near, quick, least=least, most=most) <= plan.window(far, quick, least=least, most=most)
    assert plan.window(near, slow, least=least, most=most) <= plan.window(near, quick, least=least, most=most)


def test_the_window_covers_the_round_trip() -> None:
    assert plan.window(0.0, 0.0001, least=16, most=900) == 16
    assert plan.window(0.02, 0.0001, least=16, most=900) == 216
    assert plan.window(10.0, 0.0001, least=16, most=900) == 900


# -- the states of a delivery ------------------------------------------------------------------------------------------

# number, word, due again and again, delays "everywhere", keeps the marker of an hour that is gone
STATES = [
    (1, "pending", True, True, True),
    (2, "not-served", True, False, True),  # the peer's answer; its channel may still appear there
    (3, "refused", True, True, True),
    (4, "received", True, True, True),
    (5, "held", False, True, True),  # asked again only when a person says so
    (6, "not-durable", False, False, False),
    (7, "confirmed", False, False, False),
    (8, "hour-gone", False, False, False),
    (9, "superseded", False, False, False),
]


@pytest.mark.parametrize(("number", "word", "due", "unconfirmed", "keeps"), STATES)
def test_a_state_is_in_exactly_its_groups(number: int, word: str, due: bool, unconfirmed: bool, keeps: bool) -> None:
    state = State(number)
    assert state.word == word
    assert (state in plan.DUE_STATES) is due
    assert (state <= plan.LAST_DUE) is due  # the comparison that the index makes
    assert (state in plan.UNCONFIRMED_STATES) is unconfirmed
    assert (state in plan.KEEP_STATES) is keeps


def test_every_state_has_its_groups() -> None:
    assert [state.value for state in State] == [row[0] for row in STATES]
    for group in (plan.DUE_STATES, plan.UNCONFIRMED_STATES, plan.KEEP_STATES):
        assert len(set(group)) == len(group)

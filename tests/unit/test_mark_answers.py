"""How far the marks of one command have come: who has confirmed, and who has yet to answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tombsync.cli.mark.answers import GOOD_STATES, Answers, is_open
from tombsync.names import Hour, Marked, hour_number
from tombsync.plan import State

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
MARKS = [Marked(HOUR, stem) for stem in ("a", "b", "c")]


def test_nothing_is_confirmed_before_the_index_says_so() -> None:
    answers = Answers(MARKS, ["x", "y"])
    assert answers.open() == MARKS
    assert answers.lacking() == ["x", "y"]
    assert answers.counts("x") == {None: 3}


def test_only_what_is_open_has_to_be_asked_about_again() -> None:
    answers = Answers(MARKS, ["x", "y"])
    for one in MARKS:
        answers.put(one, {"x": State.CONFIRMED, "y": State.PENDING, "no longer a peer": State.PENDING})
    assert answers.is_done("x") and not answers.is_done("y")
    answers.put(MARKS[0], {"x": State.CONFIRMED, "y": State.CONFIRMED})
    assert answers.open() == MARKS[1:]
    assert answers.lacking() == ["y"]
    assert answers.counts("y") == {State.CONFIRMED: 1, State.PENDING: 2}
    for one in MARKS[1:]:
        answers.put(one, {"x": State.CONFIRMED, "y": State.HOUR_GONE})
    assert answers.open() == [] and answers.lacking() == []


@pytest.mark.parametrize("state", State)
def test_each_state_waits_is_good_or_lacks(state: State) -> None:
    answers = Answers(MARKS[:1], ["x"])
    answers.put(MARKS[0], {"x": state})
    waits = {State.PENDING, State.REFUSED, State.RECEIVED, State.HELD}
    good = {State.CONFIRMED, State.HOUR_GONE, State.NOT_SERVED}
    assert bool(answers.open()) == is_open(state) == (state in waits)
    assert (answers.lacking() == []) == (state in good)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["x", "y"]), st.sampled_from(State)), max_size=40))
def test_with_one_peer_down_that_peer_alone_lacks(news: list[tuple[int, str, State]]) -> None:
    """Whatever comes in whatever order: the last word of each counts, and z never has one."""
    answers = Answers(MARKS, ["x", "y", "z"])
    known: dict[Marked, dict[str, State]] = {one: {} for one in MARKS}
    for number, peer, state in news:
        known[MARKS[number]][peer] = state
        answers.put(MARKS[number], known[MARKS[number]])
    assert answers.open() == MARKS and not answers.is_done("z")
    for peer in ("x", "y"):
        good = all(known[one].get(peer) in GOOD_STATES for one in MARKS)
        assert (peer in answers.lacking()) is not good
    assert "z" in answers.lacking()

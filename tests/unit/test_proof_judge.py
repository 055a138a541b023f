"""What answers are worth: how a stem stands at a peer, and whether its data may be deleted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.index import HOUR, stem_of
from tombsync.errors import PeerTimeout
from tombsync.index import DeliveryRow, PeerRow
from tombsync.names import Hour, Marked
from tombsync.peers import Answer
from tombsync.plan import State
from tombsync.proof import Heard, Question, Stand, blocked_by, held_elsewhere, stand

ASKED_NS, CONFIRMED_NS, NOW_NS = 1_000, 2_000, 9_000
SILENT = PeerTimeout("node-b", "12 questions wait")
CONFIRMED = DeliveryRow("node-b", State.CONFIRMED, ASKED_NS, CONFIRMED_NS, "", True, ASKED_NS)
PENDING = DeliveryRow("node-b", State.PENDING, ASKED_NS, None, "full?", None, None)
UP = PeerRow(1, "node-b", "target", True, 500, "", None, None, {}, None)
DOWN = replace(UP, up=False, error="cannot be reached", error_at_ns=600)


def heard(*answers: Answer, error: PeerTimeout | None = None) -> Heard:
    return Heard("node-b", NOW_NS, {answer.marker: answer for answer in answers}, error)


def of(
    delivery: DeliveryRow | None, row: PeerRow | None = UP, answers: Heard | None = None, *, configured: bool = True
) -> Stand:
    return stand("node-b", 1, delivery, row, answers, configured=configured)


# -- what the index says -----------------------------------------------------------------------------------------------


def test_without_a_question_it_is_what_the_index_says() -> None:
    assert of(CONFIRMED) == Stand("node-b", State.CONFIRMED, CONFIRMED_NS, ASKED_NS, True, ASKED_NS, "", True)
    assert of(PENDING, configured=False) == Stand(
        "node-b", State.PENDING, None, ASKED_NS, None, None, "full?", configured=False
    )


def test_a_peer_that_the_agent_has_not_taken_up_has_no_state() -> None:
    assert of(None, None) == Stand("node-b", None, None, None, None, None, "", True)


def test_a_peer_that_is_down_says_since_when_and_why() -> None:
    found = of(CONFIRMED, DOWN)
    assert (found.unreachable_since_ns, found.unreachable_why) == (500, "cannot be reached")
    assert found.state is State.CONFIRMED


@pytest.mark.parametrize("row", [UP, replace(UP, up=False, changed_at_ns=None), None], ids=["up", "not tried", "new"])
def test_a_peer_that_is_not_known_to_be_down_is_not_called_unreachable(row: PeerRow | None) -> None:
    assert (of(PENDING, row).unreachable_since_ns, of(PENDING, row).unreachable_why) == (None, "")


# -- what it answers now -----------------------------------------------------------------------------------------------


def test_an_answer_of_now_counts_more_than_the_index() -> None:
    found = of(PENDING, DOWN, heard(Answer(1, State.CONFIRMED, data=False)))
    assert found == Stand("node-b", State.CONFIRMED, NOW_NS, NOW_NS, False, NOW_NS, "", configured=True, asked_now=True)


def test_a_confirmation_keeps_the_time_of_the_first_one() -> None:
    assert of(CONFIRMED, UP, heard(Answer(1, State.CONFIRMED))).confirmed_at_ns == CONFIRMED_NS
    untimed = replace(CONFIRMED, confirmed_at_ns=None)
    assert of(untimed, UP, heard(Answer(1, State.CONFIRMED))).confirmed_at_ns == NOW_NS
    assert of(None, UP, heard(Answer(1, State.CONFIRMED))).confirmed_at_ns == NOW_NS


def test_what_was_confirmed_and_is_gone_is_said_to_be() -> None:
    found = of(CONFIRMED, UP, heard(Answer(1, State.PENDING, "it is not there")))
    assert (found.state, found.detail) == (State.PENDING, "it confirmed it once, and now it is not there")
    assert found.confirmed_at_ns == CONFIRMED_NS
    never = of(PENDING, UP, heard(Answer(1, State.PENDING, "it is not there")))
    assert never.detail == "it is not there"


def test_where_data_was_not_asked_for_the_last_answer_stands() -> None:
    found = of(CONFIRMED, UP, heard(Answer(1, State.CONFIRMED)))
    assert (found.data, found.data_asked_at_ns) == (True, ASKED_NS)


def test_a_silent_peer_leaves_what_the_index_says_and_says_why() -> None:
    found = of(CONFIRMED, UP, heard(Answer(2, State.CONFIRMED), error=SILENT))
    assert (found.state, found.asked_at_ns, found.asked_now) == (State.CONFIRMED, ASKED_NS, False)
    assert found.error == str(SILENT)


def test_what_was_answered_before_a_peer_fell_silent_was_answered() -> None:
    found = of(PENDING, UP, heard(Answer(1, State.CONFIRMED), error=SILENT))
    assert (found.state, found.asked_now, found.error) == (State.CONFIRMED, True, "")


# -- whether data may go -----------------------------------------------------------------------------------------------


OTHER_PLACE = Hour("elsewhere", "source", HOUR.number)


def asked(*numbers: int) -> list[Question]:
    return [Question(number, Marked(HOUR, stem_of(number))) for number in numbers]


def witness(number: int, hour: Hour = HOUR) -> Question:
    return Question(number, Marked(hour, stem_of(number)), witness=True)


def blocked(answers: Heard, questions: Sequence[Question], kept: frozenset[str] = frozenset()) -> str:
    return blocked_by(answers, questions, kept_the_place=lambda peer, marked: marked.stem in kept and peer == "node-b")


@pytest.mark.parametrize("state", State, ids=lambda state: state.word)
def test_only_who_has_it_durably_or_keeps_no_such_place_lets_data_go(state: State) -> None:
    assert (blocked(heard(Answer(1, state)), asked(1)) == "") is (state is State.CONFIRMED)
    others = [Answer(number, State.CONFIRMED) for number in (2, 3)]
    enough = {State.CONFIRMED, State.HOUR_GONE, State.NOT_SERVED}
    assert (blocked(heard(*others, Answer(1, state)), asked(2, 1, 3)) == "") is (state in enough)


@pytest.mark.parametrize("seen", State, ids=lambda state: state.word)
@pytest.mark.parametrize("marker_there", [False, True])
@pytest.mark.parametrize("hour", [HOUR, OTHER_PLACE], ids=["there", "elsewhere"])
def test_an_hour_is_gone_only_where_a_tombstone_of_its_place_is_seen(
    seen: State, marker_there: bool, hour: Hour
) -> None:
    """A root marker says nothing of a quality that is a mount of its own."""
    answers = heard(Answer(1, State.HOUR_GONE), Answer(2, seen))
    answers.marker_there = marker_there
    reason = blocked(answers, [*asked(1), witness(2, hour)])
    shown = hour is HOUR and seen in (State.CONFIRMED, State.NOT_DURABLE)
    assert (reason == "") is shown
    if not shown:
        assert "hour-gone" in reason and "is its tree mounted whole?" in reason
        assert stem_of(2) not in reason  # a witness is in nobody's way


def test_a_place_is_not_served_only_where_the_tree_is_seen() -> None:
    answers = heard(Answer(1, State.NOT_SERVED))
    assert "is its tree mounted?" in blocked(answers, asked(1))
    assert "is its tree mounted?" in blocked(answers, [*asked(1), witness(2)])  # not answered
    answers.answers[2] = Answer(2, State.CONFIRMED)
    assert blocked(answers, [*asked(1), witness(2, OTHER_PLACE)]) == ""
    answers = heard(Answer(1, State.NOT_SERVED))
    answers.marker_there = True
    assert blocked(answers, asked(1)) == ""
    assert "it kept that channel" in blocked(answers, asked(1), frozenset({stem_of(1)}))


def test_what_was_not_answered_blocks() -> None:
    assert "not answered" in blocked(heard(Answer(2, State.CONFIRMED)), asked(1, 2))
    assert "not answered" in blocked(heard(), asked(1))


def test_a_peer_that_failed_blocks_whatever_it_said_before() -> None:
    assert blocked(heard(Answer(1, State.CONFIRMED), error=SILENT), asked(1)) == str(SILENT)


def test_a_place_that_was_kept_once_and_is_not_served_now_blocks() -> None:
    answers = heard(Answer(1, State.NOT_SERVED), Answer(2, State.NOT_SERVED))
    answers.marker_there = True
    reason = blocked(answers, asked(1, 2), frozenset({stem_of(1)}))
    assert "is its tree mounted whole?" in reason
    assert stem_of(1) in reason
    assert stem_of(2) not in reason


def test_the_reason_names_peer_stem_state_and_detail() -> None:
    reason = blocked(heard(Answer(1, State.REFUSED, "permission denied")), asked(1))
    assert reason == f"node-b: {HOUR.path}/{stem_of(1)}: refused: permission denied"


def test_of_many_reasons_some_are_named_and_the_rest_counted() -> None:
    reason = blocked(heard(*(Answer(number, State.PENDING) for number in range(1, 11))), asked(*range(1, 11)))
    assert sum(stem_of(number) in reason for number in range(1, 11)) == 3
    assert reason.endswith("(and 7 more)")
    assert "more" not in blocked(heard(*(Answer(number, State.PENDING) for number in (1, 2, 3))), asked(1, 2, 3))


def test_a_name_with_a_line_break_stays_in_its_line() -> None:
    reason = blocked(heard(), [Question(1, Marked(HOUR, "a\nb"))])
    assert "\n" not in reason


def test_nothing_to_ask_blocks_nothing() -> None:
    assert blocked(heard(), []) == ""


# -- whether a mark may be taken back ----------------------------------------------------------------------------------


def elsewhere(answers: Heard, questions: Sequence[Question], *, kept: bool = False) -> str:
    return held_elsewhere(answers, questions, kept_the_place=lambda peer, marked: kept)


@pytest.mark.parametrize("state", State, ids=lambda state: state.word)
def test_only_who_has_it_not_lets_a_mark_be_taken_back(state: State) -> None:
    answers = heard(Answer(1, state), Answer(2, State.PENDING))
    reason = elsewhere(answers, asked(1, 2))
    assert (reason == "") is (state in {State.PENDING, State.HOUR_GONE, State.NOT_SERVED})
    assert state.word in reason or not reason


@pytest.mark.parametrize("seen", State, ids=lambda state: state.word)
@pytest.mark.parametrize("marker_there", [False, True])
@pytest.mark.parametrize("hour", [HOUR, OTHER_PLACE], ids=["there", "elsewhere"])
def test_a_gone_hour_lets_a_mark_go_only_where_something_of_its_place_is_seen(
    seen: State, marker_there: bool, hour: Hour
) -> None:
    """Else its quality may be unmounted at that moment, and come back with the tombstone in it."""
    answers = heard(Answer(1, State.HOUR_GONE), Answer(2, seen))
    answers.marker_there = marker_there
    reason = elsewhere(answers, [*asked(1), witness(2, hour)])
    shown = hour is HOUR and seen in (State.CONFIRMED, State.NOT_DURABLE, State.PENDING)
    assert (reason == "") is shown
    assert shown or "is its tree mounted whole?" in reason


def test_a_place_that_is_not_served_lets_a_mark_go_only_where_the_tree_is_seen() -> None:
    answers = heard(Answer(1, State.NOT_SERVED))
    assert "is its tree mounted?" in elsewhere(answers, asked(1))
    answers.marker_there = True
    assert elsewhere(answers, asked(1)) == ""
    assert "it kept that channel" in elsewhere(answers, asked(1), kept=True)


def test_silence_lets_no_mark_go() -> None:
    assert elsewhere(heard(error=SILENT), asked(1)) == str(SILENT)
    assert "not answered" in elsewhere(heard(Answer(2, State.PENDING)), asked(1, 2))

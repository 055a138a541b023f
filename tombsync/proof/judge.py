"""Pure decisions: how a stem stands at a node, and whether a peer's answers let its data be deleted here, or its mark
be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tombsync.index import DeliveryRow, PeerRow
from tombsync.names import Marked, printable
from tombsync.peers import Answer
from tombsync.plan import State
from tombsync.proof.ask import Heard, Question

# What lets data be deleted here: the peer has the tombstone durably, or has no place where the data could be.
ENOUGH_STATES = (State.CONFIRMED, State.HOUR_GONE, State.NOT_SERVED)
# The tombstone was seen there, so where it stands is mounted.
_SEEN_STATES = (State.CONFIRMED, State.NOT_DURABLE)
# Answers to a question that creates nothing: the tombstone is not there.
_NOT_THERE_STATES = (State.PENDING, State.HOUR_GONE, State.NOT_SERVED)
_MOST_REASONS = 3  # stems named of one peer; the rest are counted


@dataclass(frozen=True)
class Stand:
    """How one stem stands at one peer. Times are wall time in nanoseconds; None: never, or not known.

    `state`: None where the agent has not taken the peer up yet. `asked_now`: the peer answered this very question.
    `data`: whether it still has data, as of `data_asked_at_ns`. `error`: why it could not be asked now.
    """

    peer: str
    state: State | None
    confirmed_at_ns: int | None
    asked_at_ns: int | None
    data: bool | None
    data_asked_at_ns: int | None
    detail: str
    configured: bool
    unreachable_since_ns: int | None = None
    unreachable_why: str = ""
    asked_now: bool = False
    error: str = ""


def stand(
    peer: str, marker: int, delivery: DeliveryRow | None, row: PeerRow | None, heard: Heard | None, *, configured: bool
) -> Stand:
    """Put together what the index says of a peer and what it answered now, if it was asked."""
    down = row is not None and not row.up and bool(row.error)
    known = Stand(
        peer,
        None if delivery is None else delivery.state,
        None if delivery is None else delivery.confirmed_at_ns,
        None if delivery is None else delivery.asked_at_ns,
        None if delivery is None else delivery.data,
        None if delivery is None else delivery.data_asked_at_ns,
        "" if delivery is None else delivery.detail,
        configured,
        row.changed_at_ns if down and row is not None else None,
        row.error if down and row is not None else "",
        error=str(heard.error) if heard is not None and heard.error is not None else "",
    )
    answer = None if heard is None else heard.answers.get(marker)
    return known if answer is None or heard is None else _answered(known, answer, heard.asked_at_ns)


def _answered(known: Stand, answer: Answer, asked_at_ns: int) -> Stand:
    confirmed_at_ns = known.confirmed_at_ns
    if answer.state is State.CONFIRMED and (known.state is not State.CONFIRMED or confirmed_at_ns is None):
        confirmed_at_ns = asked_at_ns
    detail = answer.detail
    if answer.state is State.PENDING and known.state is State.CONFIRMED:
        detail = f"it confirmed it once, and now {detail}"
    return Stand(
        known.peer,
        answer.state,
        confirmed_at_ns,
        asked_at_ns,
        known.data if answer.data is None else answer.data,
        known.data_asked_at_ns if answer.data is None else asked_at_ns,
        detail,
        known.configured,
        asked_now=True,
    )


def held_elsewhere(
    heard: Heard, questions: Sequence[Question], *, kept_the_place: Callable[[str, Marked], bool]
) -> str:
    """Why a peer's answers do not let these marks be taken back: it has one, or may have; "" where they do.

    What is missing counts as in `blocked_by`; here an hour that stands without its tombstone shows its place as well.
    """
    return _in_the_way(heard, questions, _NOT_THERE_STATES, (*_SEEN_STATES, State.PENDING), kept_the_place)


def blocked_by(heard: Heard, questions: Sequence[Question], *, kept_the_place: Callable[[str, Marked], bool]) -> str:
    """Why a peer's answers do not let the data of these stems be deleted here; "" where they do.

    That something is missing counts only beside something that stands: what is not mounted is missing too, and its data
    comes back with it. An hour may be gone where another tombstone of its channel and quality was seen. A channel or
    quality may be missing where the root marker was seen, or any tombstone, and the peer never had it.

    `kept_the_place`: whether the peer once had tombstones of that channel and quality.
    """
    return _in_the_way(heard, questions, ENOUGH_STATES, _SEEN_STATES, kept_the_place)


def _in_the_way(
    heard: Heard,
    questions: Sequence[Question],
    wanted: Sequence[State],
    shows_its_place: Sequence[State],
    kept_the_place: Callable[[str, Marked], bool],
) -> str:
    if heard.error is not None:
        return str(heard.error)
    standing = {
        question.marked.hour[:2]
        for question in questions
        if (answer := heard.answers.get(question.marker)) is not None and answer.state in shows_its_place
    }
    reasons = []
    for question in questions:
        answer = heard.answers.get(question.marker)
        if question.witness:
            continue
        if answer is None:
            why = "not answered"
        elif answer.state not in wanted:
            why = ": ".join(filter(None, (answer.state.word, answer.detail)))
        elif answer.state is State.NOT_SERVED and kept_the_place(heard.peer, question.marked):
            why = "not-served: it kept that channel and quality before; is its tree mounted whole?"
        elif answer.state is State.NOT_SERVED and not (heard.marker_there or standing):
            why = "not-served: neither its root marker nor a tombstone was seen there; is its tree mounted?"
        elif answer.state is State.HOUR_GONE and question.marked.hour[:2] not in standing:
            why = "hour-gone: no tombstone of that channel and quality was seen there; is its tree mounted whole?"
        else:
            continue
        reasons.append(f"{printable(question.marked.path)}: {why}")
    return _of_peer(heard.peer, reasons)


def _of_peer(peer: str, reasons: list[str]) -> str:
    if not reasons:
        return ""
    more = f" (and {len(reasons) - _MOST_REASONS} more)" if len(reasons) > _MOST_REASONS else ""
    return f"{peer}: {'; '.join(reasons[:_MOST_REASONS])}{more}"

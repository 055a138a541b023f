"""The queue of what comes next, at the moments when the intake's thread comes in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

from tests.support.index import stem_of
from tombsync.index import Due, Outcome, Reader
from tombsync.names import Marked, strict_hour
from tombsync.peers import Answer
from tombsync.plan import State
from tombsync.push.queue import ASK_HELD_INTERVAL_S, Queue
from tombsync.work import Source

HOUR = strict_hour("desertbus", "source", "2019-11-13T02")
LONG_S = 3600.0


def delivery(marker: int) -> Due:
    return Due(marker, Marked(HOUR, stem_of(marker)), False, False, State.PENDING, 0, Source.WATCH)


class Index:
    """What is due, newest first; `between` runs after a query and before its rows are looked at."""

    def __init__(self) -> None:
        self.rows: list[Due] = []
        self.answered: list[Due] = []
        self.held_rows: list[Due] = []
        self.between: Callable[[], None] = lambda: None

    def due(self, peer: int, *, above: int = 0, below: int | None = None, limit: int) -> list[Due]:
        return self._look(self.rows, above, below, limit)

    def confirmed(self, peer: int, *, below: int | None, limit: int) -> list[Due]:
        return self._look(self.answered, 0, below, limit)

    def held(self, peer: int, *, below: int | None, limit: int) -> list[Due]:
        return self._look(self.held_rows, 0, below, limit)

    def _look(self, rows: list[Due], above: int, below: int | None, limit: int) -> list[Due]:
        found = [row for row in rows if row.marker > above and (below is None or row.marker < below)]
        between, self.between = self.between, lambda: None
        between()
        return sorted(found, key=lambda row: -row.marker)[:limit]


def queue_of(index: Index) -> Queue:
    return Queue(1, lambda: cast(Reader, index), verify_interval_s=LONG_S)


def submit(queue: Queue, turns: int = 20) -> list[int]:
    submitted = []
    for _ in range(turns):
        rows = queue.fresh(200) + queue.backlog(lambda waiting: waiting)
        submitted += [row.marker for row in rows]
        queue.jobs(rows)
    return submitted


def test_what_is_hidden_while_an_offer_is_taken_is_not_passed_over() -> None:
    """A commit too large to be offered, and a small one that is, between two looks at what was offered."""
    index = Index()
    queue = queue_of(index)
    assert submit(queue) == []

    def hide(*markers: int) -> None:
        index.rows += [delivery(marker) for marker in markers]
        queue.offer([delivery(marker) for marker in markers])

    class Interrupted(deque[Due]):
        done = False

        def popleft(self) -> Due:
            row = super().popleft()
            if not self.done:
                self.done = True
                hide(*range(2, 102))
                hide(102)
            return row

    queue._offered = Interrupted()
    hide(1)
    assert sorted(submit(queue)) == list(range(1, 103))


def test_what_is_answered_and_committed_during_a_query_is_not_submitted_again() -> None:
    index = Index()
    index.rows = [delivery(1)]
    queue = queue_of(index)
    assert submit(queue) == [1]

    def commit() -> None:
        index.rows = []
        queue.committed([Outcome(1, State.CONFIRMED, 0)])

    queue.answered([Answer(1, State.CONFIRMED)])
    queue.sweep()
    index.between = commit
    assert submit(queue) == []

    index.rows = [delivery(2)]
    queue.offer([delivery(number) for number in range(2, 100)])  # too many: looked up
    assert submit(queue) == [2]
    queue.answered([Answer(2, State.CONFIRMED)])
    queue.begin_again()

    def commit_the_second() -> None:
        index.rows = []
        queue.committed([Outcome(2, State.CONFIRMED, 0)])

    index.between = commit_the_second
    assert submit(queue) == []


def test_newest_first_in_whatever_way_they_come() -> None:
    index = Index()
    queue = queue_of(index)
    assert submit(queue) == []
    for marker in (1, 2, 3):
        index.rows.append(delivery(marker))
        queue.offer([delivery(marker)])
    assert submit(queue) == [3, 2, 1]
    queue.offer([delivery(2)])  # known
    assert submit(queue) == []


def test_what_is_held_is_asked_for_and_only_what_is_there_is_told() -> None:
    index = Index()
    index.held_rows = [delivery(1), delivery(2), delivery(3)]
    queue = queue_of(index)
    assert submit(queue) == []
    rows = queue.held(lambda waiting: min(waiting, 2), 0.0)
    jobs = queue.questions(rows)
    assert [(job.marker, job.ask_only) for job in jobs] == [(3, True), (2, True)]
    assert [row.marker for row in queue.held(lambda waiting: waiting, 0.0)] == [1]
    queue.questions([delivery(1)])
    answers = [Answer(3, State.CONFIRMED), Answer(2, State.PENDING), Answer(1, State.NOT_DURABLE)]
    assert queue.asked(answers) == ([], [3, 1])
    assert not queue.asking
    assert queue.held(lambda waiting: waiting, 1.0) == []
    assert queue.held(lambda waiting: waiting, 2.0) == []  # not again at once
    assert len(queue.held(lambda waiting: waiting, 2.0 + ASK_HELD_INTERVAL_S)) == 3


def test_answers_of_deliveries_and_of_questions_are_told_apart() -> None:
    index = Index()
    index.rows = [delivery(1)]
    queue = queue_of(index)
    assert submit(queue) == [1]
    queue.questions([delivery(2)])
    answer = Answer(1, State.CONFIRMED, placed=True)
    assert queue.asked([answer, Answer(2, State.PENDING)]) == ([answer], [])
    queue.questions([delivery(3)])
    queue.lost()
    assert not queue.asking

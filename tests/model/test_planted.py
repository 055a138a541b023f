"""The machine finds what it is meant to find: one bug planted for each invariant, found and shrunk to a few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.model import checks
from tests.model.machine import Nodes
from tests.model.search import repeat, search
from tests.model.world import Layout, World
from tombsync import plan
from tombsync.errors import PeerError
from tombsync.index import DeliveryOutcomes, Outcome, hours
from tombsync.plan import State
from tombsync.push import Pusher, Queue

EXAMPLES = 300
FEW_STEPS = 7  # the making of the nodes is one of them


class Pair(Nodes):
    """Two nodes: what a planted bug needs, and no more to shrink."""

    def _world(self, layout: Layout) -> World:
        return World(replace(layout, nodes=2, shape="mesh", chat_everywhere=True))


Plant = Callable[[pytest.MonkeyPatch], None]


def forget_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour that goes away is forgotten at once, and its segments are visible when it comes back."""
    reconcile = plan.reconcile

    def hasty(**facts: Any) -> plan.Need:
        return reconcile(**facts) if facts["hour_present"] else plan.Need.FORGET

    monkeypatch.setattr(plan, "reconcile", hasty)


def hide_in_every_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tombstone hides its stem in other hours, too."""
    monkeypatch.setattr(hours, "HIDDEN_STEMS", "(SELECT stem FROM marker GROUP BY stem HAVING max(gen) % 2 = 0)")


def hide_what_begins_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tombstone hides every stem that begins with its own, too."""
    begins = "substr(s.stem, 1, length(m.stem)) = m.stem"
    monkeypatch.setattr(
        hours,
        "HIDDEN_STEMS",
        f"(SELECT s.stem FROM segment s JOIN marker m ON m.hour = s.hour AND {begins}"
        " WHERE s.hour = ?1 GROUP BY s.stem, m.stem HAVING max(m.gen) % 2 = 0)",
    )


def never_submit_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on its way when a session ended is thought to be on its way for ever."""
    lose = Pusher._lose

    def lose_and_remember(self: Pusher, exc: PeerError, now: float) -> None:
        submitted = dict(self._queue._submitted)
        lose(self, exc, now)
        self._queue._submitted.update(submitted)

    monkeypatch.setattr(Pusher, "_lose", lose_and_remember)


def never_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that lost what it had confirmed is never asked again."""
    monkeypatch.setattr(Queue, "verify", lambda self, room, now: ([], False))


def find_only_beside_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rescan takes up tombstones only of hours where it also finds segments."""
    diff_hour = plan.diff_hour

    def careless(*args: Any, **kwargs: Any) -> plan.HourDiff:
        diff = diff_hour(*args, **kwargs)
        return diff if diff.add else replace(diff, markers_found=[])

    monkeypatch.setattr(plan, "diff_hour", careless)


def confirm_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends without an answer counts as a yes."""
    lose = Pusher._lose

    def lose_and_hope(self: Pusher, exc: PeerError, now: float) -> None:
        hoped = [Outcome(marker, State.CONFIRMED, 0) for marker in self._queue._submitted]
        lose(self, exc, now)
        self._mailbox.put_urgent(DeliveryOutcomes(self.peer, hoped, lambda changed: None))

    monkeypatch.setattr(Pusher, "_lose", lose_and_hope)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("plant", "invariant"),
    [
        (forget_at_once, checks.STAYS_HIDDEN),
        (hide_in_every_hour, checks.NOTHING_ELSE),
        (hide_what_begins_so, checks.NOTHING_ELSE),
        (never_submit_again, checks.PUSHED),
        (never_verify, checks.CONVERGES),
        (find_only_beside_segments, checks.RESCAN_HIDES),
        (confirm_what_was_sent, checks.CONFIRMED_WAS_SEEN),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_the_machine_finds_it(plant: Plant, invariant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = search(Pair, EXAMPLES, number=1)
    assert found is not None
    assert found.kind == invariant, found
    assert len(found.steps) <= FEW_STEPS, found
    monkeypatch.undo()
    assert repeat(Pair, found.steps) is None  # it is the bug that was planted, and not another

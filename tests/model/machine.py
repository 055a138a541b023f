"""The state machine: what may happen to some nodes, in any order."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.network import Link
from tests.model.node import Node
from tests.model.world import EXTENSIONS, HOURS, STEMS, Layout, World
from tombsync.names import Hour, Marked
from tombsync.rescan import RescanKind

NODE = st.integers(0, 3)  # counted round where there are fewer, as with links and what stands
LINK = st.integers(0, 11)
HOUR = st.sampled_from((0, 0, 1, 2))
STEM = st.sampled_from((0, 0, 1, 2))
EXTENSION = st.sampled_from(EXTENSIONS)
PICK = st.integers(0, 8)
THEN = st.sampled_from(("nothing", "run", "soon", "all", "later"))

CHANGE = st.sampled_from(("touch", "remove tombstone", "write", "remove", "remove hour", "move hour", "nothing"))

Step = tuple[str, dict[str, Any]]


def step(kind: Callable[..., Any] = rule, /, **arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """A rule whose use is written down, so that a run can be repeated without Hypothesis."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def written_down(self: Nodes, **values: Any) -> None:
            self.steps.append((function.__name__, values))
            function(self, **values)

        return kind(**arguments)(written_down)

    return decorate


class Nodes(RuleBasedStateMachine):
    """Some nodes, their people, archive, network and misfortunes.

    A rule is chosen as often as any other, so what is rare shares one, and what leads anywhere has one of its own.
    """

    runs = 0  # that held to their end
    last: tuple[Step, ...] = ()  # the last run

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    @step(
        initialize,
        nodes=st.sampled_from((2, 3, 2, 3, 4)),
        shape=st.sampled_from(("mesh", "ring", "line")),
        can_sync=st.booleans(),
        chat_everywhere=st.booleans(),
    )
    def begin(self, nodes: int, shape: str, can_sync: bool, chat_everywhere: bool) -> None:
        self.world = self._world(Layout(nodes, shape, can_sync, chat_everywhere or shape != "mesh"))

    def _world(self, layout: Layout) -> World:
        return World(layout)

    def _node(self, number: int) -> Node:
        return self.world.nodes[number % len(self.world.nodes)]

    def _link(self, number: int) -> tuple[Node, Link]:
        return self.world.links[number % len(self.world.links)]

    # -- people and the archive, and how much time the agents have then -----------------------------------------------

    def _then(self, node: Node, then: str) -> None:
        """`run`: this agent sees it; `soon`: a second later, too; `all`: every agent; `later`: a minute later, too."""
        if then == "nothing":
            return
        nodes = self.world.nodes if then in ("all", "later") else [node]
        for each in nodes:
            each.run()
        if then in ("soon", "later"):
            self.world.advance(1.1 if then == "soon" else 63.0)
            for each in nodes:
                each.run()

    @step(node=NODE, hour=HOUR, stem=STEM, by_command=st.booleans(), then=THEN)
    def mark(self, node: int, hour: int, stem: int, by_command: bool, then: str) -> None:
        where, marked = self._node(node), Marked(HOURS[hour], STEMS[stem])
        if by_command:
            self.world.mark(where, marked)
        else:
            self.world.touch(where, marked)
        self._then(where, then)

    @step(node=NODE, then=THEN)
    def mark_all(self, node: int, then: str) -> None:
        """Every stem of every hour: more at once than a link takes."""
        where = self._node(node)
        for hour in HOURS:
            for stem in STEMS:
                self.world.mark(where, Marked(hour, stem))
        self._then(where, then)

    @step(node=NODE, pick=PICK, then=THEN)
    def remove_tombstone(self, node: int, pick: int, then: str) -> None:
        where = self._node(node)
        self._remove_tombstone(where, pick)
        self._then(where, then)

    def _remove_tombstone(self, node: Node, pick: int) -> None:
        standing = [marked for marked, _ in node.ground.tombstones()]
        if standing:
            node.ground.remove_tombstone(standing[pick % len(standing)])

    @step(node=NODE, hour=HOUR, stem=STEM, extension=EXTENSION, there=st.booleans(), then=THEN)
    def segment(self, node: int, hour: int, stem: int, extension: str, there: bool, then: str) -> None:
        """A segment arrives, or is removed."""
        where, name = self._node(node), STEMS[stem] + extension
        if there:
            where.ground.write(HOURS[hour], name)
        else:
            where.ground.remove(HOURS[hour], name)
        self._then(where, then)

    @step(node=NODE, hour=HOUR, moved=st.booleans(), then=THEN)
    def hour_goes(self, node: int, hour: int, moved: bool, then: str) -> None:
        """An hour is removed; or moved out of the tree, or back into it."""
        where = self._node(node)
        if moved:
            where.ground.move_hour(HOURS[hour])
        else:
            where.ground.remove_hour(HOURS[hour])
        self._then(where, then)

    @step(node=NODE, source=NODE, then=THEN)
    def backfill(self, node: int, source: int, then: str) -> None:
        where = self._node(node)
        self.world.backfill(where, self._node(source))
        self._then(where, then)

    # -- the agents' turns --------------------------------------------------------------------------------------------

    @step(node=NODE)
    def run(self, node: int) -> None:
        self._node(node).run()

    @step(node=NODE, worker=st.sampled_from(("watch", "intake", "rescan")), count=st.integers(1, 4))
    def turns(self, node: int, worker: str, count: int) -> None:
        """The watcher reads some events, or another worker takes some turns."""
        where = self._node(node)
        if worker == "watch":
            where.read_events(count)
            return
        for _ in range(count):
            if worker == "intake":
                where.commit()
            else:
                where.rescan_turn()

    @step(link=LINK, count=st.integers(1, 4))
    def push(self, link: int, count: int) -> None:
        node, found = self._link(link)
        for _ in range(count):
            node.push(found.target.name)

    @step(node=NODE, kind=st.sampled_from((RescanKind.INTERVAL, RescanKind.FULL)))
    def rescan(self, node: int, kind: RescanKind) -> None:
        self._node(node).rescan(kind)

    @step(node=NODE, change=CHANGE, hour=HOUR, stem=STEM, kept=st.integers(0, 2), told=st.booleans(), then=THEN)
    def lose_events(self, node: int, change: str, hour: int, stem: int, kept: int, told: bool, then: str) -> None:
        """Something changes and the kernel's events are lost, but for the first that wait; the agent is told or not."""
        where = self._node(node)
        self._change(where, change, HOURS[hour], STEMS[stem])
        where.lose_events(kept, told=told)
        self._then(where, then)

    @step(
        node=NODE,
        point=st.sampled_from(("before listing", "after listing", "sight")),
        change=CHANGE,
        hour=HOUR,
        stem=STEM,
        read=st.booleans(),
        commit=st.booleans(),
    )
    def meanwhile(self, node: int, point: str, change: str, hour: int, stem: int, read: bool, commit: bool) -> None:
        """When the agent's rescan or intake next comes to a point, something changes, is seen, and is committed."""
        where = self._node(node)

        def act() -> None:
            self._change(where, change, HOURS[hour], STEMS[stem])
            if read:
                where.read_events()
            if commit and point != "sight":  # which is in the middle of a commit
                where.commit_all()

        where.meanwhile(point, act)

    def _change(self, node: Node, change: str, hour: Hour, stem: str) -> None:
        if change == "touch":
            self.world.touch(node, Marked(hour, stem))
        elif change == "remove tombstone":
            self._remove_tombstone(node, 0)
        elif change == "write":
            node.ground.write(hour, f"{stem}.ts")
        elif change == "remove":
            node.ground.remove(hour, f"{stem}.ts")
        elif change == "remove hour":
            node.ground.remove_hour(hour)
        elif change == "move hour":
            node.ground.move_hour(hour)

    # -- the network --------------------------------------------------------------------------------------------------

    @step(link=LINK, up=st.booleans())
    def network(self, link: int, up: bool) -> None:
        """A link goes down or up again."""
        self._link(link)[1].up = up

    @step(link=LINK, acted=st.sampled_from(("never", "late", "at once")))
    def broken_push(self, link: int, acted: str) -> None:
        """A session ends before any answer came; the server has acted on the requests, or may still do it (`late`)."""
        node, found = self._link(link)
        node.read_events()
        node.commit_all()
        found.requests_wait, found.answers_wait = acted != "at once", acted == "at once"
        for _ in range(3):
            node.push(found.target.name)
        found.cut()
        found.requests_wait = found.answers_wait = False
        if acted == "never":
            found.late.clear()

    @step(link=LINK)
    def late(self, link: int) -> None:
        """A server acts on what ended sessions had sent."""
        self._link(link)[1].act_late()

    @step(link=LINK, what=st.sampled_from(("requests", "answers", "nothing")), backwards=st.booleans())
    def slow(self, link: int, what: str, backwards: bool) -> None:
        """From now on requests or answers of a link wait on their way, and come in another order."""
        _, found = self._link(link)
        found.requests_wait, found.answers_wait, found.backwards = what == "requests", what == "answers", backwards

    @step(link=LINK, request=st.booleans())
    def move(self, link: int, request: bool) -> None:
        """One request or answer that waits comes to its end."""
        self._link(link)[1].move(request=request)

    # -- lives and clocks ---------------------------------------------------------------------------------------------

    @step(node=NODE, what=st.sampled_from(("restart", "crash", "power cut", "lose index")))
    def life(self, node: int, what: str) -> None:
        """The agent starts again, at once or (crash) by a later rule."""
        where = self._node(node)
        if what == "lose index":
            where.lose_index()
        else:
            where.crash(power_cut=what == "power cut")
        if what != "crash":
            where.start()

    @step(seconds=st.sampled_from((63.0, 2.2, 1.1, 10.5, 700.0)), run=st.booleans())
    def advance(self, seconds: float, run: bool) -> None:
        self.world.advance(seconds)
        if run:
            for node in self.world.nodes:
                node.run()

    @step(node=NODE, hours=st.sampled_from((-1, 1)))
    def jump(self, node: int, hours: int) -> None:
        """A wall clock is set."""
        self._node(node).base.jump(hours * 3_600_000_000_000)

    # -- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """All that must be true at any moment (checks.py)."""
        if hasattr(self, "world"):
            for node in self.world.nodes:
                node.check()

    def teardown(self) -> None:
        self.end(held=sys.exc_info()[0] is None)

    def end(self, *, held: bool) -> None:
        """End a run; one in which everything held has to converge."""
        type(self).last = tuple(self.steps)
        if not hasattr(self, "world"):
            return
        try:
            if held:
                self.world.converge()
                type(self).runs += 1
        finally:
            self.world.close()

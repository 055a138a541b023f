"""The state machine: what may happen to some nodes, in any order."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.network import Link
from tests.model.node import Node
from tests.model.world import EXTENSIONS, HOURS, STEMS, Layout, World
from tombsync.names import Hour, Marked
from tombsync.rescan import RescanKind

NODES = st.integers(0, 3)  # counted round where there are fewer
LINKS = st.integers(0, 11)
HOUR = st.integers(0, len(HOURS) - 1)
STEM = st.integers(0, len(STEMS) - 1)
EXTENSION = st.sampled_from(EXTENSIONS)
POINT = st.sampled_from(("before-listing", "after-listing", "sight"))
CHANGE = st.sampled_from(("touch", "rm-tombstone", "write", "rm", "rm-hour", "move-hour", "nothing"))


class Nodes(RuleBasedStateMachine):
    """Some nodes, their people, archive, network and misfortunes."""

    runs = 0

    @initialize(
        nodes=st.integers(2, 4),
        shape=st.sampled_from(("mesh", "ring", "line")),
        can_sync=st.booleans(),
        chat_everywhere=st.booleans(),
    )
    def begin(self, nodes: int, shape: str, can_sync: bool, chat_everywhere: bool) -> None:
        self.world = World(Layout(nodes, shape, can_sync=can_sync, chat_everywhere=chat_everywhere or shape != "mesh"))

    def _node(self, number: int) -> Node:
        return self.world.nodes[number % len(self.world.nodes)]

    def _link(self, number: int) -> Link:
        return self.world.links[number % len(self.world.links)]

    # -- people and the archive ---------------------------------------------------------------------------------------

    @rule(node=NODES, hour=HOUR, stem=STEM)
    def mark(self, node: int, hour: int, stem: int) -> None:
        self.world.mark(self._node(node), Marked(HOURS[hour], STEMS[stem]))

    @rule(node=NODES, hour=HOUR, stem=STEM)
    def touch(self, node: int, hour: int, stem: int) -> None:
        self.world.touch(self._node(node), Marked(HOURS[hour], STEMS[stem]))

    @rule(node=NODES, hour=HOUR, stem=STEM)
    def remove_tombstone(self, node: int, hour: int, stem: int) -> None:
        self._node(node).ground.remove_tombstone(Marked(HOURS[hour], STEMS[stem]))

    @rule(node=NODES, hour=HOUR, stem=STEM, extension=EXTENSION)
    def write(self, node: int, hour: int, stem: int, extension: str) -> None:
        self._node(node).ground.write(HOURS[hour], STEMS[stem] + extension)

    @rule(node=NODES, hour=HOUR, stem=STEM, extension=EXTENSION)
    def remove(self, node: int, hour: int, stem: int, extension: str) -> None:
        self._node(node).ground.remove(HOURS[hour], STEMS[stem] + extension)

    @rule(node=NODES, hour=HOUR)
    def remove_hour(self, node: int, hour: int) -> None:
        self._node(node).ground.remove_hour(HOURS[hour])

    @rule(node=NODES, hour=HOUR)
    def move_hour(self, node: int, hour: int) -> None:
        self._node(node).ground.move_hour(HOURS[hour])

    @rule(node=NODES, source=NODES)
    def backfill(self, node: int, source: int) -> None:
        self.world.backfill(self._node(node), self._node(source))

    # -- the agents' turns --------------------------------------------------------------------------------------------

    @rule(node=NODES)
    def run(self, node: int) -> None:
        self._node(node).run()

    @rule(node=NODES, count=st.integers(1, 3))
    def read_events(self, node: int, count: int) -> None:
        self._node(node).read_events(count)

    @rule(node=NODES, kept=st.integers(0, 2), told=st.booleans())
    def lose_events(self, node: int, kept: int, told: bool) -> None:
        life = self._node(node).life
        if life is not None:
            life.inotify.lose(kept, told=told)

    @rule(node=NODES, count=st.integers(1, 3))
    def commit(self, node: int, count: int) -> None:
        for _ in range(count):
            self._node(node).commit()

    @rule(node=NODES, kind=st.sampled_from((RescanKind.INTERVAL, RescanKind.FULL)))
    def rescan(self, node: int, kind: RescanKind) -> None:
        self._node(node).rescan(kind)

    @rule(node=NODES, count=st.integers(1, 5))
    def rescan_turns(self, node: int, count: int) -> None:
        for _ in range(count):
            self._node(node).rescan_turn()

    @rule(link=LINKS, count=st.integers(1, 3))
    def push(self, link: int, count: int) -> None:
        wanted = self._link(link)
        for node in self.world.nodes:
            for name, found in node.links.items():
                if found is wanted:
                    for _ in range(count):
                        node.push(name)

    @rule(node=NODES, point=POINT, hour=HOUR, stem=STEM, change=CHANGE, read=st.booleans(), commit=st.booleans())
    def meanwhile(self, node: int, point: str, hour: int, stem: int, change: str, read: bool, commit: bool) -> None:
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
        changes: dict[str, Callable[[], object]] = {
            "touch": lambda: self.world.touch(node, Marked(hour, stem)),
            "rm-tombstone": lambda: node.ground.remove_tombstone(Marked(hour, stem)),
            "write": lambda: node.ground.write(hour, f"{stem}.ts"),
            "rm": lambda: node.ground.remove(hour, f"{stem}.ts"),
            "rm-hour": lambda: node.ground.remove_hour(hour),
            "move-hour": lambda: node.ground.move_hour(hour),
            "nothing": lambda: None,
        }
        changes[change]()

    # -- the network --------------------------------------------------------------------------------------------------

    @rule(link=LINKS, up=st.booleans())
    def set_link(self, link: int, up: bool) -> None:
        self._link(link).up = up

    @rule(link=LINKS, requests_wait=st.booleans(), answers_wait=st.booleans(), backwards=st.booleans())
    def slow(self, link: int, requests_wait: bool, answers_wait: bool, backwards: bool) -> None:
        slowed = self._link(link)
        slowed.requests_wait, slowed.answers_wait, slowed.backwards = requests_wait, answers_wait, backwards

    @rule(link=LINKS, request=st.booleans())
    def move(self, link: int, request: bool) -> None:
        self._link(link).move(request=request)

    @rule(link=LINKS)
    def cut(self, link: int) -> None:
        self._link(link).cut()

    @rule(link=LINKS)
    def act_late(self, link: int) -> None:
        self._link(link).act_late()

    # -- lives and clocks ---------------------------------------------------------------------------------------------

    @rule(node=NODES, power_cut=st.booleans())
    def crash(self, node: int, power_cut: bool) -> None:
        self._node(node).crash(power_cut=power_cut)

    @rule(node=NODES)
    def restart(self, node: int) -> None:
        self._node(node).crash()
        self._node(node).start()

    @rule(node=NODES)
    def lose_index(self, node: int) -> None:
        self._node(node).lose_index()

    @rule(seconds=st.sampled_from((0.03, 1.1, 2.2, 10.5, 61.0, 700.0)))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(node=NODES, hours=st.sampled_from((-1, 1)))
    def jump(self, node: int, hours: int) -> None:
        self._node(node).base.jump(hours * 3_600_000_000_000)

    # -- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """All that must be true at any moment (checks.py)."""
        if hasattr(self, "world"):
            for node in self.world.nodes:
                node.check()

    def teardown(self) -> None:
        """A run that found nothing has to converge at its end."""
        if not hasattr(self, "world"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.world.converge()
                type(self).runs += 1
        finally:
            self.world.close()

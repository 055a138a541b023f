"""The acts of the demo, each of which shows something and raises DidNotHold where it is not so."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial

from tombsync.cli.demo import material
from tombsync.cli.demo.node import Node, confinement_options, touch
from tombsync.cli.demo.patience import DidNotHold, Patience
from tombsync.cli.demo.report import Mark, Report, duration
from tombsync.cli.demo.screen import Screen
from tombsync.cli.demo.stage import Stage, names_of
from tombsync.names import EXTENSION, Hour, Kind
from tombsync.plan import State

MARKS = 5
START_LIMIT_S = 15.0
HIDE_LIMIT_S = 5.0
CATCH_UP_LIMIT_S = 12.0
LIST_LIMIT_S = 10.0
_POLL_S = 0.0003  # while a hide is measured: less than one takes, and still mostly asleep


class Story:
    """Plays the acts in their order. Owner: the main thread."""

    def __init__(self, stage: Stage, report: Report, screen: Screen, patience: Patience) -> None:
        self._stage = stage
        self._report = report
        self._screen = screen
        self._patience = patience
        self._before: dict[str, dict[str, material.Trace]] = {}

    def play(self, *, embedded: bool) -> None:
        """All of it. Raises DidNotHold, Interrupted, other errors of tombsync, OSError."""
        self._start(embedded=embedded)
        self._measure()
        self._outage()
        self._list()
        self._compare()

    # -- start --------------------------------------------------------------------------------------------------------

    def _start(self, *, embedded: bool) -> None:
        stage, screen = self._stage, self._screen
        screen.working("making three trees and their keys")
        stage.build()
        screen.working("starting the SFTP servers")
        refusal = stage.start_servers(embedded=embedded)
        self._report.server = stage.server
        if refusal:
            screen.step("embedded", refusal)
        self._before = {node.name: material.traces(node.root) for node in stage.nodes}
        screen.working("starting the agents")
        self._patience.glances.append(stage.require_alive)
        for node in stage.nodes:
            node.start_agent()
        self._patience.until(
            lambda: all(node.ready() for node in stage.nodes),
            lambda: f"{names_of([node for node in stage.nodes if not node.ready()])} did not get ready",
            limit_s=START_LIMIT_S,
        )
        self._report.confined = bool(confinement_options())
        server = "OpenSSH" if stage.server == "openssh" else "tombsync's own"
        screen.step("started", f"3 agents, 3 SFTP servers ({server}), {self._files()} segments")
        if not self._report.confined:
            screen.step("unconfined", "are the agents: this kernel has no Landlock")

    def _files(self) -> int:
        return sum(len(files) for files in self._before.values())

    # -- marks --------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        self._screen.working("touching tombstones on node-a")
        for number in range(1, MARKS + 1):
            mark = self._next_mark(number)
            self._report.marks.append(mark)
            begun = self._hide(mark, self._stage.nodes)
            self._await_confirmed(mark, self._stage.nodes)
            mark.confirmed_ms = (time.monotonic() - begun) * 1e3
            self._screen.measured(mark)
            self._patience.pause(self._screen.pause_s)
        self._screen.best()

    def _next_mark(self, number: int, *, down: str = "") -> Mark:
        """One for each segment that is far enough from the last one to be told apart."""
        step = material.SEGMENTS_PER_HOUR // (MARKS + 1)
        return Mark(number, self._stage.segments[(number - 1) * step], down=down)

    def _hide(self, mark: Mark, nodes: Sequence[Node]) -> float:
        """Touch the tombstone on the first node, wait until each node's index hides it; returns when it was touched."""
        waiting = list(nodes)

        def look() -> bool:
            for node in list(waiting):
                if node.marker(mark.marked) is not None:
                    mark.hidden_ms[node.name] = (time.monotonic() - begun) * 1e3
                    waiting.remove(node)
            return not waiting

        begun = time.monotonic()
        touch(nodes[0].root, mark.marked)
        self._patience.until(
            look,
            lambda: f"{names_of(waiting)} did not hide {mark.marked.path}",
            limit_s=HIDE_LIMIT_S,
            poll_s=_POLL_S,
        )
        return begun

    def _await_confirmed(self, mark: Mark, nodes: Sequence[Node], *, but: Node | None = None) -> None:
        self._patience.until(
            lambda: all(self._confirmed(node, mark, but=but) for node in nodes),
            lambda: f"not every neighbour confirmed {mark.marked.path}",
            limit_s=HIDE_LIMIT_S,
            poll_s=_POLL_S,
        )

    @staticmethod
    def _confirmed(node: Node, mark: Mark, *, but: Node | None = None) -> bool:
        deliveries = node.deliveries(mark.marked)
        wanted = [neighbour.name for neighbour in node.neighbours if neighbour is not but]
        return all(deliveries.get(name) is State.CONFIRMED for name in wanted)

    # -- an outage ----------------------------------------------------------------------------------------------------

    def _outage(self) -> None:
        *rest, lost = self._stage.nodes
        keeper = lost.neighbours[0]
        self._screen.working(f"stopping {lost.name}")
        begun = time.monotonic()
        lost.stop()
        self._patience.until(
            lambda: not keeper.hears(lost),
            lambda: f"{keeper.name} did not notice that {lost.name} is gone",
            limit_s=HIDE_LIMIT_S,
        )
        self._report.noticed_ms = (time.monotonic() - begun) * 1e3
        self._screen.step("stopped", f"{lost.name}, its agent and its SFTP server; {keeper.name} has noticed")

        self._screen.working("touching one more meanwhile")
        mark = self._next_mark(MARKS + 1, down=lost.name)
        self._report.outage = mark
        self._hide(mark, rest)
        self._await_confirmed(mark, rest, but=lost)
        state = keeper.deliveries(mark.marked).get(lost.name)
        if state is not State.PENDING:
            found = state.word if state is not None else "unknown"
            raise DidNotHold(f"the delivery of {mark.marked.path} to {lost.name} is {found}, not pending")
        mark.pending_at = keeper.name
        self._screen.measured(mark)
        self._screen.step("pending", f"{keeper.name} keeps the delivery to {lost.name} until that is back")
        self._patience.pause(self._screen.pause_s)
        self._return(mark, lost, keeper)

    def _return(self, mark: Mark, lost: Node, keeper: Node) -> None:
        self._screen.working(f"starting {lost.name} again")
        begun = time.monotonic()
        if lost.server is not None:
            lost.server.start()
        lost.start_agent()
        self._patience.until(
            lambda: lost.listens() and lost.marker(mark.marked) is not None,
            lambda: f"{lost.name} did not catch up with {mark.marked.path}",
            limit_s=CATCH_UP_LIMIT_S,
        )
        mark.caught_up_ms = (time.monotonic() - begun) * 1e3
        self._patience.until(
            partial(self._confirmed, keeper, mark),
            lambda: f"{lost.name} did not confirm {mark.marked.path} to {keeper.name}",
            limit_s=CATCH_UP_LIMIT_S,
        )
        mark.confirmed_ms = (time.monotonic() - begun) * 1e3
        after = duration(mark.caught_up_ms)
        self._screen.step("caught up", f"{lost.name} hides it too, {after} after its start, and has confirmed")

    # -- proofs -------------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Ask `tombsync ls` on every node, as a person would, and compare with what stands in the directory."""
        marks = [*self._report.marks, *([self._report.outage] if self._report.outage else [])]
        hour = marks[0].marked.hour
        hidden = {mark.marked.stem + EXTENSION[Kind.TS] for mark in marks}
        self._screen.working(f"tombsync ls {hour.path}")
        for node in self._stage.nodes:
            node.ask_listing(hour)
        for node in self._stage.nodes:
            self._check_listing(node, hour, hidden)
        self._screen.step("listed", f"`tombsync ls` leaves the {len(hidden)} hidden segments out, on each node")

    def _check_listing(self, node: Node, hour: Hour, hidden: set[str]) -> None:
        self._patience.until(
            node.listing_ended, lambda: f"`tombsync ls` on {node.name} did not end", limit_s=LIST_LIMIT_S
        )
        listed = set(node.listing())
        there = {name for name in os.listdir(node.root / hour.path) if name.endswith(EXTENSION[Kind.TS])}
        if not hidden <= there:
            raise DidNotHold(f"{min(hidden - there)} is no longer in the tree of {node.name}")
        if listed != there - hidden:
            wrong = min(listed ^ (there - hidden))
            raise DidNotHold(f"`tombsync ls {hour.path}` on {node.name} is wrong about {wrong}")
        self._report.listed[node.name] = len(listed)

    def _compare(self) -> None:
        for node in self._stage.nodes:
            if path := material.first_difference(self._before[node.name], material.traces(node.root)):
                raise DidNotHold(f"{node.root / path} is not as it was")
        self._report.files_unchanged = self._files()
        self._screen.step("untouched", f"{self._files()} data files: the same content, inodes and times")

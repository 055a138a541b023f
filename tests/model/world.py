"""All nodes together: how they are linked, how every fault ends, and what must be true some time after that."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass

from tests.model.checks import CONVERGES, RESTS, Violation, check_data, check_rebuilt
from tests.model.events import Inotify
from tests.model.life import TurnedEmitter
from tests.model.memory import new_directory
from tests.model.network import Link
from tests.model.node import Node
from tests.model.simulated import Clock, simulated
from tombsync.names import Hour, Marked, hour_number
from tombsync.plan import KEEP_STATES, State
from tombsync.tree import Listing

HASH = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
# A segment, another one whose stem begins with the whole of that, and a batch of chat.
STEMS = (f"45:51.608000-2.0-full-{HASH}", f"45:51.608000-2.0-full-{HASH}-2", f"45:00-{HASH}")
EXTENSIONS = (".ts", ".json")
CHANNEL, HOUR_NUMBER = "desertbus", hour_number("2019-11-13T02")
HOURS = (
    Hour(CHANNEL, "source", HOUR_NUMBER),
    Hour(CHANNEL, "source", HOUR_NUMBER + 1),
    Hour(CHANNEL, "chat", HOUR_NUMBER),
)
_ROUND_S = (63.0, 65.0)  # after each a wait of a minute has ended, after both a verify
_MOST_ROUNDS = 16


@dataclass(frozen=True)
class Layout:
    """Which nodes there are and who pushes to whom.

    `shape`: everybody to everybody (`mesh`), each to the next (`ring`), or to both neighbours (`line`). `can_sync`: the
    first node's SFTP server can. `chat_everywhere`: the last node keeps the chat, too (in a ring or line nothing of the
    chat would pass it).
    """

    nodes: int
    shape: str
    can_sync: bool = True
    chat_everywhere: bool = True

    def peers(self, number: int) -> list[int]:
        """The peers of a node."""
        if self.shape == "mesh":
            return [other for other in range(self.nodes) if other != number]
        if self.shape == "ring":
            return [(number + 1) % self.nodes]
        return [other for other in (number - 1, number + 1) if 0 <= other < self.nodes]


@dataclass(frozen=True)
class Expected:
    """What a healed world has to come to: tombstones that a node has where it keeps the hour, and open deliveries."""

    kept: set[tuple[str, Marked]]
    open: list[tuple[Link, Marked]]


class World:
    """Some nodes with running agents. Use `close`."""

    def __init__(self, layout: Layout) -> None:
        self.clock = Clock()
        self.ever_marked: set[Marked] = set()
        self.nodes: list[Node] = []
        self.links: list[tuple[Node, Link]] = []
        self._stack = contextlib.ExitStack()
        try:
            self._begin(layout)
        except BaseException:
            self.close()
            raise

    def _begin(self, layout: Layout) -> None:
        directory = new_directory()
        self._stack.callback(shutil.rmtree, directory)
        self._stack.enter_context(
            simulated(self.clock, inotify=self._inotify, emitter_class=TurnedEmitter, listing=self._listing)
        )
        for number in range(layout.nodes):
            self.nodes.append(Node(number, directory, self.clock, self.ever_marked))
        for number, node in enumerate(self.nodes):
            for peer in layout.peers(number):
                target = self.nodes[peer]
                link = Link(target.name, target.ground, can_sync=layout.can_sync or peer != 0)
                node.links[target.name] = link
                self.links.append((node, link))
        for number, node in enumerate(self.nodes):
            for hour in HOURS[:2]:
                node.ground.write(hour, f"{STEMS[0]}.ts")
                node.ground.write(hour, f"{STEMS[1]}.ts")
            if layout.chat_everywhere or number < layout.nodes - 1:
                node.ground.write(HOURS[2], f"{STEMS[2]}.json")
        for node in self.nodes:
            node.start()
            node.run()

    def _node(self) -> Node:
        return next(node for node in self.nodes if node.base is self.clock.base)

    def _inotify(self) -> Inotify:
        return self._node().current_inotify

    def _listing(self) -> Listing:
        return self._node().listing()

    def close(self) -> None:
        """End everything and remove every file."""
        for node in self.nodes:
            node.close()
        self._stack.close()

    # -- what happens in it -------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; the checkpointers' turn comes meanwhile."""
        if seconds >= 1.0:
            for node in self.nodes:
                node.checkpoint()
        self.clock.advance(seconds)

    def touch(self, node: Node, marked: Marked) -> None:
        """A person touches a tombstone."""
        if node.ground.touch(marked):
            self.ever_marked.add(marked)

    def mark(self, node: Node, marked: Marked) -> None:
        """A person marks by command, which says that it is done only when the tombstone stands."""
        if marked.hour in node.ground.kept:
            self.ever_marked.add(marked)
            with node.ground.open_root() as root_fd:
                node.ground.place(root_fd, marked, b"generation = 0\n")
            assert node.ground.holds(marked)

    def backfill(self, node: Node, source: Node) -> None:
        """The stock backfiller pulls from another node what that one lists: data, with the hours that it needs, and
        tombstones, without.
        """
        for hour, state in list(source.ground.kept.items()):
            for stem in state.tombstones:
                self.touch(node, Marked(hour, stem))
            for name in state.data:
                if name.rpartition(".")[0] not in state.tombstones:
                    node.ground.write(hour, name)

    # -- after every fault --------------------------------------------------------------------------------------------

    def converge(self) -> None:
        """I2: end every fault; some time later everybody holds everything, and then nothing is pushed any more."""
        for node in self.nodes:
            node.nothing_meanwhile()
        for _, link in self.links:
            link.heal()
        for node in self.nodes:
            node.start()
            for name in node.links:
                node.push(name)
            node.commit_all()
        expected = self._expected()
        self._rest()
        self._check_converged(expected)

    def _expected(self) -> Expected:
        kept: set[tuple[str, Marked]] = set()
        still_open: list[tuple[Link, Marked]] = []
        for node in self.nodes:
            node.check()
            kept.update((node.name, marked) for marked, _ in node.ground.tombstones())
            for marked, since_ns in node.committed.items():
                state = node.ground.kept.get(marked.hour)
                if state is not None and since_ns >= state.since_ns:  # recorded since its hour came
                    kept.add((node.name, marked))
            rows = node.rows()
            still_open += (
                (node.links[rows.peers[peer]], rows.markers[marker])
                for peer, marker, state in rows.deliveries
                if state in KEEP_STATES
            )
        return Expected(kept, still_open)

    def _rest(self) -> None:
        """Let everybody work until a whole round changed nothing: no record, no placing, no hour waited for."""
        for _ in range(_MOST_ROUNDS):
            before = self._changes()
            for _, link in self.links:
                link.acts.clear()
            for pause_s in _ROUND_S:
                self.clock.advance(pause_s)
                for node in self.nodes:
                    node.run()
                    node.check()
            if self._changes() == before and not any(node.waits() for node in self.nodes):
                self._check_quiet()
                return
        raise Violation(RESTS, f"after {_MOST_ROUNDS} rounds without a fault something still changes")

    def _changes(self) -> list[int]:
        return [node.journal.changes for node in self.nodes] + [link.placed for _, link in self.links]

    def _check_quiet(self) -> None:
        """In the last round nothing was asked but by a verify, or of a peer that does not keep the channel."""
        for _, link in self.links:
            for job, answer in link.acts:
                if (job.make_hour or not job.probe) and answer.state is not State.NOT_SERVED:
                    raise Violation(CONVERGES, f"{link.target.name}: {job} is still pushed, and answered {answer}")

    def _check_converged(self, expected: Expected) -> None:
        """Each link between two nodes that keep an hour has brought every tombstone of it to its end."""
        for node in self.nodes:
            ground = node.ground
            for name, marked in expected.kept:
                if name == node.name and marked.hour in ground.kept and not ground.holds(marked):
                    raise Violation(CONVERGES, f"{name} keeps the hour and lost {marked.path}")
            for name, link in node.links.items():
                for marked, _ in ground.tombstones():
                    if marked.hour in link.ground.kept and not link.ground.holds(marked):
                        raise Violation(CONVERGES, f"{name}, a peer of {node.name}, lacks {marked.path}")
            check_data(node)
            check_rebuilt(node)
        for link, marked in expected.open:
            gone = marked in link.confirmed and marked.hour not in link.ground.kept
            if link.ground.serves(marked.hour) and not gone and not link.ground.holds(marked):
                raise Violation(CONVERGES, f"{link.target.name} never got {marked.path}")

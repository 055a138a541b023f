"""Several nodes that deliver to each other by inboxes: they converge, and then there is silence."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial

import pytest
from inotify_simple import INotify, flags

from tests.support.agent import make_hour, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.waiting import wait_for
from tombsync.names import Offer, read_inbox_name

HOUR = "desertbus/source/2019-11-13T02"
NODES = 4
MARKS = 5  # on each node


def chain() -> list[tuple[int, int]]:
    """Each delivers to the next and to the one before."""
    there = [(number, number + 1) for number in range(NODES - 1)]
    return there + [(to, by) for by, to in there]


def ring() -> list[tuple[int, int]]:
    """Each delivers to the next one only."""
    return [(number, (number + 1) % NODES) for number in range(NODES)]


class Pushes:
    """Sees each tombstone that is created in an inbox of these nodes, also one that was there before."""

    def __init__(self, stack: ExitStack, nodes: list[ReceivingNode]) -> None:
        self._inotify = stack.enter_context(INotify())
        self._links = {
            self._inotify.add_watch(node.inbox(sender), flags.CREATE): (sender, node.name)
            for node in nodes
            for sender in node.senders
        }

    def seen(self) -> Counter[tuple[tuple[str, str], str]]:
        """How often each stem came over each link since this was asked last."""
        found: Counter[tuple[tuple[str, str], str]] = Counter()
        while events := self._inotify.read(timeout=0):
            for event in events:
                assert not event.mask & flags.Q_OVERFLOW
                name = read_inbox_name(event.name)
                if isinstance(name, Offer):
                    found[self._links[event.wd], name.marked.stem] += 1
        return found


def _has(node: ReceivingNode, count: int) -> bool:
    return node.agent.metric("tombstones") == count


def _confirmed(node: ReceivingNode, peer: str, count: int) -> bool:
    return node.agent.metric("deliveries", peer=peer, state="confirmed") == count


def _sent(node: ReceivingNode, peer: ReceivingNode, stems: list[str]) -> set[str] | None:
    """What the peer has confirmed of these; None while any that is held is on its way there all the same.

    Such a one was sent before it was held, and its answer ends the hold.
    """
    states = {stem: node.agent.states(f"{HOUR}/{stem}")[peer.name] for stem in stems}
    arrived = {stem for stem in stems if (peer.root / HOUR / f"{stem}.tombstone").exists()}
    confirmed = {stem for stem, state in states.items() if state == "confirmed"}
    settled = set(states.values()) <= {"held", "confirmed"} and not list(peer.inbox(node.name).iterdir())
    return confirmed if settled and arrived == confirmed else None


@pytest.mark.parametrize("links", [pytest.param(chain(), id="chain"), pytest.param(ring(), id="ring")])
def test_they_converge_and_fall_silent(links: list[tuple[int, int]], stack: ExitStack) -> None:
    names = [f"node-{number}" for number in range(NODES)]
    nodes = [
        ReceivingNode(stack, name, [names[by] for by, to in links if to == number]) for number, name in enumerate(names)
    ]
    for number, node in enumerate(nodes):
        make_hour(node.root, HOUR, 1)
        node.peers = [nodes[to].table_for(names[number]) for by, to in links if by == number]
        node.write_settings()
    pushes = Pushes(stack, nodes)
    for node in nodes:
        node.agent.start()
    stems = [segment_stem(number) for number in range(MARKS * NODES)]

    def mark(numbers: range) -> None:
        """Mark these, each on one of the nodes, and wait until they are everywhere and known to be."""
        for number in numbers:
            touch(nodes[number % NODES].root / HOUR, stems[number])
        for number, node in enumerate(nodes):
            wait_for(partial(_has, node, numbers.stop), "every tombstone on every node", 40)
            for peer in [names[to] for by, to in links if by == number]:
                wait_for(partial(_confirmed, node, peer, numbers.stop), "every confirmation", 40)

    last = len(stems) - NODES
    mark(range(last))
    before = pushes.seen()
    # Each link carried each tombstone once at most: N(N-1) pushes of one tombstone at the very most.
    assert set(before.values()) == {1}
    assert {stem for _, stem in before} == set(stems[:last])
    assert max(Counter(stem for _, stem in before).values()) <= min(len(links), NODES * (NODES - 1))
    # Silence: while others go the whole way from every node, not one of those that are everywhere moves again.
    mark(range(last, len(stems)))
    after = pushes.seen()
    assert {stem for _, stem in after} == set(stems[last:])
    assert set(after.values()) == {1}
    for node in nodes:
        assert {path.stem for path in (node.root / HOUR).glob("*.tombstone")} == set(stems)
        assert all(list(node.inbox(sender).iterdir()) == [] for sender in node.senders)
        hidden = Counter(record["TOMBSYNC_SEGMENT"] for record in node.agent.records("hidden"))
        assert max(hidden.values()) == 1
    # The origin is that of the first node, however many it passed.
    for node in nodes:
        for record in node.agent.records("hidden"):
            if record["TOMBSYNC_SOURCE"] == "inbox":
                number = stems.index(record["TOMBSYNC_SEGMENT"].rpartition("/")[2])
                assert record["TOMBSYNC_ORIGIN"] == names[number % NODES]


@pytest.mark.parametrize("backlog", [False, True], ids=["fresh", "backlog"])
def test_a_mass_that_a_sender_brings_too_goes_on_in_a_ring(*, backlog: bool, stack: ExitStack) -> None:
    """The sender is no peer, so that nobody asks it: what it brings has to say that it is no mistake.

    Also where it has had it for long, and finds out only now that it has to deliver it.
    """
    names = ["node-0", "node-1", "node-2"]
    nodes = [ReceivingNode(stack, name, [names[number - 1]]) for number, name in enumerate(names)]
    for number, node in enumerate(nodes):
        make_hour(node.root, HOUR, 1)
        node.peers = [nodes[(number + 1) % 3].table_for(names[number])]
        node.agent.most_per_minute = 4 if number == 0 else 1000
        node.write_settings()
    first, second, last = nodes
    for node in (first, second):
        node.agent.start()
    stems = [segment_stem(number) for number in range(12)]
    for stem in stems:
        touch(first.root / HOUR, stem)
    wait_for(partial(_has, first, len(stems)), "all to be hidden")
    sent = partial(_sent, first, second, stems)
    wait_for(lambda: sent() is not None, "what was on its way when the mass became one to be answered")
    held = set(stems) - (sent() or set())
    assert len(held) >= len(stems) - 8
    if not backlog:
        last.agent.start()
    for stem in stems:
        touch(last.root / HOUR, stem)
    if backlog:
        last.agent.start()
    wait_for(partial(_has, second, len(stems)), "all to go on", 40)
    wait_for(partial(_confirmed, first, "node-1", len(stems)), "every confirmation", 40)

    def ended() -> int:
        return sum(int(record["TOMBSYNC_COUNT"]) for record in first.agent.records("hold-ended"))

    wait_for(lambda: ended() >= len(held), "the end of the holds to be told")
    assert ended() == len(held)
    assert {record["TOMBSYNC_PEER"] for record in first.agent.records("hold-ended")} == {"node-2"}
    refused = first.agent.run("unmark", min(held), "--dry-run", expect=1)
    assert "node-2 brought it too" in refused.stderr

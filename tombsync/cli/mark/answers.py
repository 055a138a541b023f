"""How far the marks of one command have come at each peer. Pure: whoever waits feeds it what the index says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tombsync.names import Marked
from tombsync.plan import UNCONFIRMED_STATES, State

# What a peer has said where nothing of it is hidden too little: it has it, or has no place for it.
GOOD_STATES = (State.CONFIRMED, State.HOUR_GONE, State.NOT_SERVED)


class Answers:
    """The state of each mark at each of some peers; None where the index has no delivery of it (yet)."""

    def __init__(self, marked: Iterable[Marked], peers: Sequence[str]) -> None:
        self.peers = tuple(peers)
        self.states: dict[Marked, dict[str, State | None]] = {one: dict.fromkeys(peers) for one in marked}

    def put(self, marked: Marked, states: Mapping[str, State]) -> None:
        """What the index says of one now."""
        self.states[marked] = {peer: states.get(peer) for peer in self.peers}

    def open(self) -> list[Marked]:
        """Those of which some peer has not answered: only they have to be asked about again."""
        return [one for one, states in self.states.items() if any(map(is_open, states.values()))]

    def counts(self, peer: str) -> Counter[State | None]:
        """How many of them are in which state at a peer."""
        return Counter(states[peer] for states in self.states.values())

    def is_done(self, peer: str) -> bool:
        """Whether a peer has answered of each."""
        return not any(is_open(states[peer]) for states in self.states.values())

    def lacking(self) -> list[str]:
        """The peers that have not confirmed all, or may not have a durable one."""
        return [peer for peer in self.peers if any(state not in GOOD_STATES for state in self.counts(peer))]


def is_open(state: State | None) -> bool:
    """Whether a peer has yet to answer. One that stands there and may not be durable is answered: it stays so."""
    return state is None or state in UNCONFIRMED_STATES

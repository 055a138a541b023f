"""What the agent is doing, in one line for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tombsync.guard import RootGuard
from tombsync.index import Writer
from tombsync.plan import State
from tombsync.push import Pusher
from tombsync.rescan import Progress, Rescan

_MOST_PEERS = 5  # named
_WAITING = (State.PENDING, State.RECEIVED)


class PeerState(NamedTuple):
    """One peer: whether its session stands, and its deliveries that are on their way or wait for a person."""

    name: str
    up: bool
    pending: int
    held: int


def activity(*, believed: bool, first_done: bool, progress: Progress | None) -> str:
    """What it is doing: `first scan 43 %`, `ready`, `ready, full rescan 7 %`."""
    if not believed:
        return "paused: the segment tree is not there, or is another one"
    share = f" {100 * progress.done // progress.total} %" if progress is not None and progress.total else ""
    if not first_done:
        return f"first scan{share}" if share else "starting"
    return f"ready, {progress.kind.value} rescan{share}" if progress is not None and share else "ready"


def state_text(doing: str, peers: Sequence[PeerState]) -> str:
    """The same with what is left to deliver: `ready; 12 pending to node-b; node-c is down, 3 pending`."""
    parts = [doing]
    shown = [text for peer in peers if (text := _of_peer(peer))]
    parts += shown[:_MOST_PEERS]
    if len(shown) > _MOST_PEERS:
        parts.append(f"and {len(shown) - _MOST_PEERS} more peers")
    if held := max((peer.held for peer in peers), default=0):
        parts.append(f"{held} held until `tombsync release`")
    return "; ".join(parts)


def _of_peer(peer: PeerState) -> str:
    if peer.up:
        return f"{peer.pending} pending to {peer.name}" if peer.pending else ""
    return f"{peer.name} is down" + (f", {peer.pending} pending" if peer.pending else "")


def describe(guard: RootGuard, rescan: Rescan) -> str:
    """What the agent is doing now; from any thread."""
    return activity(believed=guard.believed(), first_done=rescan.first_done.is_set(), progress=rescan.progress)


def peer_states(pushers: Sequence[Pusher], writer: Writer) -> list[PeerState]:
    """How every peer stands now; from any thread."""
    counts = writer.tally.deliveries
    return [
        PeerState(
            pusher.peer_name,
            pusher.up,
            sum(counts[pusher.peer, state] for state in _WAITING),
            counts[pusher.peer, State.HELD],
        )
        for pusher in pushers
    ]

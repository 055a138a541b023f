"""What of changed settings a running agent can take up, and how: pure decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tombsync.config import PeerSettings, Settings
from tombsync.daemon.parts import target_text


class PeerChange(NamedTuple):
    """A peer to exchange. `wanted`: None where it is one no more; `same_target`: what it confirmed still counts."""

    name: str
    wanted: PeerSettings | None
    same_target: bool = False


def obstacles(old: Settings, new: Settings, *, receives: bool) -> list[str]:
    """The keys whose change takes a restart: the index, the lock, the listener and the confinement are bound to them.

    `receives`: whether inboxes are looked after. Where they are not, the confinement, which only ever narrows, lets
    nothing be taken out of one.
    """
    return list(_obstacles(old, new, receives))


def _obstacles(old: Settings, new: Settings, receives: bool) -> Iterator[str]:
    for key in ("node", "root", "state_dir", "journal"):
        if getattr(old, key) != getattr(new, key):
            yield key
    if old.http != new.http:
        yield "http.listen"
    if old.inbox.jail != new.inbox.jail and (receives or new.senders):
        yield "inbox.jail"
    if new.senders and not receives:
        yield "the first [[sender]]"


def peer_changes(old: Settings, new: Settings) -> list[PeerChange]:
    """The peers that are to be exchanged, by their names; the others keep their sessions."""
    before = {peer.name: peer for peer in old.peers}
    after = {peer.name: peer for peer in new.peers}
    gone = [PeerChange(name, None) for name in before if name not in after]
    return gone + [
        PeerChange(name, peer, same_target=name in before and target_text(peer) == target_text(before[name]))
        for name, peer in after.items()
        if peer != before.get(name)
    ]

"""Rows of the index as programs read them, on the command line and over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tombsync.index.proofs import DeliveryRow
from tombsync.index.reader import MarkerRow, PeerRow
from tombsync.plan import State
from tombsync.timeline import iso


def tombstone_facts(row: MarkerRow, deliveries: Iterable[DeliveryRow], *, owner: str | None) -> dict[str, Any]:
    """One recorded tombstone. `owner`: the name of the account that the row has by number."""
    return {
        "segment": row.marked.path,
        "hidden_at": iso(row.hidden_at_ns),
        "source": row.source,
        "owner": owner,
        "sent_to_peers": row.pushable,
        "peers": {delivery.peer: delivery.state.word for delivery in deliveries},
    }


def peer_facts(row: PeerRow, *, running: bool, now_ns: int) -> dict[str, Any]:
    """One peer. `running`: an agent runs, so that it is known whether the peer is up; `now_ns`: wall time."""
    oldest_ns = row.oldest_unconfirmed_ns
    return {
        "name": row.name,
        "target": row.target,
        "up": row.up if running else None,
        "since": iso(row.changed_at_ns),
        "deliveries": {state.word: count for state, count in sorted(row.counts.items())},
        "pending": row.counts.get(State.PENDING, 0),
        "confirmed": row.counts.get(State.CONFIRMED, 0),
        "oldest_pending_s": None if oldest_ns is None else max(0.0, (now_ns - oldest_ns) / 1e9),
        "last_error": row.error or None,
        "last_error_at": iso(row.error_at_ns),
        "verified_at": iso(row.verified_at_ns),
    }

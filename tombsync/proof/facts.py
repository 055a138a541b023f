"""How one marked stem stands, put together from the index, this node's tree and what peers answered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tombsync.errors import RootMissing, RootNotBelieved, TooManyHours
from tombsync.index import MarkerRow, PeerRow, Reader
from tombsync.names import Kind, classify
from tombsync.proof.ask import Heard
from tombsync.proof.judge import Stand, stand
from tombsync.timeline import iso
from tombsync.tree import Standing, Tree, standing


def markers_of_stem(reader: Reader, name: str, *, most: int) -> list[MarkerRow]:
    """The markers of a stem in whatever hour; `name` with or without extension. Raises TooManyHours."""
    kind, stem = classify(name)
    stem = classify(stem)[1] if kind is Kind.MISTAKE else stem
    rows = reader.stems_like(stem, limit=most + 1)
    if len(rows) > most:  # a part of them would be taken for all
        raise TooManyHours(name, most)
    return rows


def stands_of(
    reader: Reader,
    row: MarkerRow,
    peers: Mapping[str, PeerRow],
    heard: Mapping[str, Heard],
    *,
    configured: Collection[str],
) -> list[Stand]:
    """How it stands at each peer. `peers`: the index's, by name; `configured`: those of the settings."""
    deliveries = {delivery.peer: delivery for delivery in reader.deliveries(row.marker)}
    names = sorted(deliveries.keys() | (set(configured) if row.pushable else set()))
    return [
        stand(
            name,
            row.marker,
            deliveries.get(name),
            peers.get(name),
            heard.get(name),
            configured=name in configured,
        )
        for name in names
    ]


def standing_here(tree: Tree, reader: Reader, row: MarkerRow) -> Standing | None:
    """What of it stands in this node's own tree now; None where that is not known: another tree is there, or none."""
    identity = reader.fact("root")
    if identity is None:
        return None
    try:
        with tree.open_believed(identity) as root_fd:
            return standing(root_fd, row.marked)
    except (RootMissing, RootNotBelieved, OSError):
        return None


def segment_facts(
    row: MarkerRow, here: Standing | None, stands: Sequence[Stand], *, node: str, owner: str | None
) -> dict[str, Any]:
    """How it stands, for programs. `owner`: the name of the account that the row has by number."""
    return {
        "segment": row.marked.path,
        "hidden_at": iso(row.hidden_at_ns),
        "source": row.source,
        "owner": owner,
        "sender": row.sender or None,
        "origin": row.origin or node,
        "tombstone_here": here and here.tombstone,
        "data_here": here and here.data,
        "sent_to_peers": row.pushable,
        "peers": [
            {
                "peer": one.peer,
                "state": one.state.word if one.state is not None else None,
                "confirmed_at": iso(one.confirmed_at_ns),
                "asked_at": iso(one.asked_at_ns),
                "asked_now": one.asked_now,
                "data_there": one.data,
                "data_asked_at": iso(one.data_asked_at_ns),
                "unreachable_since": iso(one.unreachable_since_ns),
                "configured": one.configured,
                "detail": one.detail or None,
                "error": one.error or one.unreachable_why or None,
            }
            for one in stands
        ],
    }

"""How the status page shows a tombstone: when its segment plays, and how it stands at each peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from tombsync.index import DeliveryGlance, MarkerRow
from tombsync.names import Hour, Marked, parse_chat_stem, parse_stem
from tombsync.plan import State
from tombsync.web.words import Badge

_OF_STATE = {
    State.PENDING: ("wait", "wait"),
    State.RECEIVED: ("wait", "wait"),
    State.HELD: ("pause", "care"),
    State.NOT_DURABLE: ("diamond", "care"),
    State.REFUSED: ("cross", "bad"),
    State.NOT_SERVED: ("dash", "calm"),
    State.SUPERSEDED: ("dash", "calm"),
    State.HOUR_GONE: ("dash", "good"),
    State.CONFIRMED: ("check", "good"),
}


class Cell(NamedTuple):
    """How one tombstone stands at one peer. `at_ns`: when it confirmed, or else was last asked."""

    peer: str
    badge: Badge
    at_ns: int | None
    detail: str


class MarkView(NamedTuple):
    """A row of the tombstones' matrix. `link`: the query that finds it; "" where no query may name it."""

    key: int
    place: Hour
    moment: str
    stem: str
    link: str
    hidden_at_ns: int
    notes: list[str]
    cells: list[Cell]


def badge_of(state: State) -> Badge:
    """How a delivery's state is shown."""
    shape, tone = _OF_STATE[state]
    return Badge(shape, tone, state.word)


def cells_of(row: MarkerRow, deliveries: Sequence[DeliveryGlance], peers: Sequence[str]) -> list[Cell]:
    """One for each peer, in their order."""
    known = {delivery.peer: delivery for delivery in deliveries}
    return [_cell(row, peer, known.get(peer)) for peer in peers]


def _cell(row: MarkerRow, peer: str, delivery: DeliveryGlance | None) -> Cell:
    if delivery is None:
        return Cell(peer, Badge("dash", "calm", "not sent" if not row.pushable else "none"), None, "")
    at_ns = delivery.asked_at_ns
    if delivery.state is State.CONFIRMED:
        at_ns = delivery.confirmed_at_ns
    return Cell(peer, badge_of(delivery.state), at_ns, delivery.detail)


def mark_view(row: MarkerRow, deliveries: Sequence[DeliveryGlance], peers: Sequence[str]) -> MarkView:
    """A row of the matrix; `peers`: its columns."""
    hour, stem = row.marked
    return MarkView(
        key=row.marker,
        place=hour,
        moment=moment_of(row.marked),
        stem=stem,
        link=link_to(row.marked),
        hidden_at_ns=row.hidden_at_ns,
        notes=notes_of(row),
        cells=cells_of(row, deliveries, peers),
    )


def moment_of(marked: Marked) -> str:
    """When it plays, to the millisecond; of a stem that does not say so only the hour."""
    day, _, hour = marked.hour.text.partition("T")
    parsed = parse_stem(marked.stem) or parse_chat_stem(marked.stem)
    if parsed is None:
        return f"{day} {hour}h"
    minute, rest_us = divmod(parsed.start_us, 60_000_000)
    return f"{day} {hour}:{minute:02d}:{rest_us // 1_000_000:02d}.{rest_us // 1000 % 1000:03d}"


def link_to(marked: Marked) -> str:
    """The page's query that finds a tombstone; "" where its name may not come from outside."""
    return "" if marked.unsafe else "?q=" + quote(marked.tombstone_path, errors="surrogateescape")


def notes_of(row: MarkerRow) -> list[str]:
    """What is to be known of a tombstone besides its deliveries."""
    notes = [f"seen by {row.source}"] if not row.sender else [f"brought by {row.sender}"]
    if row.origin and row.origin != row.sender:
        notes.append(f"marked at {row.origin}")
    if not row.hides:
        notes.append("taken back")
    elif not row.in_tree:
        notes.append("no file in the tree yet")
    if not row.pushable:
        notes.append("not sent to peers")
    return notes

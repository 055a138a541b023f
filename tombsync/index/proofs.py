"""The part of the index's reader that proofs and purges ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tombsync.index.questions import Questions
from tombsync.index.schema import from_key, place_range
from tombsync.names import Hour, Marked
from tombsync.plan import UNCONFIRMED_STATES, State

_UNCONFIRMED = ",".join(str(int(state)) for state in (*UNCONFIRMED_STATES, State.NOT_DURABLE))


class Unconfirmed(NamedTuple):
    """One delivery that a peer has not durably confirmed. Times are wall time in nanoseconds."""

    marker: int
    state: State
    asked_at_ns: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One delivery of one marker. Times are wall time in nanoseconds.

    `data`: whether the peer still had data of that stem at `data_asked_at_ns`; None where it was never asked.
    `ever_there`: it was seen there once, whatever the state says now.
    """

    peer: str
    state: State
    asked_at_ns: int | None
    confirmed_at_ns: int | None
    detail: str
    data: bool | None
    data_asked_at_ns: int | None
    ever_there: bool = False


class Proofs(Questions):
    """What Reader can tell of deliveries."""

    def deliveries(self, marker: int) -> list[DeliveryRow]:
        """The deliveries of one marker, by peer."""
        return [
            DeliveryRow(
                name,
                State(state),
                asked,
                confirmed,
                detail or "",
                None if data is None else bool(data),
                data_at,
                bool(ever_there),
            )
            for name, state, asked, confirmed, detail, data, data_at, ever_there in self._all(
                "SELECT name, state, asked_at_ns, confirmed_at_ns, detail, data, data_asked_at_ns, ever_there"
                " FROM delivery d JOIN peer p ON p.id = d.peer WHERE marker = ? ORDER BY name",
                (marker,),
            )
        ]

    def unconfirmed(self, peer: int, *, limit: int) -> Iterator[Unconfirmed]:
        """Deliveries that a peer keeps a place for and has not durably confirmed, newest first; `limit` rows are read
        at once.

        Looks through all of that peer's: one that is not durable is not due, so no index of the open ones has it.
        """
        below = 1 << 62
        while True:
            rows = self._all(
                "SELECT d.marker, d.state, d.asked_at_ns, d.detail FROM delivery d"
                f" WHERE d.peer = ? AND d.state IN ({_UNCONFIRMED}) AND d.marker < ?"
                " ORDER BY d.marker DESC LIMIT ?",
                (peer, below, limit),
            )
            for marker, state, asked_at_ns, detail in rows:
                yield Unconfirmed(marker, State(state), asked_at_ns, detail or "")
            if len(rows) < limit:
                return
            below = rows[-1][0]

    def has_confirmed_of(self, peer: str, channel: str, quality: str) -> bool:
        """Whether a peer once confirmed some tombstone of a channel and quality: then it kept them."""
        if (place := self._place_key(channel, quality)) is None:
            return False
        rows = self._all(
            "SELECT 1 FROM marker m JOIN delivery d ON d.marker = m.id JOIN peer p ON p.id = d.peer"
            " WHERE m.hour BETWEEN ? AND ? AND p.name = ? AND d.confirmed_at_ns IS NOT NULL LIMIT 1",
            (*place_range(place), peer),
        )
        return bool(rows)

    def confirmed_of(self, peer: str, channel: str, quality: str, *, limit: int) -> list[tuple[int, Marked]]:
        """Tombstones of a channel and quality that a peer has confirmed: one of each hour, of the newest hours."""
        if (place := self._place_key(channel, quality)) is None:
            return []
        rows = self._all(
            "SELECT max(m.id), m.hour, m.stem FROM marker m JOIN delivery d ON d.marker = m.id"
            " JOIN peer p ON p.id = d.peer WHERE m.hour BETWEEN ? AND ? AND p.name = ? AND d.state = ?"
            " GROUP BY m.hour ORDER BY m.hour DESC LIMIT ?",
            (*place_range(place), peer, State.CONFIRMED, limit),
        )
        return [(marker, Marked(self._hour_of(hour), from_key(stem))) for marker, hour, stem in rows]

    def _place_key(self, channel: str, quality: str) -> int | None:
        return next((key for key, pair in self._place(0).items() if pair == (channel, quality)), None)

    def leftover_hours(self, *, limit: int) -> Iterator[Hour]:
        """Hours with data of which nothing is visible, by rising key; `limit` rows are read at once."""
        above = -1
        while rows := self._all(
            "SELECT id FROM hour WHERE files > 0 AND hidden >= files AND id > ? ORDER BY id LIMIT ?", (above, limit)
        ):
            for (key,) in rows:
                yield self._hour_of(key)
            above = rows[-1][0]

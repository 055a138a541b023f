"""The part of the index's reader that proofs and purges ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tombsync.index.schema import HOUR_BITS, HOUR_MASK, IS_OPEN
from tombsync.names import Hour
from tombsync.plan import UNCONFIRMED_STATES, State

_UNCONFIRMED = ",".join(str(int(state)) for state in UNCONFIRMED_STATES)


class Unconfirmed(NamedTuple):
    """One delivery that a peer has not answered as it should. Times are wall time in nanoseconds."""

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


class Proofs:
    """What Reader can tell of deliveries; the connection is Reader's."""

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        raise NotImplementedError

    def _place(self, identifier: int) -> dict[int, tuple[str, str]]:
        raise NotImplementedError

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
        """Deliveries of a peer that are not confirmed and wait for it, newest first; `limit` rows are read at once."""
        below = 1 << 62
        while True:
            rows = self._all(
                "SELECT d.marker, d.state, d.asked_at_ns, d.detail FROM delivery d INDEXED BY delivery_open"
                f" WHERE d.peer = ? AND d.{IS_OPEN} AND d.state IN ({_UNCONFIRMED}) AND d.marker < ?"
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
        place = next((key for key, pair in self._place(0).items() if pair == (channel, quality)), None)
        if place is None:
            return False
        rows = self._all(
            "SELECT 1 FROM marker m JOIN delivery d ON d.marker = m.id JOIN peer p ON p.id = d.peer"
            " WHERE m.hour BETWEEN ? AND ? AND p.name = ? AND d.confirmed_at_ns IS NOT NULL LIMIT 1",
            (place << HOUR_BITS, place << HOUR_BITS | HOUR_MASK, peer),
        )
        return bool(rows)

    def leftover_hours(self, *, limit: int) -> Iterator[Hour]:
        """Hours with data of which nothing is visible, by rising key; `limit` rows are read at once."""
        above = -1
        while rows := self._all(
            "SELECT id FROM hour WHERE files > 0 AND hidden >= files AND id > ? ORDER BY id LIMIT ?", (above, limit)
        ):
            for (key,) in rows:
                yield Hour(*self._place(key >> HOUR_BITS)[key >> HOUR_BITS], key & HOUR_MASK)
            above = rows[-1][0]

"""Questions to the index. A Reader belongs to one thread; every call is short, none is proportional to the tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tombsync.index.coverage import Coverages
from tombsync.index.glance import Glance
from tombsync.index.hours import Hours
from tombsync.index.proofs import Proofs
from tombsync.index.schema import (
    IS_HELD,
    IS_OPEN,
    from_key,
    to_key,
)
from tombsync.names import Marked
from tombsync.plan import LAST_DUE, UNCONFIRMED_STATES, State
from tombsync.work import Source

_UNCONFIRMED = ",".join(str(int(state)) for state in UNCONFIRMED_STATES)
# By value: calling the classes costs as much as the rest of a row.
_STATES = {int(state): state for state in State}
_SOURCES = {source.value: source for source in Source}
_HOUR_COLUMNS = "id, mtime_ns, digest, pass, settled, edits, files"
_MARKER_COLUMNS = (
    "m.id, m.hour, m.stem, m.source, m.hidden_at_ns, m.ctime_ns, m.owner_uid, m.in_tree, m.pushable, m.sender,"
    " m.origin, m.also_from, m.gen"
)


class Due(NamedTuple):
    """A delivery that a pusher may take. `ever_there`: the peer had it once, so its hour is not made again.

    `origin`: the node that marked it first; "" for this one.
    """

    marker: int
    marked: Marked
    ever_there: bool
    ever_confirmed: bool
    state: State
    hidden_at_ns: int
    source: Source
    origin: str = ""


@dataclass(frozen=True, slots=True)
class MarkerRow:
    """A recorded tombstone. Times are wall time in nanoseconds. `sender` and `origin` as in Sighting.

    `also_from`: a peer that brought it when it was marked here already; "" for none.
    """

    marker: int
    marked: Marked
    source: str
    hidden_at_ns: int
    ctime_ns: int | None
    owner_uid: int | None
    in_tree: bool
    pushable: bool
    sender: str
    origin: str
    also_from: str = ""
    generation: int = 0

    @property
    def hides(self) -> bool:
        """Whether this generation, where it is the newest, hides: odd ones took the mark back."""
        return self.generation % 2 == 0


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A peer as the agent last saw it. Times are wall time in nanoseconds.

    `marker_seen`: its tree had its root marker once.
    """

    peer: int
    name: str
    target: str
    up: bool
    changed_at_ns: int | None
    error: str
    error_at_ns: int | None
    verified_at_ns: int | None
    counts: dict[State, int]
    oldest_unconfirmed_ns: int | None
    marker_seen: bool = False


class Reader(Hours, Proofs, Coverages, Glance):
    """Reads the index. Raises IndexMissing, IndexDamaged, StateRefused."""

    # -- markers and deliveries ---------------------------------------------------------------------------------------

    def marker_rows(self, *, below: int | None = None, limit: int) -> list[MarkerRow]:
        """Recorded tombstones, newest first."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.id < ? ORDER BY m.id DESC LIMIT ?",
            (below if below is not None else 1 << 62, limit),
        )
        return [self._marker(row) for row in rows]

    def marker_rows_since(self, since_ns: int, *, above: int, below: int, limit: int) -> list[MarkerRow]:
        """Tombstones that were recorded at `since_ns` (wall time) or later, their key within (above, below), newest
        first. Each key within is looked at: a clock that was set back leaves no order of time.
        """
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.id > ? AND m.id < ? AND m.hidden_at_ns >= ?"
            " ORDER BY m.id DESC LIMIT ?",
            (above, below, since_ns, limit),
        )
        return [self._marker(row) for row in rows]

    def newest_marker(self) -> int:
        """The key of the newest tombstone; 0 without one."""
        ((newest,),) = self._all("SELECT coalesce(max(id), 0) FROM marker")
        return int(newest)

    def unpushable(self, *, below: int | None, limit: int) -> list[MarkerRow]:
        """Recorded tombstones that are not sent to peers, newest first."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.pushable = 0 AND m.id < ? ORDER BY m.id DESC LIMIT ?",
            (below if below is not None else 1 << 62, limit),
        )
        return [self._marker(row) for row in rows]

    def marker(self, marked: Marked) -> MarkerRow | None:
        """The newest generation of one stem's marker."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.hour = ? AND m.stem = ? ORDER BY m.gen DESC LIMIT 1",
            (self._hour_key(marked.hour), to_key(marked.stem)),
        )
        return self._marker(rows[0]) if rows else None

    def marker_of_key(self, marker: int) -> MarkerRow | None:
        """One marker by its key; None where it was forgotten meanwhile."""
        rows = self._all(f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.id = ?", (marker,))
        return self._marker(rows[0]) if rows else None

    def stems_like(self, stem: str, limit: int = 20) -> list[MarkerRow]:
        """Recorded tombstones of this stem in whatever hour."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.stem = ? LIMIT ?",
            (to_key(stem), limit),
        )
        return [self._marker(row) for row in rows]

    def _marker(self, row: tuple[Any, ...]) -> MarkerRow:
        marked = Marked(self._hour_of(row[1]), from_key(row[2]))
        in_tree, pushable = bool(row[7]), bool(row[8])
        sender, origin, also_from = (text or "" for text in row[9:12])
        return MarkerRow(
            row[0], marked, row[3], row[4], row[5], row[6], in_tree, pushable, sender, origin, also_from, row[12]
        )

    def awaited(self, *, above: int, limit: int) -> list[MarkerRow]:
        """Recorded tombstones whose file has not yet stood in the tree, oldest first."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.in_tree = 0 AND m.id > ? ORDER BY m.id LIMIT ?",
            (above, limit),
        )
        return [self._marker(row) for row in rows]

    def due(self, peer: int, *, above: int = 0, below: int | None = None, limit: int) -> list[Due]:
        """Deliveries of a peer that are due, newest first, their marker's key within (above, below)."""
        return self._deliveries_of(
            f"{IS_OPEN} AND d.state <= {LAST_DUE:d}",
            peer,
            above,
            below,
            limit,
            source="delivery d INDEXED BY delivery_open",
        )

    def held(self, peer: int, *, below: int | None, limit: int) -> list[Due]:
        """Deliveries of a peer that wait for a person, newest first."""
        held = f"{IS_OPEN} AND d.state = {State.HELD:d}"
        return self._deliveries_of(held, peer, 0, below, limit, source="delivery d INDEXED BY delivery_open")

    def held_markers(self, *, below: int | None = None, limit: int) -> list[MarkerRow]:
        """Recorded tombstones of which some delivery waits for a person, newest first."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM (SELECT DISTINCT marker FROM delivery INDEXED BY delivery_held"
            f" WHERE {IS_HELD} AND marker < ? ORDER BY marker DESC LIMIT ?) h JOIN marker m ON m.id = h.marker"
            " ORDER BY m.id DESC",
            (below if below is not None else 1 << 62, limit),
        )
        return [self._marker(row) for row in rows]

    def confirmed(self, peer: int, *, below: int | None, limit: int) -> list[Due]:
        """Deliveries of a peer that it has answered, newest first: what a verify asks for again."""
        answered = f"state IN ({State.CONFIRMED:d}, {State.HOUR_GONE:d}, {State.NOT_DURABLE:d})"
        return self._deliveries_of(answered, peer, 0, below, limit)

    def _deliveries_of(
        self, where: str, peer: int, above: int, below: int | None, limit: int, *, source: str = "delivery d"
    ) -> list[Due]:
        rows = self._all(
            "SELECT m.id, m.hour, m.stem, d.ever_there, d.confirmed_at_ns IS NOT NULL, d.state, m.hidden_at_ns,"
            " m.source, m.origin"
            f" FROM {source} JOIN marker m ON m.id = d.marker"
            f" WHERE d.peer = ? AND d.{where} AND d.marker > ? AND d.marker < ? ORDER BY d.marker DESC LIMIT ?",
            (peer, above, below if below is not None else 1 << 62, limit),
        )
        hours = {key: self._hour_of(key) for key in {row[1] for row in rows}}
        return [
            Due(
                marker,
                Marked(hours[hour], from_key(stem)),
                bool(there),
                bool(confirmed),
                _STATES[state],
                hidden_at_ns,
                _SOURCES[source],
                origin or "",
            )
            for marker, hour, stem, there, confirmed, state, hidden_at_ns, source, origin in rows
        ]

    def oldest_unconfirmed_ns(self, peer: int) -> int | None:
        """When the oldest tombstone that a peer has not confirmed was hidden here (wall time); None without one."""
        rows = self._all(
            "SELECT m.hidden_at_ns FROM delivery d INDEXED BY delivery_open JOIN marker m ON m.id = d.marker"
            f" WHERE d.peer = ? AND d.{IS_OPEN} AND d.state IN ({_UNCONFIRMED})"
            " ORDER BY d.marker LIMIT 1",
            (peer,),
        )
        return rows[0][0] if rows else None

    def peers(self, counts: Mapping[int, dict[State, int]] | None = None) -> list[PeerRow]:
        """Every peer by name, with its deliveries counted; `counts`: by the peer's key, where somebody keeps them.

        Counting looks at each delivery: where it is asked often, give them, or {} where they do not matter.
        """
        if counts is None:
            counts = self._counts()
        return [
            PeerRow(
                row[0],
                row[1],
                row[2],
                bool(row[3]),
                row[4],
                row[5] or "",
                row[6],
                row[7],
                counts.get(row[0], {}),
                self.oldest_unconfirmed_ns(row[0]),
                bool(row[8]),
            )
            for row in self._all(
                "SELECT id, name, target, up, changed_at_ns, error, error_at_ns, verified_at_ns, marker_seen"
                " FROM peer ORDER BY name"
            )
        ]

    def _counts(self) -> dict[int, dict[State, int]]:
        counts: dict[int, dict[State, int]] = {}
        for peer, state, count in self._all("SELECT peer, state, count(*) FROM delivery GROUP BY 1, 2"):
            counts.setdefault(peer, {})[State(state)] = count
        return counts

    # -- facts --------------------------------------------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        """A value of the agent's own; None where it was never set."""
        rows = self._all("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def totals(self) -> tuple[int, int, int, int]:
        """Hours, segment files, hidden files, tombstones."""
        ((hours, total, hidden),) = self._all("SELECT count(*), total(files), total(hidden) FROM hour")
        ((markers,),) = self._all("SELECT count(*) FROM marker")
        return hours, int(total), int(hidden), markers

"""Questions to the index. A Reader belongs to one thread; every call is short, none is proportional to the tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tombsync.index import files
from tombsync.index.proofs import Proofs
from tombsync.index.schema import (
    HIDDEN_STEMS,
    HOUR_BITS,
    IS_HELD,
    IS_OPEN,
    ROW_NAME,
    from_key,
    hour_id,
    hour_of,
    place_range,
    to_key,
)
from tombsync.names import EXTENSION, Hour, Kind, Marked, tombstone_name
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


class HourRow(NamedTuple):
    """What the index knows of one hour directory. `number` is `names.Hour.number`."""

    number: int
    mtime_ns: int | None
    digest: bytes | None
    pass_number: int
    settled: int
    edits: int
    files: int


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
    """A peer as the agent last saw it. Times are wall time in nanoseconds."""

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


class Reader(Proofs):
    """Reads the index. Raises IndexMissing, IndexDamaged, StateRefused."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = files.open_for_reading(path)
        self._places: dict[int, tuple[str, str]] = {}

    def _all(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        with files.translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    # -- hours and segments -------------------------------------------------------------------------------------------

    def places(self) -> dict[tuple[str, str], tuple[int, bool]]:
        """(channel, quality) -> (key, whether it was a mount of its own)."""
        return {
            (from_key(channel), from_key(quality)): (identifier, bool(own_mount))
            for identifier, channel, quality, own_mount in self._all(
                "SELECT id, channel, quality, own_mount FROM place"
            )
        }

    def _place(self, identifier: int) -> dict[int, tuple[str, str]]:
        if identifier not in self._places:
            self._places = {place: pair for pair, (place, _) in self.places().items()}
        return self._places

    def _hour_key(self, hour: Hour) -> int | None:
        for _ in range(2):
            for place, pair in self._places.items():
                if pair == (hour.channel, hour.quality):
                    return hour_id(place, hour.number)
            self._places = {place: pair for pair, (place, _) in self.places().items()}
        return None

    def _hour_of(self, identifier: int) -> Hour:
        return hour_of(identifier, self._place(identifier >> HOUR_BITS))

    def hour_rows(self, place: int, *, below: int | None, least: int) -> list[HourRow]:
        """The hours of a place from `least` up to and not including `below`."""
        first, last = place_range(place)
        last = last if below is None else first + below - 1
        rows = self._all(f"SELECT {_HOUR_COLUMNS} FROM hour WHERE id BETWEEN ? AND ?", (first + least, last))
        return [HourRow(row[0] - first, *row[1:]) for row in rows]

    def settled_mtimes(self, place: int, *, below: int | None, least: int) -> dict[int, int | None]:
        """The same hours by number: the mtime of each that is settled, None of the others.

        Two columns and no object a row: an interval rescan needs no more (benchmarks/rescan.py).
        """
        first, last = place_range(place)
        last = last if below is None else first + below - 1
        return dict(
            self._all(
                "SELECT id - ?1, iif(settled, mtime_ns, NULL) FROM hour WHERE id BETWEEN ?1 + ?2 AND ?3",
                (first, least, last),
            )
        )

    def unsettled(self, *, below: int | None, limit: int) -> list[tuple[int, Hour, HourRow]]:
        """Hours whose listing does not count yet, as (key, hour, row), by falling key."""
        rows = self._all(
            f"SELECT {_HOUR_COLUMNS} FROM hour WHERE settled = 0 AND id < ? ORDER BY id DESC LIMIT ?",
            (below if below is not None else 1 << 62, limit),
        )
        return [(row[0], hour := self._hour_of(row[0]), HourRow(hour.number, *row[1:])) for row in rows]

    def hour_row(self, hour: Hour) -> HourRow | None:
        """One hour's row."""
        key = self._hour_key(hour)
        rows = self._all(f"SELECT {_HOUR_COLUMNS} FROM hour WHERE id = ?", (key,))
        return HourRow(hour.number, *rows[0][1:]) if rows else None

    def segments(self, hour: Hour) -> set[str]:
        """The file names of an hour, hidden or not."""
        return set(self._names("", self._hour_key(hour)))

    def _names(self, condition: str, key: int | None) -> list[str]:
        # As one JSON array: SQLite puts it together and json takes it apart, neither row by row in Python. A stem that
        # is a BLOB (not UTF-8) fits in no JSON; blobs sort behind all text.
        ((array,),) = self._all(
            f"SELECT json_group_array({ROW_NAME}) FROM segment WHERE hour = ?1 AND stem < x'' {condition}",
            (key,),
        )
        names: list[str] = json.loads(array)
        names.extend(
            from_key(stem) + EXTENSION[Kind(ext)]
            for stem, ext in self._all(
                f"SELECT stem, ext FROM segment WHERE hour = ?1 AND stem >= x'' {condition}",
                (key,),
            )
        )
        return names

    def markers(self, hour: Hour) -> dict[str, bool]:
        """The marked stems of an hour -> whether the tombstone was once in the tree."""
        key = self._hour_key(hour)
        rows = self._all(
            "SELECT stem, max(in_tree) FROM marker WHERE hour = ? GROUP BY stem HAVING max(gen) % 2 = 0", (key,)
        )
        return {from_key(stem): bool(in_tree) for stem, in_tree in rows}

    def listing(self, hour: Hour, *, tombstones: bool = False) -> list[str]:
        """The visible file names of an hour, sorted; with `tombstones` the tombstones too. [] for an unknown hour."""
        names = self._names(f"AND stem NOT IN {HIDDEN_STEMS}", self._hour_key(hour))
        if tombstones:
            names.extend(tombstone_name(stem) for stem in self.markers(hour))
        return sorted(names)

    # -- markers and deliveries ---------------------------------------------------------------------------------------

    def marker_rows(self, *, below: int | None = None, limit: int) -> list[MarkerRow]:
        """Recorded tombstones, newest first."""
        rows = self._all(
            f"SELECT {_MARKER_COLUMNS} FROM marker m WHERE m.id < ? ORDER BY m.id DESC LIMIT ?",
            (below if below is not None else 1 << 62, limit),
        )
        return [self._marker(row) for row in rows]

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

    def peers(self) -> list[PeerRow]:
        """Every peer by name, with its deliveries counted."""
        counts: dict[int, dict[State, int]] = {}
        for peer, state, count in self._all("SELECT peer, state, count(*) FROM delivery GROUP BY 1, 2"):
            counts.setdefault(peer, {})[State(state)] = count
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
            )
            for row in self._all(
                "SELECT id, name, target, up, changed_at_ns, error, error_at_ns, verified_at_ns FROM peer ORDER BY name"
            )
        ]

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

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

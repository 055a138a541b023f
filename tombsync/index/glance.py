"""The part of the index's reader that a person asks who looks at the status page: a bounded look at what is newest.

Every question has a limit in rows or hours, so that none is proportional to the tree or to the tombstones ever made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from tombsync.index.questions import Questions
from tombsync.index.schema import from_key, place_range, to_key
from tombsync.names import EXTENSION, Hour, Kind, Marked
from tombsync.plan import State

_LAST_TEXT = "\U0010ffff"  # sorts behind whatever a name goes on with


class PeerGlance(NamedTuple):
    """A peer's session as the agent last told it. Times are wall time in nanoseconds."""

    name: str
    up: bool
    changed_at_ns: int | None
    error: str
    error_at_ns: int | None
    verified_at_ns: int | None


class DeliveryGlance(NamedTuple):
    """One delivery of one marker. Times are wall time in nanoseconds."""

    peer: str
    state: State
    asked_at_ns: int | None
    confirmed_at_ns: int | None
    detail: str


class Glance(Questions):
    """What Reader can tell at a glance."""

    def peer_glances(self) -> list[PeerGlance]:
        """Every peer by name, without its deliveries, whose counts the agent keeps."""
        return [
            PeerGlance(name, bool(up), changed_at_ns, error or "", error_at_ns, verified_at_ns)
            for name, up, changed_at_ns, error, error_at_ns, verified_at_ns in self._all(
                "SELECT name, up, changed_at_ns, error, error_at_ns, verified_at_ns FROM peer ORDER BY name"
            )
        ]

    def deliveries_of(self, markers: Sequence[int]) -> dict[int, list[DeliveryGlance]]:
        """The deliveries of several markers, by marker, each list by peer."""
        found: dict[int, list[DeliveryGlance]] = {}
        for marker, name, state, asked_at_ns, confirmed_at_ns, detail in self._all(
            "SELECT d.marker, p.name, d.state, d.asked_at_ns, d.confirmed_at_ns, d.detail"
            " FROM delivery d JOIN peer p ON p.id = d.peer"
            " WHERE d.marker IN (SELECT value FROM json_each(?)) ORDER BY p.name",
            (json.dumps(list(markers)),),
        ):
            found.setdefault(marker, []).append(
                DeliveryGlance(name, State(state), asked_at_ns, confirmed_at_ns, detail or "")
            )
        return found

    def files_of(self, marked: Marked) -> list[str]:
        """The file names of one stem in its hour, hidden or not."""
        rows = self._all(
            "SELECT ext FROM segment WHERE hour = ? AND stem = ? ORDER BY ext",
            (self._hour_key(marked.hour), to_key(marked.stem)),
        )
        return [marked.stem + EXTENSION[Kind(ext)] for (ext,) in rows]

    def stems_between(self, hour: Hour, first: str, end: str, *, limit: int) -> list[tuple[str, Kind]]:
        """The files of an hour whose stem is not before `first` and before `end`, in order; names of bad UTF-8 are not
        among them, as they begin with no time that could be looked for."""
        rows = self._all(
            "SELECT stem, ext FROM segment WHERE hour = ? AND stem >= ? AND stem < ? ORDER BY stem, ext LIMIT ?",
            (self._hour_key(hour), first, end, limit),
        )
        return [(stem, Kind(ext)) for stem, ext in rows]

    def stems_beginning(self, place: int, beginning: str, *, hours: int, limit: int) -> list[Marked]:
        """Stems that begin so, in the newest `hours` hours of a place, newest first."""
        first, last = place_range(place)
        rows = self._all(
            "SELECT DISTINCT s.hour, s.stem"
            " FROM (SELECT id FROM hour WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ?) h"
            " CROSS JOIN segment s ON s.hour = h.id AND s.stem >= ? AND s.stem < ?"
            " ORDER BY s.hour DESC, s.stem LIMIT ?",
            (first, last, hours, beginning, beginning + _LAST_TEXT, limit),
        )
        return [Marked(self._hour_of(key), stem) for key, stem in rows]

    def markers_beginning(self, beginning: str, *, among: int, limit: int) -> list[Marked]:
        """Stems that begin so among the last `among` tombstones, newest first."""
        rows = self._all(
            "SELECT hour, stem FROM (SELECT id, hour, stem FROM marker ORDER BY id DESC LIMIT ?)"
            " WHERE stem >= ? AND stem < ? GROUP BY hour, stem ORDER BY max(id) DESC LIMIT ?",
            (among, beginning, beginning + _LAST_TEXT, limit),
        )
        return [Marked(self._hour_of(key), from_key(stem)) for key, stem in rows]

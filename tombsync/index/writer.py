"""The one connection that writes the index. Everything in here runs in one thread at a time: first the starting one,
then the intake's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tombsync.index import files
from tombsync.index.deliveries import Tally
from tombsync.index.hiding import Hidden, Hiding
from tombsync.index.schema import HOUR_BITS, IS_HIDDEN, TOLD_UP_TO, from_key, hour_id, hour_of, place_range, to_key
from tombsync.names import EXTENSION, Hour, Kind, Marked, classify
from tombsync.plan import State
from tombsync.work import Batch, Sight, Sighting, Source


class Writer(Hiding):
    """Writes the index. Raises IndexDamaged and StateRefused; after either, the transaction has not happened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection = files.open_for_writing(path)
        self._places: dict[tuple[str, str], int] = {}
        self._peers = []
        self._marked_hours: set[int] = set()  # every hour that has a marker, and perhaps some that had
        self.tally = Tally()
        self._miscounted = False  # the tally is not that of the index
        try:
            with files.translated(self.path):
                self.load()
                self.told_up_to = self._kept_told_up_to = self._load_told_up_to()
                # Only now, or the counting would fill it with pages that nobody asks for again (benchmarks/idle.py).
                self.execute("PRAGMA cache_size=-8000")
        except BaseException:
            # Not left to the garbage collector: the file is about to be set aside, and another made in its place.
            self._connection.close()
            raise

    def load(self) -> None:
        """Take the places, peers and counts from the file."""
        self._places = {
            (from_key(channel), from_key(quality)): place
            for place, channel, quality in self.execute("SELECT id, channel, quality FROM place")
        }
        self._peers = [i for (i,) in self.execute("SELECT id FROM peer")]
        self._marked_hours = {hour for (hour,) in self.execute("SELECT DISTINCT hour FROM marker")}
        tally = Tally()
        for place in self._places.values():  # not GROUP BY, which sorts all hours in memory
            tally.files[place], tally.hidden[place] = self.execute(
                "SELECT coalesce(sum(files), 0), coalesce(sum(hidden), 0) FROM hour WHERE id BETWEEN ? AND ?",
                place_range(place),
            ).fetchone()
        (tally.markers,) = self.execute("SELECT count(*) FROM marker").fetchone()
        for peer, state, count in self.execute("SELECT peer, state, count(*) FROM delivery GROUP BY 1, 2"):
            tally.deliveries[peer, State(state)] = count
        self.tally, self._miscounted = tally, False

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement; for batches, inside their transaction."""
        return self._connection.execute(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. The tally is loaded again where it might have run ahead of what was kept."""
        with files.translated(self.path):
            if self._miscounted:
                self.load()
            told_up_to = self.told_up_to
            self.execute("BEGIN IMMEDIATE")
            try:
                if told_up_to > self._kept_told_up_to:
                    self.set_fact(TOLD_UP_TO, told_up_to)
                yield
                self.execute("COMMIT")
                self._kept_told_up_to = told_up_to
            except BaseException:
                self._miscounted = True
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                self.load()
                raise

    # -- what was told ------------------------------------------------------------------------------------------------

    def _load_told_up_to(self) -> int:
        last = self.execute("SELECT told_up_to FROM marker ORDER BY id DESC LIMIT 1").fetchone()
        fact = self.execute("SELECT value FROM meta WHERE key = ?", (TOLD_UP_TO,)).fetchone()
        return max(*(last or (0,)), *(fact or (0,)))

    def newest_marker(self) -> int:
        """The key of the newest marker; 0 without one."""
        with files.translated(self.path):
            (newest,) = self.execute("SELECT coalesce(max(id), 0) FROM marker").fetchone()
        return int(newest)

    def untold(self, *, above: int, up_to: int, limit: int) -> list[Hidden]:
        """What was recorded between these markers, by rising key, as it was when it was hidden."""
        places = self.places()
        with files.translated(self.path):
            rows = self.execute(
                "SELECT id, hour, stem, source, pushable, hidden_at_ns, ctime_ns, owner_uid, sender, origin FROM marker"
                " WHERE id > ? AND id <= ? AND gen = 0 ORDER BY id LIMIT ?",
                (above, up_to, limit),
            ).fetchall()
        return [
            Hidden(
                marker,
                Sighting(
                    Marked(hour_of(hour, places), from_key(stem)),
                    Source(source),
                    0,
                    sender=sender or "",
                    origin=origin or "",
                ),
                Sight(regular=bool(pushable), owner_uid=owner_uid, ctime_ns=ctime_ns),
                bool(pushable),
                hidden_at_ns,
            )
            for marker, hour, stem, source, pushable, hidden_at_ns, ctime_ns, owner_uid, sender, origin in rows
        ]

    # -- batches ------------------------------------------------------------------------------------------------------

    def apply(self, batches: Sequence[Batch]) -> None:
        """Write batches in one transaction, then tell each that it was committed."""
        with self.transaction():
            for batch in batches:
                batch.apply(self)
        for batch in batches:
            batch.committed()

    def change_segments(self, hour: Hour, add: Sequence[str], drop: Sequence[str], *, watched: bool) -> None:
        """Add and drop file names of one hour and keep its counts; see SegmentRows."""
        identifier = self.hour_id(hour)
        added = self._each_name("INSERT OR IGNORE INTO segment (hour, stem, ext)", "", identifier, add)
        dropped = self._each_name("DELETE FROM segment WHERE (hour, stem, ext) IN (", ")", identifier, drop)
        self._recount(identifier, added - dropped, edits=int(watched))

    def _each_name(self, before: str, after: str, identifier: int, names: Sequence[str]) -> int:
        """Run a statement over the keys of file names; returns how many rows it changed.

        SQLite takes the names as one JSON array apart by itself: a loop in Python over as many rows would keep the
        interpreter from every other thread (first index of a million: benchmarks/rescan.py). Names that are not UTF-8
        are no JSON, and go one by one.
        """
        if not names:
            return 0
        start = self._connection.total_changes
        texts = names if "".join(names).isascii() else [name for name in names if isinstance(to_key(name), str)]
        for kind in (Kind.TS, Kind.JSON):
            extension = EXTENSION[kind]
            if stems := [name.removesuffix(extension) for name in texts if name.endswith(extension)]:
                self.execute(
                    f"{before} SELECT ?1, value, {kind:d} FROM json_each(?2){after}", (identifier, json.dumps(stems))
                )
        if len(texts) < len(names):
            for name in names:
                kind, stem = classify(name)
                if isinstance(key := to_key(stem), bytes):
                    self.execute(f"{before} SELECT ?, ?, ?{after}", (identifier, key, int(kind)))
        return self._connection.total_changes - start

    def _recount(self, identifier: int, gained: int, *, edits: int) -> None:
        """Count an hour after its rows changed. They are those of no listing then, until HourListed says of which."""
        before = after = 0
        if identifier in self._marked_hours:
            ((before, after),) = self.execute(
                "SELECT coalesce((SELECT hidden FROM hour WHERE id = ?1), 0), (SELECT count(*)"
                " FROM (SELECT DISTINCT stem FROM marker WHERE hour = ?1) m"
                f" JOIN segment s ON s.hour = ?1 AND s.stem = m.stem WHERE {IS_HIDDEN})",
                (identifier,),
            )
        self.execute(
            "INSERT INTO hour (id, files, hidden, edits) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE SET"
            " files = files + ?2, hidden = ?3, edits = edits + ?4, digest = NULL, settled = 0",
            (identifier, gained, after, edits),
        )
        self.tally.files[identifier >> HOUR_BITS] += gained
        self.tally.hidden[identifier >> HOUR_BITS] += after - before

    def placed_markers(self, hour: Hour, stems: Sequence[str]) -> None:
        """These tombstones, which came by an inbox, stand in the tree now."""
        identifier = self.hour_id(hour)
        update = "UPDATE marker SET in_tree = 1 WHERE hour = ? AND gen = 0 AND in_tree = 0 AND stem"
        texts = [stem for stem in stems if isinstance(to_key(stem), str)]
        self.execute(f"{update} IN (SELECT value FROM json_each(?))", (identifier, json.dumps(texts)))
        for stem in set(stems).difference(texts):  # not UTF-8, and so no JSON
            self.execute(f"{update} = ?", (identifier, to_key(stem)))

    def forget_markers(self, hour: Hour, stems: Sequence[str], keep_states: str) -> list[str]:
        """Drop markers that have no delivery in one of these states; returns the stems that went."""
        identifier = self.hour_id(hour)
        gone = []
        for stem in stems:
            for (marker,) in self.execute(
                "SELECT id FROM marker WHERE hour = ? AND stem = ? AND NOT EXISTS"
                f" (SELECT 1 FROM delivery WHERE marker = marker.id AND state IN ({keep_states}))",
                (identifier, to_key(stem)),
            ).fetchall():
                for peer, state in self.execute(
                    "SELECT peer, state FROM delivery WHERE marker = ?", (marker,)
                ).fetchall():
                    self.tally.deliveries[peer, State(state)] -= 1
                self.execute("DELETE FROM delivery WHERE marker = ?", (marker,))
                self.execute("DELETE FROM marker WHERE id = ?", (marker,))
                self.tally.markers -= 1
                gone.append(stem)
        if gone:
            self._recount(identifier, 0, edits=1)
        return gone

    def marked_of(self, markers: Sequence[int]) -> list[Marked]:
        """The segments of these markers; none for those that were forgotten."""
        places = self.places()
        return [
            Marked(hour_of(hour, places), from_key(stem))
            for hour, stem in self.execute(
                "SELECT hour, stem FROM marker WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(markers)),),
            )
        ]

    # -- places, peers, facts -----------------------------------------------------------------------------------------

    def hour_id(self, hour: Hour) -> int:
        """The key of an hour, its place recorded if it is new."""
        place = self._places.get((hour.channel, hour.quality))
        if place is None:
            (place,) = self.execute(
                "INSERT INTO place (channel, quality) VALUES (?, ?) RETURNING id",
                (to_key(hour.channel), to_key(hour.quality)),
            ).fetchone()
            self._places[hour.channel, hour.quality] = place  # a rollback loads them again
        return hour_id(place, hour.number)

    def places(self) -> dict[int, tuple[str, str]]:
        """The channel and quality of each place."""
        return {identifier: place for place, identifier in list(self._places.items())}

    def fact(self, key: str) -> Any:
        """A value of the agent's own; None where it was never set."""
        with files.translated(self.path):
            row = self.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_fact(self, key: str, value: str | int | float | None) -> None:
        """Set such a value."""
        self.execute("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", (key, value))

    def close(self) -> None:
        """Close the connection; SQLite makes a last checkpoint where nobody else reads."""
        self._connection.close()

"""The part of the index's writer that hides: records tombstones, which at the commit hide their segments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from tombsync.errors import StateRefused
from tombsync.index import files
from tombsync.index.peer_rows import PeerRows
from tombsync.index.reader import Due
from tombsync.index.schema import HOUR_BITS, IS_HELD, to_key
from tombsync.names import Hour, Marked
from tombsync.plan import Breaker, State
from tombsync.work import Sight, Sighting, Source

_BEFORE_THE_FILE = (Source.INBOX, Source.TAKEDOWN)  # who hides first, and makes the tombstone then
_COLUMNS = "stem, hour, hidden_at_ns, in_tree, pushable, source, ctime_ns, owner_uid, sender, origin, meant"
_ALONE = f"{_COLUMNS}, told_up_to"  # of one that is recorded without a transaction around it


class Hidden(NamedTuple):
    """What a sighting changed at `at_ns` (wall time). `pushable`: due for every peer; `first`: it was not hidden.

    `held`: its deliveries wait for a person; `others_held`: those of earlier ones began to wait with it. `hold_ended`:
    it is known, its deliveries were held, and go on, as a peer brought it.
    """

    marker: int
    sighting: Sighting
    sight: Sight
    pushable: bool
    at_ns: int
    first: bool = True
    held: bool = False
    others_held: bool = False
    hold_ended: bool = False

    def due(self) -> Due:
        """Its delivery, to whichever peer, as it was just made."""
        return Due(
            self.marker,
            self.sighting.marked,
            ever_there=False,
            ever_confirmed=False,
            state=State.PENDING,
            hidden_at_ns=self.at_ns,
            source=self.sighting.source,
            origin=self.sighting.origin,
        )


class Hiding(PeerRows):
    """What Writer can do with tombstones that were seen."""

    _marked_hours: set[int]
    _miscounted: bool
    told_up_to: int  # that marker and all before it are in the journal; the next that is recorded keeps it

    def hour_id(self, hour: Hour) -> int:
        """The key of an hour."""
        raise NotImplementedError

    # -- hiding -------------------------------------------------------------------------------------------------------

    def hide(self, seen: Sequence[tuple[Sighting, Sight]], now_ns: int, breaker: Breaker | None = None) -> list[Hidden]:
        """Record tombstones; at the commit their segments are hidden. Returns what is new: the first sightings, and
        those that made an earlier one due for the peers, or ended its hold, by rising key.

        One alone is one autocommitted INSERT whose trigger makes the deliveries. `now_ns` is wall time. What belongs to
        a mass of marks by `breaker` has its deliveries held, in the same transaction.
        """
        if len(seen) == 1 and not _mass_around(breaker, *seen[0]):
            with files.translated(self.path):
                hidden = self._hide(*seen[0], now_ns)
            if hidden:
                _count_mark(breaker, *seen[0])
                self._count_all([hidden])
                return [hidden]
        try:
            with self.transaction():
                news = self._hide_all(seen, now_ns, breaker)
        except BaseException:  # nothing was hidden, and so nothing is counted
            self._held_window = None
            if breaker is not None:
                self.recall(breaker)
            raise
        self._count_all(news)
        return news

    def recall(self, breaker: Breaker) -> None:
        """Let it count the marks that are recorded, as if it had seen each of them."""
        with files.translated(self.path):
            steps = self.execute(
                "SELECT ctime_ns / ?, count(*) FROM marker WHERE NOT meant AND ctime_ns IS NOT NULL"
                " GROUP BY 1 ORDER BY max(id) DESC LIMIT ?",
                (Breaker.STEP_NS, Breaker.MOST_STEPS),
            ).fetchall()
        breaker.recall(dict(reversed(steps)))

    def _hide_all(self, seen: Sequence[tuple[Sighting, Sight]], now_ns: int, breaker: Breaker | None) -> list[Hidden]:
        """Many at once: some statements an hour instead of some a row, as each lets go of the interpreter and waits for
        it again (a catch-up by inbox took half as long: benchmarks/inbox.py).
        """
        hours: dict[int, list[tuple[Sighting, Sight]]] = {}
        news: list[Hidden] = []
        for sighting, sight in seen:
            if isinstance(to_key(sighting.marked.stem), str):
                hours.setdefault(self.hour_id(sighting.marked.hour), []).append((sighting, sight))
                continue
            hidden = self._hide(sighting, sight, now_ns) or self._seen_again(sighting, sight, now_ns)
            if hidden:  # not UTF-8, and so no JSON
                news.append(hidden)
        for hour, group in hours.items():
            new = self._insert(hour, group, now_ns)
            for sighting, sight in group:
                marker = new.pop(sighting.marked.stem, None)
                if marker is not None:
                    pushable = _pushable(sighting.marked, sight)
                    news.append(Hidden(marker, sighting, sight, pushable, now_ns))
                elif hidden := self._seen_again(sighting, sight, now_ns):
                    news.append(hidden)
        news.sort(key=_marker)  # whoever is offered them takes them by rising key
        news = [self._hold_of_mass(hidden, breaker) for hidden in news]
        return self._say_held(news) if any(hidden.held for hidden in news) else news

    def _insert(self, hour: int, group: list[tuple[Sighting, Sight]], now_ns: int) -> dict[str, int]:
        """Record stems of one hour; the new ones with their keys. Takes out of the group what is known as it stands."""
        stems = json.dumps([sighting.marked.stem for sighting, _ in group])
        if hour in self._marked_hours:  # the watcher tells again of all that an inbox brings
            ((found,),) = self.execute(
                "SELECT json_group_object(stem, coalesce(sender, also_from) IS NOT NULL) FROM marker WHERE hour = ?"
                " AND gen = 0 AND in_tree AND pushable AND stem IN (SELECT value FROM json_each(?))",
                (hour, stems),
            )
            if known := json.loads(found):  # stem -> whether a peer is known to have it
                group[:] = [pair for pair in group if not _tells_nothing(pair[0], known.get(pair[0].marked.stem))]
        self._marked_hours.add(hour)
        if not group:
            return {}
        ((last,),) = self.execute("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'marker'), 0)")
        rows = [_row(sighting, sight) for sighting, sight in group]
        self.execute(
            f"INSERT OR IGNORE INTO marker ({_COLUMNS}) SELECT value ->> 0, ?1, ?2, value ->> 1, value ->> 2,"
            " value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8 FROM json_each(?3)",
            (hour, now_ns, json.dumps(rows)),
        )
        ((found,),) = self.execute(
            "SELECT json_group_object(stem, id) FROM marker WHERE hour = ? AND id > ? AND gen = 0", (hour, last)
        )
        new: dict[str, int] = json.loads(found)
        return new

    def _hold_of_mass(self, hidden: Hidden, breaker: Breaker | None) -> Hidden:
        """Count it, and let its deliveries wait where it belongs to a mass of marks."""
        if not hidden.first:
            return hidden
        window = _mass_around(breaker, hidden.sighting, hidden.sight)
        _count_mark(breaker, hidden.sighting, hidden.sight)
        if window is None:
            return hidden
        return hidden._replace(held=True, others_held=self.hold(hidden.marker, window))

    def _say_held(self, news: Sequence[Hidden]) -> list[Hidden]:
        """Which of them wait for a person: also some that came before the mass was one."""
        ((array,),) = self.execute(
            f"SELECT json_group_array(marker) FROM delivery WHERE {IS_HELD} AND marker IN"
            " (SELECT value FROM json_each(?))",
            (json.dumps([hidden.marker for hidden in news]),),
        )
        held = set(json.loads(array))
        return [hidden._replace(held=hidden.marker in held) for hidden in news]

    def _hide(self, sighting: Sighting, sight: Sight, now_ns: int) -> Hidden | None:
        marked = sighting.marked
        hour, stem, pushable = self.hour_id(marked.hour), to_key(marked.stem), _pushable(marked, sight)
        self._marked_hours.add(hour)
        _, *rest = _row(sighting, sight)
        cursor = self.execute(
            f"INSERT OR IGNORE INTO marker ({_ALONE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (stem, hour, now_ns, *rest, self.told_up_to),
        )
        return Hidden(cursor.lastrowid or 0, sighting, sight, pushable, now_ns) if cursor.rowcount == 1 else None

    def _seen_again(self, sighting: Sighting, sight: Sight, now_ns: int) -> Hidden | None:
        """One that is recorded; something where a directory or link of its name made room for a file, or where a peer
        has what waits here for a person, and so is no mistake of this node.
        """
        hour, stem = self.hour_id(sighting.marked.hour), to_key(sighting.marked.stem)
        ((marker, in_tree, was_pushable),) = self.execute(
            "SELECT id, in_tree, pushable FROM marker WHERE hour = ? AND stem = ? AND gen = 0", (hour, stem)
        )
        pushable = not was_pushable and _pushable(sighting.marked, sight)
        if pushable:
            # Under a new key, as pushers look for what is new above the newest key that they know.
            (last,) = self.execute(
                "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'marker' RETURNING seq"
            ).fetchone()
            self.execute(
                "UPDATE marker SET id = ?, pushable = 1, in_tree = 1, ctime_ns = ?, owner_uid = ? WHERE id = ?",
                (last, sight.ctime_ns, sight.owner_uid, marker),
            )
            self.execute(
                "INSERT INTO delivery (peer, marker, state) SELECT id, ?, ? FROM peer", (last, int(State.PENDING))
            )
            return Hidden(last, sighting, sight, pushable=True, at_ns=now_ns, first=False)
        if not in_tree and sight.ctime_ns is not None:
            self.execute("UPDATE marker SET in_tree = 1 WHERE id = ?", (marker,))
        if sighting.source is Source.INBOX:
            self.execute(
                "UPDATE marker SET meant = 1, also_from = ? WHERE id = ? AND coalesce(sender, also_from) IS NULL",
                (sighting.sender, marker),
            )
            if self.end_holds([marker]):
                return Hidden(marker, sighting, sight, False, now_ns, first=False, hold_ended=True)
        return None

    def _count_all(self, news: Sequence[Hidden]) -> None:
        """After the commit. A disk that fails now must not keep the news back: the tally is loaded again later."""
        try:
            with files.translated(self.path):
                self._count(news)
        except StateRefused:
            self._miscounted = True

    def _count(self, news: Sequence[Hidden]) -> None:
        stems: dict[int, list[str | bytes]] = {}
        for hidden in news:
            if hidden.first:
                marked = hidden.sighting.marked
                stems.setdefault(self.hour_id(marked.hour), []).append(to_key(marked.stem))
            if hidden.pushable:
                for peer in self._peers:  # what is held was moved from there
                    self.tally.deliveries[peer, State.PENDING] += 1
        query = "SELECT count(*) FROM segment WHERE hour = ? AND stem"
        for hour, group in stems.items():
            texts = [stem for stem in group if isinstance(stem, str)]
            ((count,),) = self.execute(f"{query} IN (SELECT value FROM json_each(?))", (hour, json.dumps(texts)))
            for stem in group:
                if isinstance(stem, bytes):
                    count += self.execute(f"{query} = ?", (hour, stem)).fetchone()[0]
            self.tally.hidden[hour >> HOUR_BITS] += count
            self.tally.markers += len(group)


def _marker(hidden: Hidden) -> int:
    return hidden.marker


def _pushable(marked: Marked, sight: Sight) -> bool:
    # Anything but a file hides here and is nobody else's business; an unsafe name never crosses a border.
    return sight.regular and not marked.unsafe


def _tells_nothing(sighting: Sighting, known: int | None) -> bool:
    """Whether it is recorded as it stands. `known`: 1 where a peer is known to have it, 0 where not, None if new."""
    return known == 1 or (known == 0 and sighting.source is not Source.INBOX)


def _mass_around(breaker: Breaker | None, sighting: Sighting, sight: Sight) -> tuple[int, int] | None:
    if breaker is None or sight.ctime_ns is None or not _by_hand(sighting, sight):
        return None
    return breaker.window(sight.ctime_ns)


def _count_mark(breaker: Breaker | None, sighting: Sighting, sight: Sight) -> None:
    if breaker is not None and sight.ctime_ns is not None and _by_hand(sighting, sight):
        breaker.count(sight.ctime_ns)


def _by_hand(sighting: Sighting, sight: Sight) -> bool:
    """Whether it may be one of a mass that nobody meant: an empty file in the tree, and so not `meant` in the index.

    What came by an inbox was meant on another node, what a sticky takedown marks was meant when that was made, and
    `mark` asks before it makes many, and writes into each.
    """
    return sighting.source not in _BEFORE_THE_FILE and not sight.size_bytes


def _row(
    sighting: Sighting, sight: Sight
) -> tuple[str, bool, bool, str, int | None, int | None, str | None, str | None, bool]:
    """The values of _COLUMNS but for hour and time."""
    return (
        sighting.marked.stem,
        sight.ctime_ns is not None or sighting.source not in _BEFORE_THE_FILE,
        _pushable(sighting.marked, sight),
        sighting.source.value,
        sight.ctime_ns,
        sight.owner_uid,
        sighting.sender or None,
        sighting.origin or None,
        not _by_hand(sighting, sight),
    )

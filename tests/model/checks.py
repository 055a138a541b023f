"""What must be true of a node after each step (DESIGN: invariants I1, I3, I4, I5)."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

from tests.model.ground import file_state
from tombsync.client import directory_listing
from tombsync.index.deliveries import Tally
from tombsync.index.schema import hour_of
from tombsync.names import EXTENSION, Hour, Kind, Marked, tombstone_name
from tombsync.plan import PUT_BACK_AFTER_S, State

if TYPE_CHECKING:
    from tests.model.node import Node

STAYS_HIDDEN = "I1"
CONVERGES = "I2"
PUSHED = "I2, at rest"
NOTHING_ELSE = "I3"
DATA_UNTOUCHED = "I4"
RESCAN_HIDES = "I5, after a rescan"
WATCH_HIDES = "I5, at rest"
OPEN_IS_KEPT = "I5, open deliveries"
CONFIRMED_WAS_SEEN = "I5, confirmed"
TRUSTED_IS_RIGHT = "trusted listing"
COUNTS = "counts"
RESTS = "rest"
PUT_BACK = "put back"


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Rows:
    """What an index's tables hold, read without the package's own readers."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        read = connection.execute
        places = {
            place: (channel, quality) for place, channel, quality in read("SELECT id, channel, quality FROM place")
        }
        self.places = {place: key for key, place in places.items()}
        self.hours = {
            hour_of(key, places): (mtime_ns if settled else None, files, hidden)
            for key, mtime_ns, settled, files, hidden in read("SELECT id, mtime_ns, settled, files, hidden FROM hour")
        }
        self.segments: dict[Hour, list[tuple[str, str]]] = {}  # stem and name
        for key, stem, ext in read("SELECT hour, stem, ext FROM segment"):
            self.segments.setdefault(hour_of(key, places), []).append((stem, stem + EXTENSION[Kind(ext)]))
        self.markers = {
            marker: Marked(hour_of(key, places), stem)
            for marker, key, stem in read("SELECT id, hour, stem FROM marker")
        }
        self.hidden: dict[Hour, set[str]] = {}
        for marked in self.markers.values():
            self.hidden.setdefault(marked.hour, set()).add(marked.stem)
        self.peers: dict[int, str] = dict(read("SELECT id, name FROM peer").fetchall())
        self.deliveries = [
            (peer, marker, State(state)) for peer, marker, state in read("SELECT peer, marker, state FROM delivery")
        ]


def check_tree(node: Node) -> None:
    """I4: the tree holds what was put there, and nothing else; all that an agent adds are tombstones."""
    ground = node.ground
    for hour, state in ground.kept.items():
        wanted = {*state.data, *map(tombstone_name, state.tombstones)}
        if wanted != set(os.listdir(ground.path(hour))):
            found = sorted(os.listdir(ground.path(hour)))
            raise Violation(DATA_UNTOUCHED, f"{node.name}: {hour.path} holds {found} instead of {sorted(wanted)}")
        if strange := {Marked(hour, stem) for stem in state.tombstones} - node.ever_marked:
            raise Violation(NOTHING_ELSE, f"{node.name}: nobody ever marked {sorted(m.path for m in strange)}")


def check_data(node: Node) -> None:
    """I4: no segment was written, replaced or made anew."""
    for hour, state in node.ground.kept.items():
        for name, before in state.data.items():
            if file_state(f"{node.ground.path(hour)}/{name}") != before:
                raise Violation(DATA_UNTOUCHED, f"{node.name}: {hour.path}/{name} is not the file that was put there")


def check_rebuilt(node: Node) -> None:
    """After a rest the index is the tree."""
    rows = node.rows()
    for hour in rows.segments.keys() | node.ground.kept.keys():
        names, state = {name for _, name in rows.segments.get(hour, ())}, node.ground.kept.get(hour)
        if names != (state.data.keys() if state else set()):
            raise Violation(TRUSTED_IS_RIGHT, f"{node.name}: in the end {hour.path} holds {sorted(names)} in the index")


def check_index(node: Node) -> None:
    """All invariants of one index and its listings, if it changed."""
    life = node.life
    assert life is not None
    rows = Rows(life.raw)
    _check_committed(node, rows)
    for hour in {*rows.hours, *rows.segments, *node.ground.kept}:
        _check_listings(node, rows, hour)
        _check_trusted(node, rows, hour)
    _check_confirmed(node, rows)
    _check_counts(node, rows, life.writer.tally)


def _check_committed(node: Node, rows: Rows) -> None:
    """I1: what was once hidden is forgotten only when its hour was gone for long enough."""
    now = set(rows.markers.values())
    if strange := now - node.ever_marked:
        raise Violation(NOTHING_ELSE, f"{node.name}: nobody ever marked {sorted(m.path for m in strange)}")
    for marked in node.committed.keys() - now:
        ground = node.ground
        if ground.holds(marked):
            if ground.birth(marked) > node.births_checked:
                continue  # made by somebody else since then
            raise Violation(STAYS_HIDDEN, f"{node.name}: {marked.path} was forgotten while its tombstone stands")
        if not node.long_gone(marked.hour, ground.went_ns.get(marked.hour, ())):
            text = f"{node.name}: {marked.path} was forgotten before its hour was gone for {PUT_BACK_AFTER_S:.0f} s"
            raise Violation(STAYS_HIDDEN, text)
        for name, link in node.links.items():
            if marked not in link.answered:
                raise Violation(OPEN_IS_KEPT, f"{node.name}: {marked.path} was forgotten before {name} got it")
    node.committed = {marked: node.committed.get(marked, node.clock.now_ns) for marked in now}


def _check_listings(node: Node, rows: Rows, hour: Hour) -> None:
    """I1 and I3: the listing of the index, and that of the directory, leave out exactly the marked stems."""
    assert node.life is not None
    hidden = rows.hidden.get(hour, set())
    listed = set(node.life.reader.listing(hour))
    for stem, name in rows.segments.get(hour, ()):
        if name in listed and stem in hidden:
            raise Violation(STAYS_HIDDEN, f"{node.name}: the index lists {hour.path}/{name}")
        if name not in listed and stem not in hidden:
            raise Violation(NOTHING_ELSE, f"{node.name}: the index hides {hour.path}/{name}")
    state = node.ground.kept.get(hour)
    if state is not None:
        listed = set(directory_listing(node.ground, hour, hidden, tombstones=False))
        hidden = hidden | state.tombstones.keys()
        for name in state.data:
            if (name not in listed) != (name.rpartition(".")[0] in hidden):
                invariant = STAYS_HIDDEN if name in listed else NOTHING_ELSE
                raise Violation(invariant, f"{node.name}: wrong in the listing of the directory: {hour.path}/{name}")


def _check_trusted(node: Node, rows: Rows, hour: Hour) -> None:
    """Where a listing is made from the index instead of the directory, both say the same."""
    state, (mtime_ns, _, _) = node.ground.kept.get(hour), rows.hours.get(hour, (None, 0, 0))
    if state is None or mtime_ns is None or os.stat(node.ground.path(hour)).st_mtime_ns != mtime_ns:
        return
    names = {name for _, name in rows.segments.get(hour, ())}
    if names != state.data.keys():
        text = f"{node.name}: {hour.path} is settled with {sorted(names)}, and holds {sorted(state.data)}"
        raise Violation(TRUSTED_IS_RIGHT, text)
    if missing := state.tombstones.keys() - rows.hidden.get(hour, set()):
        raise Violation(TRUSTED_IS_RIGHT, f"{node.name}: {hour.path} is settled without the marks {sorted(missing)}")


def _check_confirmed(node: Node, rows: Rows) -> None:
    """I5: a delivery is confirmed only if the peer's tree held the tombstone when it was asked."""
    for peer, marker, state in rows.deliveries:
        if state is State.CONFIRMED and rows.markers[marker] not in node.links[rows.peers[peer]].confirmed:
            text = f"{node.name}: {rows.peers[peer]} never confirmed {rows.markers[marker].path}"
            raise Violation(CONFIRMED_WAS_SEEN, text)


def _check_counts(node: Node, rows: Rows, tally: Tally) -> None:
    """The counts of the hours, and those that a scrape shows, are what counting the rows gives."""
    files: Counter[int] = Counter()
    hidden: Counter[int] = Counter()
    for hour, segments in rows.segments.items():
        place = rows.places[hour.channel, hour.quality]
        files[place] += len(segments)
        hidden[place] += sum(stem in rows.hidden.get(hour, ()) for stem, _ in segments)
    for hour, (_, hour_files, hour_hidden) in rows.hours.items():
        segments = rows.segments.get(hour, [])
        if (hour_files, hour_hidden) != (len(segments), sum(s in rows.hidden.get(hour, ()) for s, _ in segments)):
            raise Violation(COUNTS, f"{node.name}: {hour.path} counts {hour_files} files, {hour_hidden} hidden")
    if missing := rows.segments.keys() - rows.hours.keys():
        raise Violation(COUNTS, f"{node.name}: no counts of {sorted(hour.path for hour in missing)}")
    counted = {
        "files": (tally.files, files),
        "hidden": (tally.hidden, hidden),
        "deliveries": (tally.deliveries, Counter((peer, state) for peer, _, state in rows.deliveries)),
        "markers": (Counter(all=tally.markers), Counter(all=len(rows.markers))),
    }
    for what, (told, true) in counted.items():
        if told != true:  # counters compare missing keys as 0
            raise Violation(COUNTS, f"{node.name}: {what}: {told} is told, {true} is true")

"""The rows that workers hand to the index's writer: each a small object that knows how to write itself.

A batch may be applied more than once where its transaction failed, so `apply` starts afresh each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tombsync.index.schema import to_key
from tombsync.names import Hour, Marked
from tombsync.plan import KEEP_STATES, State
from tombsync.work import TRANSACTION_ROWS

if TYPE_CHECKING:
    from tombsync.index.writer import Writer

_KEEP = ",".join(str(int(state)) for state in KEEP_STATES)
_ALL_BUT_HELD = ",".join(str(int(state)) for state in State if state is not State.HELD)


@dataclass
class SegmentRows:
    """Segments of one hour that came and went, as file names; at most a transaction's worth.

    `watched` says that events told of them: then no earlier listing of the hour counts as known.
    """

    hour: Hour
    add: Sequence[str] = ()
    drop: Sequence[str] = ()
    watched: bool = False

    @property
    def rows(self) -> int:
        return len(self.add) + len(self.drop)

    def apply(self, writer: Writer) -> None:
        writer.change_segments(self.hour, self.add, self.drop, watched=self.watched)

    def committed(self) -> None:
        pass


@dataclass
class HourListed:
    """An hour's rows equal its directory as it was listed: its mtime, digest and the number of the pass that did it.

    `edits` is what the hour's row said before the listing; where it has changed since, the listing does not count.
    """

    hour: Hour
    mtime_ns: int
    digest: bytes
    pass_number: int
    settled: bool
    edits: int
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        identifier = writer.hour_id(self.hour)
        writer.execute("INSERT OR IGNORE INTO hour (id) VALUES (?)", (identifier,))
        writer.execute(
            "UPDATE hour SET mtime_ns = ?, digest = ?, pass = ?, settled = ? WHERE id = ? AND edits = ?",
            (self.mtime_ns, self.digest, self.pass_number, self.settled, identifier, self.edits),
        )

    def committed(self) -> None:
        pass


@dataclass
class HourGone:
    """An hour directory is no longer there: its row goes when nothing refers to it any more."""

    hour: Hour
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        identifier = writer.hour_id(self.hour)
        writer.execute(
            "UPDATE hour SET mtime_ns = NULL, digest = NULL, settled = 1, edits = edits + 1 WHERE id = ?", (identifier,)
        )
        writer.execute(
            "DELETE FROM hour WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM segment WHERE hour = ?1)"
            " AND NOT EXISTS (SELECT 1 FROM marker WHERE hour = ?1)",
            (identifier,),
        )

    def committed(self) -> None:
        pass


@dataclass
class MarkersForgotten:
    """Markers of an hour that is gone; those with an unconfirmed delivery stay. `forgotten` is set by `apply`."""

    hour: Hour
    stems: Sequence[str]
    on_commit: Callable[[Sequence[str]], None]
    forgotten: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.stems)

    def apply(self, writer: Writer) -> None:
        self.forgotten = writer.forget_markers(self.hour, self.stems, _KEEP)

    def committed(self) -> None:
        self.on_commit(self.forgotten)


@dataclass
class MarksTakenBack:
    """Markers that a person took back: forgotten where every delivery is held, and the file is gone.

    `is_gone` is asked in the very transaction: a tombstone that was made anew meanwhile goes on hiding. `on_commit`
    gets what is forgotten, and what is not. By key, as a stem of whatever bytes can be taken back.
    """

    markers: Sequence[int]
    is_gone: Callable[[Marked], bool]
    on_commit: Callable[[Sequence[Marked], Sequence[Marked]], None]
    forgotten: list[Marked] = field(default_factory=list)
    kept: list[Marked] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.markers)

    def apply(self, writer: Writer) -> None:
        self.forgotten, self.kept = [], []
        hours: dict[Hour, list[str]] = {}
        for marked in writer.marked_of(self.markers):
            if self.is_gone(marked):
                hours.setdefault(marked.hour, []).append(marked.stem)
            else:
                self.kept.append(marked)
        for hour, stems in hours.items():
            forgotten = set(writer.forget_markers(hour, stems, _ALL_BUT_HELD))
            for stem in stems:
                (self.forgotten if stem in forgotten else self.kept).append(Marked(hour, stem))

    def committed(self) -> None:
        self.on_commit(self.forgotten, self.kept)


@dataclass
class MarkersPlaced:
    """Tombstones of one hour that were hidden before they had a file, and stand in the tree now."""

    hour: Hour
    stems: Sequence[str]

    @property
    def rows(self) -> int:
        return len(self.stems)

    def apply(self, writer: Writer) -> None:
        writer.placed_markers(self.hour, self.stems)

    def committed(self) -> None:
        pass


@dataclass
class DeliveriesHeld:
    """Pending deliveries of these markers wait for a person."""

    markers: Sequence[int]
    on_commit: Callable[[], None]

    @property
    def rows(self) -> int:
        return len(self.markers)

    def apply(self, writer: Writer) -> None:
        writer.hold_pending(self.markers)

    def committed(self) -> None:
        self.on_commit()


@dataclass
class HoldsEnded:
    """Held deliveries of these markers become due. `on_commit` gets how many markers had one."""

    markers: Sequence[int]
    on_commit: Callable[[int], None]
    ended: int = 0

    @property
    def rows(self) -> int:
        return len(self.markers)

    def apply(self, writer: Writer) -> None:
        self.ended = writer.end_holds(self.markers)

    def committed(self) -> None:
        self.on_commit(self.ended)


@dataclass
class HoldsEndedUpTo:
    """Held deliveries of the newest markers up to this one become due: a transaction's worth, 0 where none is left."""

    marker: int
    on_commit: Callable[[int], None]
    rows: int = TRANSACTION_ROWS
    ended: int = 0

    def apply(self, writer: Writer) -> None:
        self.ended = writer.end_holds(writer.held_up_to(self.marker))

    def committed(self) -> None:
        self.on_commit(self.ended)


class Outcome(NamedTuple):
    """What became of one delivery. `asked_at_ns` is wall time; `detail` is one line for people.

    `data`: whether the peer still has data of that stem; None where it was not asked.
    """

    marker: int
    state: State
    asked_at_ns: int
    detail: str = ""
    data: bool | None = None


@dataclass
class DeliveryOutcomes:
    """Answers of one peer. `on_commit` gets the outcomes whose state changed, each with the state before."""

    peer: int
    outcomes: Sequence[Outcome]
    on_commit: Callable[[Sequence[tuple[Outcome, State]]], None]
    changed: list[tuple[Outcome, State]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.outcomes)

    def apply(self, writer: Writer) -> None:
        self.changed = writer.record_outcomes(self.peer, self.outcomes)

    def committed(self) -> None:
        self.on_commit(self.changed)


@dataclass
class PeerReport:
    """How a peer's session stands: up or down since `at_ns` (wall time) and why."""

    peer: int
    up: bool
    at_ns: int
    error: str = ""
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        writer.execute(
            "UPDATE peer SET changed_at_ns = iif(up IS ?1 AND changed_at_ns IS NOT NULL, changed_at_ns, ?2), up = ?1,"
            " error = iif(?1, NULL, ?3), error_at_ns = iif(?1, NULL, ?2) WHERE id = ?4",
            (self.up, self.at_ns, self.error, self.peer),
        )

    def committed(self) -> None:
        pass


@dataclass
class PeerVerified:
    """Every confirmed delivery of a peer was asked for again, ended at `at_ns` (wall time)."""

    peer: int
    at_ns: int
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        writer.execute("UPDATE peer SET verified_at_ns = ? WHERE id = ?", (self.at_ns, self.peer))

    def committed(self) -> None:
        pass


@dataclass
class PeerMarkerSeen:
    """The root marker of a peer's tree was seen there: from now on it is missed where it is not."""

    peer: int
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        writer.execute("UPDATE peer SET marker_seen = 1 WHERE id = ?", (self.peer,))

    def committed(self) -> None:
        pass


@dataclass
class Facts:
    """Values of the agent's own that commands read from the index: a rescan's progress, when it ended."""

    values: dict[str, str | int | float | None]

    @property
    def rows(self) -> int:
        return len(self.values)

    def apply(self, writer: Writer) -> None:
        for key, value in self.values.items():
            writer.set_fact(key, value)

    def committed(self) -> None:
        pass


@dataclass
class PlaceMount:
    """Whether a channel and quality lie on a mount of their own, below ROOT (the hour's number is not used)."""

    place: Hour
    own_mount: bool
    rows: int = 1

    def apply(self, writer: Writer) -> None:
        writer.hour_id(self.place)
        writer.execute(
            "UPDATE place SET own_mount = ? WHERE channel = ? AND quality = ?",
            (self.own_mount, to_key(self.place.channel), to_key(self.place.quality)),
        )

    def committed(self) -> None:
        pass

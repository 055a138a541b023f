"""Which files a takedown of a span of time is about. Pure; times as in `tombsync.timeline`.

Found is, of the qualities that were asked for, whatever carries any part of the span, and every other version of an
instant at which one of these starts, as a reader of the archive falls back to it. Unless twins are excluded also what
would bring the same back: copies (files of one hash, in whatever quality) and names that start up to TOLERANCE_US away
from one that is found, as a backfiller fetches them again. Twins of a twin are twins, until nothing more is found.

Batches of chat are found in the same way, among themselves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tombsync.names import Hour, hour_number
from tombsync.timeline import HOUR_US, TOLERANCE_US, Piece, hours_of

CHAT = "chat"  # the quality, and the type of a piece, that are batches of chat
_TEMP = "temp"
FIRST_HOUR, LAST_HOUR = hour_number("0001-01-01T00"), hour_number("9999-12-31T23")  # those that have a name


class Why(Enum):
    """Why a file is found."""

    CARRIES = "carries"  # a part of the span
    INSTANT = "instant"  # starts at the same instant as one that is found, in the same quality
    COPY = "copy"  # has the same hash as one that is found
    NEXT_TO = "next-to"  # starts up to TOLERANCE_US away from one that is found, in the same quality


@dataclass(frozen=True)
class Asked:
    """A takedown that is asked for: a half-open span of one channel.

    `qualities`: those of video; all of them where empty. `chat`: mark batches of chat too. `twins`: what else would
    bring the same back.
    """

    channel: str
    start_us: int
    end_us: int
    qualities: tuple[str, ...] = ()
    chat: bool = False
    twins: bool = True

    @property
    def span_hours(self) -> range:
        """The hours (`Hour.number`) that the span itself touches."""
        return range(self.start_us // HOUR_US, -(-self.end_us // HOUR_US))

    @property
    def hours(self) -> range:
        """The hours whose directories are looked into: those that may hold a file of the span, and their neighbours."""
        numbers = hours_of(self.start_us, self.end_us)
        return range(max(FIRST_HOUR, numbers.start - self.twins), min(LAST_HOUR + 1, numbers.stop + self.twins))

    def covers(self, quality: str) -> bool:
        """Whether a quality was asked for. Batches of chat are found whatever was, and shown."""
        return not self.qualities or quality in self.qualities


@dataclass(frozen=True)
class Files:
    """What stands in one hour directory. `marked`: stems whose tombstone stands in it; `hidden`: those that are hidden,
    also where the index alone says so. `timeless`: how many files have a name that says no time."""

    hour: Hour
    pieces: Sequence[Piece]
    marked: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    timeless: int = 0


class Match(NamedTuple):
    """A file that is found: why, and beside which other; None where it carries a part of the span itself."""

    piece: Piece
    why: Why
    of: Piece | None
    is_marked: bool

    @property
    def is_chat(self) -> bool:
        """Whether it is a batch of chat."""
        return self.piece.type == CHAT

    @property
    def is_temp(self) -> bool:
        """Whether it is still being written: it gets another name, so it cannot be marked."""
        return self.piece.type == _TEMP


@dataclass(frozen=True)
class Found:
    """What a takedown is about, by quality and time. `timeless`: files without a time in the hours of the span."""

    asked: Asked
    matches: list[Match] = field(default_factory=list)
    timeless: int = 0

    @property
    def marks(self) -> list[Match]:
        """Those that a takedown marks, or that are marked already."""
        return [one for one in self.matches if not one.is_temp and (self.asked.chat or not one.is_chat)]

    @property
    def temps(self) -> list[Match]:
        """Those that cannot be marked."""
        return [one for one in self.matches if one.is_temp]

    @property
    def chat_left(self) -> list[Match]:
        """Batches of chat that are not marked, as they were not asked for."""
        return [] if self.asked.chat else [one for one in self.matches if one.is_chat]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of what is marked, each once."""
        return tuple(sorted({one.piece.hash for one in self.marks}))


def find(asked: Asked, files: Iterable[Files]) -> Found:
    """Find what a takedown is about among the files of its hours (`Asked.hours`), of every quality of the channel."""
    pieces: list[Piece] = []
    marked: set[tuple[Hour, str]] = set()
    timeless = 0
    for each in files:
        pieces += each.pieces
        marked.update((each.hour, stem) for stem in each.marked)
        if each.hour.number in asked.span_hours and asked.covers(each.hour.quality):
            timeless += each.timeless
    found: dict[Piece, tuple[Why, Piece | None]] = {}
    for is_chat in (False, True):
        found |= _found_among(asked, [one for one in pieces if (one.type == CHAT) is is_chat])
    matches = [Match(one, why, of, (one.hour, one.stem) in marked) for one, (why, of) in found.items()]
    matches.sort(key=lambda match: (match.piece.hour.quality, match.piece.start_us, match.piece.name))
    return Found(asked, matches, timeless)


def _found_among(asked: Asked, pieces: list[Piece]) -> dict[Piece, tuple[Why, Piece | None]]:
    same_hash: dict[str, list[Piece]] = {}
    by_start: dict[str, list[Piece]] = {}  # by quality
    for one in sorted(pieces, key=lambda one: one.start_us):
        same_hash.setdefault(one.hash, []).append(one)
        by_start.setdefault(one.hour.quality, []).append(one)
    starts = {quality: [one.start_us for one in each] for quality, each in by_start.items()}
    found: dict[Piece, tuple[Why, Piece | None]] = {
        one: (Why.CARRIES, None)
        for one in pieces
        if one.touches(asked.start_us, asked.end_us) and (one.type == CHAT or asked.covers(one.hour.quality))
    }
    tolerance_us = TOLERANCE_US if asked.twins else 0
    left = list(found)
    while left:
        of = left.pop()
        quality = of.hour.quality
        first = bisect_left(starts[quality], of.start_us - tolerance_us)
        last = bisect_right(starts[quality], of.start_us + tolerance_us)
        beside = [
            (one, Why.INSTANT if one.start_us == of.start_us else Why.NEXT_TO) for one in by_start[quality][first:last]
        ]
        copies = [(one, Why.COPY) for one in same_hash[of.hash]] if asked.twins else []
        for one, why in beside + copies:
            if one not in found:
                found[one] = (why, of)
                left.append(one)
    return found

"""Instants at which several files start: which one is served and why, and which are the rest. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from tombsync.timeline import Piece, SizeOf, best

_RANKED_TYPES = ("full", "suspect", "partial")  # a temp one is no version: it is never served, and gets another name


class Instant(NamedTuple):
    """Several visible files of one quality that start at one instant: the one that is served, why it is, the rest."""

    served: Piece
    reason: str
    rest: list[Piece]


def versions(pieces: Iterable[Piece], size_of: SizeOf) -> list[Instant]:
    """The instants with several versions among the visible files of one hour, in order."""
    found = []
    ranked = sorted((one for one in pieces if one.type in _RANKED_TYPES), key=lambda one: one.start_us)
    for _, group in groupby(ranked, key=lambda one: one.start_us):
        same = list(group)
        served = best(same, size_of) if len(same) > 1 else None
        if served is not None:
            rest = sorted(one for one in same if one != served)
            found.append(Instant(served, _reason(served, rest, size_of), rest))
    return found


def _reason(served: Piece, rest: list[Piece], size_of: SizeOf) -> str:
    """What sets it apart from the best of the rest."""
    second = best(rest, size_of)
    if second is None or second.type != served.type:
        return f"{served.type} goes before {second.type if second else 'the rest'}"
    if served.type == "full" and served.end_us != second.end_us:
        return "the longest"
    if size_of(served) != size_of(second):
        return "the largest"
    return "the highest hash"

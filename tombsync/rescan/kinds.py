"""The kinds of rescans, and how far one is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RescanKind(StrEnum):
    """Which hours a rescan lists."""

    INTERVAL = "interval"
    FULL = "full"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the running rescan is, in hours."""

    kind: RescanKind
    done: int
    total: int
    started_ns: int

"""What is wrong with the record of a takedown."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import TombsyncError


@dataclass(eq=False)
class TakedownUnreadable(TombsyncError):
    """The record of a takedown is damaged, by a newer tombsync, or cannot be read: it is passed over."""

    path: str
    reason: str
    hint: str = (
        "what arrives late in its range is not told until it is mended; if it is of no use, move the file away and make"
        " the takedown again"
    )

    def __str__(self) -> str:
        return f"{self.path}: no takedown that can be followed: {self.reason}"


@dataclass(eq=False)
class NoTakedown(TombsyncError):
    """A takedown was named that this tree keeps no record of."""

    takedown: str
    hint: str = "`tombsync takedown list --all` shows those of this node"

    def __str__(self) -> str:
        return f"{self.takedown!r}: no takedown of this name was made here"

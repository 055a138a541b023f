"""What the journal cannot tell."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import TombsyncError


@dataclass(eq=False)
class JournalUnreadable(TombsyncError):
    """There is no journal to read, this account may not read it, or what was named is none."""

    where: str
    reason: str
    hint: str = (
        "run this as root or as a member of the group systemd-journal; where the agent writes to stderr,"
        " name what it wrote with --journal FILE"
    )

    def __str__(self) -> str:
        return f"{self.where} cannot be read: {self.reason}"


@dataclass(eq=False)
class NoRecords(TombsyncError):
    """The journal has no record of a segment."""

    stem: str
    hint: str = "an old journal is removed in time; `tombsync status` says what the index knows of it"

    def __str__(self) -> str:
        return f"{self.stem}: the journal has no record of it"

"""What the emitter hands to the observer, through watchdog's queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from watchdog.events import FileSystemEvent

from tombsync.names import Hour


@dataclass(eq=False)
class Changes(FileSystemEvent):
    """What one read of the kernel's queue told, but for tombstones."""

    segments: list[tuple[Hour, str, bool]] = field(default_factory=list)  # file names, and whether they are there
    disturbed: set[Hour] = field(default_factory=set)  # a tombstone or the directory itself went
    mistakes: list[tuple[Hour, str]] = field(default_factory=list)
    overflowed: bool = False
    place_left: bool = False  # a channel or quality was moved away or removed
    walked: bool = False  # every watch there can be is in place
    limit_reached: str = ""
    root_disturbed: bool = False
    unwatchable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.event_type = "changes"

    @property
    def told_anything(self) -> bool:
        """Whether it is more than a sign of life."""
        return bool(
            self.segments or self.disturbed or self.mistakes or self.overflowed or self.place_left
            or self.walked or self.limit_reached or self.root_disturbed or self.unwatchable
        )  # fmt: skip

    # watchdog's queue drops an event that equals the one before it, and its base class compares paths only.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

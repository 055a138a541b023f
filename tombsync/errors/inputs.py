"""What a person or a settings file said wrong."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import TombsyncError


@dataclass(eq=False)
class BadName(TombsyncError):
    """A name or path from outside that must not become a path inside."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name!r}: {self.reason}"


@dataclass(eq=False)
class BadTime(TombsyncError):
    """A time that cannot be read."""

    text: str
    hint: str = "write it as 2019-11-13T02:45:51.608 (UTC), or with an offset as 2019-11-13T04:45:51+02:00"

    def __str__(self) -> str:
        return f"{self.text!r} is no time that can be read"


@dataclass(eq=False)
class LongRange(TombsyncError):
    """A takedown of so much time that it is more likely a slip."""

    duration_s: float
    most_s: int
    hint: str = "check both times; where so much is meant, look at it with --dry-run, then add --long"

    def __str__(self) -> str:
        return f"the range is {self.duration_s:.0f} s long, more than the {self.most_s} s that need no --long"


@dataclass(eq=False)
class NothingInRange(TombsyncError):
    """A takedown of a span of time in which nothing can be marked."""

    channel: str
    start: str
    end: str
    hint: str = (
        "check the times (UTC unless they have an offset) and the qualities; --sticky takes down what is not here yet"
    )

    def __str__(self) -> str:
        return f"nothing of {self.channel} that can be marked carries any part of {self.start} to {self.end}"


@dataclass(eq=False)
class EmptySpan(TombsyncError):
    """A span of time that does not end after it begins."""

    start: str
    end: str
    hint: str = "name the earlier time first"

    def __str__(self) -> str:
        return f"{self.end} is not after {self.start}"


@dataclass(eq=False)
class BadCursor(TombsyncError):
    """A place in a paged answer that no page has named."""

    text: str
    hint: str = "take `next` of the page before as it is, or begin without one"

    def __str__(self) -> str:
        return f"{self.text!r} is no cursor of this answer"


@dataclass(eq=False)
class MapTooWide(TombsyncError):
    """A map of more hours than anybody can look at."""

    hours: int
    most: int
    hint: str = "name a shorter range with --from and --to, and draw one map after another"

    def __str__(self) -> str:
        return f"a map of {self.hours} hours: {self.most} are the most"


@dataclass(eq=False)
class OutsideRoot(TombsyncError):
    """A path that does not lie in the segment tree."""

    path: str
    root: str
    hint: str = "name a file as ROOT/CHANNEL/QUALITY/HOUR/NAME, or another tree with --root"

    def __str__(self) -> str:
        return f"{self.path} is not inside the segment tree {self.root}"


@dataclass(eq=False)
class NothingThere(TombsyncError):
    """A channel, quality or hour was asked for that is not in the tree."""

    where: str
    reason: str = "there is no such directory in the segment tree"

    @property
    def hint(self) -> str:  # type: ignore[override] # made of the data
        above = self.where.rpartition("/")[0]
        return f"`tombsync ls{' ' + above if above else ''}` shows what is there"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(eq=False)
class TooManyHours(TombsyncError):
    """A stem was named without its hour that is marked in so many that nobody can mean all of them."""

    stem: str
    most: int
    hint: str = "name each as CHANNEL/QUALITY/HOUR/STEM; `tombsync tombstones` lists them"

    def __str__(self) -> str:
        return f"{self.stem}: marked in more than {self.most} hours"


@dataclass(eq=False)
class HidesNothing(TombsyncError):
    """A tombstone that was asked for although no segment here has its stem."""

    path: str
    hint: str = (
        "check the name (`tombsync ls` shows what is there), or add --even-if-absent to mark it before it arrives"
    )

    def __str__(self) -> str:
        return f"{self.path}: no .ts or .json of this name is here, so a tombstone would hide nothing"


@dataclass(eq=False)
class NotMarkable(TombsyncError):
    """A name that must not get a tombstone."""

    path: str
    reason: str
    hint: str = "mark the segment that it becomes"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class NotMarked(TombsyncError):
    """A stem without a known tombstone."""

    stem: str
    hint: str = "`tombsync tombstones` lists what is marked"

    def __str__(self) -> str:
        return f"{self.stem}: no tombstone of this name is known here"


@dataclass(eq=False)
class NotConfirmed(TombsyncError):
    """Something that cannot be taken back was asked for, and there is no terminal to ask on."""

    what: str
    hint: str = "look at it with --dry-run, then add --yes"

    def __str__(self) -> str:
        return f"not done: {self.what}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a settings file: the file, the key, what stands there and what is allowed."""

    file: str
    key: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}{f' = {self.value}' if self.value else ''}: {self.allowed}"


@dataclass(eq=False)
class BadSettings(TombsyncError):
    """Every problem of a settings file, reported together."""

    problems: tuple[Problem, ...]
    hint: str = "correct the file and run `tombsync check`; nothing was started"

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

"""Which directory each watch descriptor stands for: bookkeeping without a system call.

A watch on an hour is one integer in an array indexed by inotify's watch descriptor, which the kernel counts upwards.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from enum import Enum

from tombsync.names import Hour

_NUMBER_BITS = 27  # of an entry in the array: the hour; above it the place's position in `_places`
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
_UNUSED = -1


class Added(Enum):
    """What became of the wish to watch a directory."""

    NOT = 0
    ALREADY = 1  # and under this name
    NEWLY = 2


class Watched:
    """Belongs to the emitter's thread; `count`, how many directories are watched, may be read by any.

    Lost events may have told that a directory was moved away, and a watch on it would go on to speak for its old path.
    So from `doubt` to `trust` only those descriptors are sure that were confirmed meanwhile: the kernel gave them for a
    path that was watched.
    """

    def __init__(self) -> None:
        self._parents: dict[int, tuple[str, ...]] = {}  # descriptor -> parts below ROOT, of every level but HOUR
        self._hours = array("q")  # descriptor -> place << _NUMBER_BITS | hour, or _UNUSED
        self._places: list[tuple[str, str]] = []
        self._place_numbers: dict[tuple[str, str], int] = {}
        self._confirmed: bytearray | None = None  # by descriptor, while there is doubt
        self.count = 0

    def parts(self, wd: int) -> tuple[str, ...] | None:
        """The directory above the hours that a descriptor stands for."""
        return self._parents.get(wd)

    def hour(self, wd: int) -> Hour | None:
        """The hour that a descriptor stands for."""
        packed = self._hours[wd] if 0 <= wd < len(self._hours) else _UNUSED
        return None if packed == _UNUSED else self._hour(packed)

    def _hour(self, packed: int) -> Hour:
        return Hour(*self._places[packed >> _NUMBER_BITS], packed & _NUMBER_MASK)

    def place_number(self, channel: str, quality: str) -> int:
        """A short name of a channel and quality, given at the first call."""
        number = self._place_numbers.get((channel, quality))
        if number is None:
            number = self._place_numbers[channel, quality] = len(self._places)
            self._places.append((channel, quality))
        return number

    def place(self, number: int) -> tuple[str, str]:
        """The channel and quality of such a name."""
        return self._places[number]

    def has_places_below(self, parts: Sequence[str]) -> bool:
        """Whether a place in or at this directory was ever watched."""
        return any(place[: len(parts)] == tuple(parts) for place in self._places)

    def add_parent(self, wd: int, parts: tuple[str, ...]) -> Added:
        """The descriptor stands for this directory from now on."""
        before, self._parents[wd] = self._parents.get(wd), parts
        self.count += before is None
        return Added.ALREADY if before == parts else Added.NEWLY

    def add_hour(self, wd: int, place: int, number: int) -> Added:
        """Likewise for an hour, as integers: it runs for each at the start (benchmarks/idle.py)."""
        if wd >= len(self._hours):
            self._hours.extend([_UNUSED] * (wd + 1 - len(self._hours)))
        packed = place << _NUMBER_BITS | number
        known, self._hours[wd] = self._hours[wd], packed
        self.count += known == _UNUSED
        return Added.ALREADY if known == packed else Added.NEWLY

    def forget(self, wd: int) -> None:
        """The descriptor stands for nothing any more."""
        if self._parents.pop(wd, None) is not None:
            self.count -= 1
        elif 0 <= wd < len(self._hours) and self._hours[wd] != _UNUSED:
            self._hours[wd] = _UNUSED
            self.count -= 1

    def below(self, parts: tuple[str, ...]) -> list[int]:
        """The descriptors of a directory and of all below it."""
        places = {number for place, number in self._place_numbers.items() if place[: len(parts)] == parts}
        parents = [wd for wd, found in self._parents.items() if found[: len(parts)] == parts]
        return parents + [wd for wd, packed in self._used() if packed >> _NUMBER_BITS in places]

    def oldest(self) -> tuple[int, int] | None:
        """The number and the descriptor of the oldest hour; None where none is watched."""
        return min(((packed & _NUMBER_MASK, wd) for wd, packed in self._used()), default=None)

    def _used(self) -> Iterator[tuple[int, int]]:
        return ((wd, packed) for wd, packed in enumerate(self._hours) if packed != _UNUSED)

    # -- doubt --------------------------------------------------------------------------------------------------------

    def doubt(self) -> None:
        """No descriptor is sure any more."""
        self._confirmed = bytearray()

    def confirm(self, wd: int) -> None:
        """The kernel gave this descriptor for the path that was just watched."""
        if self._confirmed is not None:
            if wd >= len(self._confirmed):
                self._confirmed.extend(bytes(wd + 1 - len(self._confirmed)))
            self._confirmed[wd] = 1

    def is_sure(self, wd: int) -> bool:
        """Whether what the descriptor tells is of the directory that it stands for."""
        return self._confirmed is None or (wd < len(self._confirmed) and bool(self._confirmed[wd]))

    def unsure(self, *, but_below: Collection[tuple[str, ...]]) -> list[int]:
        """What was not confirmed, but for what is in or at these directories, which could not be looked into."""
        wds = [wd for wd in self._parents if not self.is_sure(wd)]
        wds += [wd for wd, _ in self._used() if not self.is_sure(wd)]
        if not but_below:
            return wds
        spared = {wd for parts in but_below for wd in self.below(parts)}
        return [wd for wd in wds if wd not in spared]

    def trust(self) -> None:
        """Every descriptor is sure again."""
        self._confirmed = None

"""A node's segment tree: the real `Tree` on a small directory, and what the archive and people do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inotify_simple import flags

from tests.model.events import Inotify
from tests.model.simulated import Clock, Timebase
from tombsync.names import Hour, Marked, tombstone_name
from tombsync.tree import Tree
from tombsync.work import Sight

_FileState = tuple[int, int, int]


@dataclass
class HourState:
    """What an hour directory has to hold: data by name, tombstones by stem with a number for each time of making."""

    since_ns: int
    data: dict[str, _FileState] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)


class Ground(Tree):
    """What is changed in here gets a simulated mtime, and its events go to `events`, the agent's inotify if it runs.

    `at` is called where something else may happen in the middle of the agent's work, and `put_back` when the agent puts
    a tombstone back.
    """

    def __init__(self, root: str, clock: Clock, base: Timebase) -> None:
        os.mkdir(root)
        super().__init__(root)
        self.events: Inotify | None = None
        self.at: Callable[[str], None] = lambda point: None
        self.put_back: Callable[[Marked], None] = lambda marked: None
        self.changed = True
        self.kept: dict[Hour, HourState] = {}
        self.came_ns: dict[Hour, list[int]] = {}
        self.went_ns: dict[Hour | Marked, list[int]] = {}
        self._clock = clock
        self._base = base
        self._attic: dict[Hour, HourState] = {}
        self.births = 0  # tombstones made so far
        os.mkdir(f"{root}.attic")

    # -- the agent's own ways, with what follows from them ------------------------------------------------------------

    def sight(self, marked: Marked) -> Sight:
        self.at("sight")
        return super().sight(marked)

    def place(self, root_fd: int, marked: Marked, note: bytes = b"") -> bool:
        made = super().place(root_fd, marked, note)
        if made:
            if not note:  # else it is a person's command
                self.put_back(marked)
            self._stands(marked)
        return made

    # -- looking ------------------------------------------------------------------------------------------------------

    def path(self, hour: Hour) -> str:
        """An hour directory's path."""
        return f"{self.root}/{hour.path}"

    def serves(self, hour: Hour) -> bool:
        """Whether the hour's channel and quality are there."""
        return os.path.isdir(f"{self.root}/{hour.channel}/{hour.quality}")

    def holds(self, marked: Marked) -> bool:
        """Whether a tombstone stands."""
        state = self.kept.get(marked.hour)
        return state is not None and marked.stem in state.tombstones

    def birth(self, marked: Marked) -> int:
        """The number of the making of a tombstone that stands."""
        return self.kept[marked.hour].tombstones[marked.stem]

    def lacks_since_ns(self, marked: Marked) -> int:
        """Since when a tombstone does not stand in its hour, which does."""
        return max(self.kept[marked.hour].since_ns, *self.went_ns.get(marked, [0])[-1:])

    def tombstones(self) -> Iterator[tuple[Marked, int]]:
        """Every tombstone that stands, with the number of its making."""
        for hour, state in self.kept.items():
            for stem, birth in state.tombstones.items():
                yield Marked(hour, stem), birth

    # -- what the archive does ----------------------------------------------------------------------------------------

    def make_place(self, hour: Hour) -> None:
        """Make channel and quality."""
        for parent, name in ((self.root, hour.channel), (f"{self.root}/{hour.channel}", hour.quality)):
            if not os.path.isdir(f"{parent}/{name}"):
                os.mkdir(f"{parent}/{name}")
                self._tell(parent, flags.CREATE | flags.ISDIR, name)

    def add_hour(self, hour: Hour) -> None:
        """Make an hour directory in its quality."""
        os.mkdir(self.path(hour))
        self._came(hour, HourState(self._clock.now_ns), flags.CREATE)
        self._touched(hour)

    def write(self, hour: Hour, name: str) -> None:
        """A segment arrives, and makes the directories that it needs; nothing happens where it is there."""
        if hour not in self.kept:
            self.make_place(hour)
            self.add_hour(hour)
        state = self.kept[hour]
        if name not in state.data:
            path = f"{self.path(hour)}/{name}"
            self._create(path, name.encode())
            state.data[name] = file_state(path)
            self._appeared(hour, name)

    def remove(self, hour: Hour, name: str) -> None:
        """A segment is removed, if it is there."""
        state = self.kept.get(hour)
        if state is not None and name in state.data:
            del state.data[name]
            self._unlink(hour, name)

    # -- what people do -----------------------------------------------------------------------------------------------

    def touch(self, marked: Marked) -> bool:
        """`touch STEM.tombstone`; False where it stands already or has no hour."""
        if marked.hour not in self.kept or self.holds(marked):
            return False
        self._create(f"{self.root}/{marked.tombstone_path}")
        self._stands(marked)
        return True

    def remove_tombstone(self, marked: Marked) -> None:
        """`rm STEM.tombstone`, if it stands."""
        if self.holds(marked):
            del self.kept[marked.hour].tombstones[marked.stem]
            self.went_ns.setdefault(marked, []).append(self._clock.now_ns)
            self._unlink(marked.hour, tombstone_name(marked.stem))

    def remove_hour(self, hour: Hour) -> None:
        """`rm -r HOUR`, if it is there."""
        state = self.kept.get(hour)
        if state is None:
            return
        for name in (*state.data, *map(tombstone_name, state.tombstones)):
            self._unlink(hour, name)
        inode = os.lstat(self.path(hour)).st_ino
        os.rmdir(self.path(hour))
        self._went(hour, flags.DELETE)
        if self.events is not None:
            self.events.removed(inode)

    def move_hour(self, hour: Hour) -> None:
        """Move an hour out of the tree, or back into it where it was moved out and no other was made since."""
        path, attic = self.path(hour), f"{self.root}.attic/{hour.quality}.{hour.text}"
        if hour in self._attic:
            if hour not in self.kept and self.serves(hour):
                state = self._attic.pop(hour)
                os.rename(attic, path)
                state.since_ns = self._clock.now_ns
                state.tombstones = {stem: self._birth() for stem in state.tombstones}
                self._came(hour, state, flags.MOVED_TO)
                self._tell(path, flags.MOVE_SELF)
        elif hour in self.kept:
            os.rename(path, attic)
            self._attic[hour] = self._went(hour, flags.MOVED_FROM)
            self._tell(attic, flags.MOVE_SELF)

    def clean_up(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root)
        shutil.rmtree(f"{self.root}.attic")

    # -- one change ---------------------------------------------------------------------------------------------------

    def _create(self, path: str, content: bytes = b"") -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(fd, content)
        os.close(fd)

    def _unlink(self, hour: Hour, name: str) -> None:
        os.unlink(f"{self.path(hour)}/{name}")
        self._touched(hour)
        self._tell(self.path(hour), flags.DELETE, name)

    def _stands(self, marked: Marked) -> None:
        self.kept[marked.hour].tombstones[marked.stem] = self._birth()
        self._appeared(marked.hour, tombstone_name(marked.stem))

    def _appeared(self, hour: Hour, name: str) -> None:
        self._touched(hour)
        self._tell(self.path(hour), flags.CREATE, name)

    def _came(self, hour: Hour, state: HourState, mask: int) -> None:
        self.kept[hour] = state
        self.came_ns.setdefault(hour, []).append(self._clock.now_ns)
        self._tell(os.path.dirname(self.path(hour)), mask | flags.ISDIR, hour.text)

    def _went(self, hour: Hour, mask: int) -> HourState:
        self.went_ns.setdefault(hour, []).append(self._clock.now_ns)
        self._tell(os.path.dirname(self.path(hour)), mask | flags.ISDIR, hour.text)
        return self.kept.pop(hour)

    def _touched(self, hour: Hour) -> None:
        at_ns = self._base.file_time_ns(self._clock.now_ns)
        os.utime(self.path(hour), ns=(at_ns, at_ns))
        self._clock.now_ns += 100_000

    def _tell(self, directory: str, mask: int, name: str = "") -> None:
        self.changed = True
        if self.events is not None:
            self.events.tell(directory, mask, name)

    def _birth(self) -> int:
        self.births += 1
        return self.births


def file_state(path: str) -> _FileState:
    """What differs after a file was written, replaced or made anew."""
    found = os.lstat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns

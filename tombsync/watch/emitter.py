"""The emitter: reads inotify and says what came, went or could not be watched.

The stock emitter walks every file, watches a part in silence when the limit is reached, and throws its watches away on
an overflow. This one watches directories only, to a fixed depth (ROOT, CHANNEL, QUALITY, HOUR), newest hours first,
adds the watch before it lists, keeps its watches on an overflow but for those that no longer speak for their path, and
says what it could not do.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import stat
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from inotify_simple import INotify, flags
from watchdog.events import FileSystemEvent
from watchdog.observers.api import EventEmitter, EventQueue, ObservedWatch

from tombsync import precedence
from tombsync.errors import RootMissing, RootNotBelieved, WatchRefused
from tombsync.names import Hour, Kind, Marked, classify, hour_number, hour_text, is_hour
from tombsync.tree import Tree, directory_names, hour_numbers, names_in_place
from tombsync.watch.changes import Changes
from tombsync.watch.watched import Added, Watched
from tombsync.work import Sighting, Source

log = logging.getLogger(__name__)

_MASK = (
    flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.MOVED_FROM | flags.DELETE_SELF | flags.MOVE_SELF
    | flags.ONLYDIR | flags.EXCL_UNLINK | flags.DONT_FOLLOW
)  # fmt: skip
_APPEARED = flags.CREATE | flags.MOVED_TO
_LEFT = flags.DELETE | flags.MOVED_FROM
READ_TIMEOUT_S = 1.0  # how long a stop may wait for the emitter
_HEARTBEAT_S = 5.0  # sent through the whole chain, as a dispatcher can end in silence while its emitter lives
_WALK_STEP = 256  # watches added between two looks at the queue, about 1 ms
_ENTER_AT_ONCE = 32  # hours of a place that appears; more are left to a walk, as listing an hour takes 1 ms or more
# The limit of this user namespace, and that of the machine: the smaller one counts.
_LIMITS = ("/proc/sys/fs/inotify/max_user_watches", "/proc/sys/user/max_inotify_watches")
_Found = TypeVar("_Found")


class HourEmitter(EventEmitter):
    """Reads inotify. All fields belong to its thread once it runs."""

    def __init__(
        self, event_queue: EventQueue, watch: ObservedWatch, *, timeout: float = READ_TIMEOUT_S,
        event_filter: list[type[FileSystemEvent]] | None = None, tree: Tree, identity: str,
        on_marked: Callable[[Sequence[Sighting]], None], on_death: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        """`on_marked`: hide these; called by this thread, as each thread on the way is 0.1 ms (benchmarks/hide.py)."""
        super().__init__(event_queue, watch, timeout=timeout, event_filter=event_filter)
        self._tree = tree
        self._identity = identity
        self._on_marked = on_marked
        self._on_death = on_death
        self._inotify: Any = None
        self._watched = Watched()
        self._walk: Iterator[None] | None = None
        self._walk_again = threading.Event()
        self._unseen: set[tuple[str, ...]] = set()  # directories, above the hours, not seen whole since a walk began
        self._limited = False  # the limit was reached and told
        self._no_room = False  # the last directory that could not be watched met the limit
        self._marked: list[Sighting] = []
        self._read_ns = 0
        self._changes = Changes("")
        self._last_sent = 0.0

    @property
    def watches(self) -> int:
        """Directories watched now; from any thread."""
        return self._watched.count

    def on_thread_start(self) -> None:
        """Watch ROOT, so that a refusal is an error of the start. Raises WatchRefused, RootMissing."""
        try:
            self._inotify = INotify()
        except OSError as exc:
            raise WatchRefused(exc.strerror or str(exc)) from exc
        if self._add(()) is Added.NOT:
            raise RootMissing(self._tree.root)
        self._walk = self._walk_tree(first=True)

    def run(self) -> None:
        """Read until stopped; a failure is told at once, as nothing else would notice the silence."""
        try:
            super().run()
        except Exception as exc:  # this thread's outermost turn: logged here, acted on by the daemon
            log.exception("the watcher died")
            self._on_death(exc)
        finally:
            self._inotify.close()

    def walk_again(self) -> None:
        """Look for directories without a watch; from any thread."""
        self._walk_again.set()

    def queue_events(self, timeout: float) -> None:
        """One turn: read what the kernel has, go on walking, hand over what was learned."""
        if self._walk is None and self._walk_again.is_set():
            self._walk_again.clear()
            self._walk = self._walk_tree(first=False)
        events = self._inotify.read(0 if self._walk else int(timeout * 1000))
        self._read_ns = time.monotonic_ns()
        for event in events:
            self._handle(event.wd, event.mask, event.name)
        self._hand_over()
        if self._walk and next(self._walk, self) is self:
            self._walk = None
            self._changes.walked = True
            self._hand_over()
        if time.monotonic() - self._last_sent > _HEARTBEAT_S:
            self._send()

    def _hand_over(self) -> None:
        if self._marked:
            precedence.claim(precedence.HIDE)
            marked, self._marked = self._marked, []
            self._on_marked(marked)
        if self._changes.told_anything:
            self._send()

    def _send(self) -> None:
        changes, self._changes = self._changes, Changes("")
        self._last_sent = time.monotonic()
        self.queue_event(changes)

    # -- one event ----------------------------------------------------------------------------------------------------

    def _handle(self, wd: int, mask: int, name: str) -> None:
        if mask & flags.Q_OVERFLOW:
            self._changes.overflowed = True
            self._watched.doubt()
            self._walk_again.set()  # directories made meanwhile have no watch yet
            return
        hour = self._watched.hour(wd)
        if hour is not None:
            self._handle_in_hour(wd, hour, mask, name)
        elif (parts := self._watched.parts(wd)) is not None:
            self._handle_in_parent(wd, parts, mask, name)

    def _handle_in_hour(self, wd: int, hour: Hour, mask: int, name: str) -> None:
        if mask & flags.IGNORED:
            self._watched.forget(wd)
            self._changes.disturbed.add(hour)
        elif mask & (flags.MOVE_SELF | flags.UNMOUNT):
            # Moved away, or only renamed and already watched under its new name: the path tells.
            if self._watch_path((hour.channel, hour.quality, hour.text)) != wd:
                self._remove(wd)
            self._changes.disturbed.add(hour)
        elif name and not self._watched.is_sure(wd):
            self._see_doubtful(hour, name)
        elif name:
            self._see(hour, name, present=bool(mask & _APPEARED), directory=bool(mask & flags.ISDIR))

    def _see_doubtful(self, hour: Hour, name: str) -> None:
        """It may have been in a directory that was moved away: only what stands in the hour itself is believed."""
        self._changes.disturbed.add(hour)
        try:
            mode = os.lstat(f"{self._tree.root}/{hour.path}/{name}").st_mode
        except OSError:
            return
        self._see(hour, name, present=True, directory=stat.S_ISDIR(mode))

    def _see(self, hour: Hour, name: str, *, present: bool, directory: bool = False) -> None:
        kind, stem = classify(name)
        if kind is Kind.TOMBSTONE:
            if present:
                self._marked.append(Sighting(Marked(hour, stem), Source.WATCH, self._read_ns, directory))
            else:
                self._changes.disturbed.add(hour)
        elif kind is Kind.TS or kind is Kind.JSON:
            self._changes.segments.append((hour, name, present))
        elif kind is Kind.MISTAKE and present:
            self._changes.mistakes.append((hour, name))

    def _handle_in_parent(self, wd: int, parts: tuple[str, ...], mask: int, name: str) -> None:
        if not parts and mask & (flags.UNMOUNT | flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED):
            self._changes.root_disturbed = True
        if mask & flags.IGNORED:
            self._watched.forget(wd)
        elif mask & (flags.MOVE_SELF | flags.UNMOUNT):
            if self._watch_path(parts) != wd:
                self._drop(parts)
        elif mask & flags.ISDIR and mask & _APPEARED:
            self._enter((*parts, name))
        elif mask & flags.ISDIR and mask & _LEFT and len(parts) < 2:
            if self._watched.has_places_below((*parts, name)):
                self._changes.place_left = True
                self._drop((*parts, name))
        elif mask & flags.ISDIR and mask & _LEFT and is_hour(name):
            self._changes.disturbed.add(Hour(parts[0], parts[1], hour_number(name)))

    def _drop(self, parts: tuple[str, ...]) -> None:
        """A channel or quality was moved away: watches on it and below it would speak for the wrong path."""
        for wd in self._watched.below(parts):
            self._remove(wd)

    # -- directories --------------------------------------------------------------------------------------------------

    def _below(self, *parts: str) -> list[str]:
        """The directories in one of the tree, newest first; [] where it is gone or the tree is not the known one."""
        return sorted(self._look(directory_names, parts) or (), reverse=True)

    def _look(self, listing: Callable[..., _Found], parts: Sequence[str]) -> _Found | None:
        try:
            with self._tree.open_believed(self._identity) as root_fd:
                return listing(root_fd, *parts)
        except (RootMissing, RootNotBelieved):
            self._changes.root_disturbed = True
            self._unseen.add(tuple(parts))
        except (FileNotFoundError, NotADirectoryError):  # gone since it was listed
            pass
        except OSError as exc:  # a disk's fault: the rest of the tree is watched all the same
            self._unseen.add(tuple(parts))
            self._changes.unwatchable.append(("/".join((self._tree.root, *parts)), exc.strerror or ""))
        return None

    def _walk_tree(self, *, first: bool) -> Iterator[None]:
        """Watch everything that is there, newest hours first; yields between steps.

        Each directory is watched before it is listed, or what is made in between would be missed. The hours of the
        first walk are listed by the first rescan, which waits for it.
        """
        if not first:
            self._watched.doubt()
        self._unseen.clear()
        places, channels = [], self._below()
        if not self._unseen:
            self._add(())  # not before: what stands there may be another tree
        for channel in channels:
            self._add((channel,))
            for quality in self._below(channel):
                if self._add((channel, quality)) is not Added.NOT:
                    places.append((channel, quality))
                    yield
        numbers = []
        for place in places:
            if found := self._look(hour_numbers, place):
                position = self._watched.place_number(*place)
                numbers.append(array("q", (number << 20 | position for number in found)))
            yield
        no_room_for = -1
        for step, key in enumerate(heapq.merge(*numbers, reverse=True)):
            position, number = key & 0xFFFFF, key >> 20
            if number < no_room_for:
                break  # the rest is older still, and left to the rescan; no watch is on anything that old
            watched = self._add_hour(position, number)
            if watched is Added.NOT and self._no_room:
                no_room_for = number
            elif not first and watched is Added.NEWLY:
                self._list(Hour(*self._watched.place(position), number))
                yield
            elif step % _WALK_STEP == 0:
                yield
        if not first and not self._walk_again.is_set():  # else the walk that follows finds out
            self._remove_unsure()

    def _remove_unsure(self) -> None:
        """End the watches that this walk did not find again: their directories were moved away, and nobody told."""
        for wd in self._watched.unsure(but_below=self._unseen):
            if hour := self._watched.hour(wd):
                self._changes.disturbed.add(hour)
            self._remove(wd)
        self._watched.trust()

    def _enter(self, parts: tuple[str, ...]) -> None:
        """A directory appeared: watch it, and only then look what it holds already."""
        if parts[-1].startswith(".") or (len(parts) == 3 and not is_hour(parts[2])):
            return
        if len(parts) == 3:
            number = hour_number(parts[2])
            if self._add_hour(self._watched.place_number(parts[0], parts[1]), number) is not Added.NOT:
                self._list(Hour(parts[0], parts[1], number))
            return
        if self._add(parts) is Added.NOT:
            return
        below = self._below(*parts)
        if len(below) > _ENTER_AT_ONCE:
            self._walk_again.set()
            return
        for name in below:
            self._enter((*parts, name))

    def _list(self, hour: Hour) -> None:
        try:
            names = names_in_place(f"{self._tree.root}/{hour.path}")
        except OSError:
            self._changes.disturbed.add(hour)  # gone again, or the rescan tells why not
            return
        for name in names:
            self._see(hour, name, present=True)

    def _add(self, parts: tuple[str, ...]) -> Added:
        """Watch a directory above the hours; the same again is harmless."""
        wd = self._watch_path(parts)
        return Added.NOT if wd is None else self._watched.add_parent(wd, parts)

    def _add_hour(self, position: int, number: int) -> Added:
        wd = self._watch_path((*self._watched.place(position), hour_text(number)))
        return Added.NOT if wd is None else self._watched.add_hour(wd, position, number)

    def _watch_path(self, parts: Sequence[str]) -> int | None:
        path = "/".join((self._tree.root, *parts))
        while True:
            try:
                wd = int(self._inotify.add_watch(path, _MASK))
            except OSError as exc:
                self._no_room = exc.errno == errno.ENOSPC
                if self._no_room:
                    self._reached_limit()
                    if self._drop_oldest(parts):
                        continue
                elif exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    self._changes.unwatchable.append((path, exc.strerror or ""))
                    self._unseen.add(tuple(parts[:2]))
                return None
            self._watched.confirm(wd)
            return wd

    def _reached_limit(self) -> None:
        if not self._limited:
            self._limited = True
            self._changes.limit_reached = str(min(map(_read_number, _LIMITS)))

    def _drop_oldest(self, parts: Sequence[str]) -> bool:
        """Make room for a new directory: the oldest watched hour is left to the rescan instead."""
        number, wd = self._watched.oldest() or (None, -1)
        if number is None or (len(parts) == 3 and hour_number(parts[2]) <= number):
            return False
        self._remove(wd)
        return True

    def _remove(self, wd: int) -> None:
        with suppress(OSError):  # removed by the kernel already
            self._inotify.rm_watch(wd)
        self._watched.forget(wd)


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())

"""Channels and qualities: which are there, which hours they hold, and which of them look unmounted."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Mapping, Sequence

from tombsync import plan
from tombsync.audit import Audit, Event
from tombsync.errors import RootMissing
from tombsync.index import PlaceMount, Reader
from tombsync.names import Hour, hour_text, is_hour, printable
from tombsync.tree import Tree, directory_names, hour_numbers, is_own_mount, open_below
from tombsync.work import Mailbox

log = logging.getLogger(__name__)

_MOST_LINKS_TOLD = 1_000

PlaceName = tuple[str, str]


class Places:
    """Looks at the directories above the hours. Belongs to the rescan's thread; raises RootMissing, RootNotBelieved."""

    def __init__(self, *, tree: Tree, identity: str, reader: Reader, mailbox: Mailbox, audit: Audit) -> None:
        self._tree = tree
        self._identity = identity
        self._reader = reader
        self._mailbox = mailbox
        self._audit = audit
        self._known = reader.places()
        self._lost: set[PlaceName] = set()
        self._unreadable: set[str] = set()
        self._links: set[str] = set()
        self.unreadable = 0  # channels and places that could not be listed since `refresh`

    def refresh(self) -> None:
        """Begin again: read what the index knows."""
        self._known = self._reader.places()
        self.unreadable = 0

    def key(self, place: PlaceName) -> int | None:
        """The index's key of a place; None where it is new."""
        return self._known.get(place, (None, False))[0]

    def names(self) -> list[PlaceName]:
        """The places of the index and those that are there."""
        found = set(self._known)
        links: list[str] = []
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                channels = directory_names(root_fd, links=links)
                self._tell_links(links)
            except OSError as exc:
                raise RootMissing(self._tree.root, f"cannot be listed: {exc.strerror}") from exc
            for channel in channels:
                try:
                    links = []
                    found.update((channel, quality) for quality in directory_names(root_fd, channel, links=links))
                    self._tell_links(links, channel)
                except OSError as exc:
                    self._cannot_list(channel, exc)
        return sorted(found)

    def hours(self, place: PlaceName) -> array[int] | None:
        """The hours of a place that are there, newest first; None where it cannot be listed, and nothing is known."""
        links: list[str] = []
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                numbers = hour_numbers(root_fd, *place, links=links)
            except OSError as exc:
                self._cannot_list("/".join(place), exc)
                return None
            own_mount = is_own_mount(root_fd, *place)
        self._tell_links([name for name in links if is_hour(name)], *place)
        if numbers and own_mount is not None and own_mount != self._was_own_mount(place):
            self._mailbox.put_bulk(PlaceMount(Hour(*place, 0), own_mount))
        return numbers

    def changed(self, place: PlaceName, numbers: Sequence[int], mtimes: Mapping[int, int | None]) -> list[int]:
        """Of these hours, those whose directory is not as it was when it settled, with that mtime."""
        changed = []
        with self._tree.open_believed(self._identity) as root_fd:
            try:
                place_fd = open_below(root_fd, *place)
            except OSError:
                return []
            try:
                for number in numbers:
                    mtime_ns = mtimes.get(number)
                    if mtime_ns is None or _mtime_ns(place_fd, hour_text(number)) != mtime_ns:
                        changed.append(number)
            finally:
                os.close(place_fd)
        return changed

    def lost(self, place: PlaceName) -> bool:
        """Whether a place looks unmounted: then its rows stay as they are. Told once."""
        if not self._was_own_mount(place):
            return False
        with self._tree.open_believed(self._identity) as root_fd:
            own_mount = is_own_mount(root_fd, *place)
        if not plan.looks_unmounted(was_own_mount=True, is_own_mount=bool(own_mount), present=own_mount is not None):
            return False
        if place not in self._lost:
            self._lost.add(place)
            text = (
                f"{printable('/'.join(place))} looks unmounted: its tombstones and listings stay as they were"
                " (`tombsync adopt-root` says that it is meant to be gone)"
            )
            self._audit.record(Event.PLACE_LOST, text)
        return True

    def give_up(self, place: PlaceName) -> None:
        """A person said that a place which looks unmounted is meant to be gone."""
        if self._was_own_mount(place):
            self._mailbox.put_bulk(PlaceMount(Hour(*place, 0), own_mount=False))
            self._known[place] = (self._known[place][0], False)
            self._lost.discard(place)

    def returned(self, place: PlaceName) -> bool:
        """Whether a place with hours was lost before; asked once."""
        if place not in self._lost:
            return False
        self._lost.discard(place)
        return True

    def _was_own_mount(self, place: PlaceName) -> bool:
        return self._known.get(place, (None, False))[1]

    def _tell_links(self, names: Sequence[str], *parts: str) -> None:
        """A link above the hours, or in the place of one, is not followed. Told once."""
        for name in names:
            path = "/".join((*parts, name))
            if path not in self._links and len(self._links) < _MOST_LINKS_TOLD:
                self._links.add(path)
                text = f"{printable(path)} is a link and not followed: nothing behind it is seen, hidden or delivered"
                self._audit.record(Event.LINK_NOT_FOLLOWED, text)

    def _cannot_list(self, path: str, exc: OSError) -> None:
        self.unreadable += 1
        if path not in self._unreadable:
            self._unreadable.add(path)
            log.warning("%s cannot be listed: %s", printable(path), exc.strerror)


def _mtime_ns(place_fd: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=place_fd, follow_symlinks=False).st_mtime_ns
    except OSError:
        return None

"""Puts received tombstones into the tree, hour by hour."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tombsync.errors import TreeRefused
from tombsync.index import MarkersPlaced
from tombsync.names import Hour, Offer
from tombsync.tree import Tree
from tombsync.work import TRANSACTION_ROWS, Mailbox

# What one turn places ends after so long, at the end of an hour directory, and goes on with a later turn: each hour
# costs up to two syncs, and a thousand names may be in a thousand hours. The other inboxes wait as long.
TURN_S = 0.2
_NO_HOUR = "its hour is not here, and the archive could not write into one that is made for it"


class Trouble(NamedTuple):
    """How many tombstones of one sender could not be written, and why one of them could not."""

    stems: int
    text: str


class Pass:
    """Offers of one inbox on their way into the tree, by file name; those of one hour are taken together.

    `trouble`: why the tree did not take some of them; "" where it took all until now.
    """

    def __init__(self, offers: Mapping[str, Offer]) -> None:
        self._hours: dict[Hour, dict[str, Offer]] = {}
        for name, offer in offers.items():
            self._hours.setdefault(offer.marked.hour, {})[name] = offer
        self._count = len(offers)
        self.trouble = ""

    def __len__(self) -> int:
        """How many files are not yet taken from it; may be asked by any thread."""
        return self._count

    def take(self) -> tuple[Hour, dict[str, Offer]]:
        """Those of the next hour."""
        hour = next(iter(self._hours))
        offers = self._hours.pop(hour)
        self._count -= len(offers)
        return hour, offers


class Placing:
    """Belongs to the inbox worker's thread."""

    def __init__(self, tree: Tree, mailbox: Mailbox) -> None:
        self._tree = tree
        self._mailbox = mailbox

    def place(self, root_fd: int, hour: Hour, stems: Iterable[str]) -> str:
        """Create tombstones of one hour: why they could not be created, or "" where all stand, durably.

        The index is told of those that stand. A stem may come more than once, as a tombstone has one name in an inbox
        for each node of origin.
        """
        once = list(dict.fromkeys(stems))
        try:
            if not self._create(root_fd, hour, once):
                return _NO_HOUR
        except TreeRefused as exc:
            return str(exc)
        for start in range(0, len(once), TRANSACTION_ROWS):
            self._mailbox.put_urgent(MarkersPlaced(hour, once[start : start + TRANSACTION_ROWS]))
        return ""

    def _create(self, root_fd: int, hour: Hour, stems: list[str]) -> bool:
        try:
            self._tree.place_all(root_fd, hour, stems)
        except TreeRefused as exc:
            if exc.errno != errno.ENOENT:
                raise
            if not self._tree.make_hour(root_fd, hour):
                return False
            self._tree.place_all(root_fd, hour, stems)
        return True

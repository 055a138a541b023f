"""Puts received tombstones into the tree, hour by hour."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from tombsync.errors import TreeRefused
from tombsync.index import MarkersPlaced
from tombsync.names import Hour, Marked
from tombsync.tree import Tree
from tombsync.work import TRANSACTION_ROWS, Mailbox

_NO_HOUR = "its hour is not here, and the archive could not write into one that is made for it"


class Placing:
    """Belongs to the inbox worker's thread."""

    def __init__(self, tree: Tree, mailbox: Mailbox) -> None:
        self._tree = tree
        self._mailbox = mailbox

    def place(self, root_fd: int, marked: Iterable[Marked]) -> Iterator[tuple[list[Marked], str]]:
        """Create tombstones; yields those of each hour, and why they could not be created ("" where they stand).

        Those that stand are durable, and the index is told.
        """
        hours: dict[Hour, list[Marked]] = {}
        for one in marked:
            hours.setdefault(one.hour, []).append(one)
        for hour, group in hours.items():
            try:
                trouble = self._place_hour(root_fd, hour, [one.stem for one in group])
            except TreeRefused as exc:
                trouble = str(exc)
            yield group, trouble

    def _place_hour(self, root_fd: int, hour: Hour, stems: list[str]) -> str:
        try:
            self._tree.place_all(root_fd, hour, stems)
        except TreeRefused as exc:
            if exc.errno != errno.ENOENT:
                raise
            if not self._tree.make_hour(root_fd, hour):
                return _NO_HOUR
            self._tree.place_all(root_fd, hour, stems)
        for start in range(0, len(stems), TRANSACTION_ROWS):
            self._mailbox.put_urgent(MarkersPlaced(hour, stems[start : start + TRANSACTION_ROWS]))
        return ""

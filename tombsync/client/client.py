"""A client of one node's archive: visible names and segments of its hours, and which of them is served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType

from tombsync import config, plan
from tombsync.client.hours import HourNames, hour_listing, names_below
from tombsync.client.index import OpenIndex
from tombsync.errors import BadName, EmptySpan, RootMissing
from tombsync.index import Reader
from tombsync.names import Hour, Kind, classify, is_hour, strict_hour, unsafe
from tombsync.timeline import Piece, best_by_start, continued, hours_of, parse_time, piece
from tombsync.tree import Tree, open_below

Moment = str | datetime


def open_client(settings_file: str | None = None, *, root: str | None = None, state_dir: str | None = None) -> Client:
    """A client of the node that a settings file describes (default: `/etc/tombsync/tombsync.toml`, where there is one).

    `root` and `state_dir` are taken instead of what it says. Raises BadSettings.
    """
    settings = config.load(settings_file, root=root, state_dir=state_dir)
    return Client(settings.root, settings.state_dir)


class Client:
    """Reads one tree and its index. Belongs to one thread; close it, or use it as a context manager.

    Whatever is asked raises, besides what is named there: DirectoryUnreadable and RootMissing where the tree cannot be
    read, IndexDamaged, IndexTooNew and StateRefused where the index cannot. Without an index the tree alone is read.
    """

    def __init__(self, root: str, state_dir: str) -> None:
        self._tree = Tree(root)
        self._index = OpenIndex(state_dir)

    # -- names --------------------------------------------------------------------------------------------------------

    def entries(self, *parts: str) -> list[str]:
        """The channels of the tree, the qualities of `entries(channel)` or the hours of `entries(channel, quality)`.

        Every name in that directory but those that begin with a dot, whatever it is, sorted; [] where there is no such
        directory. Raises BadName.
        """
        _require_safe(*parts)
        return sorted(name for name in names_below(self._tree, *parts) or () if name[0] != ".")

    def names(self, channel: str, quality: str, hour: str, *, tombstones: bool = False) -> list[str]:
        """The visible files of an hour (`YYYY-MM-DDTHH`), sorted, and with `tombstones` those too; [] for no such hour.

        Names are as `os.fsdecode` gives them. Raises BadName.
        """
        return self.hour_names(channel, quality, hour, tombstones=tombstones).names

    def hour_names(self, channel: str, quality: str, hour: str, *, tombstones: bool = False) -> HourNames:
        """The same, and whether the index gave them. Raises BadName."""
        _require_safe(channel, quality, hour)
        if not is_hour(hour):  # no hour directory: nothing in there is known to the index
            names = names_below(self._tree, channel, quality, hour) or ()
            return HourNames(plan.visible_names(names, tombstones=tombstones), from_index=False)
        return self._names(strict_hour(channel, quality, hour), tombstones=tombstones)

    def _names(self, hour: Hour, *, tombstones: bool = False) -> HourNames:
        def ask(reader: Reader | None) -> HourNames:
            return hour_listing(reader, self._tree, hour, tombstones=tombstones)

        return self._index.ask(ask)

    # -- segments in time ---------------------------------------------------------------------------------------------

    def segments(self, channel: str, quality: str, start: Moment, end: Moment) -> Iterator[Piece]:
        """Every visible file that carries a part of a span, by its start. Files whose name tells no time are not among
        them; of the quality `chat` it is batches of messages.

        Times are ISO 8601 or datetimes, UTC where they name no offset. Hour by hour, so a long span costs no memory.
        Raises BadName, BadTime, EmptySpan.
        """
        start_us, end_us = _span(start, end)
        _require_safe(channel, quality)
        return self._segments(channel, quality, start_us, end_us)

    def _segments(self, channel: str, quality: str, start_us: int, end_us: int) -> Iterator[Piece]:
        for number in hours_of(start_us, end_us):
            pieces = self.pieces(Hour(channel, quality, number))
            yield from sorted(one for one in pieces if one.overlaps(start_us, end_us))

    def best(self, channel: str, quality: str, start: Moment, end: Moment) -> Iterator[Piece | None]:
        """The files that are served for a span, in order, as `timeline.sequence` says; None stands for a break.

        Arguments and errors as of `segments`.
        """
        start_us, end_us = _span(start, end)
        _require_safe(channel, quality)
        served = (
            one
            for number in hours_of(start_us, end_us)
            for one in best_by_start(self.pieces(Hour(channel, quality, number)), self.size_of)
        )
        return continued(served, start_us, end_us)

    def pieces(self, hour: Hour) -> list[Piece]:
        """The visible files of one hour whose names tell when they play, in no order."""
        found = []
        for name in self._names(hour).names:
            kind, stem = classify(name)
            if kind in (Kind.TS, Kind.JSON) and (one := piece(hour, kind, stem)) is not None:
                found.append(one)
        return found

    def size_of(self, one: Piece) -> int:
        """The size of a file in bytes; -1 where it is gone."""
        try:
            with self._tree.open_root() as root_fd:
                fd = open_below(root_fd, one.hour.channel, one.hour.quality, one.hour.text)
                try:
                    return os.stat(one.name, dir_fd=fd, follow_symlinks=False).st_size
                finally:
                    os.close(fd)
        except (OSError, RootMissing):
            return -1

    # -- the index ----------------------------------------------------------------------------------------------------

    @property
    def index(self) -> OpenIndex:
        """The index behind it."""
        return self._index

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_safe(*parts: str) -> None:
    for part in parts:
        if reason := unsafe(part):
            raise BadName(part, reason)


def _span(start: Moment, end: Moment) -> tuple[int, int]:
    start_us, end_us = _moment_us(start), _moment_us(end)
    if end_us <= start_us:
        raise EmptySpan(str(start), str(end))
    return start_us, end_us


def _moment_us(moment: Moment) -> int:
    if isinstance(moment, datetime):
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return parse_time(moment.isoformat())
    return parse_time(moment)

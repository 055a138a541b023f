"""What stands in the directories of the hours that a takedown is about. Nothing else of the tree is read.

The directories themselves are listed, each time, whatever the index knows: what arrived just now counts, with the agent
down too. An hour is some thousand names at most, and costs some milliseconds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tombsync.errors import NothingThere
from tombsync.names import Hour, Kind, classify, hour_text
from tombsync.takedown.find import CHAT, Asked, Files
from tombsync.timeline import Piece, piece
from tombsync.tree import directory_names, open_below

_LINKS = (errno.ENOTDIR, errno.ELOOP)  # what opening a link without following it says
# Stems that the index hides in an hour, whatever stands in the tree.
KnownHidden = Callable[[Hour], Collection[str]]


@dataclass(frozen=True)
class Looked:
    """What was seen. `missing`: hours of the span of which no quality that was asked for has a directory; `links`:
    directories that were not looked into, as links are not followed. Both relative to the root."""

    files: list[Files] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def look(root_fd: int, asked: Asked, known_hidden: KnownHidden) -> Looked:
    """Read the hours of a takedown, of every quality of its channel, as a copy may stand in any.

    Raises NothingThere where channel, quality or every hour of the span is not there, OSError where a directory cannot
    be read.
    """
    links: list[str] = []
    present = qualities(root_fd, asked.channel, asked.qualities, links)
    looked = Looked(links=links)
    there = set()
    for quality in present:
        for number in asked.hours:
            hour = Hour(asked.channel, quality, number)
            try:
                files = look_into(root_fd, hour, known_hidden)
            except NothingThere:
                links.append(hour.path)
                continue
            if files is not None:
                looked.files.append(files)
                if asked.covers(quality) or (asked.chat and quality == CHAT):
                    there.add(number)
    where = f"{asked.channel}/{asked.qualities[0]}" if len(asked.qualities) == 1 else asked.channel
    looked.missing.extend(f"{where}/{hour_text(number)}" for number in asked.span_hours if number not in there)
    if not there.intersection(asked.span_hours) and not _reaches_in(asked, looked.files):
        raise NothingThere(looked.missing[0], "no such hour is in the segment tree")
    return looked


def _reaches_in(asked: Asked, files: Iterable[Files]) -> bool:
    """Whether a file of an hour before plays into the span."""
    return any(one.touches(asked.start_us, asked.end_us) for each in files for one in each.pieces)


def qualities(root_fd: int, channel: str, wanted: Sequence[str], links: list[str]) -> list[str]:
    """The qualities of a channel, sorted. Links that were found are added to `links`.

    Raises NothingThere for a channel or a wanted quality that is not there, OSError where one cannot be read.
    """
    for parts in ([channel], *([channel, quality] for quality in wanted)):
        try:
            os.close(open_below(root_fd, *parts))
        except OSError as exc:
            raise _untold("/".join(parts), exc) from exc
    names: list[str] = []
    found = sorted(directory_names(root_fd, channel, links=names))
    links.extend(f"{channel}/{name}" for name in names)
    return found


def _untold(where: str, exc: OSError) -> NothingThere | OSError:
    """What to raise for a directory that cannot be opened: nobody may take it for an empty one."""
    if exc.errno == errno.ENOENT:
        return NothingThere(where)
    if exc.errno in _LINKS:
        return NothingThere(where, "is a link or no directory: links are not followed")
    exc.filename = where
    return exc


def look_into(root_fd: int, hour: Hour, known_hidden: KnownHidden) -> Files | None:
    """What stands in one hour; None where it is not there. Raises NothingThere where it is a link or no directory,
    OSError where it cannot be read."""
    try:
        fd = open_below(root_fd, hour.channel, hour.quality, hour.text)
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _untold(hour.path, exc) from exc
    pieces: list[Piece] = []
    marked = set()
    timeless = 0
    for name in names:
        kind, stem = classify(name)
        if kind is Kind.TOMBSTONE:
            marked.add(stem)
        elif kind in (Kind.TS, Kind.JSON):
            if (one := piece(hour, kind, stem)) is not None:
                pieces.append(one)
            else:
                timeless += 1
    return Files(hour, pieces, frozenset(marked), frozenset(marked.union(known_hidden(hour))), timeless)


class Sizes:
    """The sizes of files, by lstat, of those that are asked for; each is looked at once. -1 where one is gone."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._sizes: dict[Piece, int] = {}

    def __call__(self, one: Piece) -> int:
        """The size of one."""
        if one not in self._sizes:
            self._sizes[one] = self._look(one)
        return self._sizes[one]

    def _look(self, one: Piece) -> int:
        try:
            fd = open_below(self._root_fd, one.hour.channel, one.hour.quality, one.hour.text)
            try:
                return os.stat(one.name, dir_fd=fd, follow_symlinks=False).st_size
            finally:
                os.close(fd)
        except OSError:
            return -1


def visible(files: Iterable[Files]) -> dict[str, list[Piece]]:
    """What is not hidden, by quality; batches of chat left out."""
    found: dict[str, list[Piece]] = {}
    for each in files:
        pieces = (one for one in each.pieces if one.type != CHAT and one.stem not in each.hidden)
        found.setdefault(each.hour.quality, []).extend(pieces)
    return found

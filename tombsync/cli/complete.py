"""What a shell is offered for a word of the command line: files, directories, names of peers, what is marked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from tombsync import errors
from tombsync.config import load
from tombsync.names import printable, unsafe
from tombsync.tree import Tree, directory_names

if TYPE_CHECKING:
    from tombsync.index import Reader

_LOOKED_AT = 5000  # the newest marks: what a person has to do with, and read in some ms
_OFFERED = 100
T = TypeVar("T")


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A file; the shell itself looks which are there."""
    return [CompletionItem(incomplete, type="file")]


def directories(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A directory."""
    return [CompletionItem(incomplete, type="dir")]


def takedowns(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A takedown that runs; none where the tree cannot be read."""
    from tombsync.tree import Tree, read_takedowns

    try:
        settings = load(ctx.params.get("config"), root=ctx.params.get("root"))
        with Tree(settings.root).open_root() as root_fd:
            found = read_takedowns(root_fd, lambda _problem: None)
    except errors.TombsyncError:
        return []
    return [CompletionItem(one.id, help=one.reason) for one in found if one.runs and one.id.startswith(incomplete)]


def nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A peer or sender of the settings; none where they cannot be read."""
    try:
        settings = load(ctx.params.get("config"))
    except errors.BadSettings:
        return []
    names = sorted({peer.name for peer in settings.peers} | {sender.name for sender in settings.senders})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def channels(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A channel of the segment tree."""
    return _directories(ctx, incomplete)


def qualities(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A quality of the channel that was typed already; none before."""
    channel = ctx.params.get("channel")
    return _directories(ctx, incomplete, channel) if channel and not unsafe(channel) else []


def _directories(ctx: click.Context, incomplete: str, *above: str) -> list[CompletionItem]:
    try:
        settings = load(ctx.params.get("config"), root=ctx.params.get("root"))
        with Tree(settings.root).open_root() as root_fd:
            names = directory_names(root_fd, *above)
    except (errors.TombsyncError, OSError):
        return []
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def marks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A stem of the newest marks; with a slash in the word, its path."""
    rows = _asked(ctx, lambda reader: reader.marker_rows(limit=_LOOKED_AT))
    names = (row.marked.path if "/" in incomplete else row.marked.stem for row in rows)
    return _offered(dict.fromkeys(names), incomplete)


def known_channels(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A channel that the index of this node knows."""
    return _offered(sorted({channel for channel, _ in _asked(ctx, lambda reader: list(reader.places()))}), incomplete)


def _offered(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    # No word of a shell's line could hold a name with a line break.
    fitting = (name for name in names if name.startswith(incomplete) and name == printable(name))
    return [CompletionItem(name) for name in islice(fitting, _OFFERED)]


def _asked(ctx: click.Context, question: Callable[[Reader], list[T]]) -> list[T]:
    """What the index answers; nothing where there is none to be read."""
    from tombsync.index import Reader, index_path

    try:
        state_dir = ctx.params.get("state_dir") or load(ctx.params.get("config")).state_dir
        reader = Reader(index_path(state_dir))
        try:
            return question(reader)
        finally:
            reader.close()
    except errors.TombsyncError:
        return []

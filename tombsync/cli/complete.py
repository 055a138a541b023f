"""What a shell is offered for a word of the command line: files, directories, names of peers."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from tombsync import errors
from tombsync.config import load
from tombsync.names import unsafe
from tombsync.tree import Tree, directory_names


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A file; the shell itself looks which are there."""
    return [CompletionItem(incomplete, type="file")]


def directories(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A directory."""
    return [CompletionItem(incomplete, type="dir")]


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

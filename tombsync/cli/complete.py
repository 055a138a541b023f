"""What a shell is offered for a word of the command line: files, directories, names of peers."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from tombsync import errors
from tombsync.config import load


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

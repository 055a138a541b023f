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


def nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A peer or sender of the settings; none where they cannot be read."""
    try:
        settings = load(ctx.params.get("config"))
    except errors.BadSettings:
        return []
    names = sorted({peer.name for peer in settings.peers} | {sender.name for sender in settings.senders})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]

"""`tombsync adopt-root`: say that a new disk, or a removed channel, is meant."""

from __future__ import annotations

import os

import click

from tombsync import errors
from tombsync.cli.common import Place, dry_run_option, json_option, open_reader, place_options, say, say_json, warn
from tombsync.config import Settings
from tombsync.names import printable
from tombsync.tree import Tree, directory_names


@click.command("adopt-root")
@place_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
def adopt_root(place: Place, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Take what is mounted at ROOT now as this node's segment tree.

    The agent pauses when the tree loses its identity: unmounted, replaced, another disk. Where that is meant (a new
    disk, a channel that was removed for good), this command gives the tree the identity that the index expects; the
    agent then starts again and makes its index equal to what is there. Tombstones that every peer has are brought back
    by the peers, those of hours that are gone are forgotten.

    \b
    Example
      tombsync adopt-root --dry-run
    """
    settings = place.settings()
    tree = Tree(settings.root)
    expected = _expected(settings)
    with tree.open_root() as root_fd:
        if not directory_names(root_fd):
            warn(f"{tree.root} holds no channel; is it mounted? What it does not hold is forgotten here")
    needed = expected is None or not tree.believed(expected)
    identity = expected
    if not dry_run:
        if needed and not yes:
            _ask(f"Take {printable(tree.root)} as the segment tree of {settings.node}?")
        identity = tree.adopt(expected) if needed else expected
        if expected is not None:  # else there is nothing yet that could look unmounted
            _request(settings.state_dir)
    if as_json:
        say_json({"root": tree.root, "identity": identity, "changed": needed and not dry_run})
    elif not needed:
        verb = "would count" if dry_run else "count"
        say(f"{tree.root} is already the known tree {identity}")
        say(f"channels that look unmounted {verb} as gone at the next rescan")
    elif dry_run:
        say(f"would give {tree.root} the identity {identity or 'of a new tree'}")
    else:
        say(f"{tree.root} is now the tree {identity}; a paused agent starts again by itself")


def _ask(question: str) -> None:
    try:
        if click.confirm(question, err=True):
            return
    except click.Abort:  # Ctrl-C, or nobody is there to answer
        click.echo(err=True)
    raise click.UsageError("nothing was changed; answer y, or give --yes")


def _request(state_dir: str) -> None:
    from tombsync.daemon import request_adoption

    try:
        request_adoption(state_dir)
    except OSError as exc:
        raise errors.StateRefused(state_dir, os.strerror(exc.errno or 0)) from exc


def _expected(settings: Settings) -> str | None:
    try:
        reader = open_reader(settings)
    except errors.IndexMissing:
        return None
    try:
        identity: str | None = reader.fact("root")
        return identity
    finally:
        reader.close()

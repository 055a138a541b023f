"""`tombsync ls`: what this node lists."""

from __future__ import annotations

import errno

import click

from tombsync import client, errors
from tombsync.cli.common import Place, json_option, place_options, require_readable, say, say_json, tree_doubt, warn
from tombsync.config import Settings
from tombsync.index import Reader
from tombsync.names import Hour, strict_hour, unsafe
from tombsync.tree import Tree, directory_names


@click.command("ls")
@click.argument("where", default="", metavar="[CHANNEL[/QUALITY[/HOUR]]]")
@place_options
@click.option("--tombstones", is_flag=True, help="List the tombstones of an hour too.")
@json_option
def ls(where: str, place: Place, tombstones: bool, as_json: bool) -> None:
    """List channels, qualities, hours, or the visible segments of an hour.

    What is hidden is left out. An hour whose index is not known good is read from its directory.

    \b
    Example
      tombsync ls desertbus/source/2019-11-13T02
    """
    settings = place.settings()
    tree = Tree(settings.root)
    try:
        parts = _parts(where, tree)
        names = _listing(settings, tree, parts, tombstones)
    except errors.BadName as exc:
        exc.hint = "`tombsync ls` alone shows the channels; go on from there"
        raise
    if not names:
        _require_there(tree, parts)
    if as_json:
        say_json(names)
        return
    for name in names:
        say(name)


def _parts(where: str, tree: Tree) -> list[str]:
    below = where.removeprefix(tree.root) if f"{where}/".startswith(f"{tree.root}/") else where
    parts = [part for part in below.split("/") if part]
    if len(parts) > 3 or (parts and below is where and where.startswith("/")):
        raise errors.BadName(where, f"not of the form CHANNEL/QUALITY/HOUR, nor inside {tree.root}")
    for part in parts:
        if reason := unsafe(part):
            raise errors.BadName(part, reason)
    return parts


def _require_there(tree: Tree, parts: list[str]) -> None:
    """Tell an empty directory from one that is not there, or that this account may not read."""
    try:
        tree.list_below(*parts)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise errors.NothingThere("/".join(parts), "is a link or no directory: links are not followed") from exc
        if exc.errno == errno.ENOENT:
            raise errors.NothingThere("/".join(parts)) from exc
        raise
    if not parts:
        warn(f"{tree.root} holds no channel; is it mounted?")


def _listing(settings: Settings, tree: Tree, parts: list[str], tombstones: bool) -> list[str]:
    if len(parts) == 3:
        return hour_listing(settings, tree, strict_hour(parts[0], parts[1], parts[2]), tombstones=tombstones)
    with tree.open_root() as root_fd:
        if len(parts) == 2:
            return sorted(tree.hours(root_fd, parts[0], parts[1]))
        return sorted(directory_names(root_fd, *parts))


def hour_listing(settings: Settings, tree: Tree, hour: Hour, *, tombstones: bool) -> list[str]:
    """The visible names of an hour: from the index where it is known good, else from the directory and the known marks.

    Raises StateRefused where this account may not look into the state directory: it would seem to be empty.
    """
    require_readable(settings)
    index = client.OpenIndex(settings.state_dir)

    def ask(reader: Reader | None) -> list[str]:
        if reader is not None and (doubt := tree_doubt(settings, reader)):
            warn(f"this is not the listing of the known tree: {doubt}")
        return client.hour_listing(reader, tree, hour, tombstones=tombstones).names

    try:
        return index.ask(ask)
    finally:
        index.close()

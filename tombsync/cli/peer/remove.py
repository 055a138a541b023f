"""`tombsync peer remove`: undo what `peer add` did for a node."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tombsync.cli.common import Place, dry_run_option, json_option, place_options
from tombsync.cli.peer import accounts, entries, jail, keys
from tombsync.cli.peer.files import read_text
from tombsync.cli.peer.lock import alone
from tombsync.cli.peer.names import find_peer, find_sender, name_argument, settings_of_root, settings_path, unknown
from tombsync.cli.peer.steps import Step, carry_out, require_root
from tombsync.config import Settings


@click.command()
@name_argument
@click.option("--force", is_flag=True, help="Also where tombstones wait in its inbox; they are lost here.")
@place_options
@dry_run_option
@json_option
def remove(name: str, force: bool, place: Place, dry_run: bool, as_json: bool) -> int:
    """Let a node deliver here no longer, and deliver to it no longer. Needs root.

    Its key, its sessions, its inbox, its account and its entries in the settings go. What it has marked stays hidden.
    The jail, the view in it and sshd's drop-in stay, for the other nodes; so do our own key and its host key in
    known_hosts.

    \b
    Example
      tombsync peer remove node-b --dry-run
    """
    require_root("peer remove")
    with alone(dry_run=dry_run):
        settings = settings_of_root(place)
        sender = find_sender(settings, name)
        if sender is None and find_peer(settings, name) is None:
            raise unknown(settings, name)
        if sender is not None and not force:
            jail.require_nothing_waits(settings, sender.account, name)
        # The settings come last, so that a command that was stopped half-way can be run again.
        steps_in = way_in(settings, sender.account, name, force=force) if sender else ()
        steps = [*steps_in, *_entries(settings_path(place), name)]
        return carry_out(name, steps, _notes, dry_run=dry_run, as_json=as_json)


def way_in(settings: Settings, account: str, name: str, *, force: bool) -> Iterator[Step]:
    """Close the way of a sender. Its inbox goes when nothing more can come into it, and without `force` only empty."""
    yield keys.removal_step(account)
    yield accounts.end_step(account)
    if not force:
        yield jail.nothing_waits_step(settings, account, name)
    yield from jail.removal_steps(settings, account)
    yield accounts.deletion_step(account)


def _entries(path: str, name: str) -> Iterator[Step]:
    text = read_text(path)
    for kind in ("peer", "sender"):
        # A [[peer]] without a name is named by its host.
        text = entries.without_entries(path, text, kind, lambda entry: entry.get("name", entry.get("host")) == name)
    yield entries.settings_step(path, text, f"take {name} out of {path}", [])


def _notes() -> list[str]:
    return ["reload the agent (systemctl reload tombsync), so that it takes up the settings"]

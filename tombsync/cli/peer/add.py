"""`tombsync peer add`: let a node deliver here, and deliver to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pwd import struct_passwd

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, dry_run_option, json_option, place_options
from tombsync.cli.peer import accounts, entries, hosts, jail, keys, sshd
from tombsync.cli.peer.files import read_text, require_roots
from tombsync.cli.peer.lock import alone
from tombsync.cli.peer.mounts import runs_systemd
from tombsync.cli.peer.names import find_peer, find_sender, name_argument, settings_of_root, settings_path
from tombsync.cli.peer.steps import Step, carry_out, require_root
from tombsync.config import DEFAULT_ROOT, PeerSettings, Settings, account_of


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where nothing was said."""

    name: str
    key: str | None
    account: str | None
    host: str | None
    host_keys: tuple[str, ...]
    port: int | None
    user: str | None
    delivery: str | None
    path: str | None


@click.command()
@name_argument
@click.option(
    "--key",
    metavar="FILE",
    shell_complete=complete.files,
    help="The public key that the node logs in with: let it deliver here.",
)
@click.option("--account", help="The account that it gets here.  [default: tombsync-NAME]")
@click.option("--host", help="Where the node is: deliver to it.")
@click.option(
    "--host-key",
    "host_keys",
    multiple=True,
    metavar="FILE|LINE",
    shell_complete=complete.files,
    help="Its host keys, as `peer show` printed them there: pin them, if no other key is pinned.",
)
@click.option("--port", type=int, help="The port of its sshd.  [default: 22]")
@click.option("--user", help="Our account there.  [default: what its `peer add` of this node makes]")
@click.option("--delivery", type=click.Choice(["inbox", "tree"]), help="How to deliver.  [default: inbox]")
@click.option("--path", metavar="DIR", help=f"Its tree, as our account there sees it.  [default: {DEFAULT_ROOT}]")
@click.option(
    "--agent-user",
    metavar="ACCOUNT",
    help=f"What the agent runs as here.  [default: as its unit or its state says, else {accounts.AGENT}, else root]",
)
@place_options
@dry_run_option
@json_option
def add(
    name: str,
    key: str | None,
    account: str | None,
    host: str | None,
    host_keys: tuple[str, ...],
    port: int | None,
    user: str | None,
    delivery: str | None,
    path: str | None,
    agent_user: str | None,
    place: Place,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Let a node deliver its tombstones here (--key), deliver ours to it (--host), or both. Needs root.

    For a node that delivers here: an account in a jail of sshd, an inbox that it alone may fill and the agent alone may
    empty, a read-only view of the segment tree, its key, and a [[sender]] in the settings. Its account can hide
    segments and do nothing else. For a node that is delivered to: our own key, its host keys where they are given (one
    that is pinned already is never exchanged), and a [[peer]] in the settings.

    Run again, it does what is still missing and changes nothing else; --dry-run prints every change first.

    \b
    Example
      tombsync peer add node-b --key node-b.pub --host b.example --host-key node-b.hosts --dry-run
    """
    require_root("peer add")
    if key is None and host is None and not host_keys:
        raise click.UsageError("give --key to let it deliver here, --host to deliver to it, or both")
    wanted = Wanted(name, key, account, host, host_keys, port, user, delivery, path)
    with alone(dry_run=dry_run):
        settings = settings_of_root(place)
        if name.casefold() == settings.node.casefold():
            raise click.UsageError(f"{name} is this node itself")
        here = accounts.agent_here(settings.state_dir)
        plan = Plan(place, settings, wanted, accounts.agent_account(agent_user or here), here)
        return carry_out(name, plan.steps, plan.notes, dry_run=dry_run, as_json=as_json)


class Plan:
    """The steps of one `peer add`, all of its input checked before the first.

    Raises whatever is wrong with the input: BadSettings, BadPublicKey, KeyTaken, AccountTaken, JailUnsafe,
    NotRootsAlone and others.
    """

    def __init__(
        self, place: Place, settings: Settings, wanted: Wanted, agent: struct_passwd, agent_here: str | None
    ) -> None:
        """`agent_here`: the account that the agent is seen to run as; None where that is not known."""
        self._settings = settings
        self._wanted = wanted
        self._agent = agent
        self._agent_here = agent_here
        path = settings_path(place)
        before = read_text(path)
        added = [*self._sender_entry(), *self._peer_entry()]
        text = entries.with_entries(path, before, added) if added else before
        self._after = entries.parsed(path, text)
        self.steps: Sequence[Step] = [*self._way_out(), *self._way_in()]
        if added:
            lines = [line for entry in added for line in entry.splitlines()]
            self.steps = [*self.steps, entries.settings_step(path, text, f"add to {path}", lines)]

    def notes(self) -> list[str]:
        """What is left to a person."""
        notes = []
        if self._wanted.key and self._agent.pw_uid == 0:
            notes.append(
                f"there is no account {accounts.AGENT} here: the inbox belongs to root, as whom the agent has to run"
            )
        if self._wanted.key and self._agent_here not in (None, self._agent.pw_name):
            notes.append(
                f"the inbox is {self._agent.pw_name}'s, and the agent here runs as {self._agent_here}, which can take"
                " nothing out of it: run this again with the right --agent-user"
            )
        elif self._wanted.key and self._agent_here not in (None, accounts.AGENT):
            notes.append(f"the inbox is {self._agent_here}'s, as whom the agent runs here")
        if self._wanted.key and (closed := _closed_to_others(self._settings.root)):
            notes.append(f"{closed} may not be entered by others, so {self._wanted.name} cannot see what it delivered")
        if self._wanted.key and not runs_systemd():
            notes.append(
                "reload sshd, so that it takes up the jail, if that was not done since the first peer was added"
            )
        peer = find_peer(self._after, self._wanted.name)
        if peer and self._wanted.host and not hosts.is_pinned(peer):
            notes.append(
                f"pin the host key of {peer.host}: run this again with --host-key and what `peer show` prints there"
            )
        if self._wanted.key and not self._settings.senders:
            how = "restart the agent (systemctl restart tombsync): the first node that delivers here takes a new start"
        else:
            how = "reload the agent (systemctl reload tombsync), so that it takes up the settings"
        return [*notes, how]

    def _sender_entry(self) -> Iterator[str]:
        wanted = self._wanted
        sender = find_sender(self._settings, wanted.name)
        if wanted.key is None:
            return
        if sender is None:
            account = wanted.account or account_of(wanted.name)
            yield entries.entry("sender", {"name": wanted.name, "account": account})
        elif wanted.account not in (None, sender.account):
            raise errors.PeerDiffers(wanted.name, "account", sender.account)

    def _peer_entry(self) -> Iterator[str]:
        wanted = self._wanted
        if wanted.host is None:
            return
        said = {key: getattr(wanted, key) for key in ("host", "port", "user", "delivery", "path")}
        given: dict[str, str | int] = {key: value for key, value in said.items() if value is not None}
        peer = find_peer(self._settings, wanted.name)
        if peer is None:
            chosen = {"user": account_of(self._settings.node), "delivery": "inbox", "path": DEFAULT_ROOT}
            values = {"name": wanted.name, **chosen, **given}
            order = [key for key in PeerSettings.model_fields if key in values]
            yield entries.entry("peer", {key: values[key] for key in ["name", *order]})
            return
        for key, value in given.items():
            if getattr(peer, key) != value:
                raise errors.PeerDiffers(wanted.name, key, getattr(peer, key))

    def _way_out(self) -> Iterator[Step]:
        peer = find_peer(self._after, self._wanted.name)
        if peer is not None and (self._wanted.host or self._wanted.host_keys):
            require_roots(peer.known_hosts)
        if peer is not None:
            yield keys.own_key_step(peer.key, self._agent, self._settings.node)
        if self._wanted.host_keys:
            if peer is None:
                raise click.UsageError("--host-key is of a node that is delivered to: say --host")
            given = [key for one in self._wanted.host_keys for key in hosts.read_host_keys(one)]
            yield hosts.pin_step(peer, given)

    def _way_in(self) -> Iterator[Step]:
        sender = find_sender(self._after, self._wanted.name)
        if sender is None or self._wanted.key is None:
            return
        key = keys.read_public_key(self._wanted.key)
        keys.require_unused(key, sender.account)
        known = keys.authorized(sender.account)
        if known and key not in known:
            raise errors.OtherKeyAuthorized(self._wanted.name)
        yield from accounts.account_steps(sender.account)
        yield from jail.jail_steps(self._settings, sender.account, self._agent)
        yield sshd.drop_in_step(self._settings.inbox.jail)
        # Before the key: without the jail it must open nothing.
        yield sshd.jailed_step(sender.account, self._settings.inbox.jail)
        yield from keys.authorize_steps(sender.account, self._wanted.name, known or [key])


def _closed_to_others(root: str) -> str:
    """The first directory on the way to ROOT's qualities that the senders' accounts cannot enter; "" where none is."""
    places = [root]
    for _ in range(3):
        for place in places:
            if not os.stat(place).st_mode & 0o001:
                return place
        places = [below.path for place in places for below in os.scandir(place) if _is_place(below)]
    return ""


def _is_place(below: os.DirEntry[str]) -> bool:
    return below.is_dir(follow_symlinks=False) and not below.name.startswith(".")

"""`tombsync peer show`: what the operator of another node has to know of this one."""

from __future__ import annotations

import glob
import shlex
import socket
from dataclasses import dataclass

import click

from tombsync import errors
from tombsync.cli.common import Place, json_option, place_options, say, say_json
from tombsync.cli.peer import keys
from tombsync.cli.peer.hosts import known_hosts_line
from tombsync.cli.peer.keys import PublicKey
from tombsync.cli.peer.names import find_peer, find_sender, known_names, optional_name_argument, unknown
from tombsync.config import PeerSettings, Settings
from tombsync.config.tables import SSH_PORT

_HOST_KEYS = "/etc/ssh/ssh_host_*_key.pub"


@dataclass(frozen=True)
class Card:
    """What is sent to the operator of one peer."""

    name: str
    node: str
    key: PublicKey
    account: str | None  # the peer's here; None where it may not deliver here yet
    command: str


@click.command()
@optional_name_argument
@click.option("--host", help="How other nodes reach this machine.  [default: its full host name]")
@click.option("--port", type=int, default=SSH_PORT, show_default=True, help="The port of its sshd.")
@place_options
@json_option
def show(name: str | None, host: str | None, port: int, place: Place, as_json: bool) -> None:
    """Print what to send to the operator of a peer, or of every peer: our public key, this machine's host keys, the
    account that the peer has here, and the command that they run.

    Nothing of it is secret, but it must arrive unchanged: compare the fingerprints by another way.

    \b
    Example
      tombsync peer show node-b --host a.example
    """
    settings = place.settings()
    if name is not None and name not in known_names(settings):
        raise unknown(settings, name)
    where = host or socket.getfqdn()
    cards = [_card(settings, one, where, port) for one in ([name] if name else known_names(settings) or ["NAME"])]
    host_keys = _host_keys()
    if as_json:
        say_json({"node": settings.node, "host_keys": [_host_key_json(key, where, port) for key in host_keys],
                  "peers": [_card_json(card) for card in cards]})  # fmt: skip
        return
    for card in cards:
        _say_card(card)
    say(f"# The host keys of this machine, to be saved there as {settings.node}.hosts; compare the fingerprints.")
    for key in host_keys:
        say(f"#   {key.fingerprint} ({key.kind})")
        say(known_hosts_line(key, where, port))


def _card(settings: Settings, name: str, host: str, port: int) -> Card:
    peer = find_peer(settings, name)
    key = keys.own_public_key((peer or PeerSettings(host="localhost")).key)
    sender = find_sender(settings, name)
    words = ["tombsync", "peer", "add", settings.node, "--key", f"{settings.node}.pub"]
    if sender is not None:
        words += ["--host", host, *(["--port", str(port)] if port != SSH_PORT else [])]
        words += ["--host-key", f"{settings.node}.hosts", "--user", sender.account]
    if peer is not None:
        words += ["--account", peer.user]
    return Card(name, settings.node, key, sender.account if sender else None, shlex.join(words))


def _say_card(card: Card) -> None:
    say(f"# {card.node} to {card.name}: our public key, to be saved there as {card.node}.pub")
    say(f"#   {card.key.fingerprint} ({card.key.kind})")
    say(f"{card.key} {card.node}")
    account = (
        f"the account of {card.name} here is {card.account}" if card.account else f"{card.name} has no account here"
    )
    say(f"# {account}. To be run there as root:")
    say(card.command)
    say()


def _card_json(card: Card) -> dict[str, object]:
    return {
        "peer": card.name,
        "public_key": f"{card.key} {card.node}",
        "fingerprint": card.key.fingerprint,
        "account": card.account,
        "command": card.command,
    }


def _host_keys() -> list[PublicKey]:
    """The host keys of this machine's sshd, each kind once."""
    found = []
    for path in sorted(glob.glob(_HOST_KEYS)):
        try:
            found.append(keys.read_public_key(path))
        except errors.BadPublicKey:  # of a kind that no agent can use
            pass
    return found


def _host_key_json(key: PublicKey, host: str, port: int) -> dict[str, object]:
    return {"kind": key.kind, "fingerprint": key.fingerprint, "known_hosts": known_hosts_line(key, host, port)}

"""How a peer is named on the command line, and what the settings have of it."""

from __future__ import annotations

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place
from tombsync.cli.peer.files import require_roots
from tombsync.config import DEFAULT_PATH, PeerSettings, SenderSettings, Settings
from tombsync.names import NODE_PATTERN


def _node_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not NODE_PATTERN.fullmatch(value):
        raise click.BadParameter("1 to 64 letters, digits, dots, underscores and hyphens", ctx, param)
    return value


name_argument = click.argument("name", callback=_node_name, shell_complete=complete.nodes)
optional_name_argument = click.argument("name", callback=_node_name, shell_complete=complete.nodes, required=False)


def settings_path(place: Place) -> str:
    """The settings file that a command changes."""
    return place.config or DEFAULT_PATH


def settings_of_root(place: Place) -> Settings:
    """The settings by which root changes this machine. Raises NotRootsAlone where somebody else could write them."""
    require_roots(settings_path(place), content=True)
    return place.settings()


def find_peer(settings: Settings, name: str) -> PeerSettings | None:
    """The `[[peer]]` of a name."""
    return next((peer for peer in settings.peers if peer.name == name), None)


def find_sender(settings: Settings, name: str) -> SenderSettings | None:
    """The `[[sender]]` of a name."""
    return next((sender for sender in settings.senders if sender.name == name), None)


def known_names(settings: Settings) -> list[str]:
    """Everybody who delivers here or is delivered to."""
    return list(dict.fromkeys([*(peer.name for peer in settings.peers), *(sender.name for sender in settings.senders)]))


def unknown(settings: Settings, name: str) -> errors.UnknownPeer:
    """The error for a name that the settings do not have."""
    return errors.UnknownPeer(name, tuple(known_names(settings)))


def require_sender(settings: Settings, name: str) -> SenderSettings:
    """The `[[sender]]` of a name. Raises UnknownPeer."""
    sender = find_sender(settings, name)
    if sender is None:
        raise errors.UnknownPeer(name, tuple(entry.name for entry in settings.senders))
    return sender

"""`tombsync peer …`: look after the peers of this node."""

from __future__ import annotations

import time

import click

from tombsync import errors
from tombsync.cli.common import Place, json_option, place_options, say, say_json
from tombsync.config import PeerSettings, Settings
from tombsync.daemon import target_of
from tombsync.peers import Connector


@click.group()
def peer() -> None:
    """Look after the peers of this node."""


@peer.command("test")
@click.argument("name")
@place_options
@json_option
def test(name: str, place: Place, as_json: bool) -> int:
    """Walk the way to a peer: connect, host key, login, SFTP, its segment tree. Changes nothing there.

    \b
    Example
      tombsync peer test node-b
    """
    settings = place.settings()
    report = walk(find(settings, name))
    if as_json:
        say_json({"peer": name, **report.as_json()})
    else:
        report.say()
    return 0 if report.ok else errors.EXIT_FAILED


def find(settings: Settings, name: str) -> PeerSettings:
    """A peer of the settings by its name. Raises UnknownPeer."""
    for candidate in settings.peers:
        if candidate.name == name:
            return candidate
    raise errors.UnknownPeer(name, tuple(candidate.name for candidate in settings.peers))


class Report:
    """How far the way to a peer went."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connect_ms: float | None = None
        self.round_trip_ms: float | None = None
        self.root_there = False
        self.can_sync = False
        self.error: errors.PeerError | None = None

    @property
    def ok(self) -> bool:
        """Whether a tombstone can be delivered."""
        return self.error is None and self.root_there

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "connect_ms": self.connect_ms,
            "round_trip_ms": self.round_trip_ms,
            "root_there": self.root_there,
            "can_sync": self.can_sync,
            "reason": self.error.reason if self.error else None,
            "error": str(self.error) if self.error else None,
            "hint": self.error.hint if self.error else None,
        }

    def say(self) -> None:
        """For people."""
        if self.error is not None:
            say(f"FAILED  {self.error}")
            say(f"        hint: {self.error.hint}")
            return
        say(f"ok      {self.name}: connected, host key as pinned, logged in, SFTP open ({self.connect_ms:.0f} ms)")
        say(f"        one round trip takes {self.round_trip_ms:.2f} ms")
        say(f"{'ok    ' if self.root_there else 'FAILED'}  its segment tree is {'there' if self.root_there else 'missing'}")
        if not self.can_sync:
            say("warning its server has no fsync@openssh.com: deliveries stay not-durable and are not enough for a purge")


def walk(settings: PeerSettings) -> Report:
    """Connect to a peer and see what it offers."""
    report = Report(settings.name)
    begun = time.monotonic()
    try:
        session = Connector(target_of(settings)).connect()
    except errors.PeerError as exc:
        report.error = exc
        return report
    report.connect_ms = round((time.monotonic() - begun) * 1e3, 3)
    report.round_trip_ms = round(session.round_trip_s * 1e3, 3)
    report.root_there = session.root_there
    report.can_sync = session.can_sync
    session.close()
    return report

"""`tombsync peer test`: walk the way to a peer and say where it fails."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, json_option, place_options, say, say_json, tell_error, warn
from tombsync.config import PeerSettings, Settings

if TYPE_CHECKING:
    from tombsync.peers import Session

_WAIT_S = 1.0


@click.command("test")
@click.argument("name", shell_complete=complete.nodes)
@place_options
@json_option
def test(name: str, place: Place, as_json: bool) -> int:
    """Walk the way to a peer: connect, host key, login, SFTP, its segment tree, and a canary.

    Changes nothing in its tree. A peer with an inbox has to take the canary from it, so its agent must run; that is
    waited for, half a minute at most.

    \b
    Example
      tombsync peer test node-b
    """
    settings = place.settings()
    report = walk(find(settings, name), settings.node, canary=True)
    if as_json:
        say_json({"peer": name, **report.as_json()})
    else:
        report.say()
    if report.error is not None:
        tell_error(report.error)
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
        self.syncs_itself = False  # the peer's own agent does
        self.canary_ms: float | None = None
        self.error: errors.PeerError | None = None

    @property
    def ok(self) -> bool:
        """Whether a tombstone can be delivered."""
        return self.error is None

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "connect_ms": self.connect_ms,
            "round_trip_ms": self.round_trip_ms,
            "root_there": self.root_there,
            "can_sync": self.can_sync,
            "canary_ms": self.canary_ms,
            "reason": self.error.reason if self.error else None,
            "error": str(self.error) if self.error else None,
            "hint": self.error.hint if self.error else None,
        }

    def say(self) -> None:
        """For people."""
        if self.connect_ms is not None:
            say(f"{self.name}: connected, host key as pinned, logged in, SFTP open ({self.connect_ms:.0f} ms)")
            say(f"{self.name}: one round trip takes {self.round_trip_ms:.2f} ms")
        if self.root_there:
            say(f"{self.name}: its segment tree is there")
        if self.canary_ms is not None:
            say(f"{self.name}: a canary went the whole way and came back ({self.canary_ms:.0f} ms)")
        if self.ok and not (self.can_sync or self.syncs_itself):
            warn(f"{self.name}: no fsync@openssh.com there: deliveries stay not-durable and are not enough for a purge")


def walk(settings: PeerSettings, node: str, *, canary: bool = False) -> Report:
    """Connect to a peer, as the node of this name, and see what it offers; with `canary`, whether one comes back."""
    from tombsync.daemon import target_of
    from tombsync.peers import Connector

    report = Report(settings.name)
    begun = time.monotonic()
    try:
        session = Connector(target_of(settings, node)).connect()
    except errors.PeerError as exc:
        report.error = exc
        return report
    report.connect_ms = round((time.monotonic() - begun) * 1e3, 3)
    report.round_trip_ms = round(session.round_trip_s * 1e3, 3)
    report.root_there = session.root_there
    report.can_sync = session.can_sync
    report.syncs_itself = settings.delivery == "inbox"
    try:
        if not report.root_there:
            raise errors.PeerTreeMissing(settings.name, settings.path)
        if canary:
            report.canary_ms = round(_walk_canary(session, settings.name) * 1e3, 3)
    except errors.PeerError as exc:
        report.error = exc
    finally:
        session.close()
    return report


def _walk_canary(session: Session, peer: str) -> float:
    """Seconds until it came back. Raises PeerError."""
    begun = time.monotonic()
    session.walk_canary()
    poller = select.poll()
    poller.register(session.fileno(), select.POLLIN)
    while session.canary_at is None:
        poller.poll(min(_WAIT_S, session.due_in_s()) * 1000 + 1)
        session.collect(time.monotonic())
        if session.canary_problem:
            raise errors.PeerWayBroken(peer, session.canary_problem)
    return session.canary_at - begun

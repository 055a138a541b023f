"""The first words of a session: the version, the server's limits, and whether its tree stands there."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from tombsync import errors
from tombsync.names import OWN_DIRECTORY
from tombsync.peers import wire
from tombsync.peers.packets import Packet, Packets


class Learnt(NamedTuple):
    """What a server said. `handles`: how many it lets be open; 0 where it does not tell, or has no limit.

    `root_there`: its tree stands, and with `marker_there` the root marker in it.
    """

    extensions: set[bytes]
    handles: int
    round_trip_s: float
    root_there: bool
    marker_there: bool


def greet(packets: Packets, peer: str, root: bytes, deadline: float) -> Learnt:
    """Agree on the version and ask for the rest, one after the other. Raises PeerError."""
    kind, version, body = _ask(packets, peer, wire.init(), deadline)
    if kind != wire.VERSION:
        raise errors.PeerProtocol(peer, f"a packet of type {kind} instead of VERSION")
    with packets.protocol():
        extensions = wire.parse_version(version, body)
    handles = 0
    if wire.LIMITS in extensions:
        kind, _, body = _ask(packets, peer, wire.limits(0), deadline)
        with packets.protocol():
            reply = wire.parse_reply(kind, body)
            handles = wire.parse_limits(reply.data) if reply.code == wire.OK else 0
    asked = time.monotonic()
    root_there = _mode(packets, peer, root, deadline) is not None
    round_trip_s = time.monotonic() - asked
    marker = _mode(packets, peer, root + b"/" + os.fsencode(OWN_DIRECTORY), deadline) if root_there else None
    return Learnt(extensions, handles, round_trip_s, root_there, marker is not None and stat.S_ISDIR(marker))


def _mode(packets: Packets, peer: str, path: bytes, deadline: float) -> int | None:
    """The mode of what stands at a path; None where nothing is seen there."""
    kind, _, body = _ask(packets, peer, wire.lstat(0, path), deadline)
    with packets.protocol():
        return wire.parse_reply(kind, body).mode


def _ask(packets: Packets, peer: str, data: bytes, deadline: float) -> Packet:
    try:
        packets.send(data)
    except errors.PeerLost as exc:  # it was quicker in closing than we in asking
        raise errors.SftpRefused(peer, "the channel was closed at once") from exc
    return packets.wait(deadline)

"""`tombsync peer …`: let other nodes deliver here, and look after the way to them."""

from tombsync.cli.peer.group import peer
from tombsync.cli.peer.walk import find, walk

__all__ = ["find", "peer", "walk"]

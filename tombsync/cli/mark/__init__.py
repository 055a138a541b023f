"""`tombsync mark`: create tombstones, of segments that are named, of a moment, or of versions that are not served."""

from tombsync.cli.mark.note import claimed_actor

__all__ = ["claimed_actor"]

"""Takedowns after they were made: which segment that arrives late falls under one, and what follows from that."""

from tombsync.takedown.late import Late, Reach
from tombsync.takedown.under import takedown_of
from tombsync.takedown.worker import LateSegments

__all__ = ["Late", "LateSegments", "Reach", "takedown_of"]

"""Compares the tree with the index, hour by hour, and repairs what the watcher missed."""

from tombsync.rescan.kinds import Progress, RescanKind
from tombsync.rescan.worker import Rescan

__all__ = ["Progress", "Rescan", "RescanKind"]

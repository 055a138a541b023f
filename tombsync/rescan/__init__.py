"""Compares the tree with the index, hour by hour, and repairs what the watcher missed."""

from tombsync.rescan.worker import Progress, Rescan, RescanKind

__all__ = ["Progress", "Rescan", "RescanKind"]

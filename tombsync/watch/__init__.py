"""Sees tombstones and segments come and go: an inotify emitter of our own on watchdog's observer."""

from tombsync.watch.observer import Watch

__all__ = ["Watch"]

"""Delivering tombstones: a worker for each peer, and its queue of what comes next."""

from tombsync.push.queue import FRESH_S, Queue
from tombsync.push.worker import PING_INTERVAL_S, Pusher

__all__ = ["FRESH_S", "PING_INTERVAL_S", "Pusher", "Queue"]

"""`python -m tests.faults.broken_worker THREAD HOW TRIGGER ARGUMENTS…` is tombsync with one thread that breaks.

As soon as the file TRIGGER is there, that thread's next turn stalls for ever or raises, as HOW says.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from waitress.server import BaseWSGIServer
from watchdog.observers.api import BaseObserver

from tombsync.cli.main import main
from tombsync.guard import RootGuard
from tombsync.inbox import Inbox
from tombsync.index import Checkpointer
from tombsync.intake import Intake
from tombsync.push import Pusher
from tombsync.rescan import Rescan
from tombsync.watch.emitter import HourEmitter

# What each thread calls in each of its turns.
TURNS: dict[str, tuple[type, str]] = {
    "checkpoint": (Checkpointer, "loop"),
    "intake": (Intake, "loop"),
    "push": (Pusher, "loop"),
    "guard": (RootGuard, "loop"),
    "inbox": (Inbox, "loop"),
    "rescan": (Rescan, "loop"),
    "watch emitter": (HourEmitter, "queue_events"),
    "watch dispatcher": (BaseObserver, "dispatch_events"),
    "http": (BaseWSGIServer, "readable"),
}


def broken(turn: Callable[..., Any], how: str, trigger: str) -> Callable[..., Any]:
    """The turn until the trigger is there, and then the fault."""

    def turn_or_fault(*arguments: Any) -> Any:
        if os.path.exists(trigger):
            if how == "raises":
                raise RuntimeError("broken on purpose")
            threading.Event().wait()
        return turn(*arguments)

    return turn_or_fault


if __name__ == "__main__":
    thread, how, trigger = sys.argv[1:4]
    del sys.argv[1:4]
    owner, name = TURNS[thread]
    setattr(owner, name, broken(getattr(owner, name), how, trigger))
    main()

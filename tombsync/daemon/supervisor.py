"""The main thread's loop: from when every worker runs until the end."""

from __future__ import annotations

from collections.abc import Callable

from tombsync import errors
from tombsync.audit import Audit, Event
from tombsync.daemon.crew import Crew
from tombsync.daemon.pushers import Pushers
from tombsync.daemon.reloader import Reloader
from tombsync.daemon.requests import Requests
from tombsync.daemon.signals import Signals
from tombsync.notify import Notifier
from tombsync.rescan import Rescan

_LOOK_S = 2.0  # between two looks at the workers and the index; what must be prompt sets the crew's attention
_LOOK_FOR_READY_S = 0.5
_LOOK_FOR_CHANGES_S = 0.05


class Supervisor:
    """Looks after the workers, does what signals and commands ask for, and tells the service manager."""

    def __init__(
        self,
        *,
        crew: Crew,
        signals: Signals,
        pushers: Pushers,
        reloader: Reloader,
        requests: Requests,
        rescan: Rescan,
        notifier: Notifier,
        audit: Audit,
        check: Callable[[], None],
        state: Callable[[], str],
    ) -> None:
        """`check`: raises whatever ends the agent; `state`: what is being done, for people."""
        self._crew = crew
        self._signals = signals
        self._pushers = pushers
        self._reloader = reloader
        self._requests = requests
        self._rescan = rescan
        self._notifier = notifier
        self._audit = audit
        self._check = check
        self._state = state
        self._ready = False
        self._reloading = False
        self._reloads: list[str] = []  # requests that wait for the end of this reload

    def run(self) -> None:
        """Until SIGTERM. Raises WorkerDied, RootReturned."""
        try:
            while not self._signals.stopping:
                self._look()
                self._crew.attention.wait(self._patience_s())
            self._audit.record(Event.STOPPING, "the agent was asked to stop")
            self._notifier.status("stopping")
        except errors.TombsyncError as exc:
            self._notifier.status(f"ending: {exc}")
            raise
        finally:
            self._notifier.stopping()

    def _patience_s(self) -> float:
        if self._reloading:
            return _LOOK_FOR_CHANGES_S
        return _LOOK_S if self._ready else _LOOK_FOR_READY_S

    def _look(self) -> None:
        self._check()
        self._notifier.alive()
        self._requests.take()
        while self._signals.rescans:
            self._rescan.request(self._signals.rescans.pop())
        if not self._ready and self._rescan.first_done.is_set():
            self._ready = True
            self._audit.record(Event.READY, "the first rescan is done: the index holds the whole tree")
            self._notifier.ready()
        if self._ready:
            self._reload()
        self._notifier.status(self._state())

    def _reload(self) -> None:
        """One reload after the other, and none before the agent is ready."""
        if not self._reloading:
            self._reloads = self._requests.take_reloads()
            if self._signals.reload or self._reloads:
                self._signals.reload = False
                self._reloading = True
                self._notifier.reloading()
                if refused_because := self._reloader.reload():
                    self._requests.answer(self._reloads, refused_because)
        if self._reloading:
            self._pushers.turn()
            if not self._pushers.changing:
                self._reloading = False
                self._requests.answer(self._reloads, "")
                self._notifier.ready()

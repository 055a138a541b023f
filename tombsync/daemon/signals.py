"""What signals ask of the agent."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType

from tombsync.rescan import RescanKind
from tombsync.work import Attention


class Signals:
    """Handlers only set flags; the main thread acts on them."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self.stopping = False
        self.reload = False
        self.rescans: set[RescanKind] = set()

    def catch(self, stack: ExitStack) -> None:
        """Take SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 for as long as the stack stands."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            stack.callback(signal.signal, number, signal.signal(number, self._take))

    def _take(self, number: int, _frame: FrameType | None) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self.stopping = True
            case signal.SIGHUP:
                self.reload = True
            case signal.SIGUSR1:
                self.rescans.add(RescanKind.INTERVAL)
            case signal.SIGUSR2:
                self.rescans.add(RescanKind.FULL)
        self._attention.set()

    def stop(self) -> None:
        """As SIGTERM; from any thread."""
        self.stopping = True
        self._attention.set()

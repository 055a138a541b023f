"""Waiting in the demo: every wait is for a condition, has an end, and is given up when a signal asks for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tombsync.errors import TombsyncError

LOOK_S = 0.01
GLANCE_S = 0.1  # how often a long wait also turns to the screen and to the processes
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(eq=False)
class DidNotHold(TombsyncError):
    """Something that the demo claims was not so."""

    what: str

    def __str__(self) -> str:
        return self.what


class Interrupted(Exception):
    """A signal asked the demo to end; `number` is that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Patience:
    """How long the demo waits for anything. Owner: the main thread; the signals' handler only sets `_signal`.

    `glances` are called now and then while a wait lasts. They may raise, which ends the wait.
    """

    def __init__(self, deadline_s: float) -> None:
        self.glances: list[Callable[[], None]] = []
        self.begun = time.monotonic()
        self._deadline_s = deadline_s
        self._ends_at = self.begun + deadline_s
        self._signal = 0

    @contextmanager
    def signals_caught(self) -> Iterator[None]:
        """From here on Ctrl-C, SIGTERM and a closed terminal end the next wait, and nothing else."""

        def remember(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal.signal calls it
            self._signal = number

        # What was ignored from the start stays so: that is how nohup works.
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        caught = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
        for number in caught:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number in caught:
                signal.signal(number, before[number])

    def until(
        self, condition: Callable[[], object], failure: Callable[[], str], *, limit_s: float, poll_s: float = LOOK_S
    ) -> float:
        """Look until `condition()` is true; returns the seconds that took.

        Raises Interrupted, and DidNotHold with the words of `failure()` where it takes longer than `limit_s` or than
        the whole demo may take.
        """
        begun = glanced = time.monotonic()
        ends_at = begun + limit_s
        while not condition():
            now = time.monotonic()
            self.require_no_signal()
            if now > self._ends_at:
                raise DidNotHold(f"{failure()} before the demo's {self._deadline_s:g} s were over (a busy machine?)")
            if now > ends_at:
                raise DidNotHold(f"{failure()} within {limit_s:g} s")
            if now - glanced >= GLANCE_S:
                glanced = now
                for glance in self.glances:
                    glance()
            time.sleep(poll_s)
        return time.monotonic() - begun

    def pause(self, seconds: float) -> None:
        """Leave the screen as it is for people to read. Raises Interrupted."""
        ends_at = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= ends_at, lambda: "not all was shown", limit_s=seconds + 1.0)

    def require_no_signal(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self._signal:
            raise Interrupted(self._signal)

    @property
    def signalled(self) -> int:
        """The signal that has come; 0 for none."""
        return self._signal

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.begun

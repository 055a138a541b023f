"""The agent's workers: each is driven by a thread of its own, and one that dies or stalls ends the process."""

from __future__ import annotations

import time

from tombsync import errors
from tombsync.audit import Audit, Event
from tombsync.work import Attention, Beats, Driver, Worker

STALLED_AFTER_S = 30.0  # no turn of any worker is longer, a connection attempt (up to 25 s) included
STOOD_STILL_AFTER_S = 5.0  # without a look: then it was the whole process that was stopped, and no worker's fault


class Crew:
    """Belongs to the supervising thread, but for `died`, which any may call."""

    def __init__(self) -> None:
        self.attention = Attention()  # set by signals, dying workers, the returning root: ends the supervisor's wait
        self.beats = Beats()
        self.drivers: list[Driver] = []
        self._failure: tuple[str, BaseException] | None = None
        self._looked_at = self._went_on_at = time.monotonic()

    def drive(self, worker: Worker) -> Driver:
        """Begin a worker's turns."""
        driver = Driver(worker, self.beats, self.attention.set)
        self.drivers.append(driver)
        driver.start()
        return driver

    def dismiss(self, driver: Driver) -> None:
        """Look after a worker no more, which was stopped and has ended."""
        self.drivers.remove(driver)

    def died(self, worker: str, cause: BaseException) -> None:
        """Something that the process cannot go on without is broken; the first counts. From any thread."""
        if self._failure is None:
            self._failure = (worker, cause)
        self.attention.set()

    def check(self, audit: Audit) -> None:
        """Raise WorkerDied where one died or stalls. Called at least every STOOD_STILL_AFTER_S."""
        now = time.monotonic()
        if now - self._looked_at > STOOD_STILL_AFTER_S:  # SIGSTOP, a frozen cgroup, a paused machine
            self._went_on_at = now
        self._looked_at = now
        for driver in self.drivers:
            if driver.failure is not None:
                self.died(driver.worker.name, driver.failure)
        if self._failure is None:
            for worker, age_s in self.beats.ages_s().items():
                if min(age_s, now - self._went_on_at) > STALLED_AFTER_S:
                    self._failure = (worker, TimeoutError(f"no turn ended for {age_s:.0f} s"))
        if self._failure is not None:
            worker, cause = self._failure
            reason = f"died: {type(cause).__name__}: {cause}"
            audit.record(Event.WORKER_DIED, f"{worker} {reason}", worker=worker)
            raise errors.WorkerDied(worker, reason) from cause

"""The end of all workers, within a bound."""

from __future__ import annotations

import logging
import time

from tombsync.coverage import CoverageWorker
from tombsync.daemon.crew import Crew
from tombsync.daemon.pushers import Pushers
from tombsync.inbox import Inbox
from tombsync.index import Checkpointer
from tombsync.intake import Intake
from tombsync.rescan import Rescan
from tombsync.takedown.worker import LateSegments
from tombsync.watch import Watch
from tombsync.work import Flush, Mailbox

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 4.0  # all threads together; what is cut short is done again after the next start


def stop_workers(
    crew: Crew,
    pushers: Pushers,
    watch: Watch,
    rescan: Rescan,
    mailbox: Mailbox,
    inbox: Inbox | None,
    coverage: CoverageWorker,
    late: LateSegments,
    intake: Intake,
) -> None:
    """Stop everything but what writes the index, have that write what was handed over, and stop it too."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for pusher in pushers.all:
        pusher.stop()
    by_name = {driver.worker.name: driver for driver in crew.drivers}
    last = [by_name.pop(name) for name in (Intake.name, Checkpointer.name) if name in by_name]
    for driver in by_name.values():
        driver.stop()
    still_running = [] if watch.stop(max(0.1, deadline - time.monotonic())) else ["watch"]
    flush = Flush()
    mailbox.put_urgent(flush)
    flush.done.wait(max(0.0, min(1.0, deadline - time.monotonic())))
    mailbox.close()
    for driver in last:
        driver.stop()
    for driver in [*by_name.values(), *last]:
        if not driver.join(max(0.1, deadline - time.monotonic())):
            still_running.append(driver.worker.name)
    for pusher in pushers.all:
        if not {pusher.name, Intake.name} & set(still_running):
            pusher.close()
        else:  # what it holds stays open to whoever still runs, and nothing stays untold
            pusher.tell_committed()
    for worker in (intake, rescan, coverage, inbox, late):
        if worker is not None and worker.name not in still_running:
            worker.close()
    if still_running:
        log.warning("still running at the end, and cut short: %s", ", ".join(still_running))

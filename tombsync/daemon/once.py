"""One rescan without an agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from tombsync import config, errors
from tombsync.audit import open_audit
from tombsync.daemon.parts import believe_root, open_index, take_adoption
from tombsync.index import AgentLock, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.plan import Breaker
from tombsync.rescan import Progress, Rescan, RescanKind
from tombsync.tree import Tree
from tombsync.work import Beats, Driver, Flush, Mailbox

_STOP_TIMEOUT_S = 4.0


def rescan_once(
    settings: config.Settings, kind: RescanKind, on_progress: Callable[[Progress | None], None]
) -> tuple[float, int]:
    """Rescan without an agent, in this process. Raises TombsyncError.

    Returns the seconds it took and how many directories could not be read.
    """
    lock = AgentLock(settings.state_dir)
    with ExitStack() as stack:
        stack.callback(lock.release)
        audit = open_audit(settings.node, journal=settings.journal)
        stack.callback(audit.close)
        tree, path = Tree(settings.root), index_path(settings.state_dir)
        writer = open_index(path, audit)
        stack.callback(writer.close)
        identity = believe_root(tree, writer, audit)
        with tree.open_believed(identity):
            pass
        mailbox, metrics, beats = Mailbox(), Metrics(), Beats()
        rescan = Rescan(
            tree=tree, identity=identity, index_path=path, mailbox=mailbox, audit=audit, metrics=metrics,
            interval_s=float("inf"), full_interval_s=float("inf"), first_pass=(writer.fact("pass") or 0) + 1,
            believed=lambda: True, may_begin=lambda: True, on_missed=lambda: None,
            accept_lost=lambda: take_adoption(settings.state_dir),
        )  # fmt: skip
        intake = Intake(
            tree=tree, writer=writer, mailbox=mailbox, audit=audit, metrics=metrics,
            on_news=lambda _: None, watch_answers=lambda: False,
            breaker=Breaker(settings.breaker.most_per_minute),
        )  # fmt: skip
        driver = Driver(intake, beats, mailbox.close)  # or the rescan would wait for it for ever
        driver.start()
        begun = time.monotonic()
        try:
            while kind.value not in rescan.completed:
                rescan.loop(time.monotonic())
                if rescan.doubt is not None:  # an agent would wait for the tree to come back
                    raise rescan.doubt
                on_progress(rescan.progress)
                if driver.failure is not None:
                    raise errors.WorkerDied(intake.name, str(driver.failure)) from driver.failure
            told = Flush()  # when it ended is in the index, too
            mailbox.put_urgent(told)
            told.done.wait(_STOP_TIMEOUT_S)
        finally:
            mailbox.close()
            driver.stop()
            if driver.join(_STOP_TIMEOUT_S):
                intake.close()
            rescan.close()
        return time.monotonic() - begun, rescan.unreadable[kind.value]

"""The agent: built, started in order, supervised, stopped in reverse order.

Order: signals, lock, confinement, journal, index, HTTP, checkpoints, intake, pushers, root guard, watcher, rescan. The
confinement comes before the first thread, as it binds only the threads that are started after it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType

from tombsync import __version__, config, confine, errors
from tombsync.audit import Audit, Event, open_audit
from tombsync.daemon.parts import (
    believe_root,
    index_files,
    make_inbox,
    open_index,
    take_adoption,
    target_of,
    target_text,
)
from tombsync.daemon.requests import Requests
from tombsync.daemon.sources import Sources, describe
from tombsync.guard import RootGuard
from tombsync.inbox import Inbox
from tombsync.index import AgentLock, Checkpointer, Hidden, Writer, index_path, note_damage
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.peers import Connector
from tombsync.plan import Breaker
from tombsync.push import Pusher
from tombsync.rescan import Rescan, RescanKind
from tombsync.tree import Tree, lacks_tombstone
from tombsync.watch import Watch
from tombsync.web import WebServer, build_app
from tombsync.work import Attention, Beats, Driver, Flush, Mailbox, Worker

log = logging.getLogger(__name__)

STALLED_AFTER_S = 30.0  # no turn of any worker is longer, a connection attempt (up to 25 s) included
STOOD_STILL_AFTER_S = 5.0  # without a look: then it was the whole process that was stopped, and no worker's fault
STOP_TIMEOUT_S = 4.0  # all threads together; what is cut short is done again after the next start
# A worker in a Python loop holds up every other thread for so long at most (stock: 5 ms). Measured by
# benchmarks/hide.py beside a rescan: 0.5 ms gave hides of 3 and 9 ms (p50, p99), 0.1 ms gave 1.0 and 1.6.
SWITCH_INTERVAL_S = 0.0001
_LOOK_S = 2.0  # between two looks at the workers and the index; what must be prompt sets `_attention`
_LOOK_FOR_READY_S = 0.5
_FILESYSTEM_FULL_INTERVAL_S = 3600  # where writes from elsewhere raise no events


class Agent:
    """One agent's life. `run` is called once, in the main thread."""

    def __init__(self, settings: config.Settings, *, require_confinement: bool = False) -> None:
        self.settings = settings
        self._require_confinement = require_confinement
        self._attention = Attention()  # set by signals, dying workers, the returning root: see `_supervise`
        self._stopping = False
        self._root_returned = False
        self._failure: tuple[str, BaseException] | None = None
        self._requested: set[RescanKind] = set()
        self._looked_at = self._went_on_at = time.monotonic()
        self._index_files: list[tuple[int, int]] = []  # device and inode of each
        self._beats = Beats()
        self._drivers: list[Driver] = []
        self._pushers: list[Pusher] = []

    def run(self) -> None:
        """Run until a signal ends it. Raises TombsyncError: what kept it from starting, WorkerDied, RootReturned."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        settings = self.settings
        with ExitStack() as stack:
            self._catch_signals(stack)  # for as long as the lock names this process to those who signal it
            lock = AgentLock(settings.state_dir)
            stack.callback(lock.release)
            tree = Tree(settings.root)
            confinement = self._confine(tree)
            audit = open_audit(settings.node, journal=settings.journal)
            stack.callback(audit.close)
            audit.record(Event.STARTED, f"tombsync {__version__} on {settings.node}: {tree.root}", version=__version__)
            _tell_confinement(audit, confinement)
            path = index_path(settings.state_dir)
            writer = open_index(path, audit)
            stack.callback(writer.close)
            self._index_files = index_files(path)
            identity = believe_root(tree, writer, audit)
            self._sync_peers(writer, audit)
            self._serve(stack, tree, writer, audit, path, identity)

    def _serve(self, stack: ExitStack, tree: Tree, writer: Writer, audit: Audit, path: str, identity: str) -> None:
        settings, metrics = self.settings, Metrics()
        mailbox = Mailbox(on_wait=lambda: self._beats.beat(Rescan.name))  # on a full disk the writer is behind for long
        guard = RootGuard(tree, identity, audit, self._root_came_back)
        watch = Watch(
            tree=tree,
            identity=identity,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            beats=self._beats,
            on_death=lambda exc: self._died("watch", exc),
            on_missed=lambda: rescan.request(RescanKind.INTERVAL),
            on_disturbed=lambda hour: rescan.request_hour(hour),  # noqa: PLW0108 (there is no rescan yet)
            on_root_disturbed=guard.wake,
        )
        rescan = Rescan(
            tree=tree,
            identity=identity,
            index_path=path,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            interval_s=settings.rescan.interval_s,
            full_interval_s=self._full_interval_s(tree, audit),
            first_pass=(writer.fact("pass") or 0) + 1,
            believed=guard.believed,
            may_begin=watch.walked.is_set,
            on_missed=watch.walk_again,
            accept_lost=lambda: take_adoption(settings.state_dir),
        )
        checkpointer = Checkpointer(path)
        intake = Intake(
            tree=tree,
            writer=writer,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            on_news=self._offer,
            watch_answers=rescan.first_done.is_set,
            breaker=Breaker(settings.breaker.most_per_minute),
            on_written=checkpointer.note_written,
        )
        self._make_pushers(writer, path, mailbox, audit, metrics, guard.believed)
        inbox = make_inbox(
            settings,
            tree=tree,
            identity=identity,
            index_path=path,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            believed=guard.believed,
        )
        sources = Sources(writer, path, self._pushers, inbox, watch, rescan, guard, self._beats, audit)
        stack.callback(sources.close)
        metrics.ask(sources)
        app = build_app(
            metrics_app=metrics.wsgi_app,
            health=self._beats.ages_s,
            ready=rescan.first_done.is_set,
            ready_detail=lambda: describe(guard, rescan),
            stale_after_s=STALLED_AFTER_S,
        )
        server = WebServer(app, settings.http.listen, on_turn=lambda: self._beats.beat("http"))
        server.start()
        stack.callback(server.close)
        stack.callback(checkpointer.close)
        stack.callback(self._stop_workers, watch, rescan, mailbox, inbox)
        workers: list[Worker] = [checkpointer, intake, *self._pushers, guard]
        if inbox is not None:
            workers.append(inbox)
        for worker in workers:
            self._drive(worker)
        if guard.believed():
            self._beats.beat("watch")
            watch.start()
        self._drive(rescan)
        requests = Requests(settings.state_dir, mailbox, audit, self._pushers, partial(lacks_tombstone, tree, identity))
        self._supervise(rescan, server, audit, requests)

    # -- building -----------------------------------------------------------------------------------------------------

    def _confine(self, tree: Tree) -> confine.Confinement | errors.ConfinementUnavailable:
        temporary = os.path.join(self.settings.state_dir, "tmp")  # SQLite and waitress want one that may be written
        os.makedirs(temporary, mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = temporary
        socket_path = self.settings.http.address.path
        try:
            return confine.confine(
                root=tree.root,
                state_dir=self.settings.state_dir,
                # Above the inboxes, as each is a file system of its own that may be mounted later.
                inbox_dirs=[self.settings.inbox.directories] if self.settings.senders else [],
                runtime_dir=os.path.dirname(socket_path) if socket_path else None,
            )
        except errors.ConfinementUnavailable as exc:
            if self._require_confinement:
                raise
            return exc

    def _catch_signals(self, stack: ExitStack) -> None:
        """Handlers only set flags; the main thread acts on them."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        def request(number: int, _frame: FrameType | None) -> None:
            self._requested.add(RescanKind.FULL if number == signal.SIGUSR2 else RescanKind.INTERVAL)
            self._attention.set()

        for number, handler in (
            (signal.SIGTERM, stop),
            (signal.SIGINT, stop),
            (signal.SIGUSR1, request),
            (signal.SIGUSR2, request),
        ):
            stack.callback(signal.signal, number, signal.signal(number, handler))

    def _sync_peers(self, writer: Writer, audit: Audit) -> None:
        added, forgotten = writer.sync_peers({peer.name: target_text(peer) for peer in self.settings.peers})
        for name in forgotten:
            audit.record(
                Event.PEER_FORGOTTEN, f"{name} is no longer a peer of this node, or is elsewhere now", peer=name
            )
        for name in added:
            audit.record(Event.PEER_ADDED, f"{name} is a new peer: every tombstone is due for it", peer=name)

    def _make_pushers(
        self, writer: Writer, path: str, mailbox: Mailbox, audit: Audit, metrics: Metrics, believed: Callable[[], bool]
    ) -> None:
        keys = writer.peer_ids()
        self._pushers = [
            Pusher(
                peer=keys[peer.name],
                connector=Connector(target_of(peer, self.settings.node)),
                index_path=path,
                mailbox=mailbox,
                audit=audit,
                metrics=metrics,
                believed=believed,
                verify_interval_s=peer.verify_interval_s,
                on_holds_ended=self._look_again,
            )
            for peer in self.settings.peers
        ]

    def _full_interval_s(self, tree: Tree, audit: Audit) -> float:
        silent = tree.silent_filesystem() if os.path.isdir(tree.root) else ""
        if not silent:
            return self.settings.rescan.full_interval_s
        interval_s = min(self.settings.rescan.full_interval_s, _FILESYSTEM_FULL_INTERVAL_S)
        audit.record(
            Event.NETWORK_FILESYSTEM,
            f"{tree.root} is on {silent}: what other machines write there raises no events here;"
            f" a full rescan every {interval_s:.0f} s finds it",
        )
        return interval_s

    # -- running ------------------------------------------------------------------------------------------------------

    def _drive(self, worker: Worker) -> None:
        driver = Driver(worker, self._beats, self._attention.set)
        self._drivers.append(driver)
        driver.start()

    def _supervise(self, rescan: Rescan, server: WebServer, audit: Audit, requests: Requests) -> None:
        told_ready = False
        while True:
            self._attention.wait(_LOOK_S if told_ready else _LOOK_FOR_READY_S)
            if self._stopping:
                audit.record(Event.STOPPING, "the agent was asked to stop")
                return
            self._check_index()
            if not server.alive:
                self._died("http", RuntimeError("its thread has ended"))
            self._check_workers(audit)
            if self._root_returned:
                raise errors.RootReturned(self.settings.root)
            requests.take()
            while self._requested:
                rescan.request(self._requested.pop())
            if not told_ready and rescan.first_done.is_set():
                told_ready = True
                audit.record(Event.READY, "the first rescan is done: the index holds the whole tree")

    def _check_workers(self, audit: Audit) -> None:
        now = time.monotonic()
        if now - self._looked_at > STOOD_STILL_AFTER_S:  # SIGSTOP, a frozen cgroup, a paused machine
            self._went_on_at = now
        self._looked_at = now
        for driver in self._drivers:
            if driver.failure is not None:
                self._died(driver.worker.name, driver.failure)
        if self._failure is None:
            for worker, age_s in self._beats.ages_s().items():
                if min(age_s, now - self._went_on_at) > STALLED_AFTER_S:
                    self._failure = (worker, TimeoutError(f"no turn ended for {age_s:.0f} s"))
        if self._failure is not None:
            worker, cause = self._failure
            reason = f"died: {type(cause).__name__}: {cause}"
            audit.record(Event.WORKER_DIED, f"{worker} {reason}", worker=worker)
            raise errors.WorkerDied(worker, reason) from cause

    def _check_index(self) -> None:
        """A file that nobody else can open any more is no index: the next start makes a new one.

        What is found in its place is not trusted: another index with the log of this one would be a third.
        """
        path = index_path(self.settings.state_dir)
        if index_files(path) != self._index_files:
            if os.path.exists(path):
                note_damage(path)
            self._died("intake", errors.StateRefused(path, "it was removed or replaced under the running agent"))

    def _died(self, worker: str, cause: BaseException) -> None:
        if self._failure is None:
            self._failure = (worker, cause)
        self._attention.set()

    def _root_came_back(self) -> None:
        self._root_returned = True
        self._attention.set()

    def _look_again(self) -> None:
        for pusher in self._pushers:
            pusher.look_again()

    def _offer(self, news: Sequence[Hidden]) -> None:
        if rows := [hidden.due() for hidden in news if hidden.pushable and not hidden.held]:
            for pusher in self._pushers:
                pusher.offer(rows)

    def stop(self) -> None:
        """End `run`; safe in a signal handler and from any thread."""
        self._stopping = True
        self._attention.set()

    # -- stopping -----------------------------------------------------------------------------------------------------

    def _stop_workers(self, watch: Watch, rescan: Rescan, mailbox: Mailbox, inbox: Inbox | None) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for pusher in self._pushers:
            pusher.stop()
        by_name = {driver.worker.name: driver for driver in self._drivers}
        last = [by_name.pop(name) for name in ("intake", Checkpointer.name) if name in by_name]
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
        for pusher in self._pushers:
            if not {pusher.name, Intake.name} & set(still_running):
                pusher.close()
            else:  # what it holds stays open to whoever still runs, and nothing stays untold
                pusher.tell_committed()
        if rescan.name not in still_running:
            rescan.close()
        if inbox is not None and inbox.name not in still_running:
            inbox.close()
        if still_running:
            log.warning("still running at the end, and cut short: %s", ", ".join(still_running))


def _tell_confinement(audit: Audit, confinement: confine.Confinement | errors.ConfinementUnavailable) -> None:
    if isinstance(confinement, errors.ConfinementUnavailable):
        audit.record(
            Event.CONFINEMENT,
            f"{confinement}: the agent keeps the right to change data files and relies on its own care alone",
            confined=0,
        )
        return
    lacking = "".join(f"; this kernel still allows {right}" for right in confinement.not_covered)
    audit.record(
        Event.CONFINEMENT,
        f"confined by Landlock (ABI {confinement.abi}): no file of the tree can be changed or removed{lacking}",
        confined=1,
    )

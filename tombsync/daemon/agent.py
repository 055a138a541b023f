"""The agent: built, started in order, supervised, stopped in reverse order.

Order: signals, lock, confinement, journal, index, HTTP, checkpoints, intake, pushers, root guard, late segments,
watcher, rescan, coverage. The confinement comes before the first thread, as it binds only the threads that are started
after it.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from tombsync import __version__, config, confine, errors
from tombsync.audit import Audit, Event, open_audit
from tombsync.coverage import CoverageView, CoverageWorker, draw
from tombsync.daemon.crew import STALLED_AFTER_S, Crew
from tombsync.daemon.ending import stop_workers
from tombsync.daemon.pages import Pages, pages_of
from tombsync.daemon.parts import (
    believe_root,
    full_interval_s,
    index_files,
    make_inbox,
    open_index,
    take_adoption,
    target_of,
    target_text,
)
from tombsync.daemon.pushers import Pushers
from tombsync.daemon.reloader import Reloader
from tombsync.daemon.requests import Requests
from tombsync.daemon.signals import Signals
from tombsync.daemon.sources import Sources
from tombsync.daemon.state import describe, peer_states, state_text
from tombsync.daemon.status_page import page_of
from tombsync.daemon.supervisor import Supervisor
from tombsync.guard import RootGuard
from tombsync.index import AgentLock, Checkpointer, Writer, index_path, note_damage
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.notify import Notifier
from tombsync.peers import Connector
from tombsync.plan import Breaker
from tombsync.push import Pusher
from tombsync.rescan import Rescan, RescanKind
from tombsync.takedown.worker import LateSegments
from tombsync.tree import Tree, lacks_tombstone
from tombsync.watch import Watch
from tombsync.web import Auth, WebServer, build_app, coverage_blueprint
from tombsync.work import Mailbox, Worker

# A worker in a Python loop holds up every other thread for so long at most (stock: 5 ms). Measured by
# benchmarks/hide.py beside a rescan: 0.5 ms gave hides of 3 and 9 ms (p50, p99), 0.1 ms gave 1.0 and 1.6.
SWITCH_INTERVAL_S = 0.0001


class Agent:
    """One agent's life. `run` is called once, in the main thread."""

    def __init__(
        self,
        settings: config.Settings,
        *,
        load: Callable[[], config.Settings] | None = None,
        require_confinement: bool = False,
    ) -> None:
        """`load`: reads the settings again, as they were read for this; raises BadSettings."""
        self.settings = settings
        self._load = load or (lambda: settings)
        self._require_confinement = require_confinement
        self._crew = Crew()
        self._signals = Signals(self._crew.attention)
        self._root_returned = False
        self._index_files: list[tuple[int, int]] = []  # device and inode of each

    def run(self) -> None:
        """Run until a signal ends it. Raises TombsyncError: what kept it from starting, WorkerDied, RootReturned."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        settings = self.settings
        with ExitStack() as stack:
            notifier = Notifier.of_environment(os.environ)
            stack.callback(notifier.close)
            self._signals.catch(stack)  # for as long as the lock names this process to those who signal it
            lock = AgentLock(settings.state_dir)
            stack.callback(lock.release)
            tree = Tree(settings.root)
            confinement = self._confine(tree)
            audit = open_audit(settings.node, journal=settings.journal)
            stack.callback(audit.close)
            audit.record(Event.STARTED, f"tombsync {__version__} on {settings.node}: {tree.root}", version=__version__)
            _tell_confinement(audit, confinement)
            notifier.status("opening the index")
            path = index_path(settings.state_dir)
            writer = open_index(path, audit)
            stack.callback(writer.close)
            self._index_files = index_files(path)
            identity = believe_root(tree, writer, audit)
            self._sync_peers(writer, audit)
            self._serve(stack, tree, writer, audit, path, identity, notifier)

    def _serve(
        self,
        stack: ExitStack,
        tree: Tree,
        writer: Writer,
        audit: Audit,
        path: str,
        identity: str,
        notifier: Notifier,
    ) -> None:
        settings, metrics, crew = self.settings, Metrics(), self._crew
        mailbox = Mailbox(on_wait=lambda: crew.beats.beat(Rescan.name))  # on a full disk the writer is behind for long
        guard = RootGuard(tree, identity, audit, self._root_came_back)
        watch = Watch(
            tree=tree,
            identity=identity,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            beats=crew.beats,
            on_death=lambda exc: crew.died("watch", exc),
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
            full_interval_s=full_interval_s(settings, tree, audit),
            first_pass=(writer.fact("pass") or 0) + 1,
            believed=guard.believed,
            may_begin=watch.walked.is_set,
            on_missed=watch.walk_again,
            accept_lost=lambda: take_adoption(settings.state_dir),
            held_back=lambda marker: requests.holds(marker),  # noqa: PLW0108 (there are no requests yet)
        )

        def make_pusher(peer: config.PeerSettings, key: int) -> Pusher:
            return Pusher(
                peer=key,
                connector=Connector(target_of(peer, settings.node)),
                index_path=path,
                mailbox=mailbox,
                audit=audit,
                metrics=metrics,
                believed=guard.believed,
                verify_interval_s=peer.verify_interval_s,
                on_holds_ended=pushers.look_again,
            )

        pushers = Pushers(make_pusher, crew=crew, mailbox=mailbox, audit=audit, metrics=metrics)
        keys = writer.peer_ids()
        for peer in settings.peers:
            pushers.add(peer, keys[peer.name])
        late = LateSegments(
            tree=tree,
            identity=identity,
            state_dir=settings.state_dir,
            index_path=path,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            believed=guard.believed,
        )
        checkpointer, breaker = Checkpointer(path), Breaker(settings.breaker.most_per_minute)
        intake = Intake(
            tree=tree,
            writer=writer,
            mailbox=mailbox,
            audit=audit,
            metrics=metrics,
            on_news=pushers.offer,
            watch_answers=rescan.first_done.is_set,
            breaker=breaker,
            on_written=checkpointer.note_written,
            on_holds_changed=pushers.look_again,
            on_segments=late.note,
        )
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
        coverage = CoverageWorker(
            tree=tree,
            index_path=path,
            mailbox=mailbox,
            believed=guard.believed,
            may_begin=rescan.first_done.is_set,
        )
        sources = Sources(writer, path, pushers, inbox, watch, rescan, guard, crew.beats, audit, coverage)
        stack.callback(sources.close)
        view = CoverageView(path)
        stack.callback(view.close)
        metrics.ask(sources)
        auth = Auth(tree, path)
        stack.callback(auth.close)
        pages = pages_of(
            node=settings.node, root=tree.root, state_dir=settings.state_dir, pushers=pushers, writer=writer
        )
        app = build_app(
            metrics_app=metrics.wsgi_app,
            health=crew.beats.ages_s,
            ready=rescan.first_done.is_set,
            ready_detail=lambda: describe(guard, rescan),
            stale_after_s=STALLED_AFTER_S,
            blueprints=pages.blueprints(
                auth.blueprint,
                lambda turns: coverage_blueprint(hours=view.hours, picture=view.map, draw=draw, turns=turns),
                partial(page_of, settings.node, tree.root, sources, guard, rescan, late, pages.ask),
            ),
        )
        server = WebServer(app, settings.http.listen, on_turn=lambda: crew.beats.beat("http"))
        server.start()
        stack.callback(_close_http, server, pages)
        stack.callback(checkpointer.close)
        stack.callback(stop_workers, crew, pushers, watch, rescan, mailbox, inbox, coverage, late, intake)
        first: list[Worker] = [checkpointer, intake]
        for worker in first:
            crew.drive(worker)
        pushers.start()
        crew.drive(guard)
        crew.drive(late)
        if inbox is not None:
            crew.drive(inbox)
        if guard.believed():
            crew.beats.beat("watch")
            watch.start()
        requests = Requests(settings.state_dir, mailbox, audit, pushers, partial(lacks_tombstone, tree, identity))
        crew.drive(rescan)
        crew.drive(coverage)
        # What was imported and built lives as long as the process: the collector need not look at it again and again,
        # for 90 ms in which nothing is hidden or answered (benchmarks/scrape.py).
        gc.collect()
        gc.freeze()
        reloader = Reloader(
            settings, self._load, tree=tree, pushers=pushers, rescan=rescan, breaker=breaker, inbox=inbox, audit=audit
        )
        Supervisor(
            crew=crew,
            signals=self._signals,
            pushers=pushers,
            reloader=reloader,
            requests=requests,
            rescan=rescan,
            notifier=notifier,
            audit=audit,
            check=lambda: self._check(server, audit),
            state=lambda: state_text(describe(guard, rescan), peer_states(pushers.all, writer)),
        ).run()

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

    def _sync_peers(self, writer: Writer, audit: Audit) -> None:
        added, forgotten = writer.sync_peers({peer.name: target_text(peer) for peer in self.settings.peers})
        for name in forgotten:
            audit.record(
                Event.PEER_FORGOTTEN, f"{name} is no longer a peer of this node, or is elsewhere now", peer=name
            )
        for name in added:
            audit.record(Event.PEER_ADDED, f"{name} is a new peer: every tombstone is due for it", peer=name)

    # -- running ------------------------------------------------------------------------------------------------------

    def _check(self, server: WebServer, audit: Audit) -> None:
        """Raise what ends the agent: WorkerDied, RootReturned."""
        self._check_index()
        if not server.alive:
            self._crew.died("http", RuntimeError("its thread has ended"))
        self._crew.check(audit)
        if self._root_returned:
            raise errors.RootReturned(self.settings.root)

    def _check_index(self) -> None:
        """A file that nobody else can open any more is no index: the next start makes a new one.

        What is found in its place is not trusted: another index with the log of this one would be a third.
        """
        path = index_path(self.settings.state_dir)
        if index_files(path) != self._index_files:
            if os.path.exists(path):
                note_damage(path)
            self._crew.died("intake", errors.StateRefused(path, "it was removed or replaced under the running agent"))

    def _root_came_back(self) -> None:
        self._root_returned = True
        self._crew.attention.set()

    def stop(self) -> None:
        """End `run`; from any thread."""
        self._signals.stop()


def _close_http(server: WebServer, pages: Pages) -> None:
    if server.close():  # else a thread may still use what it answers from
        pages.close()


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

"""A node: its tree, its clocks, its index's file, the lives of its agent, and what must be true of all that."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterable

from tests.model.checks import (
    PUSHED,
    PUT_BACK,
    RESCAN_HIDES,
    RESTS,
    WATCH_HIDES,
    Rows,
    Violation,
    check_index,
    check_tree,
)
from tests.model.events import ALL, Inotify
from tests.model.ground import Ground
from tests.model.life import Journal, Life, Standing, TurnedListing
from tests.model.network import Link
from tests.model.simulated import MANY_STEPS_NS, ONE_STEP_NS, TICK_NS, Clock, Timebase
from tombsync.names import Hour, Marked
from tombsync.plan import KEEP_STATES, PUT_BACK_AFTER_S, State
from tombsync.rescan import RescanKind

_MOST_TURNS = 2_000  # until something rests: more are a livelock
_MINUTE_NS = int(PUT_BACK_AFTER_S * 1e9)
_SIDE_FILES = ("", "-wal", "-shm")


class Node:
    """`life` is None while the agent is down. `committed`: what the index has hidden, and since when; `durable`: what
    it had at its last checkpoint.
    """

    def __init__(self, number: int, directory: str, clock: Clock, marked: set[Marked]) -> None:
        self.name = f"node-{number}"
        self.clock = clock
        self.base = Timebase(number)
        self.ground = Ground(f"{directory}/{self.name}", clock, self.base)
        self.ground.at = self._at
        self.ground.put_back = self._was_put_back
        self.ground.adopt(str(uuid.UUID(int=number)))
        os.mkdir(f"{directory}/{self.name}.state")
        self.index_path = f"{directory}/{self.name}.state/index.sqlite"
        self.links: dict[str, Link] = {}  # of this node's peers, by their name
        self.journal = Journal()
        self.life: Life | None = None
        self.ever_marked = marked  # anywhere
        self.committed: dict[Marked, int] = {}
        self.durable: dict[Marked, int] = {}
        self.births_checked = 0  # the last tombstone that stood at the last check
        self._worked = False  # since the last check
        self._missed_ns: dict[Marked, tuple[int, int]] = {}  # when a tombstone vanished, and when a rescan found that
        self._seen_ns: dict[Hour | Marked, int] = {}  # the beginning of the last rescan that saw it stand
        self._born_ns = 0
        self._losses = 0  # of events, which nobody was told of
        self._losses_repaired = 0
        self._current_inotify = Inotify()
        self._meanwhile: dict[str, list[Callable[[], None]]] = {}

    # -- lives --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent, if it is down."""
        if self.life is None:
            self._enter()
            self._born_ns = self.clock.now_ns
            self.life = Life(self)
            self.ground.events = self.life.inotify

    def crash(self, *, power_cut: bool = False) -> None:
        """Kill the agent: what was committed is kept; at a power cut only what was checkpointed."""
        if self.life is None:
            return
        self.check()
        for link in self.links.values():
            link.cut()
        self._meanwhile.clear()
        self._missed_ns.clear()
        self._seen_ns.clear()
        self.ground.events = None
        life, self.life = self.life, None
        if power_cut:
            shutil.copyfile(self.index_path, f"{self.index_path}.durable")
        life.close()
        if power_cut:
            self._remove_index()
            os.rename(f"{self.index_path}.durable", self.index_path)
            self.committed = dict(self.durable)

    def lose_index(self) -> None:
        """Kill the agent, and remove its index."""
        self.crash()
        self._remove_index()
        self.committed, self.durable = {}, {}
        for link in self.links.values():
            link.forget()

    def _remove_index(self) -> None:
        for suffix in _SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.index_path + suffix)

    def checkpoint(self) -> None:
        """The checkpointer's turn."""
        if self.life is not None:
            self.check()
            self.life.checkpointer.loop(0.0)
            self.durable = dict(self.committed)

    def inotify(self) -> Inotify:
        """A new instance for a new life; `simulated` gives the emitter this one."""
        self._current_inotify = Inotify()
        return self._current_inotify

    @property
    def current_inotify(self) -> Inotify:
        return self._current_inotify

    # -- turns --------------------------------------------------------------------------------------------------------

    def read_events(self, count: int = ALL) -> None:
        """The watcher reads at most so many events, and hands on what they say."""
        if self.life is not None:
            self._enter()
            self.life.inotify.allowance = count
            self.life.watch.turn()

    def lose_events(self, kept: int, *, told: bool) -> None:
        """The kernel's queue keeps its first events only; the agent is told, as of an overflow, or not."""
        if self.life is not None:
            self._losses += self.life.inotify.lose(kept, told=told) and not told

    def commit(self) -> bool:
        """The intake writes one transaction; False where there is nothing to write."""
        if self.life is None or self.life.mailbox.empty:
            return False
        self._enter()
        self.life.intake.loop(self.clock.monotonic())
        return True

    def commit_all(self) -> bool:
        """The intake writes all there is."""
        count = 0
        while self.commit():
            count += 1
            if count > _MOST_TURNS:
                raise Violation(RESTS, f"{self.name}: the intake never rests")
        return count > 0

    def rescan_turn(self, tick_ns: int = ONE_STEP_NS) -> None:
        """A slice of a rescan, or what else is due there."""
        if self.life is not None:
            self._enter()
            self.clock.tick_ns = tick_ns
            try:
                self.life.rescan.loop(self.clock.monotonic())
            finally:
                self.clock.tick_ns = TICK_NS

    def rescan(self, kind: RescanKind) -> None:
        """A whole rescan, begun after the one that runs; `rescan_ended` checks it."""
        if self.life is None:
            return
        rescan = self.life.rescan
        self._walk()
        for _ in range(_MOST_TURNS):
            if not rescan.running:
                break
            self.rescan_turn(MANY_STEPS_NS)
            self.commit_all()
        rescan.request(kind)
        ended = rescan.ended
        for _ in range(_MOST_TURNS):
            self.rescan_turn(MANY_STEPS_NS)
            self.commit_all()
            if rescan.ended > ended:
                return
        raise Violation(RESTS, f"{self.name}: a rescan never ends")

    def push(self, name: str) -> bool:
        """One turn of a pusher; False where nothing came of it."""
        if self.life is None:
            return False
        self._enter()
        steps = self.links[name].steps
        pusher = self.life.pushers[name]
        pusher.loop(self.clock.monotonic())
        return self.links[name].steps > steps or (pusher.up and pusher.woken)

    def run(self) -> None:
        """All workers, until none has anything to do now."""
        if self.life is None:
            return
        for _ in range(_MOST_TURNS):
            busy = False
            while self.life.watch.busy:
                self.read_events()
                busy = True
            busy |= self.commit_all()
            if self.life.rescan.due(self._now()):
                self.rescan_turn(MANY_STEPS_NS)
                continue
            for name in self.links:
                while self.push(name):
                    busy = True
                    self.commit_all()
            busy |= self.commit_all()
            if not busy:
                self._require_all_hidden()
                self._require_all_pushed()
                self._require_put_back()
                return
        raise Violation(RESTS, f"{self.name} never rests")

    def _walk(self) -> None:
        """The first rescan waits until every directory is watched."""
        assert self.life is not None
        while not self.life.watch.walked.is_set():
            self.read_events(0)

    def _enter(self) -> None:
        self.clock.base = self.base
        self._worked = True

    def _now(self) -> float:
        self._enter()
        return self.clock.monotonic()

    # -- in the middle of a turn --------------------------------------------------------------------------------------

    def meanwhile(self, point: str, action: Callable[[], None]) -> None:
        """Let something happen when the agent next comes to this point (see TurnedListing and Ground.sight)."""
        self._meanwhile.setdefault(point, []).append(action)

    def nothing_meanwhile(self) -> None:
        """Take back what was to happen."""
        self._meanwhile.clear()

    def _at(self, point: str) -> None:
        actions = self._meanwhile.pop(point, None)
        if actions is not None:
            tick_ns, self.clock.tick_ns = self.clock.tick_ns, TICK_NS
            for action in actions:
                action()
            self.clock.tick_ns = tick_ns
            self._enter()

    def listing(self) -> TurnedListing:
        """What the rescan lists with."""
        return TurnedListing(self._at)

    # -- what must be true --------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """What a rescan has to find."""
        hours = {hour: state.since_ns for hour, state in self.ground.kept.items()}
        tombstones = dict(self.ground.tombstones())
        return Standing(self.clock.now_ns, hours, tombstones, self._vanished(), self._losses)

    def rescan_ended(self, before: Standing) -> None:
        """I5: what stood all the time is hidden now."""
        self._losses_repaired = before.losses
        for marked, gone_ns in self._vanished().items():
            if before.vanished.get(marked) == gone_ns:
                self._missed_ns.setdefault(marked, (gone_ns, self.clock.now_ns))
        now = self.standing()
        stood = [marked for marked, birth in now.tombstones.items() if before.tombstones.get(marked) == birth]
        self._require_hidden(stood, RESCAN_HIDES)
        stayed = (hour for hour, since_ns in now.hours.items() if before.hours.get(hour) == since_ns)
        seen: list[Hour | Marked] = [*stood, *stayed]
        self._seen_ns.update((what, before.at_ns) for what in seen)

    def _require_all_hidden(self) -> None:
        """What stands is hidden when the agent rests, unless the kernel lost events without a word."""
        if self._losses == self._losses_repaired:
            self._require_hidden((marked for marked, _ in self.ground.tombstones()), WATCH_HIDES)

    def _require_hidden(self, standing: Iterable[Marked], invariant: str) -> None:
        assert self.life is not None
        for hour, group in itertools.groupby(standing, key=lambda marked: marked.hour):
            if visible := {marked.stem for marked in group} - self.life.reader.markers(hour).keys():
                raise Violation(invariant, f"{self.name}: {sorted(visible)} in {hour.path}: marked, and not hidden")

    def _require_all_pushed(self) -> None:
        """What is due for a peer that can be reached and is quick was pushed when the agent rests."""
        assert self.life is not None
        for name, link in self.links.items():
            if link.quick and self.life.pushers[name].up:
                pending = self.life.writer.tally.deliveries[self.life.peer_ids[name], State.PENDING]
                if pending:
                    raise Violation(PUSHED, f"{self.name}: {pending} deliveries for {name} wait for nothing")

    def _require_put_back(self) -> None:
        """A vanished tombstone is put back a minute after a rescan found it gone, at latest when the agent rests."""
        vanished = self._vanished()
        self._missed_ns = {m: (gone, found) for m, (gone, found) in self._missed_ns.items() if vanished.get(m) == gone}
        for marked, (_, found_ns) in self._missed_ns.items():
            if self.clock.now_ns - found_ns > _MINUTE_NS + 1_000_000_000:
                raise Violation(PUT_BACK, f"{self.name}: {marked.path} vanished and is not put back")

    def _vanished(self) -> dict[Marked, int]:
        """Recorded tombstones that do not stand in their hour, and since when."""
        ground = self.ground
        lacking = (marked for marked in self.committed if marked.hour in ground.kept and not ground.holds(marked))
        return {marked: ground.lacks_since_ns(marked) for marked in lacking}

    def _was_put_back(self, marked: Marked) -> None:
        """`rm -r` of an hour and retention have a minute to do their work."""
        ground = self.ground
        if not self.long_gone(marked, (*ground.went_ns.get(marked, ()), *ground.came_ns.get(marked.hour, ()))):
            raise Violation(PUT_BACK, f"{self.name}: {marked.path} was put back too early")

    def long_gone(self, what: Hour | Marked, went_ns: Iterable[int]) -> bool:
        """Whether something can have been gone for a minute in the eyes of this agent: it went at one of these times,
        at least a minute ago, and after the last rescan of this life that saw it.
        """
        seen_ns = self._seen_ns.get(what, 0)
        return any(
            at > seen_ns and self.clock.now_ns - max(at, self._born_ns) > _MINUTE_NS - 1_000_000 for at in went_ns
        )

    def waits(self) -> bool:
        """Whether time alone will change something: a peer to connect to, a tombstone to put back or to forget.

        What a peer does not serve waits for ever, and so does its marker.
        """
        life = self.life
        if life is None:
            return False
        if not all(pusher.up for pusher in life.pushers.values()):
            return True
        rows = self.rows()
        kept = {marker for _, marker, state in rows.deliveries if state in KEEP_STATES}
        going = {marked.hour for marker, marked in rows.markers.items() if marker not in kept}
        return any(hour in self.ground.kept or hour in going for hour in life.rescan.waiting)

    def rows(self) -> Rows:
        """What the index's tables hold."""
        assert self.life is not None
        return Rows(self.life.raw)

    def check(self) -> None:
        """All that must be true of this node at any moment, where something changed since the last check."""
        if not self._worked and not self.ground.changed:
            return
        tree_changed, self.ground.changed, self._worked = self.ground.changed, False, False
        if tree_changed:
            check_tree(self)
        if self.life is not None and (self.life.committed() or tree_changed):
            check_index(self)
        self.births_checked = self.ground.births

    def close(self) -> None:
        """End everything."""
        if self.life is not None:
            for link in self.links.values():
                link.cut()
            self.life.close()
            self.life = None
        self.ground.clean_up()

"""The pushers of all peers, and their exchange while the agent runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from tombsync.audit import Audit, Event
from tombsync.config import PeerSettings
from tombsync.daemon.crew import Crew
from tombsync.daemon.parts import target_text
from tombsync.daemon.reload import PeerChange
from tombsync.index import Hidden, PeerAdded, PeerForgotten
from tombsync.metrics import Metrics
from tombsync.push import Pusher
from tombsync.work import Driver, Flush, Mailbox


class Pushers:
    """Belongs to the supervising thread, but `all` may be read by any: a tuple that is exchanged whole."""

    def __init__(
        self,
        make: Callable[[PeerSettings, int], Pusher],
        *,
        crew: Crew,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
    ) -> None:
        """`make`: the pusher of a peer, by its key in the index."""
        self.all: tuple[Pusher, ...] = ()
        self._make = make
        self._crew = crew
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._drivers: dict[Pusher, Driver] = {}
        self._changes: list[Iterator[None]] = []

    def add(self, peer: PeerSettings, key: int) -> None:
        """A peer that is in the index."""
        self.all = (*self.all, self._make(peer, key))

    def start(self) -> None:
        """Drive those that are not driven yet."""
        for pusher in self.all:
            if pusher not in self._drivers:
                self._drivers[pusher] = self._crew.drive(pusher)

    def offer(self, news: Sequence[Hidden]) -> None:
        """What was hidden just now; from the intake's thread, after each commit."""
        if rows := [hidden.due() for hidden in news if hidden.pushable and not hidden.held]:
            for pusher in self.all:
                pusher.offer(rows)

    def look_again(self) -> None:
        """Deliveries that were known not to be due are due now; from any thread."""
        for pusher in self.all:
            pusher.look_again()

    # -- while the agent runs -----------------------------------------------------------------------------------------

    @property
    def changing(self) -> bool:
        """Whether an exchange goes on."""
        return bool(self._changes)

    def change(self, changes: Sequence[PeerChange]) -> None:
        """Begin to exchange some; `turn` goes on with it. The others are not touched."""
        self._changes += [self._exchange(change) for change in changes]

    def turn(self) -> None:
        """Go on with whatever need not be waited for."""
        self._changes = [change for change in self._changes if next(change, self) is not self]

    def _exchange(self, change: PeerChange) -> Iterator[None]:
        """One peer's. Nothing that is hidden meanwhile is missed: a new pusher begins with what the index says."""
        key = None
        pusher = next((pusher for pusher in self.all if pusher.peer_name == change.name), None)
        if pusher is not None:
            key = pusher.peer
            yield from self._end(pusher)
            if not change.same_target:
                yield from self._until(lambda done: PeerForgotten(change.name, self._mailbox.put_urgent, done))
                self._metrics.forget_peer(change.name)
                text = f"{change.name} is no longer a peer of this node, or is elsewhere now"
                self._audit.record(Event.PEER_FORGOTTEN, text, peer=change.name)
                key = None
        if change.wanted is None:
            return
        if key is None:
            keys: list[int] = []
            target = target_text(change.wanted)

            yield from self._until(
                lambda done: PeerAdded(change.name, target, self._mailbox.put_urgent, _then(keys.append, done))
            )
            (key,) = keys
            text = f"{change.name} is a new peer: every tombstone is due for it"
            self._audit.record(Event.PEER_ADDED, text, peer=change.name)
        self.add(change.wanted, key)
        self.start()

    def _end(self, pusher: Pusher) -> Iterator[None]:
        self.all = tuple(other for other in self.all if other is not pusher)
        driver = self._drivers.pop(pusher)
        pusher.stop()
        driver.stop()
        while not driver.join(0.0):
            yield
        self._crew.dismiss(driver)
        flush = Flush()  # then the intake's thread knows of it no more
        self._mailbox.put_urgent(flush)
        while not flush.done.is_set():
            yield
        pusher.close()

    def _until(self, batch: Callable[[Callable[[], None]], PeerForgotten | PeerAdded]) -> Iterator[None]:
        done = threading.Event()
        self._mailbox.put_urgent(batch(done.set))
        while not done.is_set():
            yield


def _then(first: Callable[[int], None], second: Callable[[], None]) -> Callable[[int], None]:
    def both(key: int) -> None:
        first(key)
        second()

    return both

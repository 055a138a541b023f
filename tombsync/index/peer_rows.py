"""The part of the index's writer that adds and forgets peers, in transactions of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tombsync.index import files
from tombsync.index.deliveries import Deliveries
from tombsync.plan import State
from tombsync.work import TRANSACTION_ROWS, Batch

_UNFINISHED = ""  # target of a peer whose deliveries are being made or dropped: after a crash both begin again


class Adding(NamedTuple):
    """How far a peer is added: it has the deliveries of every marker up to `above`, and gets those up to `last`.

    Later ones it gets by itself. `done`: it has all of them, and its target.
    """

    peer: int
    above: int
    last: int
    done: bool


class PeerRows(Deliveries):
    """What Writer can do with peers."""

    def sync_peers(self, wanted: dict[str, str]) -> tuple[list[str], list[str]]:
        """Make the peers those of the settings (name -> target); a peer with another target is another peer.

        Each new one gets every marker that can be pushed. Returns the names added and forgotten. Called at start, in
        transactions of bounded size.
        """
        with files.translated(self.path):
            known = dict(self.execute("SELECT name, target FROM peer").fetchall())
        outdated = [name for name, target in known.items() if wanted.get(name) != target]
        for name in outdated:
            self._forget(name)
        added = [name for name in wanted if name not in known or name in outdated]
        for name in added:
            self._add(name, wanted[name])
        with self.transaction():
            self.execute("UPDATE peer SET up = 0")  # what the last process saw
        with files.translated(self.path):
            self.load()
        return added, [name for name in outdated if known[name] != _UNFINISHED]

    def _forget(self, name: str) -> None:
        gone = False
        while not gone:
            with self.transaction():
                gone = self.forget_some(name)

    def _add(self, name: str, target: str) -> None:
        adding: Adding | None = None
        while adding is None or not adding.done:
            with self.transaction():
                adding = self.add_some(name, target, adding)

    # -- a transaction's worth each, inside of one --------------------------------------------------------------------

    def forget_some(self, name: str) -> bool:
        """Drop deliveries of a peer, and the peer when it has none left; whether it is gone."""
        row = self.execute("SELECT id, target FROM peer WHERE name = ?", (name,)).fetchone()
        if row is None:
            return True
        peer, target = row
        if target != _UNFINISHED:
            self.execute("UPDATE peer SET target = ? WHERE id = ?", (_UNFINISHED, peer))
            return False
        dropped = self.execute(
            "DELETE FROM delivery WHERE (peer, marker) IN (SELECT peer, marker FROM delivery WHERE peer = ? LIMIT ?)"
            " RETURNING state",
            (peer, TRANSACTION_ROWS),
        ).fetchall()
        for (state,) in dropped:
            self.tally.deliveries[peer, State(state)] -= 1
        if len(dropped) == TRANSACTION_ROWS:
            return False
        self.execute("DELETE FROM peer WHERE id = ?", (peer,))
        self._peers = [other for other in self._peers if other != peer]
        return True

    def add_some(self, name: str, target: str, adding: Adding | None) -> Adding:
        """Go on with adding a peer; None begins. What waits for a person at other peers does so here too."""
        if adding is None:
            peer = self.execute("INSERT INTO peer (name, target) VALUES (?, ?)", (name, _UNFINISHED)).lastrowid or 0
            self._peers = [*self._peers, peer]
            (last,) = self.execute("SELECT coalesce(max(id), 0) FROM marker").fetchone()
            return Adding(peer, 0, last, done=False)
        peer, above, last, _ = adding
        if above >= last:
            self.execute("UPDATE peer SET target = ? WHERE id = ?", (target, peer))
            return adding._replace(done=True)
        upto = min(last, above + TRANSACTION_ROWS)
        made = self.execute(
            "INSERT OR IGNORE INTO delivery (peer, marker, state) SELECT ?1, id, iif(EXISTS (SELECT 1 FROM delivery"
            f" WHERE marker = marker.id AND state = {State.HELD:d}), {State.HELD:d}, {State.PENDING:d})"
            " FROM marker WHERE pushable AND id > ?2 AND id <= ?3 RETURNING state",
            (peer, above, upto),
        ).fetchall()
        for (state,) in made:
            self.tally.deliveries[peer, State(state)] += 1
        return adding._replace(above=upto)

    def peer_ids(self) -> dict[str, int]:
        """The key of each peer by name."""
        with files.translated(self.path):
            return dict(self.execute("SELECT name, id FROM peer").fetchall())


@dataclass
class PeerForgotten:
    """A peer is one no more: its deliveries go, a transaction's worth with each step. `hand_on` takes the next step."""

    name: str
    hand_on: Callable[[Batch], None]
    on_done: Callable[[], None]
    rows: int = TRANSACTION_ROWS
    gone: bool = False

    def apply(self, writer: PeerRows) -> None:
        self.gone = writer.forget_some(self.name)

    def committed(self) -> None:
        if self.gone:
            self.on_done()
        else:
            self.hand_on(self)


@dataclass
class PeerAdded:
    """A peer is new: every marker becomes due for it, a transaction's worth with each step, as above.

    `on_done` gets its key. What is hidden while this goes on is due for it at once.
    """

    name: str
    target: str
    hand_on: Callable[[Batch], None]
    on_done: Callable[[int], None]
    rows: int = TRANSACTION_ROWS
    adding: Adding | None = None  # as it is committed
    ahead: Adding | None = None  # as `apply` left it

    def apply(self, writer: PeerRows) -> None:
        self.ahead = writer.add_some(self.name, self.target, self.adding)

    def committed(self) -> None:
        self.adding = self.ahead
        if self.adding is not None and self.adding.done:
            self.on_done(self.adding.peer)
        else:
            self.hand_on(self)

"""What the agent answers over HTTP besides metrics and health: where the routes are put together.

Each thread of the server has a client of its own, with a connection to the index that it opens when it is first asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flask import Blueprint

from tombsync.client import Client
from tombsync.daemon.pushers import Pushers
from tombsync.errors import IndexMissing
from tombsync.index import MarkerRow, Reader, Writer, index_path, peer_facts, tombstone_facts
from tombsync.intake import owner_name
from tombsync.names import Marked
from tombsync.plan import State
from tombsync.proof import markers_of_stem, segment_facts, standing_here, stands_of
from tombsync.web import TombstonePage, Turns, api_blueprint, files_blueprint

Answer = TypeVar("Answer")

_KEYS_A_PAGE = 20_000  # looked at for one page of tombstones: some milliseconds, however few of them are recent
_MOST_HOURS = 100  # in which one stem may be marked and be asked for without its hour


class Pages:
    """The routes, and what they answer from. `close` once no thread of the server runs any more."""

    def __init__(
        self,
        *,
        node: str,
        root: str,
        state_dir: str,
        peer_names: Callable[[], set[str]],
        counts: Callable[[], Mapping[int, dict[State, int]]],
    ) -> None:
        """`peer_names`: of the peers of the settings; `counts`: the deliveries of each by its key. From any thread."""
        self._node = node
        self._root = root
        self._state_dir = state_dir
        self._peer_names = peer_names
        self._counts = counts
        self._here = threading.local()
        self._lock = threading.Lock()
        self._opened: list[Knowledge] = []  # guarded by `_lock`

    def blueprints(self, *more: Callable[[Turns], Blueprint]) -> list[Blueprint]:
        """Every route of the agent's own, and `more`, which take their turns beside the others."""
        turns = Turns()
        own = [files_blueprint(self._knowledge, turns), api_blueprint(self._knowledge, turns)]
        return own + [make(turns) for make in more]

    def ask(self, question: Callable[[Reader], Answer]) -> Answer:
        """Ask the index with the connection of this thread. Raises IndexMissing and what the question raises."""
        return self._knowledge().ask(question)

    def _knowledge(self) -> Knowledge:
        """That of this thread."""
        found: Knowledge | None = getattr(self._here, "knowledge", None)
        if found is None:
            found = Knowledge(self._root, self._state_dir, self._node, self._peer_names, self._counts)
            self._here.knowledge = found
            with self._lock:
                self._opened.append(found)
        return found

    def close(self) -> None:
        """Close every connection to the index."""
        with self._lock:
            for opened in self._opened:
                opened.close()
            self._opened.clear()


class Knowledge(Client):
    """A client that also knows of tombstones and peers; see `web.api.Knowledge`. One thread's."""

    def __init__(
        self,
        root: str,
        state_dir: str,
        node: str,
        peer_names: Callable[[], set[str]],
        counts: Callable[[], Mapping[int, dict[State, int]]],
    ) -> None:
        super().__init__(root, state_dir)
        self._node = node
        self._missing = IndexMissing(index_path(state_dir))
        self._peer_names = peer_names
        self._counts = counts

    def tombstones(self, since_ns: int, *, below: int | None, limit: int) -> TombstonePage:
        """See `web.api.Knowledge`."""

        def ask(reader: Reader | None) -> TombstonePage:
            reader = self._require(reader)
            newest = reader.newest_marker() + 1
            top = newest if below is None else min(below, newest)
            above = max(0, top - 1 - _KEYS_A_PAGE)
            rows = reader.marker_rows_since(since_ns, above=above, below=top, limit=limit)
            facts = [
                tombstone_facts(row, reader.deliveries(row.marker), owner=owner_name(row.owner_uid)) for row in rows
            ]
            rest = rows[-1].marker if len(rows) == limit else above + 1
            return TombstonePage(facts, rest if rest > 1 else None)

        return self.index.ask(ask)

    def peers(self) -> list[Mapping[str, Any]]:
        """See `web.api.Knowledge`."""

        def ask(reader: Reader | None) -> list[Mapping[str, Any]]:
            rows = self._require(reader).peers(self._counts())
            return [peer_facts(row, running=True, now_ns=time.time_ns()) for row in rows]

        return self.index.ask(ask)

    def status_of(self, marked: Marked) -> list[Mapping[str, Any]]:
        """See `web.api.Knowledge`."""

        def ask(reader: Reader | None) -> list[Mapping[str, Any]]:
            reader = self._require(reader)
            row = reader.marker(marked)
            return self._facts(reader, [row] if row is not None else [])

        return self.index.ask(ask)

    def status_of_stem(self, name: str) -> list[Mapping[str, Any]]:
        """See `web.api.Knowledge`."""

        def ask(reader: Reader | None) -> list[Mapping[str, Any]]:
            reader = self._require(reader)
            return self._facts(reader, markers_of_stem(reader, name, most=_MOST_HOURS))

        return self.index.ask(ask)

    def ask(self, question: Callable[[Reader], Answer]) -> Answer:
        """The answer of the index, which must be there. Raises IndexMissing and what the question raises."""
        return self.index.ask(lambda reader: question(self._require(reader)))

    def _facts(self, reader: Reader, rows: list[MarkerRow]) -> list[Mapping[str, Any]]:
        peers = {peer.name: peer for peer in reader.peers({})}
        configured = self._peer_names()
        return [
            segment_facts(
                row,
                standing_here(self._tree, reader, row),
                stands_of(reader, row, peers, {}, configured=configured),
                node=self._node,
                owner=owner_name(row.owner_uid),
            )
            for row in rows
        ]

    def _require(self, reader: Reader | None) -> Reader:
        if reader is None:
            raise self._missing
        return reader


def pages_of(*, node: str, root: str, state_dir: str, pushers: Pushers, writer: Writer) -> Pages:
    """The pages of an agent; its intake's counts are read as they stand."""

    def counts() -> dict[int, dict[State, int]]:
        found: dict[int, dict[State, int]] = {}
        for (peer, state), count in list(writer.tally.deliveries.items()):
            if count:
                found.setdefault(peer, {})[state] = count
        return found

    return Pages(
        node=node,
        root=root,
        state_dir=state_dir,
        peer_names=lambda: {pusher.peer_name for pusher in pushers.all},
        counts=counts,
    )

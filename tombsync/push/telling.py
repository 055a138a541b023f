"""What journal and metrics are told of deliveries: after they are in the index, and behind the delivering."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from tombsync import precedence
from tombsync.audit import Audit, Event
from tombsync.index import Due, Outcome
from tombsync.metrics import Metrics
from tombsync.names import printable
from tombsync.peers import MANY
from tombsync.plan import State


class Telling:
    """Of one peer. `add` is the intake's, `tell` the pusher's: a deque needs no lock between them."""

    def __init__(self, peer_name: str, audit: Audit, metrics: Metrics) -> None:
        self._peer_name = peer_name
        self._audit = audit
        self._push_seconds = metrics.push_seconds.labels(peer_name)
        self._untold: deque[tuple[int, Due, Outcome, State]] = deque()  # in the index since when, and the state before

    def add(self, rows: Mapping[int, Due], changed: Sequence[tuple[Outcome, State]]) -> None:
        """These changed their state in the index just now; a hide may wait behind this call."""
        now_ns = time.time_ns()
        self._untold.extend((now_ns, rows[outcome.marker], outcome, before) for outcome, before in changed)

    def tell(self) -> None:
        """Tell of all that was added."""
        while True:
            try:
                told = self._untold.popleft()
            except IndexError:
                return
            self._tell(*told)
            if len(self._untold) > MANY:
                precedence.give_way()

    def _tell(self, committed_ns: int, row: Due, outcome: Outcome, before: State) -> None:
        elapsed_s = max(0.0, (committed_ns - row.hidden_at_ns) / 1e9)
        if outcome.state is State.CONFIRMED:
            if not row.ever_confirmed:
                self._push_seconds.observe(elapsed_s)
            self._audit.record(
                Event.DELIVERED,
                f"{self._peer_name} holds {printable(row.marked.path)}",
                marked=row.marked,
                peer=self._peer_name,
                elapsed_ms=elapsed_s * 1e3,
            )
        elif outcome.state is not State.PENDING:
            self._audit.record(
                Event.UNDELIVERED,
                f"{self._peer_name}: {printable(row.marked.path)}: {outcome.state.word}: {outcome.detail}",
                marked=row.marked,
                peer=self._peer_name,
                state=outcome.state.word,
                was=before.word,
            )

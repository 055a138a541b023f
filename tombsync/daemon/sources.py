"""What a scrape of the metrics asks of the agent's parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from tombsync.audit import Audit
from tombsync.coverage import CoverageWorker
from tombsync.daemon.pushers import Pushers
from tombsync.guard import RootGuard
from tombsync.inbox import Inbox
from tombsync.index import Reader, Writer
from tombsync.plan import State
from tombsync.rescan import Rescan
from tombsync.watch import Watch
from tombsync.work import Beats


class Sources:
    """What a scrape asks; see metrics.Sources. The reader is shared by the HTTP threads, under `_lock`."""

    def __init__(
        self,
        writer: Writer,
        path: str,
        pushers: Pushers,
        inbox: Inbox | None,
        watch: Watch,
        rescan: Rescan,
        guard: RootGuard,
        beats: Beats,
        audit: Audit,
        coverage: CoverageWorker,
    ) -> None:
        self._writer = writer
        self._pushers = pushers
        self._inbox = inbox
        self._watch = watch
        self._rescan = rescan
        self._guard = guard
        self._beats = beats
        self._audit = audit
        self._coverage = coverage
        self._lock = threading.Lock()
        self._reader = Reader(path)

    def _peers(self) -> dict[int, str]:
        return {pusher.peer: pusher.peer_name for pusher in self._pushers.all}

    def tombstones(self) -> int:
        return self._writer.tally.markers

    def segments(self) -> Iterator[tuple[str, str, int, int]]:
        tally = self._writer.tally
        for place, (channel, quality) in self._writer.places().items():
            hidden = tally.hidden[place]
            yield channel, quality, tally.files[place] - hidden, hidden

    def deliveries(self) -> Iterator[tuple[str, State, int]]:
        peers = self._peers()
        for (peer, state), count in list(self._writer.tally.deliveries.items()):
            if peer in peers:
                yield peers[peer], state, count

    def oldest_unconfirmed_s(self) -> Iterator[tuple[str, float]]:
        now_ns = time.time_ns()
        for key, name in self._peers().items():
            with self._lock:
                oldest_ns = self._reader.oldest_unconfirmed_ns(key)
            yield name, 0.0 if oldest_ns is None else max(0.0, (now_ns - oldest_ns) / 1e9)

    def peers_up(self) -> Iterator[tuple[str, bool]]:
        return ((pusher.peer_name, pusher.up) for pusher in self._pushers.all)

    def canary_ages_s(self) -> Iterator[tuple[str, float]]:
        return ((pusher.peer_name, pusher.canary_age_s) for pusher in self._pushers.all)

    def inbox_waiting(self) -> Iterable[tuple[str, int]]:
        return self._inbox.waiting() if self._inbox is not None else ()

    def watches(self) -> int:
        return self._watch.watches

    def rescans_completed(self) -> Iterable[tuple[str, float]]:
        return list(self._rescan.completed.items())

    def root_believed(self) -> bool:
        return self._guard.believed()

    def beat_ages_s(self) -> dict[str, float]:
        return self._beats.ages_s()

    def journal_dropped(self) -> int:
        return self._audit.dropped

    def coverage_s(self) -> Iterator[tuple[str, str, str, float]]:
        for (channel, quality), totals in self._coverage.totals.items():
            for state, length_us in (
                ("covered", totals.covered_us),
                ("editable", totals.editable_us),
                ("partial", totals.partial_us),
                ("tombstoned", totals.tombstoned_us),
                ("hole", totals.hole_us),
            ):
                yield channel, quality, state, length_us / 1e6

    def close(self) -> None:
        with self._lock:
            self._reader.close()

"""Judges each hour again after something in it changed, and keeps its figures in the index.

What changes an hour makes it unsettled in the index, so only such hours are looked for every few seconds; now and then
all are, as an hour can settle between two looks, and one that ran was over since. Long work of low importance: it gives
way between pieces of less than a millisecond (benchmarks/coverage.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from tombsync.coverage.rows import Totals, to_batch, totals_of_sums
from tombsync.coverage.rules import Reach, judge, sort_out
from tombsync.errors import RootMissing, RootNotBelieved
from tombsync.index import Made, Reader
from tombsync.names import Hour
from tombsync.precedence import give_way
from tombsync.timeline import unix_moment_us
from tombsync.tree import Sizes, Tree
from tombsync.work import IDLE_WAIT_S, WAIT_S, Flush, Mailbox

LOOK_S = IDLE_WAIT_S  # the wait of a worker that is woken for nothing else
# A segment arrives every 2 s and quality: its hour is judged once for fifteen of them. What is hidden does not wait.
REST_S = 30.0
ALL_INTERVAL_S = 600.0  # comparing 100,000 rows takes 0.1 s (benchmarks/coverage.py)
_SLICE_S = 0.02  # one turn; between turns the worker beats and can stop
_CHUNK_HOURS = 256


class CoverageWorker:
    """A worker. All fields belong to its thread, but `totals`, which it exchanges whole and everybody reads."""

    name = "coverage"

    def __init__(
        self,
        *,
        tree: Tree,
        index_path: str,
        mailbox: Mailbox,
        believed: Callable[[], bool],
        may_begin: Callable[[], bool],
    ) -> None:
        """`may_begin`: the index is as the tree was at least once; before, it would tell of holes that are none."""
        self._index_path = index_path
        self._mailbox = mailbox
        self._believed = believed
        self._may_begin = may_begin
        self._tree = tree
        self._reader: Reader | None = None  # made by the worker's own thread
        self._pass: Iterator[None] | None = None
        self._next_at = self._all_at = 0.0  # monotonic
        self._last: tuple[Hour, Reach] | None = None
        self._resting: dict[Hour, tuple[float, int]] = {}  # when it was judged (monotonic), and the files hidden then
        self._summed_up = False
        self._woken = threading.Event()
        self.totals: dict[tuple[str, str], Totals] = {}
        self.judged_total = 0

    def loop(self, now: float) -> None:
        """Go on with what is due for a slice, or wait for it."""
        if not (self._believed() and self._may_begin()):
            self._wait(WAIT_S)
            return
        if self._pass is None:
            if now < self._next_at:
                self._wait(min(IDLE_WAIT_S, self._next_at - now))
                return
            self._pass = self._run(now, every=now >= self._all_at)
        until = time.monotonic() + _SLICE_S
        try:
            while time.monotonic() < until:
                if next(self._pass, self) is self:
                    self._pass = None
                    return
        except (RootMissing, RootNotBelieved):  # the guard finds out for itself
            self._pass = None
            self._wait(WAIT_S)

    def _run(self, begun: float, *, every: bool) -> Iterator[None]:
        if self._reader is None:
            self._reader = Reader(self._index_path)
        reader, self._last = self._reader, None
        before = self.judged_total
        self._resting = {hour: rest for hour, rest in self._resting.items() if begun - rest[0] < REST_S}
        for hour, made in self._due(reader, every=every):
            if not every:
                if hour in self._resting and self._resting[hour][1] == made.hidden:
                    continue
                self._resting[hour] = (begun, made.hidden)
            if not self._judge(reader, hour, made):
                break  # the writer is far behind: what is left is due at the next look
            yield
        if self.judged_total != before or not self._summed_up:
            flush = Flush()
            if self._mailbox.offer_bulk(flush):
                while not flush.done.wait(_SLICE_S):
                    yield
            self._sum_up(reader)
        now = time.monotonic()
        self._next_at = now + LOOK_S
        if every:
            self._all_at = now + ALL_INTERVAL_S

    def _due(self, reader: Reader, *, every: bool) -> Iterator[tuple[Hour, Made]]:
        if not every:
            key = 0
            while some := reader.coverage_due_unsettled(above=key, limit=_CHUNK_HOURS):
                yield from ((hour, made) for _, hour, made in some)
                key = some[-1][0]
            return
        for (channel, quality), (place, _) in reader.places().items():
            above = 0
            while rows := reader.coverage_due(place, above=above, limit=_CHUNK_HOURS):
                yield from ((Hour(channel, quality, number), made) for number, made in rows)
                above = rows[-1][0]

    def _judge(self, reader: Reader, hour: Hour, made: Made) -> bool:
        files = sort_out(hour, reader.segments(hour), reader.markers(hour), give_way)
        previous = hour._replace(number=hour.number - 1)
        if self._last is not None and self._last[0] == previous:
            before = self._last[1]
        else:
            before = Reach(*reader.hour_reach(previous))
        with Sizes(self._tree, hour) as sizes:
            now_us = unix_moment_us(time.time_ns())
            coverage = judge(files, before, now_us, lambda one: sizes.bytes_of(one.name), give_way)
        self._last = (hour, coverage.reach)
        self.judged_total += 1
        return self._mailbox.offer_bulk(to_batch(hour, made, coverage))

    def _sum_up(self, reader: Reader) -> None:
        self._summed_up = True
        self.totals = {
            pair: totals_of_sums(reader.coverage_sums(place)) for pair, (place, _) in reader.places().items()
        }

    def _wait(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        """End the wait of a turn."""
        self._woken.set()

    def close(self) -> None:
        """Give up what is held, after the thread has ended."""
        if self._reader is not None:
            self._reader.close()

"""The index's only steady writer: hides what was seen, and writes what the other workers hand over."""

from __future__ import annotations

import pwd
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import takewhile

from tombsync import precedence
from tombsync.audit import Audit, Event
from tombsync.errors import IndexDamaged, StateRefused
from tombsync.index import Hidden, MarkersForgotten, MarksTakenBack, SegmentRows, Writer
from tombsync.metrics import Metrics
from tombsync.names import Hour, Marked, printable
from tombsync.plan import Breaker
from tombsync.tree import Tree
from tombsync.work import IDLE_WAIT_S, TRANSACTION_ROWS, WAIT_S, Batch, Mailbox, Sight, Sighting, Source

TELL_OF_MASS_INTERVAL_S = 60.0
_WRITTEN_WITHIN_S = 0.5  # at the end: what the journal has by then is not told again at the next start
_MOST_TO_BE_PLACED = 50_000  # what stood in the tree already is never told of
MISSED_AFTER_S = 1.0  # a rescan can list a tombstone a moment before its event is read

# So few are told a moment later: what the pushers have to do for them is short, and somebody waits for it
# (benchmarks/push.py).
FEW = 8
HEAD_START_S = 0.0005


class Intake:
    """A worker. Its thread owns the writer; `_stuck` is what could not be written and is tried again, in order."""

    name = "intake"

    def __init__(
        self,
        *,
        tree: Tree,
        writer: Writer,
        mailbox: Mailbox,
        audit: Audit,
        metrics: Metrics,
        on_news: Callable[[Sequence[Hidden]], None],
        watch_answers: Callable[[], bool],
        breaker: Breaker,
        on_written: Callable[[], None] = lambda: None,
        on_holds_changed: Callable[[], None] = lambda: None,
        on_segments: Callable[[Hour, Sequence[str]], None] = lambda _hour, _names: None,
    ) -> None:
        """`on_news` is told what is to be delivered, right after its commit; `watch_answers` tells whether a tombstone
        seen first by a rescan was missed by the watcher; `on_written`: the index's log has more to move;
        `on_holds_changed`: earlier deliveries began or ended to wait for a person; `on_segments`: the index has files
        of an hour that it perhaps had not before, whoever saw them. Raises IndexDamaged, StateRefused.
        """
        self._tree = tree
        self._writer = writer
        self._mailbox = mailbox
        self._audit = audit
        self._metrics = metrics
        self._on_news = on_news
        self._watch_answers = watch_answers
        self._breaker = breaker
        writer.recall(breaker)  # a mass may have begun before a restart
        # What a life before this one recorded after the first and up to the second is told again.
        self._again_above, self._again_to = writer.told_up_to, writer.newest_marker()
        self._told_of_mass_at = 0.0  # monotonic: of a mass of marks, last
        self._on_written = on_written
        self._on_holds_changed = on_holds_changed
        self._on_segments = on_segments
        self._hide_seconds = {source: metrics.hide_seconds.labels(source.value) for source in Source}
        # Records accepted by then -> the newest marker that they tell of; what is told again comes first.
        self._telling_again: deque[tuple[int, int]] = deque()
        self._telling: deque[tuple[int, int]] = deque()
        self._stuck: list[Sighting] | list[Batch] = []
        # Came by an inbox, and the watcher has not told of them yet. Each is in the index, or about to be: emptied
        # before anything is forgotten there.
        self._to_be_placed: set[Marked] = set()
        self._told_of_refusal = False
        self._unwatched: dict[Marked, float] = {}  # first seen by a rescan -> when it counts as missed, by rising time
        self._stopped = threading.Event()

    def loop(self, now: float) -> None:
        """Write one transaction. Raises IndexDamaged."""
        again = self._again_above < self._again_to
        if again:
            self._tell_again()
        work = self._stuck or self._mailbox.take(WAIT_S if self._unwatched or again else IDLE_WAIT_S)
        if self._unwatched:
            self._count_missed(now)
        if not work:
            return
        self._note_written()
        try:
            if isinstance(work[0], Sighting):
                self._hide(work)
            else:
                if any(isinstance(batch, MarkersForgotten | MarksTakenBack) for batch in work):
                    self._to_be_placed.clear()
                self._writer.apply(work)
                self._tell_of_segments(work)
        except StateRefused as exc:
            self._refused(work, exc)
        else:
            self._stuck = []
            self._told_of_refusal = False
            self._on_written()

    def _refused(self, work: list[Sighting] | list[Batch], exc: StateRefused) -> None:
        # A full disk: nothing is lost, as what was seen stays here and the tombstones stay in the tree.
        self._stuck = work
        self._metrics.index_retries.inc()
        if not self._told_of_refusal:
            self._told_of_refusal = True
            self._audit.record(Event.STATE_REFUSED, f"the index cannot be written and is tried again: {exc}")
        self._stopped.wait(WAIT_S)

    def _tell_of_segments(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if isinstance(batch, SegmentRows) and batch.add:
                self._on_segments(batch.hour, batch.add)

    def _hide(self, sightings: Sequence[Sighting]) -> None:
        seen = [(sighting, self._sight(sighting)) for sighting in sightings if not self._is_our_own(sighting)]
        news = self._writer.hide(seen, time.time_ns(), self._breaker) if seen else []
        committed_ns = time.monotonic_ns()
        if not self._mailbox.sightings_wait:
            precedence.release(precedence.HIDE)
        if news:
            self._on_news(news)
            if any(hidden.others_held or hidden.hold_ended for hidden in news):
                self._on_holds_changed()
            if held := sum(hidden.held for hidden in news):
                self._tell_of_mass(held, committed_ns / 1e9)
            self._tell_of_ended_holds(news)
            if len(news) <= FEW:
                self._mailbox.wait_for_more(HEAD_START_S)
            accepted = 0
            for hidden in news:
                if hidden.first:
                    accepted = self._tell(hidden, committed_ns)
            if accepted:
                self._telling.append((accepted, news[-1].marker))
        if self._unwatched:
            for sighting in sightings:
                if sighting.source is Source.WATCH:  # it had only not come to tell
                    self._unwatched.pop(sighting.marked, None)

    def _is_our_own(self, sighting: Sighting) -> bool:
        """Whether the watcher tells of what the inbox worker has just put into the tree: the index knows of it."""
        if sighting.source is Source.INBOX:
            if len(self._to_be_placed) >= _MOST_TO_BE_PLACED:
                self._to_be_placed.clear()
            self._to_be_placed.add(sighting.marked)
        elif sighting.source is Source.WATCH and not sighting.directory and sighting.marked in self._to_be_placed:
            self._to_be_placed.remove(sighting.marked)
            return True
        return False

    def _sight(self, sighting: Sighting) -> Sight:
        sight = self._tree.sight(sighting.marked)
        if sighting.directory and sight.ctime_ns is None:  # gone again
            return Sight(regular=False, owner_uid=None, ctime_ns=None)
        return sight

    def _count_missed(self, now: float) -> None:
        due = [marked for marked, _ in takewhile(lambda entry: entry[1] <= now, self._unwatched.items())]
        for marked in due:
            del self._unwatched[marked]
        self._metrics.missed_by_watch.inc(len(due))

    def _note_written(self) -> None:
        """Let the next transaction keep up to where the journal has it: a kill loses what was only queued."""
        written = self._audit.written
        for lane in (self._telling_again, self._telling):
            while lane and lane[0][0] <= written:
                _, self._writer.told_up_to = lane.popleft()
            if lane or self._again_above < self._again_to:
                return

    def _tell_again(self) -> None:
        """What a life before this one committed, and may not have told: by a kill, or a journal that took nothing."""
        while self._again_above < self._again_to and self._audit.has_room:
            rows = self._writer.untold(above=self._again_above, up_to=self._again_to, limit=TRANSACTION_ROWS)
            for hidden in rows:
                accepted = self._tell_one_again(hidden)
            self._again_above = rows[-1].marker if rows else self._again_to
            if rows:
                self._telling_again.append((accepted, self._again_above))

    def _tell_one_again(self, hidden: Hidden) -> int:
        ctime_ns = hidden.sight.ctime_ns
        at = datetime.fromtimestamp(hidden.at_ns / 1e9, UTC).isoformat(timespec="microseconds")
        return self._record(
            hidden,
            f"hidden: {printable(hidden.sighting.marked.path)} (at {at}; perhaps told before)",
            max(0.0, (hidden.at_ns - ctime_ns) / 1e9) if ctime_ns is not None else None,
            perhaps_told_before=1,
            hidden_at=at,
        )

    def _record(self, hidden: Hidden, text: str, elapsed_s: float | None, **fields: str | int) -> int:
        sighting = hidden.sighting
        if sighting.origin:
            fields["origin"] = sighting.origin
        return self._audit.record(
            Event.HIDDEN,
            text,
            marked=sighting.marked,
            source=sighting.source.value,
            actor=sighting.sender or owner_name(hidden.sight.owner_uid),
            elapsed_ms=None if elapsed_s is None else elapsed_s * 1e3,
            peer=sighting.sender or None,
            **fields,  # type: ignore[arg-type]
        )

    def close(self) -> None:
        """After its thread has ended: keep up to where the journal has it."""
        if waiting := [*self._telling_again, *self._telling]:
            self._audit.wait_written(max(waiting)[0], _WRITTEN_WITHIN_S)
            self._note_written()
        try:
            with self._writer.transaction():
                pass
        except (StateRefused, IndexDamaged):  # then the next start tells again what it needs not
            pass

    def _tell(self, hidden: Hidden, committed_ns: int) -> int:
        sighting, sight = hidden.sighting, hidden.sight
        if sighting.source is Source.WATCH or sight.ctime_ns is None:
            elapsed_s = (committed_ns - sighting.read_ns) / 1e9
        else:
            elapsed_s = max(0.0, (time.time_ns() - sight.ctime_ns) / 1e9)
        self._hide_seconds[sighting.source].observe(elapsed_s)
        if sighting.source is Source.RESCAN and self._watch_answers():
            self._unwatched[sighting.marked] = committed_ns / 1e9 + MISSED_AFTER_S
        shown = printable(sighting.marked.path)
        accepted = self._record(hidden, f"hidden: {shown}", elapsed_s)
        if not hidden.pushable:
            self._tell_why_not_pushed(hidden, shown)
        return accepted

    def _tell_of_mass(self, held: int, now: float) -> None:
        if now - self._told_of_mass_at > TELL_OF_MASS_INTERVAL_S:
            self._told_of_mass_at = now
            text = (
                "more marks within a minute than breaker.most_per_minute allows: they are hidden here, and wait for"
                " `tombsync release` before any peer is told"
            )
            self._audit.record(Event.MASS_MARK_HELD, text, held=held)

    def _tell_of_ended_holds(self, news: Sequence[Hidden]) -> None:
        for sender, ended in Counter(hidden.sighting.sender for hidden in news if hidden.hold_ended).items():
            text = f"{sender} brought {ended} of the tombstones that were held here: they go to the peers too"
            self._audit.record(Event.HOLD_ENDED, text, peer=sender, count=ended)

    def _tell_why_not_pushed(self, hidden: Hidden, shown: str) -> None:
        marked, source = hidden.sighting.marked, hidden.sighting.source.value
        if not hidden.sight.regular:
            text = f"{shown}.tombstone is no regular file: it hides here and is not sent to peers"
            self._audit.record(Event.NOT_REGULAR, text, marked=marked, source=source)
            return
        self._metrics.rejected.labels(source, "unsafe-name").inc()
        text = f"{shown} is hidden here and is not sent to peers: {marked.unsafe}"
        self._audit.record(Event.REJECTED, text, marked=marked, source=source)

    def wake(self) -> None:
        """End the wait of a running turn."""
        self._stopped.set()
        self._mailbox.put_sightings(())


@lru_cache(maxsize=256)
def owner_name(uid: int | None) -> str | None:
    """The account of a uid, or the number where it has none."""
    if uid is None:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

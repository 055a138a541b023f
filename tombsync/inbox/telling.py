"""What the inbox worker tells: the journal, the metrics, and the commands through the index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tombsync.audit import Audit, Event
from tombsync.inbox.box import Box
from tombsync.inbox.checks import Refused
from tombsync.inbox.placing import Trouble
from tombsync.index import Facts
from tombsync.metrics import Metrics
from tombsync.names import printable
from tombsync.work import Mailbox, Source

TELL_INTERVAL_S = 60.0  # the same of the same sender is told once in so long
FACT = "inboxes"  # what `status` shows of them, as JSON


class Teller:
    """Belongs to the inbox worker's thread. `now` is the monotonic clock."""

    def __init__(self, audit: Audit, metrics: Metrics, mailbox: Mailbox) -> None:
        self._audit = audit
        self._metrics = metrics
        self._mailbox = mailbox
        self._told: dict[tuple[str, str], float] = {}  # (sender, reason) -> when that may be told again
        self._troubles: dict[str, str] = {}  # sender -> what was told last of why the tree takes nothing
        self._view_problem = ""
        self._fact = ""

    def _may_tell(self, sender: str, reason: str, now: float) -> bool:
        """Once a minute: a stolen key must not wash the audit away."""
        if self._told.get((sender, reason), 0.0) > now:
            return False
        self._told[sender, reason] = now + TELL_INTERVAL_S
        return True

    def refused(self, box: Box, name: str, refused: Refused, now: float) -> None:
        """A file was not taken."""
        self._metrics.rejected.labels(Source.INBOX.value, refused.reason).inc()
        if self._may_tell(box.sender, refused.reason, now):
            text = f"{box.sender} delivered {printable(name)}, which is refused: {refused.text}"
            self._audit.record(
                Event.REJECTED,
                text,
                segment=name,
                peer=box.sender,
                source=Source.INBOX.value,
                reason=refused.reason,
            )

    def over_quota(self, box: Box, waiting: int, now: float) -> None:
        """So many files are left for later."""
        if self._may_tell(box.sender, "quota", now):
            text = f"{box.sender} is over its quota: {waiting} files wait in its inbox"
            self._audit.record(Event.INBOX_HELD, text, peer=box.sender, waiting=waiting)

    def cannot_write(self, sender: str, trouble: str, now: float) -> None:
        """Why the tree does not take what was received. It may name another path each time."""
        if trouble != self._troubles.get(sender) and self._may_tell(sender, "tree", now):
            self._troubles[sender] = trouble
            text = f"received from {sender}, cannot write: {trouble}"
            self._audit.record(Event.TREE_REFUSED, text, peer=sender, source=Source.INBOX.value)

    def can_write(self, sender: str) -> None:
        """The tree takes what was received; what is told next is news."""
        self._troubles.pop(sender, None)

    def problem(self, box: Box, problem: str) -> None:
        """What is wrong with the directory now; "" where nothing is."""
        if problem and problem != box.problem:
            self._audit.record(Event.INBOX_MISSING, f"the inbox of {box.sender}: {problem}", peer=box.sender)
        elif box.problem and not problem:
            self._audit.record(Event.INBOX_RETURNED, f"the inbox of {box.sender} is there again", peer=box.sender)
        box.problem = problem

    def unwatched(self, box: Box, why: str, look_interval_s: float) -> None:
        """Why the kernel does not tell what comes into it; "" where it does."""
        if why and not box.unwatched:
            self._metrics.watch_errors.inc()
            text = f"the inbox of {box.sender} cannot be watched, and is looked into every {look_interval_s:g} s: {why}"
            self._audit.record(Event.WATCH_LIMIT, text)
        box.unwatched = why

    def view(self, problem: str) -> None:
        """What is wrong with the view now; "" where nothing is."""
        if problem and problem != self._view_problem:
            self._audit.record(Event.VIEW_STALE, f"the peers' view is not the tree of this node: {problem}")
        elif self._view_problem and not problem:
            self._audit.record(Event.VIEW_RETURNED, "the peers see the tree of this node again")
        self._view_problem = problem

    def state(self, boxes: Iterable[Box], awaited: Mapping[str, Trouble], now: float) -> None:
        """Let the commands know, through the index. `awaited`: what has no file and cannot be written, by sender."""
        without_file = dict(awaited)
        state = []
        for box in boxes:
            count, text = without_file.pop(box.sender, Trouble(0, ""))
            problem = self._view_problem or box.problem
            state.append(
                _facts(box.sender, len(box.unplaced) + count, box.trouble or text, problem, box.not_before > now)
            )
        state.extend(_facts(sender, count, text) for sender, (count, text) in without_file.items())
        fact = json.dumps(state)
        if fact != self._fact:
            self._fact = fact
            self._mailbox.put_urgent(Facts({FACT: fact}))


def _facts(sender: str, unplaced: int, trouble: str, problem: str = "", over_quota: bool = False) -> dict[str, object]:
    return {
        "sender": sender,
        "unplaced": unplaced,
        "over_quota": over_quota,
        "problem": problem,
        "trouble": trouble and f"received, cannot write: {trouble}",
    }

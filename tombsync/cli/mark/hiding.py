"""What every way of marking shares: the tree, the index, the journal, and the agent that is to hide it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import click

from tombsync import errors
from tombsync.audit import Audit, Event, journald_is_there, open_audit
from tombsync.cli.common import agent_runs, on_terminal, open_reader, require_readable, say, tell_error, warn
from tombsync.cli.mark.note import claimed_actor, note
from tombsync.config import Settings
from tombsync.index import Reader
from tombsync.names import Hour, Marked, printable
from tombsync.plan import State
from tombsync.timeline import Piece, time_text
from tombsync.tree import Takedown, Tree, identities

_HIDDEN_WITHIN_S = 2.0  # how long to wait for a running agent to say so; it takes about a millisecond
_LOOK_S = 0.002
ABOUT_CHAT = (
    "the archive merges chat batches, so the same messages can come back under another name: look again later;"
    " and its chat reader can fail on an empty tombstone, as the peers get it"
)


@dataclass
class Result:
    """What became of one path. `peers`: the state at each peer by its name, where that was waited for."""

    path: str
    segment: str = ""
    marked: Marked | None = None
    outcome: str = ""  # marked, already-marked, would-mark, failed
    hides: tuple[str, ...] = ()
    hidden_ms: float | None = None
    error: str = ""
    peers: dict[str, str | None] | None = None

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        facts: dict[str, object] = {
            "path": self.path,
            "segment": self.segment or None,
            "outcome": self.outcome,
            "hides": list(self.hides),
            "hidden_ms": None if self.hidden_ms is None else round(self.hidden_ms, 3),
            "error": self.error or None,
        }
        return facts if self.peers is None else {**facts, "peers": self.peers}


class Hiding:
    """Marks segments of one tree. A context manager; belongs to one command.

    `agent`: the index, where an agent works on it. Entering raises RootMissing, RootNotBelieved.
    """

    def __init__(self, settings: Settings, *, reason: str, dry_run: bool) -> None:
        self.settings = settings
        self.tree = Tree(settings.root)
        self.reason = reason
        self.takedown = ""  # the ID of the one that this belongs to
        self.dry_run = dry_run
        self.agent: Reader | None = None
        self._audit: Audit | None = None
        self._patient = True

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.reader, identity = _index(self.settings)
            if self.reader is not None:
                stack.callback(self.reader.close)
                if agent_runs(self.settings):
                    self.agent = self.reader
            self.root_fd = stack.enter_context(self.tree.open_root())
            self._require_known_root(identity)
            # Not to stderr: there it would only repeat what the command says, and the agent records the hiding itself.
            if self.settings.journal == "auto" and journald_is_there() and not self.dry_run:
                self._audit = open_audit(self.settings.node)
                stack.callback(self._audit.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _require_known_root(self, identity: str | None) -> None:
        """An empty mount point must not swallow a tombstone: where the index names the tree, it has to be that one."""
        if identity is not None:
            self.tree.require(self.root_fd, identity)
        elif not identities(self.root_fd):
            warn(f"{self.tree.root} was never taken up by an agent; is it the right segment tree?")

    def stands(self, marked: Marked) -> bool:
        """Whether something has the name of its tombstone."""
        return os.path.lexists(f"{self.tree.root}/{marked.tombstone_path}")

    def known_hidden(self, hour: Hour) -> Collection[str]:
        """The stems that the index hides in an hour; none where there is no index to ask."""
        try:
            return self.reader.markers(hour) if self.reader is not None else ()
        except errors.TombsyncError:
            return ()

    def begin_takedown(self, takedown: Takedown) -> None:
        """What is hidden from now on belongs to this one, of which a record stands."""
        self.takedown = takedown.id
        if self._audit is not None:
            start, end = time_text(takedown.start_us), time_text(takedown.end_us)
            why = f": {takedown.reason}" if takedown.reason else ""
            sticky = ", sticky" if takedown.sticky else ""
            self._audit.record(
                Event.TAKEDOWN_BEGUN,
                f"{takedown.actor} took down {printable(takedown.channel)} from {start} to {end}"
                f" ({takedown.id}{sticky}){why}",
                source="command",
                actor=takedown.actor,
                takedown=takedown.id,
                channel=takedown.channel,
                start=start,
                end=end,
                sticky=int(takedown.sticky),
                reason=takedown.reason,
            )

    def hide(self, marked: Marked, result: Result) -> None:
        """Mark one, and see the running agent hide it. On a dry run only say what would be. Raises TreeRefused."""
        result.marked, result.segment = marked, marked.path
        if self.dry_run:
            result.outcome = "already-marked" if self.stands(marked) else "would-mark"
            return
        made = self.tree.place(self.root_fd, marked, note(self.settings.node, self.reason))
        result.outcome = "marked" if made else "already-marked"
        if made and self._audit is not None:
            of = f" (takedown {self.takedown})" if self.takedown else ""
            why = f": {self.reason}" if self.reason else ""
            self._audit.record(
                Event.MARKED,
                f"{claimed_actor()} marked {printable(marked.path)}{of}{why}",
                marked=marked,
                source="command",
                actor=claimed_actor(),
                reason=self.reason,
            )
        if self.agent is not None and self._patient and not _await_hidden(result, marked, self.agent):
            self._patient = False  # one wait is enough
            warn("the agent has not hidden it in time; `tombsync status` says how it is")

    def hide_file(self, one: Piece) -> Result:
        """Mark a file that was found in the tree. What keeps it from being marked is told, and noted in the result."""
        result = Result(one.path, segment=f"{one.hour.path}/{one.stem}", hides=(one.name,))
        try:
            self.hide(Marked(one.hour, one.stem), result)
        except errors.TombsyncError as exc:
            result.outcome, result.error = "failed", str(exc)
            tell_error(exc)
        return result

    def let_go(self, results: list[Result]) -> None:
        """What was marked by command is meant: the agent holds one only where it saw the tombstone before its note."""
        if self.agent is None or self.dry_run:
            return
        marked = [result.marked for result in results if result.outcome == "marked"]
        rows = [row for one in marked if one is not None and (row := self.agent.marker(one)) is not None]
        held = [row.marker for row in rows if any(d.state is State.HELD for d in self.agent.deliveries(row.marker))]
        if held:
            from tombsync.daemon import request_resume

            request_resume(self.settings.state_dir, held)


def confirm(count: int, *, ask: bool) -> None:
    """So many may be a mistake, and what a peer has cannot be taken back. Raises NotConfirmed, click.Abort."""
    what = "1 segment" if count == 1 else f"{count} segments"
    if not ask or not on_terminal(sys.stdin):
        raise errors.NotConfirmed(f"{what} would be hidden on every node")
    click.confirm(f"Hide {what} on every node?", abort=True, err=True)


def _index(settings: Settings) -> tuple[Reader | None, str | None]:
    """The index, and the identity of the tree that it knows. Marking must work without one, and with a damaged one."""
    try:
        reader = open_reader(settings)
    except errors.TombsyncError:
        return None, None
    try:
        return reader, reader.fact("root")
    except errors.TombsyncError:
        reader.close()
        return None, None


def _await_hidden(result: Result, marked: Marked, reader: Reader) -> bool:
    """See the running agent hide it, so that a person under stress can go on; False where it takes too long."""
    begun = time.monotonic()
    while time.monotonic() - begun < _HIDDEN_WITHIN_S:
        try:
            hidden = reader.marker(marked) is not None
        except errors.TombsyncError as exc:  # the tombstone stands all the same
            tell_error(exc)
            return False
        if hidden:
            result.hidden_ms = (time.monotonic() - begun) * 1e3
            return True
        time.sleep(_LOOK_S)  # another process's commit is nothing that can be waited for
    return False


def warn_without_agent(settings: Settings) -> None:
    """Say where no agent runs: the tombstones stand, and nobody delivers them yet."""
    try:
        require_readable(settings)
    except errors.StateRefused as exc:
        warn(f"whether the agent runs cannot be told: {exc}")
        return
    if not agent_runs(settings):
        warn("no agent runs here: the tombstones stand, its next start hides them and delivers them to the peers")


def say_result(result: Result) -> None:
    """One line for people."""
    words = {"marked": "marked", "already-marked": "already marked", "would-mark": "would mark"}
    hides = f"  hides {', '.join(result.hides)}" if result.hides else "  hides nothing here yet"
    hidden = "  (hidden in the index)" if result.hidden_ms is not None else ""
    say(f"{words[result.outcome]} {result.segment}{hides}{hidden}")


def results_json(results: list[Result]) -> list[dict[str, Any]]:
    """For `--json`."""
    return [result.as_json() for result in results]

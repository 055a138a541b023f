"""What commands ask of the agent (see `asking`), done: the agent alone writes the index.

What takes marks back counts only as long as its command lives: nobody else would ask the peers again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tombsync.audit import Audit, Event
from tombsync.daemon.asking import DIRECTORY, LEASE, REFUSED, SUFFIX, WHILE_ALIVE, Kind, asker_lives
from tombsync.daemon.pushers import Pushers
from tombsync.index import DeliveriesHeld, HoldsEnded, HoldsEndedUpTo, MarksTakenBack
from tombsync.names import Marked, printable
from tombsync.work import TRANSACTION_ROWS, Batch, Mailbox, Source

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Requests:
    """Belongs to the supervising thread; what runs at a commit is the intake's, and says so."""

    def __init__(
        self,
        state_dir: str,
        mailbox: Mailbox,
        audit: Audit,
        pushers: Pushers,
        is_gone: Callable[[Marked], bool],
    ) -> None:
        """`is_gone`: whether the tree stands and has no such tombstone; asked in the intake's thread."""
        self._directory = os.path.join(state_dir, DIRECTORY)
        self._mailbox = mailbox
        self._audit = audit
        self._pushers = pushers
        self._is_gone = is_gone
        self._taken: set[str] = set()
        self._held: frozenset[int] = frozenset()  # replaced as a whole
        self._reloads: list[str] = []

    def holds(self, marker: int) -> bool:
        """Whether a command that lives may be taking this mark back; from any thread."""
        return marker in self._held

    def take_reloads(self) -> list[str]:
        """The requests of a reload that came since this was asked last."""
        reloads, self._reloads = self._reloads, []
        return reloads

    @staticmethod
    def answer(paths: Iterable[str], refused_because: str) -> None:
        """These are done, or are not for a reason."""
        for path in paths:
            if refused_because:
                with suppress(OSError), open(path + REFUSED, "x", encoding="utf-8") as file:
                    file.write(refused_because)
            _remove(path)

    def take(self) -> None:
        """Begin what is asked for."""
        try:
            names = os.listdir(self._directory)
        except OSError:  # nobody ever asked
            return
        held: set[int] = set()
        for name in sorted(names):
            path = os.path.join(self._directory, name)
            if name.endswith(LEASE):
                held.update(self._look_after(path))
            elif name.endswith(SUFFIX) and path not in self._taken:
                self._taken.add(path)
                self._begin(path)
        self._held = frozenset(held)

    def _begin(self, path: str) -> None:
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
                if document["kind"] in WHILE_ALIVE and not asker_lives(file):
                    log.warning("%s: whoever asked for it has died, and so it is not done", path)
                    _remove(path)
                    return
            batches = list(self._batches(path, document))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("a request that cannot be read is left alone: %s: %s", path, exc)
            return
        for batch in batches:
            self._mailbox.put_urgent(batch)

    def _batches(self, path: str, document: dict[str, Any]) -> Iterable[Batch]:
        """What does it. Raises KeyError, TypeError, ValueError."""
        match document["kind"]:
            case Kind.RELEASE:
                yield self._release(path, int(document["up_to"]), str(document["actor"]), 0)
            case Kind.RESUME:
                yield from self._resume(path, _markers_of(document))
            case Kind.HOLD:
                markers = _markers_of(document)
                parts = list(_parts(markers))
                done = _After(len(parts), lambda: self._withdraw(path, frozenset(markers)))
                yield from (DeliveriesHeld(part, done.one) for part in parts)
            case Kind.TAKE_BACK:
                yield from self._take_back(path, document)
            case Kind.RELOAD:
                self._reloads.append(path)  # the supervisor's own
            case kind:
                raise ValueError(f"no kind of request: {kind!r}")

    def _release(self, path: str, up_to: int, actor: str, before: int) -> Batch:
        """A transaction's worth, the newest first; `before`: how many were released already."""
        return HoldsEndedUpTo(up_to, lambda ended: self._released(path, up_to, actor, before, ended))

    def _resume(self, path: str, markers: Sequence[int]) -> Iterable[Batch]:
        parts = list(_parts(markers))
        done = _After(len(parts), lambda: self._resumed(path))
        return [HoldsEnded(part, lambda _: done.one()) for part in parts]

    def _take_back(self, path: str, document: dict[str, Any]) -> Iterable[Batch]:
        actor, reason = str(document["actor"]), str(document["reason"])
        parts = list(_parts(_markers_of(document)))
        done = _After(len(parts), lambda: _remove(path))

        def is_gone(marked: Marked) -> bool:
            return os.path.exists(path) and self._is_gone(marked)  # whoever asked may have given up meanwhile

        def taken_back(forgotten: Sequence[Marked], kept: Sequence[Marked]) -> None:
            self._tell_taken_back(forgotten, actor, reason)
            if os.path.exists(path):  # else whoever asked says so
                self._tell_kept(kept, actor)
            done.one()

        return [MarksTakenBack(part, is_gone, taken_back) for part in parts]

    def _look_after(self, path: str) -> Sequence[int]:
        """What is held for a command, as long as that lives; else what was pending before goes on."""
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
                alive = asker_lives(file)
            if alive or path in self._taken:
                return _markers_of(document)
            pending, actor = [int(marker) for marker in document["pending"]], str(document["actor"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError) as exc:
            if path not in self._taken:
                self._taken.add(path)
                log.warning("what is held for a command cannot be read, and stays held: %s: %s", path, exc)
            return ()
        self._taken.add(path)
        text = f"`tombsync unmark` by {actor} died and took nothing more back; {len(pending)} that it held back go on"
        self._audit.record(Event.UNMARK_FAILED, text, actor=actor, count=len(pending))
        for batch in self._resume(path, pending):
            self._mailbox.put_urgent(batch)
        return ()

    # -- at the commit, in the intake's thread ------------------------------------------------------------------------

    def _released(self, path: str, up_to: int, actor: str, before: int, ended: int) -> None:
        if ended:  # page by page, as hiding waits for each transaction
            self._mailbox.put_urgent(self._release(path, up_to, actor, before + ended))
            return
        self._audit.record(Event.RELEASED, f"{actor} released {before} held tombstones", actor=actor, count=before)
        self._resumed(path)

    def _resumed(self, path: str) -> None:
        self._pushers.look_again()
        _remove(path)

    def _withdraw(self, path: str, markers: frozenset[int]) -> None:
        pushers = self._pushers.all
        done = _After(len(pushers), lambda: _keep_as_lease(path))
        for pusher in pushers:
            pusher.withdraw(markers, done.one)

    def _tell_taken_back(self, forgotten: Sequence[Marked], actor: str, reason: str) -> None:
        why = f": {reason}" if reason else ""
        told: dict[str, Any] = {"reason": reason} if reason else {}
        for marked in forgotten:
            text = f"{actor} took back the mark of {printable(marked.path)}{why}"
            self._audit.record(Event.UNMARKED, text, marked=marked, source=Source.COMMAND.value, actor=actor, **told)

    def _tell_kept(self, kept: Sequence[Marked], actor: str) -> None:
        for marked in kept:
            text = f"{printable(marked.path)} came back, or was released, before {actor} could take it back: it hides"
            self._audit.record(Event.UNMARK_FAILED, text, marked=marked, source=Source.COMMAND.value, actor=actor)


class _After:
    """Calls `then` when `one` was called so many times, from whatever threads; at once where that is none."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._lock = threading.Lock()  # of `_left`
        self._left = count
        self._then = then
        if not count:
            then()

    def one(self) -> None:
        """One of them is done."""
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._then()


def _parts(values: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """At most a transaction's worth each."""
    return (values[start : start + TRANSACTION_ROWS] for start in range(0, len(values), TRANSACTION_ROWS))


def _markers_of(document: dict[str, Any]) -> list[int]:
    return [int(marker) for marker in document["markers"]]


def _keep_as_lease(path: str) -> None:
    """It is done, for as long as the command lives; one that has given up has taken the file away."""
    with suppress(OSError):
        os.rename(path, path + LEASE)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)

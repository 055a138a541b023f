"""What commands ask of the agent that only it can do, as it alone writes the index: small files in the state directory.

A request is put in place whole and stays until it was done, so it also waits for an agent that is down.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeVar

from tombsync.audit import Audit, Event
from tombsync.daemon.pushers import Pushers
from tombsync.errors import BadName, StateRefused
from tombsync.index import DeliveriesHeld, HoldsEnded, MarksTakenBack
from tombsync.names import Hour, Marked, strict_path
from tombsync.work import TRANSACTION_ROWS, Batch, Mailbox

log = logging.getLogger(__name__)

_DIRECTORY = "requests"
_SUFFIX = ".json"
_T = TypeVar("_T")


class _Kind(StrEnum):
    RELEASE = "release"
    HOLD = "hold"
    RESUME = "resume"
    TAKE_BACK = "take-back"


def request_release(state_dir: str, *, up_to: int, actor: str) -> str:
    """Ask that every tombstone up to this marker that is held goes to the peers; the request's path, gone when it does.

    Raises StateRefused.
    """
    return _put(state_dir, {"kind": _Kind.RELEASE, "up_to": up_to, "actor": actor})


def request_hold(state_dir: str, markers: Sequence[int]) -> str:
    """Ask that pending deliveries of these markers wait, and that none of them is on its way any more; see above."""
    return _put(state_dir, {"kind": _Kind.HOLD, "markers": list(markers)})


def request_resume(state_dir: str, markers: Sequence[int]) -> str:
    """Ask that held deliveries of these markers go to the peers; as `request_release`."""
    return _put(state_dir, {"kind": _Kind.RESUME, "markers": list(markers)})


def request_taking_back(state_dir: str, segments: Iterable[Marked]) -> str:
    """Ask that these marks are forgotten: their tombstones were removed, and all their deliveries are held."""
    return _put(state_dir, {"kind": _Kind.TAKE_BACK, "segments": [marked.path for marked in segments]})


def _put(state_dir: str, document: dict[str, Any]) -> str:
    directory = os.path.join(state_dir, _DIRECTORY)
    path = os.path.join(directory, f"{document['kind']}-{uuid.uuid4().hex}{_SUFFIX}")
    new = path + ".new"
    try:
        os.makedirs(directory, mode=0o750, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(fd)
        _give_to_owner(state_dir, directory, new)
        os.rename(new, path)
    except OSError as exc:
        raise StateRefused(path, exc.strerror or str(exc)) from exc
    return path


def _give_to_owner(state_dir: str, *paths: str) -> None:
    """What root puts there belongs to the agent's account, which must be able to read it and take it away."""
    owner = os.stat(state_dir)
    for path in paths:
        if os.stat(path).st_uid != owner.st_uid:
            os.chown(path, owner.st_uid, owner.st_gid)


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
        self._directory = os.path.join(state_dir, _DIRECTORY)
        self._mailbox = mailbox
        self._audit = audit
        self._pushers = pushers
        self._is_gone = is_gone
        self._taken: set[str] = set()

    def take(self) -> None:
        """Begin what is asked for."""
        try:
            names = os.listdir(self._directory)
        except OSError:  # nobody ever asked
            return
        for name in sorted(names):
            path = os.path.join(self._directory, name)
            if name.endswith(_SUFFIX) and path not in self._taken:
                self._taken.add(path)
                self._begin(path)

    def _begin(self, path: str) -> None:
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
            batches = list(self._batches(path, document))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, BadName) as exc:
            log.warning("a request that cannot be read is left alone: %s: %s", path, exc)
            return
        for batch in batches:
            self._mailbox.put_urgent(batch)

    def _batches(self, path: str, document: dict[str, Any]) -> Iterable[Batch]:
        """What does it. Raises KeyError, TypeError, ValueError, BadName."""
        match document["kind"]:
            case _Kind.RELEASE:
                up_to, actor = int(document["up_to"]), str(document["actor"])
                yield HoldsEnded(lambda ended: self._released(path, actor, ended), up_to=up_to)
            case _Kind.RESUME:
                markers = [int(marker) for marker in document["markers"]]
                yield HoldsEnded(lambda _: self._resumed(path), markers=markers)
            case _Kind.HOLD:
                markers = [int(marker) for marker in document["markers"]]
                parts = list(_parts(markers))
                done = _After(len(parts), lambda: self._withdraw(path, frozenset(markers)))
                yield from (DeliveriesHeld(part, done.one) for part in parts)
            case _Kind.TAKE_BACK:
                hours: dict[Hour, list[str]] = {}
                for marked in map(strict_path, document["segments"]):
                    hours.setdefault(marked.hour, []).append(marked.stem)
                groups = [(hour, part) for hour, stems in hours.items() for part in _parts(stems)]
                done = _After(len(groups), lambda: _remove(path))
                yield from (MarksTakenBack(hour, part, self._is_gone, done.one) for hour, part in groups)
            case kind:
                raise ValueError(f"no kind of request: {kind!r}")

    # -- at the commit, in the intake's thread ------------------------------------------------------------------------

    def _released(self, path: str, actor: str, ended: int) -> None:
        self._audit.record(Event.RELEASED, f"{actor} released {ended} held tombstones", actor=actor, count=ended)
        self._resumed(path)

    def _resumed(self, path: str) -> None:
        self._pushers.look_again()
        _remove(path)

    def _withdraw(self, path: str, markers: frozenset[int]) -> None:
        pushers = self._pushers.all
        done = _After(len(pushers), lambda: _remove(path))
        for pusher in pushers:
            pusher.withdraw(markers, done.one)


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


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)

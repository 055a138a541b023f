"""What commands ask of the agent that only it can do, as it alone writes the index: small files in the state directory.

A request is put in place whole and stays until it was done, so it also waits for an agent that is down.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tombsync.audit import Audit, Event
from tombsync.errors import StateRefused
from tombsync.index import HoldsEnded
from tombsync.work import Mailbox

log = logging.getLogger(__name__)

_DIRECTORY = "requests"
_SUFFIX = ".json"
RELEASE = "release"


def request_release(state_dir: str, *, up_to: int, actor: str) -> str:
    """Ask that every tombstone up to this marker that is held goes to the peers; the request's path, gone when it does.

    Raises StateRefused.
    """
    return _put(state_dir, {"kind": RELEASE, "up_to": up_to, "actor": actor})


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
    """Belongs to the supervising thread, but that `_taken` is changed by the intake's at a commit."""

    def __init__(self, state_dir: str, mailbox: Mailbox, audit: Audit, on_released: Callable[[], None]) -> None:
        self._directory = os.path.join(state_dir, _DIRECTORY)
        self._mailbox = mailbox
        self._audit = audit
        self._on_released = on_released
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
            kind, up_to, actor = document["kind"], int(document["up_to"]), str(document["actor"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("a request that cannot be read is left alone: %s: %s", path, exc)
            return
        if kind == RELEASE:
            self._mailbox.put_urgent(HoldsEnded(lambda ended: self._released(path, actor, ended), up_to=up_to))

    def _released(self, path: str, actor: str, ended: int) -> None:
        """Runs in the intake's thread."""
        self._audit.record(Event.RELEASED, f"{actor} released {ended} held tombstones", actor=actor, count=ended)
        self._on_released()
        with suppress(OSError):
            os.unlink(path)

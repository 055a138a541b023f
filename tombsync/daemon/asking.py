"""The asking side of requests: what commands want of the agent that only it can do, as small files in its state.

A request is put in place whole and stays until it was done, so it also waits for an agent that is down. Those of
WHILE_ALIVE are under a lock of the command, and count only as long as that lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import IO, Any

from tombsync.errors import StateRefused

DIRECTORY = "requests"
SUFFIX = ".json"
LEASE = ".lease"  # of a request that is done, and undone when whoever asked dies
REFUSED = ".refused"  # of a request that was not done: why


class Kind(StrEnum):
    """What is asked for."""

    RELEASE = "release"
    HOLD = "hold"
    RESUME = "resume"
    TAKE_BACK = "take-back"
    RELOAD = "reload"


WHILE_ALIVE = (Kind.HOLD, Kind.TAKE_BACK, Kind.RELOAD)


def request_release(state_dir: str, *, up_to: int, actor: str) -> str:
    """Ask that every tombstone up to this marker that is held goes to the peers; the request's path, gone when it does.

    Raises StateRefused.
    """
    return _put(state_dir, {"kind": Kind.RELEASE, "up_to": up_to, "actor": actor})


def request_resume(state_dir: str, markers: Sequence[int]) -> str:
    """Ask that held deliveries of these markers go to the peers; as `request_release`."""
    return _put(state_dir, {"kind": Kind.RESUME, "markers": list(markers)})


@contextmanager
def holding(state_dir: str, markers: Sequence[int], *, pending: Sequence[int], actor: str) -> Iterator[str]:
    """Ask that pending deliveries of these markers wait, and none of them is on its way any more, until the block ends.

    Yields the request's path, gone when it is so. Whoever dies in the block has given up: what was `pending` goes on.
    """
    document = {"kind": Kind.HOLD, "markers": list(markers), "pending": list(pending), "actor": actor}
    with _while_alive(state_dir, document) as path:
        yield path


@contextmanager
def taking_back(state_dir: str, markers: Sequence[int], *, actor: str, reason: str) -> Iterator[str]:
    """Ask that these marks are forgotten: their tombstones were removed, and all their deliveries are held.

    Yields the request's path, gone when it is done; what is not done when the block ends is not done any more.
    """
    document = {"kind": Kind.TAKE_BACK, "markers": list(markers), "actor": actor, "reason": reason}
    with _while_alive(state_dir, document) as path:
        yield path


@contextmanager
def reloading(state_dir: str) -> Iterator[str]:
    """Ask that the settings are read again. Yields the request's path, gone when they count; see `refused_because`."""
    with _while_alive(state_dir, {"kind": Kind.RELOAD}) as path:
        yield path


def refused_because(path: str) -> str:
    """Why a request was not done, in its block; "" where it was."""
    try:
        with open(path + REFUSED, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


@contextmanager
def _while_alive(state_dir: str, document: dict[str, Any]) -> Iterator[str]:
    """A request that counts only as long as whoever asks lives, which the lock on its file tells."""
    fds: list[int] = []
    path = _put(state_dir, document, locked=fds)
    try:
        yield path
    finally:
        for name in (path, path + LEASE, path + REFUSED):  # in the order in which the agent renames
            with suppress(OSError):
                os.unlink(name)
        os.close(fds[0])


def _put(state_dir: str, document: dict[str, Any], *, locked: list[int] | None = None) -> str:
    """`locked`: gets a descriptor of it that holds a lock, from before it can be seen."""
    directory = os.path.join(state_dir, DIRECTORY)
    path = os.path.join(directory, f"{document['kind']}-{uuid.uuid4().hex}{SUFFIX}")
    new = path + ".new"
    try:
        os.makedirs(directory, mode=0o750, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(fd)
            if locked is not None:
                fcntl.flock(fd, fcntl.LOCK_EX)
                locked.append(os.dup(fd))  # of one open file, and so of one lock
        _give_to_owner(state_dir, directory, new)
        os.rename(new, path)
    except OSError as exc:
        raise StateRefused(path, exc.strerror or str(exc)) from exc
    return path


def asker_lives(file: IO[str]) -> bool:
    """Whether whoever asked by this file, under a lock, is still there."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _give_to_owner(state_dir: str, *paths: str) -> None:
    """What root puts there belongs to the agent's account, which must be able to read it and take it away."""
    owner = os.stat(state_dir)
    for path in paths:
        if os.stat(path).st_uid != owner.st_uid:
            os.chown(path, owner.st_uid, owner.st_gid)

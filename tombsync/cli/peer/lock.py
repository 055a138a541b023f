"""One command at a time changes peers: each reads the settings, fstab and more, and puts back what it made of them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tombsync import errors
from tombsync.cli.common import warn

# Of the machine, as most of what is changed is. In a directory where only root can make files.
LOCK = "/run/tombsync-peer.lock"
WAIT_S = 60.0  # `peer add` takes some seconds
_LOOK_S = 0.1  # flock(2) has no time limit


@contextmanager
def alone(*, dry_run: bool) -> Iterator[None]:
    """Keep the other commands out until the block ends; a dry run changes nothing and waits for nobody.

    Raises OtherCommandRuns after WAIT_S, FileRefused where nothing can be locked.
    """
    if dry_run:
        yield
        return
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise errors.FileRefused(LOCK, exc.strerror or str(exc)) from exc
    try:
        _take(descriptor)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> None:
    begun = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if not told:
            warn("another `tombsync peer` command is at work: waiting for it to end")
            told = True
        if (waited_s := time.monotonic() - begun) > WAIT_S:
            raise errors.OtherCommandRuns(LOCK, waited_s)
        time.sleep(_LOOK_S)

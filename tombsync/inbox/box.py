"""One sender's inbox, by a descriptor of its directory."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager

from tombsync.inbox.checks import Quota
from tombsync.names import Offer

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BoxUnusable(Exception):
    """The directory is not there, cannot be opened, or its account does not exist; the text says which."""


class Box:
    """Belongs to the inbox worker's thread, which writes all fields; `waiting` may be read by any.

    `waiting`: names in it at the last look. `problem`: why nothing can be taken from it; "" where it can. `trouble`:
    why what was received and hidden cannot be written into the tree; "" where it can.
    """

    def __init__(self, sender: str, account: str, path: str, quota_per_hour: int) -> None:
        self.sender = sender
        self.account = account
        self.path = path
        self.quota = Quota(quota_per_hour)
        self.waiting = 0
        self.problem = ""
        self.trouble = ""
        self.changed = True  # something came since the last look
        self.look_at = 0.0  # monotonic: look whether or not something came
        self.not_before = 0.0  # monotonic: over its quota until then
        self.unplaced: dict[str, Offer] = {}  # hidden, and not yet in the tree
        self.place_at = 0.0  # monotonic: when that is tried again
        self.failures = 0  # of trying it, in a row
        self.left: set[str] = set()  # what was refused and could not be taken away
        self.listed: list[str] = []  # of the last listing, what was not yet looked at

    def due(self, now: float) -> bool:
        """Whether to look into it now."""
        if self.unplaced and self.place_at <= now:
            return True
        return (self.changed or self.look_at <= now) and self.not_before <= now

    def next_at(self) -> float:
        """When it is due at the latest, on the monotonic clock, if nothing comes."""
        at = max(self.look_at, self.not_before)
        return min(at, self.place_at) if self.unplaced else at

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the directory for the time of a `with` block. Raises BoxUnusable."""
        try:
            fd = os.open(self.path, _DIRECTORY)
        except OSError as exc:
            raise BoxUnusable(f"{self.path}: {exc.strerror}") from exc
        try:
            yield fd
        finally:
            os.close(fd)

    def uid(self) -> int:
        """The account that alone may put files there. Raises BoxUnusable."""
        try:
            return pwd.getpwnam(self.account).pw_uid
        except KeyError as exc:
            raise BoxUnusable(f"there is no account {self.account}") from exc

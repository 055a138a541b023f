"""One sender's inbox: its directory, by a descriptor, and where each name in it stands."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tombsync.inbox.checks import Quota
from tombsync.inbox.placing import Pass
from tombsync.names import Offer, printable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BoxUnusable(Exception):
    """The directory is not there, cannot be opened, or its account does not exist; the text says which."""


class Box:
    """Belongs to the inbox worker's thread, which writes all fields; `waiting` may be read by any.

    A name that was seen is in one of four: `listed` (not yet looked at), `placing` (being hidden, and put into the
    tree), `unplaced` (hidden, and the tree did not take it) or `left` (could not be taken away). `problem`: what is
    wrong with the directory; "" where nothing is. `trouble`: why what was received and hidden cannot be written into
    the tree; "" where it can.
    """

    def __init__(self, sender: str, account: str, path: str, quota_per_hour: int) -> None:
        self.sender = sender
        self.account = account
        self.path = path
        self.quota = Quota(quota_per_hour)
        self.problem = ""
        self.trouble = ""
        self.unwatched = ""  # why the kernel does not tell what comes
        self.changed = True  # something came since the last look
        self.look_at = 0.0  # monotonic: look whether or not something came
        self.not_before = 0.0  # monotonic: over its quota until then
        self.listed: list[str] = []
        self.placing: Pass | None = None
        self.unplaced: dict[str, Offer] = {}
        self.place_at = 0.0  # monotonic: when those are tried again
        self.failures = 0  # of trying it, in a row
        self.left: dict[str, str] = {}  # with the reason
        self.left_at = 0.0  # monotonic: when taking those away is tried again

    @property
    def waiting(self) -> int:
        """How many names are in it, as far as is known."""
        placing = self.placing
        return len(self.listed) + len(self.unplaced) + len(self.left) + (len(placing) if placing is not None else 0)

    def due(self, now: float) -> bool:
        """Whether to visit it now."""
        if self.placing is not None or (self.unplaced and self.place_at <= now):
            return True
        return bool(self.changed or self.listed or self.look_at <= now) and self.not_before <= now

    def next_at(self) -> float:
        """When it is due at the latest, on the monotonic clock, if nothing comes."""
        at = max(self.look_at, self.not_before)
        return min(at, self.place_at) if self.unplaced else at

    def see(self, names: Iterable[str]) -> bool:
        """These are in it now; whether some that are hidden and not in the tree have lost their file.

        Only while nothing is being placed.
        """
        found = dict.fromkeys(names)
        before = len(self.unplaced)
        self.unplaced = {name: offer for name, offer in self.unplaced.items() if name in found}
        self.listed = [name for name in found if name not in self.unplaced and name not in self.left]
        return len(self.unplaced) < before

    def try_again(self) -> None:
        """Begin to place once more what the tree did not take."""
        self.placing, self.unplaced = Pass(self.unplaced), {}

    def put_off(self, until: float) -> bool:
        """Nothing can be done with it before then; whether something was being placed, which its names tell again."""
        dropped = self.placing is not None
        self.placing = None
        self.listed = []
        self.changed = False
        self.look_at = until
        self.place_at = max(self.place_at, until)
        return dropped

    def not_removed(self) -> str:
        """What cannot be taken away, and why; "" where nothing is left in it."""
        for name, why in self.left.items():
            return f"{self.path}: {printable(name)} in it cannot be taken away: {why}"
        return ""

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

"""The inbox worker in this process, with the real intake, index and tree; turn by turn, or in a thread of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.journal import Journal
from tests.support.waiting import wait_for
from tombsync.inbox import Box, Inbox
from tombsync.index import PlaceMount, Reader, Writer, index_path
from tombsync.intake import Intake
from tombsync.metrics import Metrics
from tombsync.names import Hour, Offer, offer_name
from tombsync.plan import Breaker
from tombsync.tree import Tree
from tombsync.work import Beats, Driver, Flush, Mailbox

NO_LIMIT = 1_000_000_000
SENDER = "node-b"
_LATER_S = 3600.0  # more than any wait of the worker


class InboxWorker:
    """A node that receives. A context manager; what is not given lies below `base`, and the sender is this account.

    Unlike an agent it is not confined: what does not leave the tree does not because of how it is written, and not
    because the kernel would refuse it.
    """

    def __init__(
        self,
        base: Path,
        *,
        root: Path | None = None,
        view: Path | None = None,
        box: Box | None = None,
        others: Sequence[str] = (),
    ) -> None:
        """`others`: more senders, each with an inbox of its own; all are this account."""
        self.root = root or base / "segments"
        own_account = pwd.getpwuid(os.geteuid()).pw_name
        self.box = box or Box(SENDER, own_account, str(base / "inbox"), NO_LIMIT)
        self.others = {name: Box(name, own_account, str(base / f"inbox-{name}"), NO_LIMIT) for name in others}
        self.boxes = [self.box, *self.others.values()]
        self.directory = Path(self.box.path)
        for directory in (self.root, *(Path(box.path) for box in self.boxes), base / "state"):
            directory.mkdir(parents=True, exist_ok=True)
        self.tree = Tree(str(self.root))
        self.metrics = Metrics()
        self.journal = Journal()
        self.mailbox = Mailbox()
        path = index_path(str(base / "state"))
        self._writer = Writer(path)
        self.reader = Reader(path)
        self.inbox = Inbox(
            tree=self.tree, identity=self.tree.adopt(), boxes=self.boxes, view=str(view or self.root),
            index_path=path, mailbox=self.mailbox, audit=self.journal.audit, metrics=self.metrics,
            believed=lambda: True,
        )  # fmt: skip
        intake = Intake(
            tree=self.tree, writer=self._writer, mailbox=self.mailbox, audit=self.journal.audit, metrics=self.metrics,
            on_news=lambda _: None, watch_answers=lambda: False, breaker=Breaker(NO_LIMIT),
        )  # fmt: skip
        self._driver = Driver(intake, Beats(), self.mailbox.close)
        self._later_s = 0.0  # how far the worker's time is ahead; it never goes back

    def __enter__(self) -> InboxWorker:
        self._driver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.stop()
        assert self._driver.join(20.0)
        self.inbox.close()
        self.reader.close()
        self._writer.close()
        self.journal.close()

    def record_place(self, hour: Hour) -> None:
        """What a rescan does that finds the first hour of a place."""
        self.mailbox.put_urgent(PlaceMount(hour, own_mount=False))
        self.settle()

    def deliver(self, offer: Offer, *, by: str = "") -> None:
        """What the sender's account does, or that of one of the others."""
        self.put(offer_name(offer), by=by)

    def put(self, name: str, *, by: str = "") -> None:
        """A file of any name in the inbox."""
        directory = Path(self.others[by].path) if by else self.directory
        os.close(os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It takes by itself what comes, in the time of a `with` block."""
        driver = Driver(self.inbox, Beats(), lambda: None)
        driver.start()
        try:
            yield
        finally:
            driver.stop()
            assert driver.join(20.0)
        if driver.failure is not None:
            raise driver.failure

    def turn(self, *, later_s: float = 0.0) -> None:
        """One turn of the worker, at a later time if wanted; where nothing is to be done it does not wait."""
        self.inbox.wake()
        self.inbox.loop(time.monotonic() + later_s)

    def take_all(self) -> None:
        """Turns until nothing is left to do, however long it would wait in between: its time goes on with them."""
        while True:
            self._later_s += _LATER_S
            self.turn(later_s=self._later_s)
            self.settle()
            if not os.listdir(self.directory) and not self.reader.awaited(above=0, limit=1):
                return

    def settle(self) -> None:
        """Wait until the index holds what the worker has handed over; the intake's failure is one of the test."""
        flush = Flush()
        self.mailbox.put_urgent(flush)
        wait_for(lambda: flush.done.is_set() or self._driver.failure, "the index to be written")
        if self._driver.failure is not None:
            raise self._driver.failure

    def told_of(self) -> dict[str, Any]:
        """What the commands can say of the inboxes, by sender."""
        self.settle()
        return {one["sender"]: one for one in json.loads(self.reader.fact("inboxes") or "[]")}

    def refused(self) -> dict[str, float]:
        """How many files were refused, by reason."""
        return {
            sample.labels["reason"]: sample.value
            for metric in self.metrics.rejected.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["source"] == "inbox"
        }

"""The inbox worker with a real index and tree, turn by turn; tests/system/test_inbox.py has it in an agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import make_hour, segment_stem
from tests.support.inbox_worker import SENDER, InboxWorker
from tombsync.names import Hour, Marked, Offer, hour_number

FIRST = Hour("desertbus", "source", hour_number("2019-11-13T02"))
NEXT = FIRST._replace(number=FIRST.number + 1)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[InboxWorker]:
    with InboxWorker(tmp_path) as worker:
        for hour in (FIRST, NEXT):
            make_hour(worker.root, hour.path)
        yield worker


def come(worker: InboxWorker, marked: Marked, *, later_s: float) -> None:
    """It is delivered, hidden, and tried to be placed, so many seconds from now."""
    worker.deliver(Offer(marked, SENDER))
    worker.box.changed = True
    worker.turn(later_s=later_s)
    worker.settle()
    worker.turn(later_s=later_s)


def test_a_place_that_stays_unwritable_does_not_put_off_another_that_is_writable_again(worker: InboxWorker) -> None:
    aside = worker.root / "aside"
    for hour in (FIRST, NEXT):
        (worker.root / hour.path).rename(f"{aside}-{hour.number}")
        (worker.root / hour.path).symlink_to("/nowhere")
    waits = Marked(NEXT, segment_stem(0))
    come(worker, waits, later_s=0.0)
    (worker.root / NEXT.path).unlink()
    Path(f"{aside}-{NEXT.number}").rename(worker.root / NEXT.path)
    for number in range(20):  # twice a second, faster than any retry
        come(worker, Marked(FIRST, segment_stem(number)), later_s=0.5 * number)
    assert (worker.root / waits.tombstone_path).is_file()
    assert len(list(worker.directory.iterdir())) == len(worker.box.unplaced) == 20

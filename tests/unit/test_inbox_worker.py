"""The inbox worker with a real index and tree, turn by turn; tests/system/test_inbox.py has it in an agent."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from inotify_simple import INotify

from tests.support.agent import make_hour, segment_stem
from tests.support.inbox_worker import NO_LIMIT, SENDER, InboxWorker
from tests.support.programs import need
from tests.support.trees import need_root
from tombsync.audit import Event
from tombsync.inbox import Box
from tombsync.inbox.checks import Quota
from tombsync.inbox.telling import TELL_INTERVAL_S
from tombsync.inbox.worker import LOOK_INTERVAL_S
from tombsync.names import Hour, Marked, Offer, hour_number

FIRST = Hour("desertbus", "source", hour_number("2019-11-13T02"))
NEXT = FIRST._replace(number=FIRST.number + 1)
BEFORE = FIRST._replace(number=FIRST.number - 1)  # keeps the place one of segments, whatever becomes of the others


OTHER = "node-c"


def with_hours(worker: InboxWorker) -> InboxWorker:
    for hour in (BEFORE, FIRST, NEXT):
        make_hour(worker.root, hour.path)
    return worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[InboxWorker]:
    with InboxWorker(tmp_path) as worker:
        yield with_hours(worker)


@pytest.fixture
def of_two(tmp_path: Path) -> Iterator[InboxWorker]:
    """It has an inbox of SENDER and one of OTHER."""
    with InboxWorker(tmp_path, others=[OTHER]) as worker:
        yield with_hours(worker)


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


def turns(worker: InboxWorker, count: int, *, later_s: float = 0.0) -> None:
    """So many, each with what it handed over written; about so many seconds from now."""
    for step in range(count):
        worker.turn(later_s=later_s + 0.01 * step)
        worker.settle()


def refuse_to_write(worker: InboxWorker, *hours: Hour) -> Callable[[], None]:
    """Links stand where these hours are, until what is returned is called."""
    for hour in hours:
        (worker.root / hour.path).rename(worker.root / f"aside-{hour.number}")
        (worker.root / hour.path).symlink_to("/nowhere")

    def end() -> None:
        for hour in hours:
            (worker.root / hour.path).unlink()
            (worker.root / f"aside-{hour.number}").rename(worker.root / hour.path)

    return end


def later(hours: int) -> Hour:
    """An hour that is not there."""
    return NEXT._replace(number=NEXT.number + hours)


def stands(worker: InboxWorker, marked: Marked) -> bool:
    return (worker.root / marked.tombstone_path).is_file()


# -- no sender is waited for -------------------------------------------------------------------------------------------


def test_one_that_delivers_into_very_many_hours_does_not_hold_up_another(
    of_two: InboxWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tombsync.inbox.placing.TURN_S", 0.0)  # the time of each turn is over after one hour directory
    flood = [Marked(later(number), segment_stem(0)) for number in range(1, 30)]
    for marked in flood:
        of_two.deliver(Offer(marked, SENDER))
    of_two.turn()
    of_two.settle()
    of_two.turn()
    assert sum(stands(of_two, marked) for marked in flood) == 1
    assert of_two.box.waiting == len(flood) - 1
    mine = Marked(FIRST, segment_stem(1))
    of_two.deliver(Offer(mine, OTHER), by=OTHER)
    of_two.others[OTHER].changed = True
    turns(of_two, 4)  # one of the other's hours, then its own: looked at, hidden, placed
    assert stands(of_two, mine)
    assert sum(stands(of_two, marked) for marked in flood) < 6
    of_two.take_all()
    assert all(stands(of_two, marked) for marked in flood)


def test_what_has_no_file_any_more_does_not_hold_up_what_comes(
    of_two: InboxWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = refuse_to_write(of_two, FIRST, NEXT)
    lost = [Marked(hour, segment_stem(number)) for hour in (FIRST, NEXT) for number in range(2)]
    for marked in lost:
        of_two.deliver(Offer(marked, SENDER))
    turns(of_two, 4)
    end()
    for path in of_two.directory.iterdir():  # as a power cut does with a tmpfs
        path.unlink()
    monkeypatch.setattr("tombsync.inbox.placing.TURN_S", 0.0)
    mine = Marked(BEFORE, segment_stem(0))
    of_two.deliver(Offer(mine, OTHER), by=OTHER)
    placed = []
    for step in range(12):
        turns(of_two, 1, later_s=120.0 + step)
        placed.append(sum(stands(of_two, marked) for marked in lost))
    assert sorted(set(placed)) == [0, 2, 4]  # one hour in a turn
    assert stands(of_two, mine)


def test_what_waits_is_known_while_a_long_listing_is_worked_off(
    worker: InboxWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tombsync.inbox.worker.MOST_AT_ONCE", 3)
    for number in range(10):
        worker.deliver(Offer(Marked(FIRST, segment_stem(number)), SENDER))
    seen = []
    for _ in range(8):
        worker.turn()
        worker.settle()
        assert worker.box.waiting == len(os.listdir(worker.directory))
        seen.append(dict(worker.inbox.waiting())[SENDER])
    assert seen[0] == 10
    assert {7, 4, 1, 0} <= set(seen)


def test_over_its_quota_a_sender_waits_and_then_goes_on(worker: InboxWorker) -> None:
    worker.box.quota = Quota(5)
    stems = [segment_stem(number) for number in range(12)]
    for stem in stems:
        worker.deliver(Offer(Marked(FIRST, stem), SENDER))

    def placed_at(later_s: float) -> int:
        turns(worker, 3, later_s=later_s)
        return sum(stands(worker, Marked(FIRST, stem)) for stem in stems)

    assert placed_at(0.0) == placed_at(60.0) == 5
    assert worker.told_of()[SENDER]["over_quota"]
    assert [record["TOMBSYNC_WAITING"] for record in worker.journal.records(Event.INBOX_HELD)] == ["7"]
    assert placed_at(1500.0) == 7  # 24 minutes and some bring two
    assert placed_at(3.0 * 3600) == len(stems)
    assert not worker.told_of()[SENDER]["over_quota"]


# -- inboxes that are not as they should be ----------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for_the_tree", [False, True], ids=["nothing waits", "something waits"])
def test_an_inbox_that_cannot_be_opened_is_looked_at_now_and_then(
    worker: InboxWorker, waits_for_the_tree: bool
) -> None:
    if waits_for_the_tree:
        refuse_to_write(worker, FIRST)
        come(worker, Marked(FIRST, segment_stem(0)), later_s=0.0)
        assert worker.box.unplaced
    aside = worker.directory.rename(worker.directory.with_name("aside"))
    for later_s in (200.0, 400.0):
        now = time.monotonic() + later_s
        worker.box.changed = True
        while worker.box.due(now):  # as often as others have their turns
            worker.inbox.loop(now)
        assert worker.box.next_at() == now + LOOK_INTERVAL_S
    assert len(worker.journal.records(Event.INBOX_MISSING)) == 1
    assert worker.told_of()[SENDER]["problem"]
    aside.rename(worker.directory)
    worker.deliver(Offer(mine := Marked(NEXT, segment_stem(1)), SENDER))
    turns(worker, 4, later_s=500.0)
    assert stands(worker, mine)
    assert len(worker.journal.records(Event.INBOX_RETURNED)) == 1


def test_an_account_that_is_gone_is_asked_for_now_and_then(worker: InboxWorker) -> None:
    box = worker.box
    box.account = "tstest-nobody-has-this"
    worker.deliver(Offer(Marked(FIRST, segment_stem(0)), SENDER))
    now = time.monotonic()
    while box.due(now):
        worker.inbox.loop(now)
    assert box.next_at() == now + LOOK_INTERVAL_S
    assert "no account" in worker.told_of()[SENDER]["problem"]


def test_without_a_watch_it_is_looked_into_all_the_same(of_two: InboxWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(INotify, "add_watch", no_more)
    for number in range(3):
        of_two.deliver(Offer(Marked(FIRST, segment_stem(number)), SENDER))
        turns(of_two, 4, later_s=number * (LOOK_INTERVAL_S + 1))
        assert stands(of_two, Marked(FIRST, segment_stem(number)))
    told = of_two.journal.records(Event.WATCH_LIMIT)
    assert sorted(record["MESSAGE"].split()[3] for record in told) == [SENDER, OTHER]  # once each
    assert of_two.told_of()[SENDER]["problem"] == ""


@contextmanager
def nothing_removable(directory: Path) -> Iterator[None]:
    """Names can be made in a directory and not taken away, in the time of a `with` block."""
    need_root()
    subprocess.run([need("chattr"), "+a", directory], check=True)
    try:
        yield
    finally:
        subprocess.run([need("chattr"), "-a", directory], check=True)


def test_what_cannot_be_taken_away_is_told_and_tried_again(worker: InboxWorker) -> None:
    mine = Marked(FIRST, segment_stem(0))
    with nothing_removable(worker.directory):
        worker.put("nonsense")
        come(worker, mine, later_s=0.0)
        for step in range(1, 4):
            worker.turn(later_s=step * LOOK_INTERVAL_S)
        assert stands(worker, mine)
        assert worker.box.waiting == 2
        assert "cannot be taken away: Operation not permitted" in worker.told_of()[SENDER]["problem"]
        assert len(worker.journal.records(Event.INBOX_MISSING)) == 1
        assert worker.refused() == {"name": 1}  # and not again with each look
    worker.turn(later_s=10 * LOOK_INTERVAL_S)
    assert list(worker.directory.iterdir()) == []
    assert worker.told_of()[SENDER]["problem"] == ""
    assert len(worker.journal.records(Event.INBOX_RETURNED)) == 1
    assert worker.box.waiting == 0


def test_what_somebody_else_took_away_is_forgotten(worker: InboxWorker) -> None:
    (worker.directory / "a directory").mkdir()
    worker.turn()
    worker.settle()
    assert worker.box.waiting == 1
    (worker.directory / "a directory").rmdir()
    worker.turn(later_s=LOOK_INTERVAL_S)
    assert worker.box.waiting == 0
    assert worker.told_of()[SENDER]["problem"] == ""


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hour", "reason"),
    [
        (Hour("coverage-maps", "desertbus", FIRST.number), "not-served"),
        (Hour("coverage-maps", "none", FIRST.number), "not-served"),
        (FIRST._replace(number=hour_number("9998-12-31T23")), "ahead"),
    ],
    ids=["no hours in it", "not there", "far ahead"],
)
def test_where_a_sender_may_not_mark_nothing_is_made(worker: InboxWorker, hour: Hour, reason: str) -> None:
    (worker.root / "coverage-maps/desertbus/2019-11").mkdir(parents=True)
    (worker.root / "coverage-maps/desertbus/map.png").touch()
    before = sorted(worker.root.rglob("*"))
    come(worker, Marked(hour, segment_stem(0)), later_s=0.0)
    assert worker.refused() == {reason: 1}
    assert sorted(worker.root.rglob("*")) == before
    assert worker.reader.totals()[3] == 0
    assert list(worker.directory.iterdir()) == []


def test_a_place_whose_hours_are_all_gone_is_still_one(worker: InboxWorker) -> None:
    come(worker, Marked(FIRST, segment_stem(0)), later_s=0.0)
    subprocess.run(["rm", "-r", *(worker.root / "desertbus/source").iterdir()], check=True)
    mine = Marked(later(1), segment_stem(0))
    come(worker, mine, later_s=0.0)
    assert stands(worker, mine)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_again_after_a_minute(worker: InboxWorker) -> None:
    for number, later_s in enumerate((0.0, 1.0, TELL_INTERVAL_S - 1, TELL_INTERVAL_S + 1, TELL_INTERVAL_S + 2)):
        worker.put(f"nonsense-{number}")
        worker.box.changed = True
        worker.turn(later_s=later_s)
    told = [record["TOMBSYNC_SEGMENT"] for record in worker.journal.records(Event.REJECTED)]
    assert told == ["nonsense-0", "nonsense-3"]
    assert worker.refused() == {"name": 5}


def test_a_tree_that_takes_nothing_is_told_once_a_minute_whatever_path_it_names(worker: InboxWorker) -> None:
    end = refuse_to_write(worker, FIRST, NEXT)

    def told() -> int:
        return len(worker.journal.records(Event.TREE_REFUSED))

    for number in range(6):
        come(worker, Marked((FIRST, NEXT)[number % 2], segment_stem(number)), later_s=0.5 * number)
    assert told() == 1
    come(worker, Marked(FIRST, segment_stem(10)), later_s=TELL_INTERVAL_S + 5)
    assert told() == 2
    end()
    turns(worker, 4, later_s=1000.0)
    assert worker.told_of()[SENDER]["trouble"] == ""
    refuse_to_write(worker, FIRST)
    come(worker, Marked(FIRST, segment_stem(11)), later_s=1100.0)
    assert told() == 3


def test_what_has_no_file_and_cannot_be_written_is_told_too(of_two: InboxWorker) -> None:
    end = refuse_to_write(of_two, FIRST)
    for number in range(3):
        of_two.deliver(Offer(Marked(FIRST, segment_stem(number)), SENDER))
    of_two.deliver(Offer(Marked(FIRST, segment_stem(3)), OTHER), by=OTHER)
    turns(of_two, 4)
    for box in of_two.boxes:
        for path in Path(box.path).iterdir():
            path.unlink()
    before = len(of_two.journal.records(Event.TREE_REFUSED))
    turns(of_two, 4, later_s=200.0)
    facts = of_two.told_of()
    for sender, count in ((SENDER, 3), (OTHER, 1)):
        assert facts[sender]["unplaced"] == count
        assert facts[sender]["trouble"].startswith("received, cannot write: ")
    told = of_two.journal.records(Event.TREE_REFUSED)[before:]
    assert {record["TOMBSYNC_PEER"] for record in told} == {SENDER, OTHER}
    end()
    turns(of_two, 4, later_s=400.0)
    assert [one["trouble"] for one in of_two.told_of().values()] == ["", ""]
    assert stands(of_two, Marked(FIRST, segment_stem(2)))


def test_what_came_from_a_sender_that_is_none_any_more_is_told_of_too(tmp_path: Path) -> None:
    with InboxWorker(tmp_path) as worker:
        make_hour(worker.root, BEFORE.path)
        make_hour(worker.root, FIRST.path)
        end = refuse_to_write(worker, FIRST)
        come(worker, Marked(FIRST, segment_stem(0)), later_s=0.0)
    account = worker.box.account
    (tmp_path / "empty").mkdir()
    with InboxWorker(tmp_path, box=Box(OTHER, account, str(tmp_path / "empty"), NO_LIMIT)) as worker:
        worker.turn()
        assert worker.told_of()[SENDER]["unplaced"] == 1
        assert [record["TOMBSYNC_PEER"] for record in worker.journal.records(Event.TREE_REFUSED)] == [SENDER]
        end()
        worker.take_all()
        assert SENDER not in worker.told_of()


# -- disks -------------------------------------------------------------------------------------------------------------


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


def read_only(root: Path) -> Callable[[], None]:
    run(need("mount"), "-o", "remount,ro", root)
    return partial(run, need("mount"), "-o", "remount,rw", root)


def full(root: Path) -> Callable[[], None]:
    filler = root / "filler"
    filler.mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        for number in range(1_000):
            (filler / str(number)).touch()
    return partial(run, "rm", "-r", filler)


@pytest.mark.parametrize(("make", "number"), [(read_only, errno.EROFS), (full, errno.ENOSPC)], ids=["EROFS", "ENOSPC"])
def test_a_disk_that_takes_nothing(tmp_path: Path, make: Callable[[Path], Callable[[], None]], number: int) -> None:
    need_root()
    root = tmp_path / "segments"
    root.mkdir()
    with ExitStack() as stack:
        run(need("mount"), "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", root)
        stack.callback(run, need("umount"), "--lazy", root)
        worker = stack.enter_context(InboxWorker(tmp_path, root=root))
        make_hour(root, FIRST.path)
        end = make(root)
        here, elsewhere = Marked(FIRST, segment_stem(0)), Marked(NEXT, segment_stem(0))
        for marked in (here, elsewhere):  # one in an hour that is there, one whose hour has to be made
            come(worker, marked, later_s=0.0)
            assert worker.reader.marker(marked) is not None  # hidden all the same
        assert len(list(worker.directory.iterdir())) == 2
        assert os.strerror(number) in worker.told_of()[SENDER]["trouble"]
        assert os.strerror(number) in worker.journal.records(Event.TREE_REFUSED)[0]["MESSAGE"]
        end()
        worker.take_all()
        assert stands(worker, here) and stands(worker, elsewhere)
        assert worker.told_of()[SENDER]["trouble"] == ""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.waiting import wait_for
from tombsync.errors import IndexDamaged
from tombsync.names import Hour, Marked
from tombsync.work import (
    BULK_GOES_ON_AT_ROWS,
    BULK_REFUSED_ABOVE_ROWS,
    BULK_WAITS_ABOVE_ROWS,
    TRANSACTION_ROWS,
    Batch,
    Beats,
    Driver,
    Flush,
    Mailbox,
    Sighting,
    Source,
)

HOUR = Hour("desertbus", "source", 17_690_000)
WAIT_S = 20.0  # a test that gets this far has failed
# How long a thread that must be waiting is watched; one that does not wait ends in a fraction of this.
SILENCE_S = 0.2


class Rows:
    """A batch of so many rows."""

    def __init__(self, rows: int = 1, label: object = None) -> None:
        self.rows = rows
        self.label = label

    def apply(self, writer: object) -> None:
        pass

    def committed(self) -> None:
        pass


def sightings(count: int, source: Source = Source.WATCH) -> list[Sighting]:
    return [Sighting(Marked(HOUR, f"stem-{number}"), source, number) for number in range(count)]


def take(mailbox: Mailbox) -> list[Sighting] | list[Batch]:
    return mailbox.take(0.0)


def take_all(mailbox: Mailbox) -> list[list[Sighting] | list[Batch]]:
    taken = []
    while part := take(mailbox):
        taken.append(part)
    return taken


Start = Callable[[Callable[[], object]], threading.Thread]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run something in a thread, which must have ended when the test has."""
    threads = []

    def start(run: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=run, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


# -- lanes -------------------------------------------------------------------------------------------------------------


def test_markers_overtake_urgent_overtakes_bulk() -> None:
    mailbox = Mailbox()
    bulk, urgent, seen = Rows(), Rows(), sightings(1)
    mailbox.put_bulk(bulk)
    mailbox.put_urgent(urgent)
    mailbox.put_sightings(seen)
    assert take_all(mailbox) == [seen, [urgent], [bulk]]


def test_what_overtakes_waits_for_nothing_that_was_taken_in_part() -> None:
    mailbox = Mailbox()
    batches = [Rows(TRANSACTION_ROWS) for _ in range(2)]
    for batch in batches:
        mailbox.put_bulk(batch)
    assert take(mailbox) == batches[:1]
    urgent, seen = Rows(), sightings(1)
    mailbox.put_urgent(urgent)
    mailbox.put_sightings(seen)
    assert take_all(mailbox) == [seen, [urgent], batches[1:]]


@pytest.mark.parametrize("put", [Mailbox.put_urgent, Mailbox.put_bulk, Mailbox.offer_bulk])
def test_each_lane_keeps_its_order(put: Callable[[Mailbox, Batch], object]) -> None:
    mailbox = Mailbox()
    batches = [Rows(rows) for rows in (0, 1, TRANSACTION_ROWS, 0, 5, TRANSACTION_ROWS - 5, 1, 300, 1)]
    for batch in batches:
        put(mailbox, batch)
    assert [batch for part in take_all(mailbox) for batch in part] == batches


def test_sightings_keep_their_order_over_several_transactions() -> None:
    mailbox = Mailbox()
    seen = sightings(2 * TRANSACTION_ROWS + 1)
    mailbox.put_sightings(iter(seen[:300]))
    mailbox.put_sightings(seen[300:])
    parts = take_all(mailbox)
    assert [len(part) for part in parts] == [TRANSACTION_ROWS, TRANSACTION_ROWS, 1]
    assert [sighting for part in parts for sighting in part] == seen


@pytest.mark.parametrize("put", [Mailbox.put_urgent, Mailbox.put_bulk])
def test_a_transaction_has_a_limit_of_rows(put: Callable[[Mailbox, Batch], object]) -> None:
    mailbox = Mailbox()
    for rows in (100, 99, 1, 1, 0, 199, 0, 500, 1):
        put(mailbox, Rows(rows))
    parts = take_all(mailbox)
    # A batch that is larger than a transaction is taken whole, and alone.
    assert [[batch.rows for batch in part if isinstance(batch, Rows)] for part in parts] == [
        [100, 99, 1],
        [1, 0, 199, 0],
        [500],
        [1],
    ]


def test_a_take_never_mixes_lanes() -> None:
    mailbox = Mailbox()
    mailbox.put_bulk(Rows())
    mailbox.put_urgent(Rows())
    assert [len(part) for part in take_all(mailbox)] == [1, 1]


def test_an_empty_mailbox_gives_nothing() -> None:
    mailbox = Mailbox()
    assert take(mailbox) == []
    mailbox.put_sightings([])
    assert take(mailbox) == []


@pytest.mark.parametrize("lane", ["sightings", "urgent", "bulk", "offered", "nothing"])
def test_a_take_that_waits_is_woken(lane: str, start: Start) -> None:
    mailbox = Mailbox()
    taken: list[object] = []
    entered = threading.Event()

    def run() -> None:
        entered.set()
        taken.append(mailbox.take(2 * WAIT_S))

    thread = start(run)
    assert entered.wait(WAIT_S)
    thread.join(SILENCE_S)
    assert thread.is_alive()
    batch, seen = Rows(), sightings(1)
    expected: list[object] = [[batch]]
    match lane:
        case "sightings":
            mailbox.put_sightings(seen)
            expected = [seen]
        case "urgent":
            mailbox.put_urgent(batch)
        case "bulk":
            mailbox.put_bulk(batch)
        case "offered":
            assert mailbox.offer_bulk(batch)
        case _:  # how a worker that is to stop is woken
            mailbox.put_sightings(())
            expected = [[]]
    thread.join(WAIT_S)
    assert taken == expected


# -- a writer that is behind -------------------------------------------------------------------------------------------


def fill(mailbox: Mailbox) -> int:
    """Put bulk until the writer counts as behind; returns how many batches that took."""
    count = BULK_WAITS_ABOVE_ROWS // TRANSACTION_ROWS
    for _ in range(count):
        mailbox.put_bulk(Rows(TRANSACTION_ROWS))
    return count


def test_bulk_waits_until_the_writer_has_taken_some(start: Start) -> None:
    mailbox = Mailbox()
    count = fill(mailbox)
    last = Rows()
    thread = start(lambda: mailbox.put_bulk(last))
    thread.join(SILENCE_S)
    assert thread.is_alive()
    mailbox.put_urgent(Rows(TRANSACTION_ROWS))
    mailbox.put_sightings(sightings(1))
    assert take(mailbox) != []  # neither of the others makes room for bulk
    assert take(mailbox) != []
    thread.join(SILENCE_S)
    assert thread.is_alive()
    left = BULK_GOES_ON_AT_ROWS // TRANSACTION_ROWS
    for _ in range(count - left - 1):
        assert take(mailbox) != []
    thread.join(SILENCE_S)
    assert thread.is_alive()  # they take turns: it does not go on for a little room
    assert take(mailbox) != []
    thread.join(WAIT_S)
    assert not thread.is_alive()
    parts = take_all(mailbox)
    assert len(parts) == left + 1
    assert parts[-1] == [last]


def test_what_never_waits_does_not_wait_for_a_writer_that_is_behind() -> None:
    mailbox = Mailbox()
    fill(mailbox)
    urgent, seen, offered = Rows(TRANSACTION_ROWS), sightings(1), Rows(TRANSACTION_ROWS)
    mailbox.put_urgent(urgent)
    mailbox.put_sightings(seen)
    assert mailbox.offer_bulk(offered)
    parts = take_all(mailbox)
    assert parts[:2] == [seen, [urgent]]
    assert parts[-1] == [offered]


def test_close_lets_producers_go_and_keeps_what_is_queued(start: Start) -> None:
    mailbox = Mailbox()
    fill(mailbox)
    late = [Rows(label=number) for number in range(3)]
    threads = [start(lambda batch=batch: mailbox.put_bulk(batch)) for batch in late]  # type: ignore[misc]
    for thread in threads:
        thread.join(SILENCE_S)
        assert thread.is_alive()
    mailbox.close()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    mailbox.put_bulk(Rows(label=3))  # and nobody waits any more
    taken = [batch for part in take_all(mailbox) for batch in part if isinstance(batch, Rows)]
    assert {batch.label for batch in taken} == {None, 0, 1, 2, 3}
    assert sum(batch.rows for batch in taken) == BULK_WAITS_ABOVE_ROWS + 4


def test_rows_are_refused_past_the_last_limit_and_taken_again_below_it() -> None:
    mailbox = Mailbox()
    for _ in range(BULK_REFUSED_ABOVE_ROWS // TRANSACTION_ROWS):
        assert mailbox.offer_bulk(Rows(TRANSACTION_ROWS))
    refused = Rows()
    assert not mailbox.offer_bulk(refused)
    assert not mailbox.offer_bulk(Rows(0))
    first = take(mailbox)
    assert mailbox.offer_bulk(last := Rows())
    parts = [first, *take_all(mailbox)]
    assert sum(batch.rows for part in parts for batch in part if isinstance(batch, Rows)) == BULK_REFUSED_ABOVE_ROWS + 1
    assert parts[-1][-1] is last


def test_many_producers_lose_nothing_and_keep_their_own_order(start: Start) -> None:
    mailbox = Mailbox()
    count = 2_000

    def produce(name: str, put: Callable[[Batch], object]) -> None:
        for number in range(count):
            put(Rows(7, (name, number)))

    def see() -> None:
        for sighting in sightings(count):
            mailbox.put_sightings([sighting])

    for name in ("one", "two"):
        start(lambda name=name: produce(name, mailbox.put_bulk))  # type: ignore[misc]
    start(lambda: produce("urgent", mailbox.put_urgent))
    start(see)
    taken: dict[object, list[object]] = {"one": [], "two": [], "urgent": [], "seen": []}
    deadline = time.monotonic() + WAIT_S
    while sum(map(len, taken.values())) < 4 * count:
        assert time.monotonic() < deadline
        for item in mailbox.take(1.0):
            if isinstance(item, Sighting):
                taken["seen"].append(item.read_ns)
            else:
                assert isinstance(item, Rows)
                assert isinstance(item.label, tuple)
                taken[item.label[0]].append(item.label[1])
    assert take(mailbox) == []
    assert all(numbers == list(range(count)) for numbers in taken.values())


# -- flush -------------------------------------------------------------------------------------------------------------


def test_a_flush_comes_after_everything_that_was_handed_over_before_it() -> None:
    mailbox = Mailbox()
    flush = Flush()
    batches = [Rows(TRANSACTION_ROWS) for _ in range(3)]
    for batch in batches:
        mailbox.put_bulk(batch)
    mailbox.put_urgent(Rows())
    mailbox.put_sightings(sightings(1))
    mailbox.put_bulk(flush)
    *before, last = [item for part in take_all(mailbox) for item in part]
    assert len(before) == 5
    assert last is flush
    flush.apply(object())
    assert not flush.done.is_set()
    flush.committed()
    assert flush.done.is_set()


# -- beats -------------------------------------------------------------------------------------------------------------


def test_beats_tell_how_long_ago_each_worker_ended_a_turn() -> None:
    beats = Beats()
    beats.beat("intake")
    first = time.monotonic()
    beats.beat("rescan")
    second = time.monotonic()
    ages = beats.ages_s()
    now = time.monotonic()
    assert list(ages) == ["intake", "rescan"]
    assert second - first <= ages["intake"]
    assert 0 <= ages["rescan"] <= min(ages["intake"], now - first)
    beats.beat("intake")
    ages = beats.ages_s()
    assert ages["intake"] <= ages["rescan"]
    beats.forget("intake")
    beats.forget("unheard of")
    assert list(beats.ages_s()) == ["rescan"]


# -- the driver --------------------------------------------------------------------------------------------------------


class Turns:
    """A worker whose turns wait until they are woken; `fail` ends the next one with an error."""

    name = "turns"

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.woken = threading.Event()
        self.fail: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.may_end = threading.Event()
        self.may_end.set()

    def loop(self, now: float) -> None:
        self.thread = threading.current_thread()
        self.begun.append(now)
        assert self.woken.wait(WAIT_S)
        self.woken.clear()
        if self.fail is not None:
            raise self.fail
        assert self.may_end.wait(WAIT_S)

    def wake(self) -> None:
        self.woken.set()


def test_a_driver_runs_turn_after_turn_until_it_is_stopped() -> None:
    worker, beats, deaths = Turns(), Beats(), list[str]()
    driver = Driver(worker, beats, lambda: deaths.append("died"))
    assert driver.join(0.0)  # never started
    before = time.monotonic()
    driver.start()
    for number in range(1, 4):
        wait_for(lambda number=number: len(worker.begun) == number, "the next turn")  # type: ignore[misc]
        worker.wake()
    wait_for(lambda: len(worker.begun) == 4, "the last turn")
    times = [before, *worker.begun, time.monotonic()]
    assert times == sorted(times)
    assert worker.thread is not None
    assert worker.thread.name == "turns"
    assert worker.thread.daemon
    assert set(beats.ages_s()) == {"turns"}
    assert not driver.join(0.0)
    driver.stop()
    assert driver.join(WAIT_S)
    assert len(worker.begun) == 4
    assert driver.failure is None
    assert deaths == []
    assert beats.ages_s() == {}  # ended on purpose: nobody waits for its beat


def test_stop_does_not_wait_for_a_turn() -> None:
    worker = Turns()
    worker.may_end.clear()
    driver = Driver(worker, Beats(), lambda: None)
    driver.start()
    driver.stop()
    assert not driver.join(SILENCE_S)
    worker.may_end.set()
    assert driver.join(WAIT_S)


def test_a_worker_that_dies_is_told_of_with_its_failure(caplog: pytest.LogCaptureFixture) -> None:
    worker, beats = Turns(), Beats()
    worker.fail = RuntimeError("broken")
    failures: list[BaseException | None] = []
    died = threading.Event()

    def on_death() -> None:
        failures.append(driver.failure)
        died.set()

    driver = Driver(worker, beats, on_death)
    driver.start()
    worker.wake()
    assert died.wait(WAIT_S)
    assert driver.join(WAIT_S)
    assert failures == [worker.fail]
    assert driver.failure is worker.fail
    assert len(worker.begun) == 1
    assert set(beats.ages_s()) == {"turns"}  # its beat grows old, as nobody ended it
    (record,) = caplog.records
    assert record.getMessage() == "worker turns died"
    assert record.exc_info is not None
    assert record.exc_info[1] is worker.fail


def test_a_worker_that_ends_with_one_of_our_errors_needs_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    worker, died = Turns(), threading.Event()
    worker.fail = IndexDamaged("index.sqlite", "noise")
    driver = Driver(worker, Beats(), died.set)
    driver.start()
    worker.wake()
    assert died.wait(WAIT_S)
    assert driver.join(WAIT_S)
    assert driver.failure is worker.fail
    assert caplog.records == []


def test_a_worker_beats_before_its_first_turn() -> None:
    worker, beats = Turns(), Beats()
    driver = Driver(worker, beats, lambda: None)
    driver.start()
    assert "turns" in beats.ages_s()
    driver.stop()
    assert driver.join(WAIT_S)

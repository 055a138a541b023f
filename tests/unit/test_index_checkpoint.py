"""The log moves into the index's file, and begins again from its start before it is large."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.index import HOUR, add, database, hide, query
from tombsync.errors import IndexDamaged, StateRefused
from tombsync.index import Checkpointer, Reader, Writer, damage_noted
from tombsync.index.checkpoint import RESTART_ABOVE_PAGES

FRAME_BYTES = 4096 + 24  # https://sqlite.org/fileformat2.html#the_write_ahead_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(str(path))
    yield writer
    writer.close()


@pytest.fixture
def checkpointer(path: Path, writer: Writer) -> Iterator[Checkpointer]:
    """Its turns do not wait."""
    checkpointer = Checkpointer(str(path))
    checkpointer.wake()
    yield checkpointer
    checkpointer.close()


def log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def write_pages(writer: Writer, count: int) -> None:
    """Write so many pages into the log, in as few transactions as it takes."""
    with writer.transaction():
        writer.execute("CREATE TABLE IF NOT EXISTS ballast (a)")
        writer.execute("DELETE FROM ballast")
        # A row of 4,000 bytes has a page of its own.
        writer.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO ballast SELECT randomblob(4000) FROM n",
            (count,),
        )


def turn(checkpointer: Checkpointer) -> None:
    """One turn, after something was written."""
    checkpointer.note_written()
    checkpointer.loop(0.0)


def test_what_was_written_moves_into_the_file(path: Path, writer: Writer, checkpointer: Checkpointer) -> None:
    add(writer, HOUR, "one.ts")
    size = path.stat().st_size
    write_pages(writer, 1_000)
    assert path.stat().st_size == size  # the writer never does it
    turn(checkpointer)
    assert path.stat().st_size > 1_000 * 4096
    # Written again from its start: nothing of the log is needed any more.
    before = log(path).stat().st_size
    write_pages(writer, 500)
    assert log(path).stat().st_size == before


def test_without_it_the_log_only_grows(path: Path, writer: Writer) -> None:
    sizes = []
    for _ in range(3):
        write_pages(writer, 2_000)
        sizes.append(log(path).stat().st_size)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] > 3 * 2_000 * FRAME_BYTES


def test_a_reader_in_the_way_is_no_error_and_the_log_begins_again_after_it(
    path: Path, writer: Writer, checkpointer: Checkpointer
) -> None:
    write_pages(writer, 10)
    with database(path) as connection:
        connection.execute("BEGIN")
        assert connection.execute("SELECT count(*) FROM ballast").fetchone() == (10,)
        write_pages(writer, 100)
        turn(checkpointer)
        small = log(path).stat().st_size
        write_pages(writer, 100)
        assert log(path).stat().st_size > small
        assert connection.execute("SELECT count(*) FROM ballast").fetchone() == (10,)
    turn(checkpointer)
    size = log(path).stat().st_size
    write_pages(writer, 100)
    assert log(path).stat().st_size == size


def test_past_its_limit_the_log_is_worth_waiting_for_a_reader(
    path: Path, writer: Writer, checkpointer: Checkpointer
) -> None:
    """Readers that overlap keep a log growing for ever; so a turn waits for them, and not for long."""
    write_pages(writer, RESTART_ABOVE_PAGES + 100)
    with database(path) as connection:
        connection.execute("BEGIN")
        assert connection.execute("SELECT count(*) FROM ballast").fetchone() == (RESTART_ABOVE_PAGES + 100,)
        turn(checkpointer)
        started = time.monotonic()
        turn(checkpointer)  # there is nothing left to be moved
        assert time.monotonic() - started >= 0.05  # no upper bound: it did wait
    turn(checkpointer)
    size = log(path).stat().st_size
    assert size > RESTART_ABOVE_PAGES * FRAME_BYTES
    write_pages(writer, 1_000)
    assert log(path).stat().st_size == size


def test_a_disk_without_room_is_told_once_and_tried_again(
    path: Path, writer: Writer, checkpointer: Checkpointer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log keeps everything meanwhile."""
    turn(checkpointer)
    write_pages(writer, 100)
    size, before = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        for _ in range(3):
            turn(checkpointer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert path.stat().st_size == size
    assert not damage_noted(str(path))
    turn(checkpointer)
    assert path.stat().st_size > size
    assert query(path, "SELECT count(*) FROM ballast") == [(100,)]
    assert len(caplog.records) == 1


def test_hiding_goes_on_in_between(path: Path, writer: Writer, checkpointer: Checkpointer) -> None:
    for number in range(20):
        add(writer, HOUR, f"{number}.ts")
        turn(checkpointer)
        assert len(hide(writer, HOUR, f"{number}")) == 1
        turn(checkpointer)
    reader = Reader(str(path))
    assert reader.totals() == (1, 20, 20, 20)
    reader.close()
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_turn_beside_a_transaction_is_no_error(path: Path, writer: Writer, checkpointer: Checkpointer) -> None:
    write_pages(writer, RESTART_ABOVE_PAGES + 100)
    with writer.transaction():
        writer.execute("DELETE FROM ballast")
        turn(checkpointer)
    turn(checkpointer)
    assert query(path, "SELECT count(*) FROM ballast") == [(0,)]


def test_damage_is_told_and_noted(path: Path) -> None:
    Writer(str(path)).close()
    path.write_bytes(b"not an index" * 1_000)
    checkpointer = Checkpointer(str(path))
    checkpointer.wake()
    with pytest.raises(IndexDamaged):
        checkpointer.loop(0.0)
    assert damage_noted(str(path))
    checkpointer.close()


def test_a_missing_index_is_refused(path: Path) -> None:
    checkpointer = Checkpointer(str(path))
    checkpointer.wake()
    with pytest.raises(StateRefused):
        checkpointer.loop(0.0)
    checkpointer.close()
    assert not path.exists()


def test_one_that_never_had_a_turn_is_closed_too(path: Path) -> None:
    Checkpointer(str(path)).close()
    assert not path.exists()


def test_where_nothing_was_written_nothing_is_done(path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle agent would look twice a second for ever."""
    monkeypatch.setattr("tombsync.index.checkpoint.IDLE_WAIT_S", 0.0)
    monkeypatch.setattr("tombsync.index.checkpoint.CHECKPOINT_INTERVAL_S", 0.0)
    checkpointer = Checkpointer(str(path))
    checkpointer.loop(0.0)
    write_pages(writer, 10)
    size = path.stat().st_size
    checkpointer.loop(0.0)
    assert path.stat().st_size == size
    checkpointer.note_written()
    checkpointer.loop(0.0)
    assert path.stat().st_size > size
    checkpointer.close()

"""The index's file: who may write it, who can read it whatever the agent does, and what happens to a damaged one."""

from __future__ import annotations

import fcntl
import gc
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.index import HOUR, STEM, add, database, hide, kill, said, start_python, stem_of
from tests.support.programs import need
from tests.support.trees import need_root
from tombsync.errors import IndexBusy, IndexDamaged, IndexMissing, StateRefused
from tombsync.index import (
    AgentLock,
    Checkpointer,
    HourListed,
    Reader,
    SegmentRows,
    Writer,
    agent_pid,
    damage_noted,
    index_path,
    set_aside,
)
from tombsync.index.files import translated

# An agent's lock, or an index with something in it; each says so, and lives until it is killed or its stdin ends.
LOCK = """
import sys
from tombsync.index import AgentLock
AgentLock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""
WRITE = """
import sys
from tombsync.index import SegmentRows, Writer
from tombsync.names import Hour
sys.path.insert(0, sys.argv[2])
from tests.support.index import HOUR, add, hide
writer = Writer(sys.argv[1])
add(writer, HOUR, "one.ts", "two.ts", "three.ts")
hide(writer, HOUR, "one")
if "unfinished" in sys.argv:
    writer.execute("BEGIN IMMEDIATE")
    hide_more = "INSERT INTO marker (hour, stem, source, hidden_at_ns) SELECT id, 'two', 'watch', 1 FROM hour"
    writer.execute(hide_more)
    # More than SQLite keeps in memory, so that a part is in the log already.
    for number in range(200_000):
        writer.execute("INSERT INTO segment SELECT id, ?, 1 FROM hour", (f"{number:050d}",))
print("written", flush=True)
sys.stdin.read()
writer.close()
print("closed", flush=True)
"""
READ = """
import os, sys
from tombsync.index import Reader
from tombsync.errors import TombsyncError
sys.path.insert(0, sys.argv[2])
from tests.support.index import HOUR
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(65534)
try:
    reader = Reader(sys.argv[1])
    print(*reader.listing(HOUR))
except TombsyncError as exc:
    print(type(exc).__name__)
"""
TESTS = str(Path(__file__).parents[2])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def path(state: Path) -> Path:
    state.mkdir()
    return Path(index_path(str(state)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    need_root()
    at = tmp_path / "small"
    at.mkdir()
    subprocess.run([need("mount"), "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(at)], check=True)
    yield at
    subprocess.run([need("umount"), "--lazy", str(at)], check=True)


def fill(disk: Path) -> Path:
    """Take the last byte of a disk; remove the file to have it back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return ballast


# -- the agent's lock --------------------------------------------------------------------------------------------------


def test_the_lock_makes_a_state_directory_for_the_agent_and_its_group(state: Path) -> None:
    old = os.umask(0)
    try:
        lock = AgentLock(str(state / "of" / "the agent"))
    finally:
        os.umask(old)
    assert (state / "of" / "the agent").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (state / "of" / "the agent").iterdir()} == {0o640}
    lock.release()


def test_a_second_agent_is_refused_and_told_of_the_first(state: Path) -> None:
    assert agent_pid(str(state)) == 0
    lock = AgentLock(str(state))
    assert agent_pid(str(state)) == os.getpid()
    for _ in range(2):
        with pytest.raises(IndexBusy) as caught:
            AgentLock(str(state))
        assert (caught.value.pid, caught.value.state_dir) == (os.getpid(), str(state))
    lock.release()
    assert agent_pid(str(state)) == 0
    again = AgentLock(str(state))
    assert agent_pid(str(state)) == os.getpid()
    again.release()


def test_a_killed_agent_holds_no_lock(state: Path) -> None:
    with start_python(LOCK, state) as process:
        assert said(process) == "locked"
        assert agent_pid(str(state)) == process.pid
        with pytest.raises(IndexBusy) as caught:
            AgentLock(str(state))
        assert caught.value.pid == process.pid
        kill(process)
    assert agent_pid(str(state)) == 0
    AgentLock(str(state)).release()


def test_the_lock_holds_no_descriptor_after_a_refusal(state: Path) -> None:
    lock = AgentLock(str(state))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IndexBusy):
        AgentLock(str(state))
    assert agent_pid(str(state)) == os.getpid()
    assert os.listdir("/proc/self/fd") == before
    lock.release()


def test_a_command_that_only_asks_keeps_no_agent_from_starting(state: Path) -> None:
    """To ask whether an agent runs takes the lock itself for a moment."""
    AgentLock(str(state)).release()
    (file,) = state.iterdir()
    asking = os.open(file, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    asked = threading.Timer(0.05, os.close, [asking])
    asked.start()
    lock = AgentLock(str(state))
    assert agent_pid(str(state)) == os.getpid()
    lock.release()
    asked.join()


def test_a_lock_that_is_never_given_back_is_told_of(state: Path) -> None:
    AgentLock(str(state)).release()
    (file,) = state.iterdir()
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(IndexBusy) as caught:
            AgentLock(str(state))
    assert caught.value.pid == 0
    AgentLock(str(state)).release()


def test_two_state_directories_have_two_agents(state: Path) -> None:
    locks = [AgentLock(str(state / name)) for name in ("one", "two")]
    for lock in locks:
        lock.release()


def test_a_state_directory_that_cannot_be_made(state: Path) -> None:
    state.touch()
    with pytest.raises(StateRefused) as caught:
        AgentLock(str(state / "below"))
    assert caught.value.path == str(state / "below")
    assert caught.value.reason == os.strerror(20)


def test_a_full_disk_takes_no_lock(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with pytest.raises(StateRefused) as caught:
        AgentLock(str(small_disk))
    assert caught.value.reason == os.strerror(28)
    ballast.unlink()
    lock = AgentLock(str(small_disk))
    assert agent_pid(str(small_disk)) == os.getpid()
    lock.release()


# -- reading, whatever the agent does ----------------------------------------------------------------------------------


def test_there_is_no_index_yet(path: Path) -> None:
    with pytest.raises(IndexMissing) as caught:
        Reader(str(path))
    assert caught.value.path == str(path)
    assert not path.exists()


def test_the_index_can_be_read_by_its_group_only(path: Path) -> None:
    old = os.umask(0)
    try:
        writer = Writer(str(path))
        hide(writer, HOUR, STEM)
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(["index.sqlite", "index.sqlite-shm", "index.sqlite-wal"], 0o640)
    writer.close()


def test_a_reader_sees_each_commit_and_nothing_before_it(path: Path) -> None:
    writer = Writer(str(path))
    reader = Reader(str(path))
    add(writer, HOUR, "one.ts", "two.ts")
    assert reader.listing(HOUR) == ["one.ts", "two.ts"]
    with writer.transaction():
        SegmentRows(HOUR, drop=["two.ts"]).apply(writer)
        assert reader.listing(HOUR) == ["one.ts", "two.ts"]
    assert reader.listing(HOUR) == ["one.ts"]
    hide(writer, HOUR, "one")
    assert reader.listing(HOUR) == []
    writer.close()
    assert reader.listing(HOUR) == []
    reader.close()
    reader = Reader(str(path))
    assert reader.listing(HOUR) == []
    reader.close()


def test_a_reader_cannot_write(path: Path) -> None:
    writer = Writer(str(path))
    reader = Reader(str(path))
    before = path.read_bytes()
    assert reader.totals() == (0, 0, 0, 0)
    writer.close()
    reader.close()
    for _ in range(2):
        reader = Reader(str(path))
        reader.listing(HOUR)
        reader.close()
    assert path.read_bytes()[100:] == before[100:]


@pytest.mark.parametrize("unfinished", [False, True])
def test_what_was_committed_survives_a_kill(unfinished: bool, path: Path) -> None:
    with start_python(WRITE, path, TESTS, *["unfinished"][:unfinished]) as process:
        assert said(process) == "written"
        if unfinished:
            assert path.with_name("index.sqlite-wal").stat().st_size > 4 << 20
        kill(process)
    for _ in range(2):
        reader = Reader(str(path))
        assert reader.listing(HOUR) == ["three.ts", "two.ts"]
        assert reader.totals() == (1, 3, 1, 1)
        reader.close()
    writer = Writer(str(path))
    assert hide(writer, HOUR, "one") == []
    assert len(hide(writer, HOUR, "two")) == 1
    assert (sum(writer.tally.files.values()), sum(writer.tally.hidden.values()), writer.tally.markers) == (3, 2, 2)
    writer.close()
    reader = Reader(str(path))
    assert reader.listing(HOUR) == ["three.ts"]
    reader.close()


@pytest.mark.parametrize("name", ["a b", "q?mode=rwc", "h#a", "p%41", "\u00e9", os.fsdecode(b"\xff"), "k=v&x"])
def test_a_state_directory_of_whatever_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    path = index_path(str(tmp_path / name))
    writer = Writer(path)
    add(writer, HOUR, "one.ts")
    checkpointer = Checkpointer(path)
    checkpointer.wake()
    checkpointer.loop(0.0)
    checkpointer.close()
    reader = Reader(path)
    assert reader.listing(HOUR) == ["one.ts"]
    reader.close()
    writer.close()
    assert os.listdir(tmp_path / name) == ["index.sqlite"]
    assert os.listdir(tmp_path) == [name]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A state directory that another account can reach, of root and root's group."""
    need_root()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        state = Path(directory) / "state"
        state.mkdir(mode=0o750)
        yield state


def read_as_nobody(path: Path, group: int) -> str:
    with start_python(READ, path, TESTS, str(group)) as process:
        return said(process)


@pytest.mark.parametrize("agent", ["up", "killed", "stopped"])
def test_another_account_of_the_group_reads(agent: str, shared: Path) -> None:
    """It may not create a file in the state directory, and SQLite would like to."""
    path = Path(index_path(str(shared)))
    with start_python(WRITE, path, TESTS) as process:
        assert said(process) == "written"
        if agent == "killed":
            kill(process)
        elif agent == "stopped":
            process.communicate()
        assert path.with_name("index.sqlite-wal").exists() == (agent != "stopped")
        before = sorted(os.listdir(shared))
        assert read_as_nobody(path, 0) == "three.ts two.ts"
        assert sorted(os.listdir(shared)) == before
        if agent == "up":
            process.communicate()
    writer = Writer(str(path))  # and nothing is left that keeps the next start from writing
    assert len(hide(writer, HOUR, "two")) == 1
    writer.close()


def test_an_account_outside_of_the_group_does_not(shared: Path) -> None:
    path = Path(index_path(str(shared)))
    writer = Writer(str(path))
    assert read_as_nobody(path, 65534) == "IndexMissing"  # it cannot even see it
    shared.chmod(0o755)
    assert read_as_nobody(path, 65534) == "StateRefused"
    writer.close()


# -- damage ------------------------------------------------------------------------------------------------------------


def make_index(path: Path, *, hours: int = 1, segments: int = 3_000) -> None:
    """An index with something in it, and no log beside it."""
    writer = Writer(str(path))
    for number in range(0, segments, 200):
        add(writer, HOUR, *(f"{stem_of(second)}.ts" for second in range(number, min(number + 200, segments))))
    hide(writer, HOUR, stem_of(0))
    with writer.transaction():
        for number in range(1, hours):
            HourListed(HOUR._replace(number=number), 1, b"digest" * 3, 1, settled=True, edits=0).apply(writer)
    writer.close()


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(noise(path.stat().st_size))


def of_another_application(path: Path) -> None:
    path.unlink()
    with database(path) as connection:
        connection.executescript("CREATE TABLE history (url); INSERT INTO history VALUES ('x'); PRAGMA user_version=1;")


def of_another_application_and_empty(path: Path) -> None:
    path.unlink()
    with database(path) as connection:
        connection.executescript("PRAGMA user_version=7;")


def of_another_application_of_our_version(path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA application_id=1")


def without_a_table(path: Path) -> None:
    with database(path) as connection:
        connection.execute("DROP TABLE delivery")


Spoil = Callable[[Path], object]
SPOILS: list[Spoil] = [
    truncate,
    overwrite,
    of_another_application,
    of_another_application_and_empty,
    of_another_application_of_our_version,
    lambda path: path.write_bytes(b"not an index"),
    lambda path: path.write_bytes(noise(50)),
]


@pytest.mark.parametrize("spoil", [*SPOILS, without_a_table])
def test_a_damaged_or_foreign_file_is_told_when_it_is_opened(spoil: Spoil, path: Path) -> None:
    make_index(path)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(IndexDamaged) as caught:
        Writer(str(path))
    assert caught.value.path == str(path)
    aside = Path(set_aside(str(path)))
    assert aside.read_bytes() == before
    assert os.listdir(path.parent) == [aside.name]
    writer = Writer(str(path))
    assert len(hide(writer, HOUR, STEM)) == 1
    writer.close()


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_reader_tells_a_damaged_or_foreign_file_too(spoil: Spoil, path: Path) -> None:
    make_index(path)
    spoil(path)
    before, descriptors = path.read_bytes(), os.listdir("/proc/self/fd")
    with pytest.raises(IndexDamaged):
        Reader(str(path))
    assert path.read_bytes() == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_an_empty_file_is_a_new_index(path: Path) -> None:
    path.touch()
    writer = Writer(str(path))
    assert writer.tally.markers == 0
    writer.close()


def test_a_directory_in_its_place_is_no_damage(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateRefused):
        Writer(str(path))


def test_a_missing_state_directory_is_no_damage(path: Path) -> None:
    with pytest.raises(StateRefused) as caught:
        Writer(str(path.parent / "missing" / path.name))
    assert caught.value.reason == os.strerror(2)


def test_every_byte_is_set_aside(path: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.sqlite"
    writer = Writer(str(live))
    add(writer, HOUR, "one.ts")
    hide(writer, HOUR, "one")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
    writer.close()
    (path.parent / "other").write_bytes(b"kept")
    contents = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal", "-shm")}
    assert len(contents["-wal"]) > 4096
    aside = set_aside(str(path))
    assert {suffix: Path(f"{aside}{suffix}").read_bytes() for suffix in contents} == contents
    assert len(os.listdir(path.parent)) == 4
    assert (path.parent / "other").read_bytes() == b"kept"
    reader = Reader(aside)
    assert (reader.listing(HOUR), reader.totals()) == ([], (1, 1, 1, 1))  # and it can still be looked into
    reader.close()


def test_each_one_set_aside_has_a_name_of_its_own(path: Path) -> None:
    names = []
    for number in range(4):
        path.write_bytes(b"%d" % number)
        names.append(set_aside(str(path)))
    assert [Path(name).read_bytes() for name in names] == [b"0", b"1", b"2", b"3"]
    assert len(os.listdir(path.parent)) == 4
    assert all(name.startswith(f"{path}.set-aside-") for name in names)


def test_what_cannot_be_set_aside_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()

    def refuse(*names: str) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(StateRefused) as caught:
        set_aside(str(path))
    assert caught.value.reason == os.strerror(13)


def spoil_pages(path: Path, first: float, last: float) -> None:
    """Overwrite some pages of the file. The roots of the tables are at its beginning."""
    size = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(int(size * first), int(size * last)):
            file.seek(page * 4096)
            file.write(noise(4096))


def test_damage_that_a_reader_meets_is_noted_for_the_next_start(path: Path) -> None:
    make_index(path)
    spoil_pages(path, 0.4, 0.6)
    reader = Reader(str(path))
    assert reader.totals()[3] == 1
    assert not damage_noted(str(path))
    with pytest.raises(IndexDamaged):
        reader.listing(HOUR)
    assert damage_noted(str(path))
    reader.close()
    set_aside(str(path))
    assert not damage_noted(str(path))
    Writer(str(path)).close()


def test_damage_that_the_writer_meets_is_noted_for_the_next_start(path: Path) -> None:
    make_index(path)
    spoil_pages(path, 0.4, 0.6)
    writer = Writer(str(path))
    assert not damage_noted(str(path))
    with pytest.raises(IndexDamaged):
        add(writer, HOUR, *(f"{stem_of(second)}.json" for second in range(0, 3_000, 100)))
    assert damage_noted(str(path))
    writer.close()
    assert damage_noted(str(path))


def test_damage_that_no_note_can_be_left_of_is_still_told(path: Path) -> None:
    """As a command of another account meets it: it may not write into the state directory."""
    make_index(path)
    spoil_pages(path, 0.4, 0.6)
    reader = Reader(str(path))
    (path.parent / "index.damaged").mkdir()  # nothing can be written under this name
    with pytest.raises(IndexDamaged):
        reader.listing(HOUR)
    reader.close()


def test_a_closed_connection_is_no_damage(path: Path) -> None:
    """A scrape while the agent stops must not cost the index."""
    make_index(path)
    reader, writer = Reader(str(path)), Writer(str(path))
    reader.close()
    writer.close()
    with pytest.raises(sqlite3.ProgrammingError):
        reader.totals()
    with pytest.raises(sqlite3.ProgrammingError):
        hide(writer, HOUR, "late")
    assert not damage_noted(str(path))


def test_an_index_that_was_given_up_does_not_harm_its_successor(path: Path) -> None:
    """SQLite removes the log beside an index when its last connection closes."""
    make_index(path, hours=3_000)
    spoil_pages(path, 0.9, 1.0)
    with pytest.raises(IndexDamaged):
        Writer(str(path))
    set_aside(str(path))
    writer = Writer(str(path))
    hide(writer, HOUR, STEM)
    gc.collect()
    assert path.with_name("index.sqlite-wal").exists()
    reader = Reader(str(path))
    assert reader.totals()[3] == 1
    reader.close()
    writer.close()


def test_nothing_stays_open_of_what_could_not_be_opened(path: Path) -> None:
    make_index(path, hours=3_000)
    spoil_pages(path, 0.9, 1.0)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IndexDamaged):
        Writer(str(path))
    assert os.listdir("/proc/self/fd") == before


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    path = index_path(str(small_disk))
    writer = Writer(path)
    add(writer, HOUR, "one.ts", "two.ts")
    hide(writer, HOUR, "one")
    ballast = fill(small_disk)
    before = (dict(writer.tally.files), dict(writer.tally.hidden), writer.tally.markers)
    with pytest.raises(StateRefused) as caught:
        for number in range(1_000):
            add(writer, HOUR, f"{number}.ts")
    assert caught.value.path == path
    with pytest.raises(StateRefused):
        hide(writer, HOUR, "two")
    assert not damage_noted(path)
    reader = Reader(path)
    listing = reader.listing(HOUR)
    assert "two.ts" in listing
    assert "one.ts" not in listing
    files, hidden, markers = before
    assert (dict(writer.tally.hidden), writer.tally.markers) == (hidden, markers)
    assert sum(writer.tally.files.values()) == len(listing) + 1 >= sum(files.values())
    ballast.unlink()
    assert len(hide(writer, HOUR, "two")) == 1
    assert "two.ts" not in reader.listing(HOUR)
    reader.close()
    writer.close()


def test_a_file_size_limit_refuses_as_well(path: Path) -> None:
    """The same without a disk of its own: the kernel refuses to let a file grow."""
    writer = Writer(str(path))
    add(writer, HOUR, "one.ts")
    size = path.with_name("index.sqlite-wal").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        with pytest.raises(StateRefused):
            hide(writer, HOUR, "one")
        with pytest.raises(StateRefused):
            hide(writer, HOUR, "one", "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not damage_noted(str(path))
    assert len(hide(writer, HOUR, "one")) == 1
    writer.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_SNAPSHOT, sqlite3.SQLITE_PROTOCOL])
def test_a_lock_that_another_process_keeps_is_told_as_that_and_is_no_damage(code: int, tmp_path: Path) -> None:
    path = str(tmp_path / "index.sqlite")
    failure = sqlite3.OperationalError("locking protocol")
    failure.sqlite_errorcode = code
    with pytest.raises(StateRefused) as caught, translated(path):
        raise failure
    assert "another process holds it" in str(caught.value)
    assert "whether the agent was stopped" in caught.value.hint
    assert os.listdir(tmp_path) == []

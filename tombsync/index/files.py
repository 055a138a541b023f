"""The index's file: where it lives, who may write it, how it is opened, and how a damaged one is set aside."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from tombsync.errors import IndexBusy, IndexDamaged, IndexMissing, IndexTooNew, IndexTooOld, StateRefused
from tombsync.index.schema import APPLICATION_ID, MIGRATIONS, migrate

_INDEX_NAME = "index.sqlite"
_LOCK_NAME = "agent.lock"
_DAMAGED_NAME = "index.damaged"  # left by a process that met the damage while it ran
SIDE_FILES = ("", "-wal", "-shm")
_STATE_MODE = 0o750  # readers in the agent's group may look, nobody else
_INDEX_MODE = 0o640
_BUSY_TIMEOUT_S = 5.0  # only a checkpoint can hold the file from the one writer, and never for long
# A command that asks `agent_pid` holds the lock for some microseconds; an agent that starts then looks again.
_LOOK_S = 0.01
_MOST_LOOKS = 100
_HELD_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)  # a lock that was not released in time
# A missing table or column (SQLITE_ERROR while opening) is damage as well: the schema is not what its version says.
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def index_path(state_dir: str) -> str:
    """The index's file in a state directory."""
    return os.path.join(state_dir, _INDEX_NAME)


class AgentLock:
    """Held for the life of an agent, so that one state directory has one writer. Released by the kernel at any end."""

    def __init__(self, state_dir: str) -> None:
        """Take the lock. Raises IndexBusy where another process holds it, StateRefused."""
        try:
            os.makedirs(state_dir, mode=_STATE_MODE, exist_ok=True)
            self._fd = os.open(os.path.join(state_dir, _LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _INDEX_MODE)
        except OSError as exc:
            raise StateRefused(state_dir, os.strerror(exc.errno or 0)) from exc
        try:
            self._take(state_dir)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except IndexBusy:
            os.close(self._fd)
            raise
        except OSError as exc:
            os.close(self._fd)
            raise StateRefused(state_dir, os.strerror(exc.errno or 0)) from exc

    def _take(self, state_dir: str) -> None:
        looks = 0
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pid, looks = agent_pid(state_dir), looks + 1
                if pid or looks == _MOST_LOOKS:
                    raise IndexBusy(state_dir, pid) from None
            time.sleep(_LOOK_S)

    def release(self) -> None:
        """Let another agent start."""
        os.close(self._fd)


def agent_pid(state_dir: str) -> int:
    """The process that holds the lock of a state directory; 0 where none does or it cannot be told."""
    try:
        fd = os.open(os.path.join(state_dir, _LOCK_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(fd, 32, 0) or b"0")
        return 0
    except (OSError, ValueError):
        return 0
    finally:
        os.close(fd)


def open_for_writing(path: str) -> sqlite3.Connection:
    """The writer's connection, its schema brought up to date.

    Raises IndexDamaged for a file that is damaged or none of ours, IndexTooNew, IndexTooOld, StateRefused.
    """
    new = not os.path.exists(path)
    with _opening(path):
        if new:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _INDEX_MODE))
        connection = _connect(path, "rw")
        try:
            _require_ours(connection, path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")  # a checkpoint's fsync must not fall into a hide
            connection.execute("PRAGMA temp_store=MEMORY")
            migrate(connection)
            for table in ("meta", "place", "hour", "segment", "marker", "peer", "delivery", "coverage"):
                connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


def open_for_checkpoints(path: str) -> sqlite3.Connection:
    """A second connection that writes nothing but checkpoints. Raises IndexDamaged, StateRefused."""
    with _opening(path):
        connection = _connect(path, "rw")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA busy_timeout=100")
        return connection


def open_for_reading(path: str) -> sqlite3.Connection:
    """A read-only connection, with the agent up or down.

    Raises IndexMissing, IndexDamaged, IndexTooNew, IndexTooOld.
    """
    if not os.path.exists(path):
        raise IndexMissing(path)
    with _opening(path):
        try:
            return _open_ours(path, "ro")
        except sqlite3.OperationalError:
            # After a clean stop there is no -wal, and a reader that may not create one must say that none is needed.
            if os.path.exists(path + "-wal"):
                raise
            return _open_ours(path, "ro&immutable=1")


def _open_ours(path: str, mode: str) -> sqlite3.Connection:
    connection = _connect(path, mode)
    try:
        version = _require_ours(connection, path)
        if version == 0:  # an agent's first start is just making it
            raise IndexMissing(path)
        if version < len(MIGRATIONS):
            raise IndexTooOld(path)
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA cache_size=-2000")
    except BaseException:
        connection.close()
        raise
    return connection


def set_aside(path: str) -> str:
    """Rename the index and its side files, so that nothing is lost, and return the new name. Raises StateRefused."""
    aside = f"{path}.set-aside-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    number = 0
    while os.path.exists(aside):
        number += 1
        aside = f"{aside.partition('.n')[0]}.n{number}"
    try:
        for suffix in SIDE_FILES:
            if os.path.exists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        flag = os.path.join(os.path.dirname(path), _DAMAGED_NAME)
        if os.path.exists(flag):
            os.unlink(flag)
    except OSError as exc:
        raise StateRefused(path, os.strerror(exc.errno or 0)) from exc
    return aside


def note_damage(path: str) -> None:
    """Leave word for the next start that the index is damaged: a running process cannot exchange it."""
    flag = os.path.join(os.path.dirname(path), _DAMAGED_NAME)
    try:
        os.close(os.open(flag, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _INDEX_MODE))
    except OSError:  # a full disk, or another account's command: the next start meets the damage itself
        pass


def damage_noted(path: str) -> bool:
    """Whether an earlier process left word of damage."""
    return os.path.exists(os.path.join(os.path.dirname(path), _DAMAGED_NAME))


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Our errors for SQLite's, of an index that is in use; damage is noted for the next start."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # a mistake of ours, such as a connection that was closed: it says nothing about the file
    except sqlite3.Error as exc:
        error = _translate(path, exc)
        if isinstance(error, IndexDamaged):
            note_damage(path)
        raise error from exc


@contextmanager
def _opening(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StateRefused(path, os.strerror(exc.errno or 0)) from exc
    except sqlite3.Error as exc:
        raise _translate(path, exc) from exc


def _translate(path: str, exc: sqlite3.Error) -> IndexDamaged | StateRefused:
    # The low byte is the primary result code, https://sqlite.org/rescode.html
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _DAMAGE_CODES:
        return IndexDamaged(path, str(exc))
    if code in _HELD_CODES:
        hint = "try again in a moment; where it stays so, see whether the agent was stopped (SIGSTOP)"
        return StateRefused(path, f"another process holds it ({exc})", hint)
    return StateRefused(path, str(exc))


def _connect(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _require_ours(connection: sqlite3.Connection, path: str) -> int:
    """The version of its schema, 0 where it has none yet. Raises IndexDamaged, IndexTooNew."""
    application_id, version, tables = connection.execute(  # at one moment: it may just be made
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),"
        " (SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if application_id != APPLICATION_ID and (tables or version):
        raise IndexDamaged(path, "it is no index of tombsync")
    if version > len(MIGRATIONS):
        raise IndexTooNew(path, version, len(MIGRATIONS))
    return int(version)

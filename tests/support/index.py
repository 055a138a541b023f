"""Rows for tests of the index: hours, sightings, and what its tables really hold."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tombsync
from tombsync.index import Hidden, SegmentRows, Writer
from tombsync.index.deliveries import Tally
from tombsync.names import Hour, Marked, hour_number
from tombsync.plan import State
from tombsync.work import Sight, Sighting, Source

HASH = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
NEXT_HOUR = HOUR._replace(number=HOUR.number + 1)
CHAT_HOUR = HOUR._replace(quality="chat")
STEM = f"45:51.608000-2.0-full-{HASH}"
# Names as a directory can give them: a line break, bytes that are not UTF-8, characters beyond ASCII.
BAD_UTF8 = os.fsdecode(b"\xff\xfe\x80")
ODD_NAMES = ["a\nb", BAD_UTF8, "\u00e9\u4e2d\U0001f47b", " ", "%'\"?#", "-", "~"]
NOW_NS = 1_573_613_000_000_000_000
REGULAR = Sight(regular=True, owner_uid=1000, ctime_ns=NOW_NS - 1)
NO_FILE = Sight(regular=False, owner_uid=0, ctime_ns=NOW_NS - 2)


def stem_of(number: int) -> str:
    """The stem of the segment that begins at this second of its hour."""
    return f"{number // 60:02d}:{number % 60:02d}.608000-2.0-full-{HASH}"


def seen(
    hour: Hour, *stems: str, source: Source = Source.WATCH, sight: Sight = REGULAR
) -> list[tuple[Sighting, Sight]]:
    """Sightings of tombstones, with what lstat said of them."""
    return [(Sighting(Marked(hour, stem), source, time.monotonic_ns()), sight) for stem in stems]


def hide(writer: Writer, hour: Hour, *stems: str, sight: Sight = REGULAR, now_ns: int = NOW_NS) -> list[Hidden]:
    """Hide stems of one hour in one transaction."""
    return writer.hide(seen(hour, *stems, sight=sight), now_ns)


def add(writer: Writer, hour: Hour, *names: str, watched: bool = False) -> None:
    """Put segments into the index."""
    writer.apply([SegmentRows(hour, add=names, watched=watched)])


def drop(writer: Writer, hour: Hour, *names: str, watched: bool = False) -> None:
    """Take segments out of the index."""
    writer.apply([SegmentRows(hour, drop=names, watched=watched)])


@contextlib.contextmanager
def database(path: str | Path) -> Iterator[sqlite3.Connection]:
    """The index's file as any SQLite client sees it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def query(path: str | Path, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """All rows that a query gives."""
    with database(path) as connection:
        return connection.execute(sql, values).fetchall()


def assert_counts_are_true(path: str | Path, tally: Tally) -> None:
    """The tally, and the counts in the table of hours, are what counting the rows gives."""
    hidden = "(hour, stem) IN (SELECT hour, stem FROM marker GROUP BY hour, stem HAVING max(gen) % 2 = 0)"
    with database(path) as connection:
        connection.execute("BEGIN")
        rows = dict(connection.execute("SELECT id, files FROM hour WHERE files != 0"))
        assert rows == dict(connection.execute("SELECT hour, count(*) FROM segment GROUP BY 1"))
        rows = dict(connection.execute("SELECT id, hidden FROM hour WHERE hidden != 0"))
        assert rows == dict(connection.execute(f"SELECT hour, count(*) FROM segment WHERE {hidden} GROUP BY 1"))
        places = connection.execute("SELECT hour >> 27, count(*) FROM segment GROUP BY 1")
        assert _nonzero(tally.files.items()) == dict(places)
        places = connection.execute(f"SELECT hour >> 27, count(*) FROM segment WHERE {hidden} GROUP BY 1")
        assert _nonzero(tally.hidden.items()) == dict(places)
        assert tally.markers == connection.execute("SELECT count(*) FROM marker").fetchone()[0]
        deliveries = connection.execute("SELECT peer, state, count(*) FROM delivery GROUP BY 1, 2")
        assert _nonzero(tally.deliveries.items()) == {(peer, State(state)): count for peer, state, count in deliveries}


def _nonzero(items: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    return {key: count for key, count in items if count}


def start_python(script: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start a Python of its own that can import tombsync; it says what it has done on its stdout."""
    package = str(Path(tombsync.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def said(process: subprocess.Popen[str]) -> str:
    """The next line that it says; "" at its end."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait for the end."""
    process.kill()
    with process:
        pass
    assert process.returncode == -signal.SIGKILL

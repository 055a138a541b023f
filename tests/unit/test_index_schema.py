"""The index's tables as they are made, brought up to date, and what stands in them for a name and an hour."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.index import HOUR, STEM, add, database, hide, query
from tombsync.errors import IndexDamaged, IndexMissing, IndexTooNew, IndexTooOld
from tombsync.index import Reader, Writer, schema
from tombsync.names import Hour, hour_number

# What an index of each older version holds, as SQL that makes it, with rows where it can have some. Whoever adds a
# migration adds the version before it here; nothing else of these tests has to change.
_TABLES_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE place (
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL,
    quality TEXT NOT NULL,
    own_mount INTEGER NOT NULL DEFAULT 0,
    UNIQUE (channel, quality)
);

CREATE TABLE hour (
    id INTEGER PRIMARY KEY,
    mtime_ns INTEGER,
    digest BLOB,
    pass INTEGER NOT NULL DEFAULT 0,
    settled INTEGER NOT NULL DEFAULT 0,
    edits INTEGER NOT NULL DEFAULT 0,
    files INTEGER NOT NULL DEFAULT 0,
    hidden INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX hour_unsettled ON hour (id) WHERE settled = 0;

CREATE TABLE segment (
    hour INTEGER NOT NULL,
    stem TEXT NOT NULL,
    ext INTEGER NOT NULL,
    PRIMARY KEY (hour, stem, ext)
) WITHOUT ROWID;

CREATE TABLE marker (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hour INTEGER NOT NULL,
    stem TEXT NOT NULL,
    gen INTEGER NOT NULL DEFAULT 0,
    in_tree INTEGER NOT NULL DEFAULT 1,
    pushable INTEGER NOT NULL DEFAULT 1,
    source TEXT NOT NULL,
    hidden_at_ns INTEGER NOT NULL,
    ctime_ns INTEGER,
    owner_uid INTEGER,
    UNIQUE (hour, stem, gen)
);
CREATE INDEX marker_unpushable ON marker (id) WHERE pushable = 0;

CREATE TABLE peer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    target TEXT NOT NULL,
    up INTEGER NOT NULL DEFAULT 0,
    changed_at_ns INTEGER,
    error TEXT,
    error_at_ns INTEGER,
    verified_at_ns INTEGER
);

CREATE TABLE delivery (
    peer INTEGER NOT NULL,
    marker INTEGER NOT NULL,
    state INTEGER NOT NULL,
    asked_at_ns INTEGER,
    confirmed_at_ns INTEGER,
    ever_there INTEGER NOT NULL DEFAULT 0,
    detail TEXT,
    PRIMARY KEY (peer, marker)
) WITHOUT ROWID;
CREATE INDEX delivery_open ON delivery (peer, marker) WHERE state <= 5;
CREATE INDEX delivery_marker ON delivery (marker);

CREATE TRIGGER marker_hides AFTER INSERT ON marker BEGIN
    INSERT INTO delivery (peer, marker, state)
        SELECT id, NEW.id, 1 FROM peer WHERE NEW.pushable;
    INSERT OR IGNORE INTO hour (id) VALUES (NEW.hour);
    UPDATE hour SET
        edits = edits + 1,
        digest = NULL,
        settled = 0,
        hidden = hidden + (SELECT count(*) FROM segment WHERE hour = NEW.hour AND stem = NEW.stem)
    WHERE id = NEW.hour;
END;
"""
_ROWS = """
INSERT INTO place (id, channel, quality) VALUES (1, 'desertbus', 'source');
INSERT INTO peer (name, target) VALUES ('node-b', 'x');
INSERT INTO marker (hour, stem, source, hidden_at_ns) VALUES (1 << 27 | 1, 'old', 'watch', 5);
UPDATE delivery SET state = 7;
"""
_TABLES_2 = """
ALTER TABLE marker ADD COLUMN origin TEXT;
ALTER TABLE marker ADD COLUMN sender TEXT;
CREATE INDEX marker_awaited ON marker (id) WHERE in_tree = 0;

ALTER TABLE delivery ADD COLUMN data INTEGER;
ALTER TABLE delivery ADD COLUMN data_asked_at_ns INTEGER;
"""
_TABLES_3 = """
ALTER TABLE marker ADD COLUMN meant INTEGER NOT NULL DEFAULT 0;
ALTER TABLE marker ADD COLUMN also_from TEXT;
UPDATE marker SET meant = 1 WHERE sender IS NOT NULL;
CREATE INDEX delivery_held ON delivery (marker) WHERE state = 5;
"""
_TABLES_4 = """
ALTER TABLE marker ADD COLUMN told_up_to INTEGER NOT NULL DEFAULT 0;
INSERT OR REPLACE INTO meta SELECT 'told_up_to', coalesce(max(id), 0) FROM marker;
ALTER TABLE peer ADD COLUMN marker_seen INTEGER NOT NULL DEFAULT 0;
"""
OLDER: dict[int, str] = {
    0: "",
    1: _TABLES_1 + _ROWS,
    2: _TABLES_1 + _TABLES_2 + _ROWS,
    3: _TABLES_1 + _TABLES_2 + _TABLES_3 + _ROWS,
    4: _TABLES_1 + _TABLES_2 + _TABLES_3 + _TABLES_4 + _ROWS,
}


def structure(path: Path) -> set[tuple[str, str, str]]:
    """Every table, index and trigger, however it came to be."""
    found = query(path, "SELECT type, name, sql FROM sqlite_master")
    return {(kind, name, " ".join((sql or "").split())) for kind, name, sql in found}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def test_every_older_version_is_tried() -> None:
    assert list(OLDER) == list(range(len(schema.MIGRATIONS)))


def test_a_new_index_says_what_it_is(path: Path) -> None:
    Writer(str(path)).close()
    assert query(path, "PRAGMA application_id") == [(0x746F6D62,)]
    assert query(path, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    tables = {name for kind, name, _ in structure(path) if kind == "table"}
    assert tables == {"meta", "place", "hour", "segment", "marker", "peer", "delivery", "coverage", "sqlite_sequence"}
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_opening_again_changes_nothing(path: Path) -> None:
    Writer(str(path)).close()
    before = path.read_bytes()
    Writer(str(path)).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", OLDER)
def test_an_older_index_is_brought_up_to_date(version: int, path: Path, tmp_path: Path) -> None:
    with database(path) as connection:
        if version:
            connection.executescript(f"PRAGMA application_id={schema.APPLICATION_ID};")
        connection.executescript(f"{OLDER[version]};PRAGMA user_version={version};")
    with pytest.raises(IndexTooOld if version else IndexMissing):
        Reader(str(path))
    writer = Writer(str(path))
    add(writer, HOUR, f"{STEM}.ts")
    assert len(hide(writer, HOUR, STEM)) == 1
    writer.close()
    Reader(str(path)).close()
    Writer(str(tmp_path / "new.sqlite")).close()
    assert structure(path) == structure(tmp_path / "new.sqlite")
    assert query(path, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    assert query(path, "PRAGMA application_id") == [(schema.APPLICATION_ID,)]


def test_the_next_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(str(path))
    add(writer, HOUR, f"{STEM}.ts", "other.ts")
    hide(writer, HOUR, STEM)
    writer.close()
    version = len(schema.MIGRATIONS)
    longer = (*schema.MIGRATIONS, "ALTER TABLE marker ADD COLUMN next TEXT NOT NULL DEFAULT 'new';")
    monkeypatch.setattr("tombsync.index.schema.MIGRATIONS", longer)
    monkeypatch.setattr("tombsync.index.files.MIGRATIONS", longer)
    writer = Writer(str(path))
    assert hide(writer, HOUR, STEM) == []
    assert len(hide(writer, HOUR, "other")) == 1
    writer.close()
    assert query(path, "PRAGMA user_version") == [(version + 1,)]
    assert query(path, "SELECT stem, next FROM marker ORDER BY id") == [(STEM, "new"), ("other", "new")]


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(str(path)).close()
    before, version = structure(path), len(schema.MIGRATIONS)
    longer = (*schema.MIGRATIONS, "CREATE TABLE half (a); INSERT INTO missing VALUES (1);")
    with monkeypatch.context() as patched:
        patched.setattr("tombsync.index.schema.MIGRATIONS", longer)
        patched.setattr("tombsync.index.files.MIGRATIONS", longer)
        with pytest.raises(IndexDamaged):
            Writer(str(path))
    assert structure(path) == before
    assert query(path, "PRAGMA user_version") == [(version,)]
    Writer(str(path)).close()


def test_a_newer_index_is_left_alone(path: Path) -> None:
    Writer(str(path)).close()
    newer = len(schema.MIGRATIONS) + 1
    with database(path) as connection:
        connection.execute(f"PRAGMA user_version={newer}")
    before = path.read_bytes()
    for opening in (Writer, Reader):
        with pytest.raises(IndexTooNew) as caught:
            opening(str(path))
        assert (caught.value.version, caught.value.known) == (newer, newer - 1)
    assert path.read_bytes() == before


# -- keys --------------------------------------------------------------------------------------------------------------

file_names = st.binary(min_size=1, max_size=255).map(os.fsdecode)


@given(file_names | st.text().filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_a_name_comes_back_from_its_key(name: str) -> None:
    key = schema.to_key(name)
    assert schema.from_key(key) == name
    assert isinstance(key, bytes) == any("\udc80" <= c <= "\udcff" for c in name)


@given(st.lists(file_names, max_size=5))
def test_names_have_a_key_each(names: list[str]) -> None:
    assert len({schema.to_key(name) for name in names}) == len(set(names))


@given(st.integers(1, 1 << 34), st.integers(24, hour_number("9999-12-31T23")))
def test_an_hour_comes_back_from_its_key(place: int, number: int) -> None:
    key = schema.hour_id(place, number)
    assert 0 < key < 1 << 62  # what the queries take for "above all"
    assert schema.hour_of(key, {place: ("desertbus", "source")}) == Hour("desertbus", "source", number)
    first, last = schema.place_range(place)
    assert first <= key <= last
    assert schema.place_range(place + 1)[0] == last + 1


def test_the_longest_hour_fits() -> None:
    assert hour_number("9999-12-31T23") <= schema.HOUR_MASK

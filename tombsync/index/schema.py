"""The index's tables, and how an older schema becomes the present one.

An hour is one integer: `place << HOUR_BITS | hours since 0001`, so hours of a place are a range, newest last. Names are
TEXT, or BLOB where they are not UTF-8 (SQLite compares the two kinds apart, and one name is always of one kind).
A segment costs about 85 bytes (measured by benchmarks/rescan.py).
"""

from __future__ import annotations

import os
import sqlite3

from tombsync.names import Hour, Kind
from tombsync.plan import State

APPLICATION_ID = 0x746F6D62  # "tomb": PRAGMA application_id tells our file from any other
HOUR_BITS = 27  # 2^27 hours are 15,300 years
HOUR_MASK = (1 << HOUR_BITS) - 1

TOLD_UP_TO = "told_up_to"  # the fact of that name

# Of a delivery. A query must say it in these very words to be answered from the partial index of that name.
IS_OPEN = f"state <= {State.HELD:d}"
IS_HELD = f"state = {State.HELD:d}"

# A row of `marker` is one generation of one stem (0: marked; odd will mean revoked, even marked again), and a row of
# `delivery` belongs to one such row, so the generation is part of the key of both. Marker ids only grow: "newest first"
# is a walk backwards. `hour.edits` counts what the watcher and hiding changed: a listing that was made before such a
# change does not count as known (see HourListed).
_VERSION_1 = f"""
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
CREATE INDEX delivery_open ON delivery (peer, marker) WHERE {IS_OPEN};
CREATE INDEX delivery_marker ON delivery (marker);

CREATE TRIGGER marker_hides AFTER INSERT ON marker BEGIN
    INSERT INTO delivery (peer, marker, state)
        SELECT id, NEW.id, {State.PENDING:d} FROM peer WHERE NEW.pushable;
    INSERT OR IGNORE INTO hour (id) VALUES (NEW.hour);
    UPDATE hour SET
        edits = edits + 1,
        digest = NULL,
        settled = 0,
        hidden = hidden + (SELECT count(*) FROM segment WHERE hour = NEW.hour AND stem = NEW.stem)
    WHERE id = NEW.hour;
END;
"""

# Version 2: receiving, and whether a peer still has the data. `origin` and `sender` are of a tombstone that
# came by an inbox: the node that marked it first, and the peer that brought it.
_VERSION_2 = """
ALTER TABLE marker ADD COLUMN origin TEXT;
ALTER TABLE marker ADD COLUMN sender TEXT;
CREATE INDEX marker_awaited ON marker (id) WHERE in_tree = 0;

ALTER TABLE delivery ADD COLUMN data INTEGER;
ALTER TABLE delivery ADD COLUMN data_asked_at_ns INTEGER;
"""

# Version 3: of what a restart must not forget. `meant`: no slip of a hand, as it came by an inbox, has the note of
# `mark`, or was released. `also_from`: a peer that brought what was marked here already, and so has it.
_VERSION_3 = f"""
ALTER TABLE marker ADD COLUMN meant INTEGER NOT NULL DEFAULT 0;
ALTER TABLE marker ADD COLUMN also_from TEXT;
UPDATE marker SET meant = 1 WHERE sender IS NOT NULL;
CREATE INDEX delivery_held ON delivery (marker) WHERE {IS_HELD};
"""

# Version 4: of what is recorded, up to which key it is in the journal as well: a fact of that name, and in a marker
# what was known of it when that was recorded (a statement alone, in which no fact is written). And of each peer,
# whether the root marker of its tree was ever seen there.
_VERSION_4 = f"""
ALTER TABLE marker ADD COLUMN told_up_to INTEGER NOT NULL DEFAULT 0;
INSERT OR REPLACE INTO meta SELECT '{TOLD_UP_TO}', coalesce(max(id), 0) FROM marker;
ALTER TABLE peer ADD COLUMN marker_seen INTEGER NOT NULL DEFAULT 0;
"""

# How far an hour's files reach into the next hour, which begins with what they cover.
REACH_FIGURES = ("reach_covered_us", "reach_full_us", "reach_any_us", "reach_taken_us")
# What `tombsync.coverage` says of an hour, in the order in which it hands it over.
COVERAGE_FIGURES = (
    *("span_us", "covered_us", "editable_us", "partial_us", "tombstoned_us", "overlaps", "overlap_us", "hidden"),
    *("full_files", "suspect_files", "partial_files", "temp_files", "chat_files", "bad_files"),
    *REACH_FIGURES,
)
STALE = -1  # for `coverage.edits`: they are old, whatever the hour's row says

# Version 5: coverage. `edits`, `files`, `hidden_files` and `digest` are what the hour's row said when the figures were
# made; `strip` is a state for each 2 s, compressed. Some 150 bytes an hour (measured by benchmarks/coverage.py).
_VERSION_5 = f"""
CREATE TABLE coverage (
    hour INTEGER PRIMARY KEY,
    edits INTEGER NOT NULL,
    files INTEGER NOT NULL,
    hidden_files INTEGER NOT NULL,
    digest BLOB,
    {", ".join(f"{name} INTEGER NOT NULL" for name in COVERAGE_FIGURES)},
    strip BLOB NOT NULL
);

CREATE TRIGGER hour_goes AFTER DELETE ON hour BEGIN
    DELETE FROM coverage WHERE hour = OLD.id;
    UPDATE coverage SET edits = {STALE} WHERE hour = OLD.id + 1;
END;
"""

# One script per version; the index's `user_version` says how many have run.
MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4, _VERSION_5)

# The file name of a row.
ROW_NAME = f"stem || iif(ext = {Kind.TS:d}, '.ts', '.json')"

# The rule of visibility, in one place: the newest generation of the stem's marker is even.
# HIDDEN_STEMS are those of the hour ?1; IS_HIDDEN asks it of one row `s` of segment.
HIDDEN_STEMS = "(SELECT stem FROM marker WHERE hour = ?1 GROUP BY stem HAVING max(gen) % 2 = 0)"
IS_HIDDEN = "(SELECT max(gen) FROM marker m WHERE m.hour = s.hour AND m.stem = s.stem) % 2 IS 0"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an empty or older index to the present schema, each step in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;{script}PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={number};COMMIT;"
        )


def hour_id(place: int, number: int) -> int:
    """The index's key of an hour."""
    return place << HOUR_BITS | number


def place_range(place: int) -> tuple[int, int]:
    """The first and the last key that an hour of this place can have."""
    return place << HOUR_BITS, place << HOUR_BITS | HOUR_MASK


def hour_of(identifier: int, places: dict[int, tuple[str, str]]) -> Hour:
    """The hour of a key."""
    channel, quality = places[identifier >> HOUR_BITS]
    return Hour(channel, quality, identifier & HOUR_MASK)


def to_key(name: str) -> str | bytes:
    """A name as it is stored: text, or bytes where it is not UTF-8."""
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def from_key(value: str | bytes) -> str:
    """The inverse of `to_key`."""
    return value if isinstance(value, str) else os.fsdecode(value)

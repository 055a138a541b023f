"""What Python programs are told of a node's archive: names of hours, segments in time, and which of them is served."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.archive import Archive
from tests.support.index import BAD_UTF8, HASH, HOUR, NEXT_HOUR, ODD_NAMES, database, said, start_python, stem_of
from tests.support.trees import listed, need_root
from tombsync import errors
from tombsync.client import Client, OpenIndex, open_client
from tombsync.index import Reader, index_path, set_aside
from tombsync.names import Hour

START, END = "2019-11-13T02:00:10", "2019-11-13T02:00:20"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(archive: Archive) -> Iterator[Client]:
    with Client(str(archive.root), str(archive.state_dir)) as made:
        yield made


def stem(second: float, *, duration: str = "2.0", kind: str = "full", letter: str = "7") -> str:
    """A stem at this second of its hour."""
    whole, micro = divmod(round(second * 1_000_000), 1_000_000)
    return f"{whole // 60:02d}:{whole % 60:02d}.{micro:06d}-{duration}-{kind}-{letter}{HASH[1:]}"


def read(client: Client, hour: Hour = HOUR, *, tombstones: bool = False) -> tuple[list[str], bool]:
    return client.hour_names(hour.channel, hour.quality, hour.text, tombstones=tombstones)


# -- names ------------------------------------------------------------------------------------------------------------


def test_an_hour_that_was_never_listed_is_read_from_its_directory(archive: Archive, client: Client) -> None:
    directory = archive.make(HOUR, "a.ts", "b.json", "c.ts", "c.tombstone", ".d.ts", "e.txt")
    assert read(client) == (["a.ts", "b.json"], False)
    assert read(client, tombstones=True) == (["a.ts", "b.json", "c.tombstone"], False)
    archive.settle(HOUR)
    assert read(client) == (["a.ts", "b.json"], True)
    assert read(client, tombstones=True) == (["a.ts", "b.json", "c.tombstone"], True)
    (directory / "a.tombstone").touch()
    assert read(client) == (["b.json"], False)


def test_what_is_marked_by_the_index_alone_is_left_out_of_a_directory(archive: Archive, client: Client) -> None:
    archive.make(HOUR, "a.ts", "b.ts", "b.json", "c.ts", "c.tombstone")
    archive.settle(HOUR)
    archive.hide(HOUR, "b")
    assert read(client) == (["a.ts"], False)
    assert read(client, tombstones=True) == (["a.ts", "b.tombstone", "c.tombstone"], False)


@pytest.mark.parametrize("odd", ["a.ts.tombstone", "a.json.tombstone", "a.tombstone.tombstone"])
def test_an_hour_with_a_mistaken_name_is_read_from_its_directory(archive: Archive, client: Client, odd: str) -> None:
    """The archive takes them for tombstones of other stems, of which the index has no rows."""
    directory = archive.make(HOUR, "a.ts", "a.ts.ts", "a.json.ts", "b.ts", odd)
    archive.settle(HOUR)
    for tombstones in (False, True):
        assert read(client, tombstones=tombstones) == (listed(directory, tombstones=tombstones), False)
    (directory / odd).unlink()
    archive.settle(HOUR)
    assert read(client) == (listed(directory), True)


def test_a_tree_that_is_not_the_known_one_is_read_from_its_directory(archive: Archive, client: Client) -> None:
    """A copy of the tree, which has every mtime of the original: here but one name more."""
    directory = archive.make(HOUR, "a.ts", "b.ts")
    archive.settle(HOUR)
    assert read(client) == (["a.ts", "b.ts"], True)
    at = directory.stat().st_mtime_ns
    shutil.rmtree(archive.root / ".tombsync")
    (directory / "c.ts").touch()
    os.utime(directory, ns=(at, at))
    assert read(client) == (["a.ts", "b.ts", "c.ts"], False)
    archive.root.rename(archive.root.with_name("away"))
    assert read(client) == ([], False)
    assert client.entries() == []


def test_directories_above_the_hours(archive: Archive, client: Client) -> None:
    archive.make(HOUR, "a.ts")
    archive.make(HOUR._replace(channel=BAD_UTF8))
    (archive.root / "file").touch()
    (archive.root / "link").symlink_to("desertbus")
    assert client.entries() == sorted(["desertbus", "file", "link", BAD_UTF8])
    assert client.entries("desertbus") == ["source"]
    assert client.entries("desertbus", "source") == [HOUR.text]
    for parts in [("none",), ("file",), ("link",), ("link", "source"), ("desertbus", "source", HOUR.text, "a.ts")]:
        assert client.entries(*parts) == []


@pytest.mark.parametrize("bad", ["..", ".", "", ".tombsync", "a/b", "a\nb", "\0", "x" * 256])
def test_a_part_that_is_no_name_is_refused(client: Client, bad: str) -> None:
    with pytest.raises(errors.BadName):
        client.entries(bad)
    for parts in [(bad, "source", HOUR.text), ("desertbus", bad, HOUR.text), ("desertbus", "source", bad)]:
        with pytest.raises(errors.BadName):
            client.names(*parts)
    with pytest.raises(errors.BadName):
        client.segments(bad, "source", START, END)


names = st.one_of(
    st.sampled_from(["", ".", "x", "x.ts", "x.json", "x.tombstone", "é", "a\nb", *ODD_NAMES, stem_of(2), stem_of(4)]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=6),
)
entries = st.builds(
    lambda name, ending: name + ending,
    names,
    st.sampled_from(["", ".ts", ".ts", ".json", ".tombstone", ".tombstone", ".ts.tombstone", ".tombstone.ts", ".TS"]),
).filter(lambda name: name not in ("", ".", ".."))


@settings(max_examples=300, deadline=None)
@given(before=st.sets(entries, max_size=12), after=st.sets(entries, max_size=4), gone=st.integers(0, 3))
def test_index_and_directory_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, before: set[str], after: set[str], gone: int
) -> None:
    """Whatever stood there when the index was made, and whatever came and went since."""
    archive = Archive(tmp_path_factory.mktemp("archive"))
    directory = archive.make(HOUR, *before)
    archive.settle(HOUR)
    with Client(str(archive.root), str(archive.state_dir)) as client:
        odd = any(name[0] != "." and name.removesuffix(".tombstone").endswith((".ts", ".json", ".tombstone"))
                  for name in before if name.endswith(".tombstone"))  # fmt: skip
        for tombstones in (False, True):
            assert read(client, tombstones=tombstones) == (listed(directory, tombstones=tombstones), not odd)
        for name in sorted(before)[:gone]:
            if not name.endswith(".tombstone"):  # what was marked stays so
                (directory / name).unlink()
        for name in after:
            (directory / name).touch()
        for tombstones in (False, True):
            assert read(client, tombstones=tombstones)[0] == listed(directory, tombstones=tombstones)
    archive.close()


# -- segments in time -------------------------------------------------------------------------------------------------


def test_the_segments_of_a_span(archive: Archive, client: Client) -> None:
    seconds = [8.0, 9.999999, 10.0, 15.0, 18.0, 19.999999, 20.0]
    archive.make(HOUR, *(f"{stem(second)}.ts" for second in seconds), "no-time.ts", f"{stem(16)}.ts")
    archive.mark(HOUR, stem(16))
    found = list(client.segments("desertbus", "source", START, END))
    assert [one.start.second + one.start.microsecond / 1e6 for one in found] == [9.999999, 10, 15, 18, 19.999999]
    assert found[1].path == f"{HOUR.path}/{stem(10)}.ts"
    assert found[1].end - found[1].start == timedelta(seconds=2)
    spans: list[tuple[str | datetime, str | datetime]] = [
        (datetime(2019, 11, 13, 2, 0, 10), datetime(2019, 11, 13, 2, 0, 20)),
        (datetime(2019, 11, 13, 2, 0, 10, tzinfo=UTC), datetime(2019, 11, 13, 2, 0, 20, tzinfo=UTC)),
        (datetime(2019, 11, 13, 4, 0, 10, tzinfo=timezone(timedelta(hours=2))), "2019-11-13T03:00:20+01:00"),
    ]
    for start, end in spans:
        assert list(client.segments("desertbus", "source", start, end)) == found


def test_a_span_over_the_border_of_hours(archive: Archive, client: Client) -> None:
    archive.make(HOUR, f"{stem(3599)}.ts", f"{stem(3590)}.ts")
    archive.make(NEXT_HOUR, f"{stem(1)}.ts", f"{stem(30)}.ts")
    found = list(client.segments("desertbus", "source", "2019-11-13T03:00:00", "2019-11-13T03:00:20"))
    assert [one.path for one in found] == [f"{HOUR.path}/{stem(3599)}.ts", f"{NEXT_HOUR.path}/{stem(1)}.ts"]


def test_what_is_served(archive: Archive, client: Client) -> None:
    directory = archive.make(
        HOUR,
        *(f"{stem(second)}.ts" for second in (10, 12, 16)),
        f"{stem(12, kind='suspect')}.ts",
        f"{stem(14, kind='partial', letter='8')}.ts",
        f"{stem(14, kind='partial', letter='9')}.ts",
    )
    (directory / f"{stem(14, kind='partial', letter='8')}.ts").write_bytes(b"larger")
    found = list(client.best("desertbus", "source", START, "2019-11-13T02:00:18"))
    assert [one and one.stem for one in found] == [
        stem(10), stem(12), stem(14, kind="partial", letter="8"), None, stem(16)
    ]  # fmt: skip
    archive.mark(HOUR, stem(12))  # the archive falls back to what else is there of that instant
    assert stem(12, kind="suspect") in [one and one.stem for one in client.best("desertbus", "source", START, END)]


def test_a_file_that_goes_meanwhile_has_no_size(archive: Archive, client: Client) -> None:
    directory = archive.make(HOUR, f"{stem(10)}.ts")
    (one,) = client.segments("desertbus", "source", START, END)
    assert client.size_of(one) == 0
    (directory / one.name).unlink()
    assert client.size_of(one) == -1
    shutil.rmtree(archive.root)
    assert client.size_of(one) == -1


def test_a_span_that_is_none(client: Client) -> None:
    for end in (START, "2019-11-13T02:00:09"):
        with pytest.raises(errors.EmptySpan):
            client.segments("desertbus", "source", START, end)
    with pytest.raises(errors.BadTime):
        client.best("desertbus", "source", "yesterday", END)


# -- the index --------------------------------------------------------------------------------------------------------


def test_without_an_index_the_tree_alone_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "segments" / HOUR.path
    directory.mkdir(parents=True)
    for name in ("a.ts", "b.ts", "b.tombstone"):
        (directory / name).touch()
    config = tmp_path / "tombsync.toml"
    config.write_text(f'root = "{tmp_path}/segments"\nstate_dir = "{tmp_path}/state"\n')
    with open_client(str(config)) as client:
        assert client.names("desertbus", "source", HOUR.text) == ["a.ts"]
    with open_client(str(config), root=str(tmp_path / "other")) as client:
        assert client.names("desertbus", "source", HOUR.text) == []


def test_an_index_that_is_set_aside_is_not_read_any_more(archive: Archive, client: Client) -> None:
    archive.make(HOUR, "a.ts", "b.ts")
    archive.settle(HOUR)
    archive.hide(HOUR, "b")
    assert read(client) == (["a.ts"], False)
    archive.close()
    set_aside(index_path(str(archive.state_dir)))
    assert read(client) == (["a.ts", "b.ts"], False)  # nothing knows of the mark, as no tombstone stands there
    archive.open()
    archive.adopt()
    archive.settle(HOUR)
    assert read(client) == (["a.ts", "b.ts"], True)


def test_an_index_that_is_exchanged_during_a_question_is_asked_again(archive: Archive) -> None:
    index = OpenIndex(str(archive.state_dir))
    path = index_path(str(archive.state_dir))
    asked: list[Reader | None] = []

    def ask(reader: Reader | None) -> object:
        asked.append(reader)
        if len(asked) == 1:
            os.rename(path, f"{path}.old")
        return None if reader is None else reader.fact("root")

    assert index.ask(ask) is None
    assert [reader is None for reader in asked] == [False, True]
    os.rename(f"{path}.old", path)
    assert index.ask(ask) is not None
    index.close()


def test_a_damaged_index_is_told_and_not_passed_over(archive: Archive, client: Client) -> None:
    """The tree alone would show what only the index knows to be hidden."""
    archive.make(HOUR, "a.ts")
    archive.close()
    path = Path(index_path(str(archive.state_dir)))
    path.write_bytes(b"nothing of ours" * 1000)
    with pytest.raises(errors.IndexDamaged):
        read(client)


# -- another account --------------------------------------------------------------------------------------------------

ASK_AS_NOBODY = """
import os, sys
from tombsync.client import Client
os.setgroups([])
os.setgid(0)
os.setuid(65534)
with Client(sys.argv[1], sys.argv[2]) as client:
    for line in sys.stdin:
        names, from_index = client.hour_names(*line.split())
        print("index" if from_index else "directory", *names, flush=True)
"""


def test_an_index_of_before_is_told_and_not_passed_over(archive: Archive, client: Client) -> None:
    """It knows marks that this tombsync cannot read yet."""
    archive.make(HOUR, "a.ts", "b.ts")
    archive.settle(HOUR)
    archive.hide(HOUR, "b")
    with database(Path(index_path(str(archive.state_dir)))) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version - 1}")
    with pytest.raises(errors.IndexTooOld):
        read(client)


def test_an_account_of_the_group_reads_on_while_agents_come_and_go() -> None:
    """It may not write beside the index, and so opens one at rest as a file that never changes."""
    need_root()
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        archive = Archive(Path(base))
        archive.state_dir.chmod(0o750)
        archive.make(HOUR, "a.ts", "b.ts", "c.ts", "d.ts")
        archive.settle(HOUR)
        archive.close()
        with start_python(ASK_AS_NOBODY, archive.root, archive.state_dir) as process:

            def told() -> str:
                assert process.stdin is not None
                process.stdin.write(f"{HOUR.channel} {HOUR.quality} {HOUR.text}\n")
                process.stdin.flush()
                return said(process)

            assert told() == "index a.ts b.ts c.ts d.ts"  # as a file that does not change
            for stem_, rest in (("a", "b.ts c.ts d.ts"), ("b", "c.ts d.ts")):
                archive.open()
                assert f"{stem_}.ts" in told()
                archive.mark(HOUR, stem_)
                assert told() == f"directory {rest}"
                archive.settle(HOUR)
                assert told() == f"index {rest}"
                archive.close()
                assert told() == f"index {rest}"
            process.communicate()

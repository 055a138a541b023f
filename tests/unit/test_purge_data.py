"""Deleting data beside a tombstone: by descriptors, and only what was listed."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.agent import make_hour, segment_stem, touch
from tests.support.careless import CARELESS, OpenBelow
from tests.support.swapper import Swapper
from tests.support.trees import need_root
from tombsync.errors import NotDeleted, NotPurgeable
from tombsync.names import Marked
from tombsync.tree import DataFile, Standing, Tree, delete_data, list_data, purged_of, remember_purge, standing

STEM = segment_stem(0)
WAYS = pytest.mark.parametrize("parts", [1, 2, 3], ids=["channel", "quality", "hour"])
OUTCOMES = ("not listed", "kept", "deleted")
OFTEN = 100  # each outcome of a race
WITHIN_S = 45.0


class Ground:
    """A tree with one marked segment."""

    def __init__(self, base: Path) -> None:
        self.root = base / "segments"
        self.hour = make_hour(self.root)
        self.marked: Marked = touch(self.hour, STEM)
        self.tree = Tree(str(self.root))
        self.identity = self.tree.adopt()

    def listed(self) -> list[DataFile]:
        with self.tree.open_root() as fd:
            return list_data(fd, self.marked)

    def delete(self, files: list[DataFile]) -> list[str]:
        """What kept each file; "" where it is gone."""
        return [
            str(error or "")
            for _, error in delete_data(
                self.tree,
                self.identity,
                self.marked.hour,
                files,
                lambda fd, hour, what: remember_purge(fd, hour, what, at_ns=1, actor="me"),
            )
        ]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def test_what_root_remembers_belongs_to_whom_the_tree_is_marked_by(ground: Ground) -> None:
    need_root()
    own = ground.root / ".tombsync"
    os.chown(own, 12345, 54321)
    assert ground.delete(ground.listed())[0] == ""
    made = [own / "purged", *(own / "purged").rglob("*")]
    assert len(made) == 4  # channel, quality, and the file of the hour
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(12345, 54321)}


def test_a_file_with_another_name_elsewhere_is_not_written_to(ground: Ground) -> None:
    elsewhere = ground.root.parent / "elsewhere"
    elsewhere.write_text("mine")
    elsewhere.chmod(0o600)
    place = ground.root / ".tombsync/purged" / Path(ground.marked.hour.path).parent
    place.mkdir(parents=True)
    os.link(elsewhere, place / ground.marked.hour.text)
    with pytest.raises(NotDeleted, match="cannot be kept"):
        ground.delete(ground.listed())
    assert (elsewhere.read_text(), elsewhere.stat().st_mode & 0o777) == ("mine", 0o600)
    assert ground.listed()


def test_what_was_listed_goes_and_is_remembered(ground: Ground) -> None:
    (ground.hour / f"{STEM}.json").write_bytes(b"x")
    files = ground.listed()
    assert [file.name for file in files] == [f"{STEM}.ts", f"{STEM}.json"]
    assert ground.delete(files) == ["", ""]
    assert not (ground.hour / f"{STEM}.ts").exists()
    assert (ground.hour / f"{STEM}.tombstone").exists()
    with ground.tree.open_root() as fd:
        assert set(purged_of(fd, ground.marked.hour)) == {f"{STEM}.ts", f"{STEM}.json"}


def test_a_directory_swapped_for_a_link_deletes_nothing_outside(ground: Ground, tmp_path: Path) -> None:
    files = ground.listed()
    outside = tmp_path / "outside"
    ground.hour.rename(outside)
    ground.hour.symlink_to(outside)
    assert "its hour directory" in ground.delete(files)[0]
    assert (outside / f"{STEM}.ts").exists()


def test_a_directory_swapped_while_it_is_open_deletes_nothing_outside(ground: Ground, tmp_path: Path) -> None:
    files = ground.listed()
    outside, moved = tmp_path / "outside", tmp_path / "moved"
    outside.mkdir()
    for name in (f"{STEM}.ts", f"{STEM}.tombstone"):
        (outside / name).write_bytes(b"of somebody else")

    def swap(*_: object) -> None:
        ground.hour.rename(moved)
        ground.hour.symlink_to(outside)

    ((_, error),) = delete_data(ground.tree, ground.identity, ground.marked.hour, files, swap)
    assert error is None  # the very file that was listed, in the directory that was opened
    assert {path.name for path in outside.iterdir()} == {f"{STEM}.ts", f"{STEM}.tombstone"}
    assert (moved / f"{STEM}.tombstone").exists()


def race(ground: Ground, base: Path, parts: int, *, often: float = OFTEN) -> Counter[str]:
    """Purge while a directory, so many parts below ROOT, is swapped for a link and back; how often what came of it.

    Ends when each outcome came so often, or at the first that is different outside.
    """
    way = ground.hour.relative_to(ground.root).parts
    at, outside, link = ground.root.joinpath(*way[:parts]), base / "outside", base / "link"
    shutil.copytree(at, outside)  # if the link were followed, all that is asked for would be there
    link.symlink_to(outside)
    there = outside.joinpath(*way[parts:])
    before, came, end = os.listdir(there), Counter[str](), time.monotonic() + WITHIN_S
    hour_fd = os.open(ground.hour, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Swapper([(at, link)]):
            while min(came[outcome] for outcome in OUTCOMES) < often:
                assert time.monotonic() < end, came
                os.close(os.open(f"{STEM}.ts", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=hour_fd))
                came[attempt(ground)] += 1
                if os.listdir(there) != before:
                    came["outside"] += 1
                    break
        assert sorted(os.listdir(hour_fd)) == sorted(os.listdir(ground.hour))
    finally:
        os.close(hour_fd)
    return came


def attempt(ground: Ground) -> str:
    try:
        files = ground.listed()
    except NotPurgeable:
        return "not listed"
    return "kept" if any(ground.delete(files)) else "deleted"


@WAYS
def test_a_directory_swapped_again_and_again_deletes_nothing_outside(
    ground: Ground, tmp_path: Path, parts: int
) -> None:
    others = {path: path.read_bytes() for path in ground.hour.iterdir() if path.name != f"{STEM}.ts"}
    came = race(ground, tmp_path, parts)
    assert came.keys() == set(OUTCOMES)
    assert {path: path.read_bytes() for path in ground.hour.iterdir() if path.name != f"{STEM}.ts"} == others


@WAYS
@pytest.mark.parametrize("open_below", CARELESS[:2], ids=lambda planted: planted.__name__)
def test_the_race_finds_who_follows_a_link(
    ground: Ground, tmp_path: Path, parts: int, open_below: OpenBelow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tombsync.tree.data.open_below", open_below)
    assert race(ground, tmp_path, parts, often=float("inf"))["outside"] == 1


@pytest.mark.parametrize("change", ["replaced", "link", "unmarked", "directory"])
def test_what_is_another_file_by_now_stays(ground: Ground, tmp_path: Path, change: str) -> None:
    files = ground.listed()
    path, kept = ground.hour / f"{STEM}.ts", tmp_path / "kept"
    if change == "replaced":
        path.rename(kept)
        path.write_bytes(b"another")
    elif change == "link":
        path.rename(kept)
        path.symlink_to(kept)
    elif change == "directory":
        path.rename(kept)
        path.mkdir()
    else:
        (ground.hour / f"{STEM}.tombstone").unlink()
        kept = path
    assert ground.delete(files)[0] != ""
    assert kept.exists()
    assert path.exists()


def test_what_is_no_file_is_not_listed(ground: Ground) -> None:
    (ground.hour / f"{STEM}.json").symlink_to("/etc/passwd")
    with pytest.raises(NotPurgeable, match="a directory, a link or a device"):
        ground.listed()


def test_what_stands_of_a_stem_is_seen_by_descriptors(ground: Ground, tmp_path: Path) -> None:
    def seen() -> Standing:
        with ground.tree.open_root() as fd:
            return standing(fd, ground.marked)

    assert seen() == Standing(tombstone=True, data=True)
    (ground.hour / f"{STEM}.ts").rename(ground.hour / f"{STEM}.json")
    (ground.hour / f"{STEM}.tombstone").unlink()
    assert seen() == Standing(tombstone=False, data=True)
    ground.hour.rename(tmp_path / "outside")
    assert seen() == Standing(tombstone=False, data=False)
    ground.hour.symlink_to(tmp_path / "outside")
    assert seen() == Standing(tombstone=False, data=False)

"""The records of takedowns beside the tree: written whole, and not believed when they are read."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trees import need_root
from tombsync.errors import NoTakedown, TakedownUnreadable, TreeRefused
from tombsync.timeline import parse_time
from tombsync.tree import Takedown, Tree, end_takedown, find_takedown, new_takedown_id, read_takedowns, write_takedown

HASH = "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
TAKEDOWN = Takedown(
    id="k7mq3",
    channel="desertbus",
    start_us=parse_time("2019-11-13T02:45:51.608"),
    end_us=parse_time("2019-11-13T02:46:10"),
    qualities=("source", "480p"),
    chat=False,
    sticky=True,
    twins=True,
    hashes=(HASH,),
    reason="a phone number was shown",
    actor="ada",
    node="node-a",
    created_at="2019-11-13T03:00:00Z",
)


class Ground:
    """A tree, its records, and what was told of damaged ones."""

    def __init__(self, base: Path) -> None:
        self.root = base / "segments"
        (self.root / ".tombsync").mkdir(parents=True)
        self.directory = self.root / ".tombsync/takedowns"
        self.tree = Tree(str(self.root))
        self.damaged: list[str] = []

    def write(self, takedown: Takedown = TAKEDOWN) -> None:
        with self.tree.open_root() as fd:
            write_takedown(fd, takedown)

    def end(self, id: str = TAKEDOWN.id) -> Takedown:
        with self.tree.open_root() as fd:
            return end_takedown(fd, id, "grace")

    def find(self, id: str) -> Takedown:
        with self.tree.open_root() as fd:
            return find_takedown(fd, id)

    def read(self) -> list[Takedown]:
        with self.tree.open_root() as fd:
            return read_takedowns(fd, lambda problem: self.damaged.append(str(problem)))

    def document(self, id: str = TAKEDOWN.id) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.directory / f"{id}.json").read_text())
        return document

    def put(self, text: str, id: str = TAKEDOWN.id) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / f"{id}.json").write_text(text)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_what_is_written_is_read(ground: Ground) -> None:
    assert ground.read() == []
    ground.write()
    later = replace(TAKEDOWN, id="aaaaa", created_at="2019-11-13T04:00:00+00:30", channel="caf\udce9", qualities=())
    ground.write(later)
    assert ground.read() == [TAKEDOWN, later]
    assert ground.find("aaaaa") == later
    assert ground.damaged == []
    assert sorted(path.name for path in ground.directory.iterdir()) == ["aaaaa.json", "k7mq3.json"]


def test_one_ends_once_and_is_kept(ground: Ground) -> None:
    ground.write()
    ended = ground.end()
    assert not ended.runs
    assert ended.ended_by == "grace"
    assert ground.read() == [ended]
    assert ground.end() == ended
    assert replace(ended, ended_at="", ended_by="") == TAKEDOWN


def test_an_id_is_not_used_twice(ground: Ground) -> None:
    ground.write()
    with pytest.raises(TreeRefused, match="exists"):
        ground.write(replace(TAKEDOWN, reason="another"))
    assert ground.read() == [TAKEDOWN]
    assert [path.name for path in ground.directory.iterdir()] == ["k7mq3.json"]


@pytest.mark.usefixtures("closed_umask")
def test_the_agent_of_another_account_can_read_them(ground: Ground) -> None:
    ground.write()
    ground.end()
    assert ground.directory.stat().st_mode & 0o777 == 0o755
    assert (ground.directory / "k7mq3.json").stat().st_mode & 0o777 == 0o644


def test_what_root_wrote_belongs_to_whom_the_tree_is_marked_by(ground: Ground) -> None:
    need_root()
    os.chown(ground.root / ".tombsync", 12345, 54321)
    ground.write()
    ground.end()
    for path in (ground.directory, ground.directory / "k7mq3.json"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@pytest.mark.parametrize("id", ["zzzzz", "", "..", "../root", "k7mq3.json", "K7MQ3", "k7mq3\n", "a" * 300])
def test_one_that_is_not_there(ground: Ground, id: str) -> None:
    with pytest.raises(NoTakedown):
        ground.end(id)
    ground.write()
    with pytest.raises(NoTakedown):
        ground.end(id)


BAD: dict[str, dict[str, Any]] = {
    "newer": {"version": 2},
    "no version": {"version": None},
    "another id": {"id": "other"},
    "id of another kind": {"id": 7},
    "channel above": {"channel": ".."},
    "channel with a slash": {"channel": "a/b"},
    "channel that forges a line": {"channel": "a\nb"},
    "hidden quality": {"qualities": ["source", ".x"]},
    "qualities as text": {"qualities": "source"},
    "start as text": {"start_us": "1"},
    "start as a flag": {"start_us": True},
    "start as a fraction": {"start_us": 1.5},
    "start before all time": {"start_us": -1},
    "end after all time": {"end_us": 1 << 70},
    "end before start": {"end_us": TAKEDOWN.start_us},
    "flag as a number": {"sticky": 1},
    "hash of another length": {"hashes": [HASH, "abc"]},
    "hash with a path": {"hashes": ["../" + HASH[3:]]},
    "endless reason": {"reason": "x" * 5000},
    "reason that is no text": {"reason": "\udce9"},
    "no time": {"created_at": "yesterday"},
    "no end": {"ended_at": "soon"},
    "more": {"colour": "red"},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_record_that_is_not_valid_is_told_and_passed_over(ground: Ground, change: dict[str, Any]) -> None:
    good = replace(TAKEDOWN, id="good2")
    ground.write()
    ground.write(good)
    ground.put(json.dumps({**ground.document(), **change}))
    assert ground.read() == [good]
    assert len(ground.damaged) == 1
    assert "k7mq3.json" in ground.damaged[0]
    with pytest.raises(TakedownUnreadable):
        ground.end()


@pytest.mark.parametrize("key", ["version", *TAKEDOWN.__dataclass_fields__])
def test_a_record_that_lacks_something_is_passed_over(ground: Ground, key: str) -> None:
    ground.write()
    document = ground.document()
    del document[key]
    ground.put(json.dumps(document))
    assert ground.read() == []
    assert len(ground.damaged) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '"\\ud800"', '{"version": 1}', "\0"], ids=lambda text: text[:9]
)
def test_no_document(ground: Ground, text: str) -> None:
    ground.put(text)
    assert ground.read() == []
    assert len(ground.damaged) == 1


@given(cut=st.integers(0, 10_000))
def test_half_a_record_is_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    ground = Ground(tmp_path_factory.mktemp("half"))
    ground.write()
    path = ground.directory / "k7mq3.json"
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: cut % len(whole)])
    assert ground.read() == []
    assert len(ground.damaged) == 1


def test_nothing_but_a_file_is_read(ground: Ground) -> None:
    ground.write()
    text = (ground.directory / "k7mq3.json").read_text()
    elsewhere = ground.root / "elsewhere.json"
    elsewhere.write_text(text.replace("k7mq3", "aaaaa"))
    (ground.directory / "aaaaa.json").symlink_to(elsewhere)
    os.mkfifo(ground.directory / "bbbbb.json")
    (ground.directory / "ccccc.json").mkdir()
    (ground.directory / ".ddddd-0123456789abcdef").write_text(text)  # what a crash left
    (ground.directory / "notes.txt").write_text("mine")
    assert ground.read() == [TAKEDOWN]
    assert len(ground.damaged) == 3


def test_a_link_in_the_place_of_the_records_is_not_followed(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    ground.directory.symlink_to(tmp_path / "outside")
    with pytest.raises(TreeRefused):
        ground.write()
    assert ground.read() == []
    assert len(ground.damaged) == 1
    with pytest.raises(TakedownUnreadable):
        ground.end()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_record_that_cannot_be_written_leaves_the_one_of_before(ground: Ground) -> None:
    ground.write()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        with pytest.raises(TreeRefused):
            ground.end()
        with pytest.raises(TreeRefused):
            ground.write(replace(TAKEDOWN, id="other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert ground.read() == [TAKEDOWN]
    assert [path.name for path in ground.directory.iterdir()] == ["k7mq3.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": "../x"}, "its id"),
        ({"end_us": 0}, "ends before"),
        ({"reason": "\udce9"}, "reason is not"),
        ({"channel": ""}, "channel is not"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(ground: Ground, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ground.write(replace(TAKEDOWN, **change))
    assert not ground.directory.exists()


def test_ids_can_be_typed() -> None:
    ids = {new_takedown_id() for _ in range(1000)}
    assert len(ids) > 990
    assert all(len(id) == 5 and id.isalnum() and id == id.lower() and not set(id) & set("01iolu") for id in ids)

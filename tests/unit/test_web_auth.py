"""What `/auth` makes of a URI, and what it answers from a real index and tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support.agent import HASH, segment_stem
from tests.support.index import hide
from tombsync.errors import BadName
from tombsync.index import Facts, MarksTakenBack, Writer, index_path
from tombsync.names import Hour, Marked, hour_number, strict_path
from tombsync.tree import Tree
from tombsync.web.auth import Auth, segment_of
from tombsync.web.turns import Turns

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
STEM = segment_stem(0)
MARKED = Marked(HOUR, STEM)
URI = f"/segments/{HOUR.path}/{STEM}.ts"


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        (URI, "/segments"),
        (URI, "/segments/"),
        (URI, "segments"),
        (URI.replace(".ts", ".json"), "/segments"),
        (f"{URI}?token=/x.tombstone", "/segments"),
        (URI.replace(":", "%3A").replace(".", "%2e"), "/segments"),
        (URI.replace("/", "%2F").replace("%2F", "/", 1), "/segments"),
        (URI.replace("/", "//"), "/segments"),
        (f"/video/archive/{HOUR.path}/{STEM}.ts", "/video/archive"),
        (f"/{HOUR.path}/{STEM}.ts", "/"),
        (f"/caf%C3%A9/{HOUR.path}/{STEM}.ts", "/caf\xc3\xa9"),
    ],
)
def test_a_segment_is_read(uri: str, prefix: str) -> None:
    assert segment_of(uri, prefix) == MARKED


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/desertbus",
        f"/{HOUR.path}",
        f"/{HOUR.path}/",
        "/coverage-maps/a.png",
        "/emotes/1.json",
        "/desertbus/source/latest/a.ts",
        "/desertbus/source/2019-02-30T02/a.ts",  # no such day, so no hour directory
    ],
)
def test_what_nothing_could_hide(path: str) -> None:
    assert segment_of(f"/segments{path}", "/segments") is None


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "segments/a",
        "http://archive.example" + URI,
        URI + "#",
        URI + "%",
        URI + "%zz",
        URI + "%00",
        URI + "%0A",
        URI + "/",
        URI.replace("/segments", "/other"),
        URI.replace("/segments", "/segment"),
        URI.replace("/segments/", "/segments"),
        URI.replace("/source/", "/source/../source/"),
        URI.replace("/source/", "/source/%2e%2E/source/"),
        URI.replace("/source/", "/./source/"),
        URI.replace(STEM, f"below/{STEM}"),
        URI.replace(".ts", ".tombstone"),
        URI.replace(".ts", ".ts.tombstone"),
        URI.replace(".ts", ""),
        URI.replace(".ts", ".TS"),
        URI.replace(".ts", ".ts.ts"),
        URI.replace(STEM, f".{STEM}"),
        URI.replace(STEM, "x" * 250),
        "/segments/.tombsync/root-1",
        "/segments/stray.tombstone",
        f"/segments/{HOUR.path}/a.tombstone/",
        f"/segments/{HOUR.path}/a%01b.ts",
    ],
)
def test_what_is_not_to_be_served(uri: str) -> None:
    with pytest.raises(BadName):
        segment_of(uri, "/segments")


@given(name=st.binary(min_size=1, max_size=30), escaped=st.booleans())
def test_whatever_name_is_read_is_the_one_that_was_written(name: bytes, escaped: bool) -> None:
    """Byte by byte: what the web server opens is what was asked about."""
    written = quote_from_bytes(name, safe="/" if not escaped else "") + ".ts"
    try:
        found = segment_of(f"/segments/{HOUR.path}/{written}", "/segments")
    except BadName:
        return
    assert found == strict_path(f"{HOUR.path}/{os.fsdecode(name).strip('/')}.ts")


# -- answers -----------------------------------------------------------------------------------------------------------


class World:
    """A tree, its index, and the route on both."""

    def __init__(self, base: Path) -> None:
        self.root = base / "segments"
        self.directory = self.root / HOUR.path
        self.directory.mkdir(parents=True)
        (base / "state").mkdir()
        self.writer = Writer(index_path(str(base / "state")))
        self.auth = Auth(Tree(str(self.root)), index_path(str(base / "state")))
        app = Flask("test")
        app.register_blueprint(self.auth.blueprint(Turns()))
        self._client: FlaskClient = app.test_client()

    def ask(self, uri: str = URI, **headers: str) -> int:
        return self._client.get("/auth", headers={"X-Original-URI": uri, **headers}).status_code


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.auth.close()
    made.writer.close()


def test_hidden_by_the_index_alone(world: World) -> None:
    assert world.ask() == 204
    hide(world.writer, HOUR, STEM)
    assert world.ask() == 403
    assert world.ask(URI.replace(".ts", ".json")) == 403
    assert world.ask(URI.replace(STEM, segment_stem(2))) == 204
    assert world.ask(URI.replace("source", "160p")) == 204


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to nothing"])
def test_hidden_by_the_tree_alone(world: World, kind: str) -> None:
    assert world.ask() == 204
    path = world.directory / f"{STEM}.tombstone"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    assert world.ask() == 403
    assert world.ask(URI.replace(STEM, segment_stem(2))) == 204
    assert world.ask(URI.replace("T02", "T03")) == 204


def test_what_was_taken_back_is_visible_again(world: World) -> None:
    (hidden,) = hide(world.writer, HOUR, STEM)
    assert world.ask() == 403
    taken_back: list[Marked] = []
    world.writer.apply([MarksTakenBack([hidden.marker], lambda _: True, lambda gone, _: taken_back.extend(gone))])
    assert taken_back == [MARKED]
    assert world.ask() == 204
    (world.directory / f"{STEM}.tombstone").touch()
    assert world.ask() == 403


def test_a_name_that_cannot_be_read_is_not_looked_up(world: World) -> None:
    outside = world.root.parent / f"{STEM}.ts"
    outside.touch()
    assert world.ask("/segments/desertbus/source/2019-11-13T02/../../../../" + outside.name) == 403
    assert world.ask("/segments/" + HOUR.path + "/..%2f..%2f..%2f..%2f" + outside.name) == 403


def test_the_prefix_is_the_web_servers(world: World) -> None:
    hide(world.writer, HOUR, STEM)
    deep = URI.replace("/segments", "/video/archive")
    assert world.ask(deep, **{"X-Segments-Prefix": "/video/archive"}) == 403
    assert world.ask(deep.replace(STEM, segment_stem(2)), **{"X-Segments-Prefix": "/video/archive"}) == 204
    assert world.ask(deep) == 403  # not below /segments: not this node's to allow
    assert world.ask(deep.replace(STEM, segment_stem(2))) == 403


def test_a_question_without_a_uri_is_none(world: World) -> None:
    assert world.ask("") == 400


def test_chat_batches(world: World) -> None:
    uri = f"/segments/desertbus/chat/2019-11-13T02/45:00-{HASH}.json"
    assert world.ask(uri) == 204
    hide(world.writer, HOUR._replace(quality="chat"), f"45:00-{HASH}")
    assert world.ask(uri) == 403


def test_a_tree_that_is_not_there_is_no_answer(world: World) -> None:
    hide(world.writer, HOUR, STEM)
    world.root.rename(world.root.with_name("away"))
    assert world.ask(URI.replace(STEM, segment_stem(2))) == 503
    assert world.ask() == 403  # the index says enough


def test_an_index_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    hide(world.writer, HOUR, STEM)
    world.auth.close()
    world.writer.close()  # all of it is in the one file now
    path = index_path(str(tmp_path / "state"))
    app = Flask("test")
    auth = Auth(Tree(str(world.root)), path)
    app.register_blueprint(auth.blueprint(Turns()))
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    answer = app.test_client().get("/auth", headers={"X-Original-URI": URI})
    auth.close()
    assert answer.status_code == 503


def test_what_is_reached_through_a_link_is_not_served(world: World) -> None:
    """No listing follows a link, and what stands behind it may be hidden under its own name."""
    (world.directory / f"{STEM}.ts").touch()
    (world.directory / f"{STEM}.tombstone").touch()
    (world.root / "link").symlink_to(HOUR.channel)
    (world.root / HOUR.channel / "linked").symlink_to(HOUR.quality)
    assert world.ask(URI.replace(f"/{HOUR.channel}/", "/link/")) == 403
    assert world.ask(URI.replace(f"/{HOUR.quality}/", "/linked/")) == 403


def test_another_tree_than_the_known_one_is_no_answer(world: World) -> None:
    world.writer.apply([Facts({"root": "the-known-one"})])
    assert world.ask() == 503


def test_without_a_turn_there_is_no_answer(world: World) -> None:
    turns = Turns(most=1, patience_s=0.0)
    assert turns.take()
    app = Flask("test")
    app.register_blueprint(world.auth.blueprint(turns))
    assert app.test_client().get("/auth", headers={"X-Original-URI": URI}).status_code == 503
    turns.give_back()
    for _ in range(3):  # each gives it back
        assert app.test_client().get("/auth", headers={"X-Original-URI": URI}).status_code == 204

"""The status page's routes: what is kept of it, for how long, and what is answered where nothing can be made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.index import HOUR, add, hide, stem_of
from tests.support.waiting import wait_for
from tests.unit.test_metrics import Sources
from tombsync.errors import IndexDamaged
from tombsync.index import Reader, Writer
from tombsync.web import Agent, Turns, status_page
from tombsync.web.page import KEPT_S, OLD_AFTER_S

T = TypeVar("T")


class Node(Sources):
    """As the metrics' tests have it, with coverage."""

    def coverage_s(self) -> Iterator[tuple[str, str, str, float]]:
        for state in ("covered", "editable", "partial", "tombstoned", "hole"):
            yield "desertbus", "source", state, 3600.0 * self.steps


@dataclass
class Ground:
    """An index, the page of it, and a clock. `asked` counts the questions to the index."""

    writer: Writer
    reader: Reader
    now: float = 100.0
    asked: int = 0
    error: IndexDamaged | None = None
    gate: threading.Event | None = None  # an index whose disk hangs until it is opened
    node: Node = field(default_factory=Node)
    turns: Turns = field(default_factory=lambda: Turns(patience_s=0.05))

    def ask(self, question: Callable[[Reader], T]) -> T:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            assert self.gate.wait(20)
        return question(self.reader)

    def client(self) -> FlaskClient:
        app = Flask(__name__, static_folder=None)
        agent = Agent(
            node="node-a",
            root="/segments",
            sources=self.node,
            ready=lambda: True,
            doing=lambda: "ready",
            stale_after_s=30.0,
            ask=self.ask,
            takedowns=list,
        )
        app.register_blueprint(status_page(agent, self.turns, clock=lambda: self.now))
        return app.test_client()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    writer = Writer(str(tmp_path / "index.sqlite"))
    reader = Reader(writer.path)
    yield Ground(writer, reader)
    reader.close()
    writer.close()


def test_however_many_ask_it_is_made_once_in_a_while(ground: Ground) -> None:
    client = ground.client()
    for _ in range(50):
        assert client.get("/live").status_code == client.get("/").status_code == 200
    assert ground.asked == 1
    hide(ground.writer, HOUR, stem_of(8))
    assert stem_of(8) not in client.get("/live").text
    ground.now += KEPT_S
    assert stem_of(8) in client.get("/live").text
    assert ground.asked == 2


def test_who_has_it_already_is_sent_nothing(ground: Ground) -> None:
    client = ground.client()
    tag = client.get("/live").headers["ETag"]
    ground.now += KEPT_S
    again = client.get("/live", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    hide(ground.writer, HOUR, stem_of(8))
    ground.now += KEPT_S
    assert client.get("/live", headers={"If-None-Match": tag}).status_code == 200


def test_while_a_disk_hangs_nobody_else_waits_and_nothing_old_is_shown_as_new(ground: Ground) -> None:
    client = ground.client()
    before = client.get("/live").text
    ground.gate = threading.Event()
    ground.now += KEPT_S
    answers: list[int] = []
    stuck = threading.Thread(target=lambda: answers.append(client.application.test_client().get("/live").status_code))
    stuck.start()
    try:
        wait_for(lambda: ground.asked == 2, "one of them to wait for the disk")
        assert client.get("/live").text == before
        ground.now += OLD_AFTER_S
        for path in ("/live", "/", "/?q=00:08"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "does not answer" in answer.text
        assert ground.asked == 2
    finally:
        ground.gate.set()
        stuck.join()
    assert client.get("/live").status_code == 200


def test_a_search_takes_a_turn_and_says_where_it_gets_none(ground: Ground) -> None:
    ground.turns = Turns(1, patience_s=0.0)
    add(ground.writer, HOUR, f"{stem_of(8)}.ts")
    client = ground.client()
    assert stem_of(8) in client.get("/?q=00:08").text
    assert ground.turns.take()
    said = client.get("/?q=00:08")
    assert said.status_code == 200
    assert "does not answer" in said.text
    ground.turns.give_back()
    assert stem_of(8) in client.get("/?q=00:08").text


def test_an_index_that_cannot_be_read_is_told(ground: Ground) -> None:
    client = ground.client()
    ground.error = IndexDamaged("/state/index.sqlite", "it is\nno database")
    for path in ("/", "/live"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.mimetype == "text/plain"
        assert "no database" in answer.text and answer.text.count("\n") == 1
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    ground.error = None
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "query", ["q=%FF%FE", "q=%00", "q=" + "a=1&" * 100, "q=%ED%A0%80", "q==%&;", "x=1", "q=%F0%9F"]
)
def test_any_query_is_answered(ground: Ground, query: str) -> None:
    assert ground.client().get(f"/?{query}").status_code == 200


def test_a_worker_without_a_turn_is_told(ground: Ground) -> None:
    ground.node.beat_ages_s = lambda: {"intake": 31.0, "rescan": float("nan"), "http": 0.1}  # type: ignore[method-assign]
    text = ground.client().get("/live").text
    assert "2 stalled" in text
    assert "No turn of intake and rescan ended for too long." in text


def test_a_map_is_shown_where_there_is_one(ground: Ground) -> None:
    text = ground.client().get("/live").text
    assert text.count("<img") == 1  # of `chat` nothing was judged
    assert 'src="coverage/desertbus/source.png?v=3600-3600-3600-3600-3600"' in text

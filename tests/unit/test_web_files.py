"""The routes of the read side, on a real index and a real tree, without a server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry, make_wsgi_app

from tests.support.archive import Archive
from tests.support.index import BAD_UTF8, HASH, HOUR, NOW_NS
from tombsync.daemon.pages import Pages
from tombsync.index import DeliveryOutcomes, Outcome, index_path
from tombsync.names import Hour, hour_number, hour_text
from tombsync.plan import State
from tombsync.timeline import iso
from tombsync.web import Turns, build_app, files_blueprint

FILES = f"/files/{HOUR.path}"
PEERS = {"node-b", "node-c"}
SPAN = "/api/v1/segments?channel=desertbus&quality=source"


def stem(second: int, kind: str = "full") -> str:
    return f"{second // 60:02d}:{second % 60:02d}.000000-2.0-{kind}-{HASH}"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path, peers=sorted(PEERS))
    yield made
    made.close()


@pytest.fixture
def pages(archive: Archive) -> Iterator[Pages]:
    made = Pages(
        node="node-a",
        root=str(archive.root),
        state_dir=str(archive.state_dir),
        peer_names=lambda: PEERS,
        counts=lambda: {1: {State.CONFIRMED: 7, State.PENDING: 2}},
    )
    yield made
    made.close()


@pytest.fixture
def web(pages: Pages) -> FlaskClient:
    app = build_app(
        metrics_app=make_wsgi_app(CollectorRegistry()),
        health=dict,
        ready=lambda: True,
        ready_detail=lambda: "",
        stale_after_s=1.0,
        blueprints=pages.blueprints(),
    )
    app.testing = True
    return app.test_client()


def ask(web: FlaskClient, path: str, **headers: str) -> tuple[int, Any]:
    """GET: the status, and the document that came."""
    with web.get(path, headers=headers) as answer:
        assert answer.mimetype == "application/json"
        assert answer.get_data().isascii()
        return answer.status_code, json.loads(answer.get_data())


# -- /files -----------------------------------------------------------------------------------------------------------


def test_every_level(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, "b.ts", "a.json", "c.ts", "c.tombstone", ".d.ts")
    assert ask(web, "/files") == (200, ["desertbus"])
    assert ask(web, "/files/desertbus") == (200, ["source"])
    assert ask(web, "/files/desertbus/source") == (200, [HOUR.text])
    assert ask(web, FILES) == (200, ["a.json", "b.ts"])
    for nothing in ("/files/x", "/files/x/y", "/files/x/y/z", "/files/desertbus/source/2019-11-13T03"):
        assert ask(web, nothing) == (200, [])
    for none in ("/files/", FILES + "/", FILES + "/a.json", "/files//source"):
        assert web.get(none).status_code == 404


@pytest.mark.parametrize("text", ["true", "TRUE", "True", "false", "FALSE"])
def test_tombstones_in_whatever_case(archive: Archive, web: FlaskClient, text: str) -> None:
    archive.make(HOUR, "a.ts", "c.ts", "c.tombstone")
    wanted = ["a.ts", "c.tombstone"] if text.lower() == "true" else ["a.ts"]
    assert ask(web, f"{FILES}?tombstones={text}") == (200, wanted)


@pytest.mark.parametrize("query", ["1", "", "yes", "true ", "%74rue1", "true&tombstones=false"])
def test_another_value_of_tombstones(web: FlaskClient, query: str) -> None:
    status, document = ask(web, f"{FILES}?tombstones={query}")
    assert status == 400
    assert "tombstones" in document["detail"]


@pytest.mark.parametrize("part", [".", "..", ".tombsync", "%2e%2e", "%2E", "..%00", ".\n"])
def test_a_part_that_begins_with_a_dot(archive: Archive, web: FlaskClient, part: str) -> None:
    archive.make(HOUR, "a.ts")
    for path in (f"/files/{part}", f"/files/{part}/b", f"/files/a/{part}", f"/files/a/b/{part}?tombstones=maybe"):
        assert ask(web, path)[0] == 403


@pytest.mark.parametrize("part", ["a%00b", "a%0Ab", "%7f", "x" * 256, "%ff" * 256])
def test_a_part_that_cannot_be_a_name(web: FlaskClient, part: str) -> None:
    for path in (f"/files/{part}", f"/files/{part}/b", f"/files/a/{part}", f"/files/a/b/{part}"):
        assert ask(web, path)[0] == 400


@pytest.mark.parametrize("path", ["/files/%2e%2e%2fetc", "/files/a%2f..%2f..%2fetc", "/files/desertbus/..%2f..%2f.."])
def test_nothing_leads_out_of_the_tree(archive: Archive, web: FlaskClient, path: str) -> None:
    (archive.root.parent / "etc").mkdir()
    (archive.root.parent / "etc" / "passwd.ts").touch()
    with web.get(path) as answer:
        assert answer.status_code in (403, 404)
        assert b"passwd" not in answer.get_data()


@pytest.mark.parametrize("settled", [False, True])
def test_names_that_are_not_utf_8_keep_their_bytes(archive: Archive, web: FlaskClient, settled: bool) -> None:
    hour = Hour(BAD_UTF8, BAD_UTF8, HOUR.number)
    archive.make(hour, f"{BAD_UTF8}.ts", "é👻.ts", 'a"b\\.ts')
    if settled:
        archive.settle(hour)
    assert ask(web, "/files") == (200, [BAD_UTF8])
    place = os.fsencode(f"/files/{BAD_UTF8}/{BAD_UTF8}").decode("latin-1")  # as a server gives it: PEP 3333
    with web.get("/", environ_overrides={"PATH_INFO": place}) as answer:
        assert answer.json == [HOUR.text]
    with web.get("/", environ_overrides={"PATH_INFO": f"{place}/{HOUR.text}"}) as answer:
        assert answer.headers["X-Tombsync-Read"] == ("index" if settled else "directory")
        assert answer.get_data().isascii()
        names = json.loads(answer.get_data())
    assert set(map(os.fsencode, names)) == set(os.listdir(os.fsencode(archive.root / hour.path)))


def test_an_hour_that_has_not_changed_is_not_sent_again(archive: Archive, web: FlaskClient) -> None:
    directory = archive.make(HOUR, "a.ts", "b.ts")
    first = web.get(FILES)
    etag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    archive.settle(HOUR)  # it is read from elsewhere now, and is the same
    again = web.get(FILES, headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.get_data(), again.headers["ETag"]) == (304, b"", etag)
    assert again.headers["X-Tombsync-Read"] == "index"
    assert web.get(f"{FILES}?tombstones=true", headers={"If-None-Match": etag}).status_code == 304
    (directory / "a.tombstone").touch()
    changed = web.get(FILES, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json) == (200, ["b.ts"])
    assert changed.headers["ETag"] != etag
    assert web.get(f"{FILES}?tombstones=true").headers["ETag"] not in (etag, changed.headers["ETag"])


def test_head_and_other_methods(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, "a.ts")
    for path in (
        "/files",
        FILES,
        "/api/v1/peers",
        f"{SPAN}&start=2019-11-13T02&end=2019-11-13T03",
        "/api/v1/tombstones",
    ):
        with web.get(path) as got, web.head(path) as head:
            assert (got.status_code, head.status_code, head.get_data()) == (200, 200, b"")
            if "Content-Length" in got.headers:
                assert head.headers["Content-Length"] == got.headers["Content-Length"]
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = web.open(path, method=method)
            assert answer.status_code == 405
            assert set(answer.allow) == {"GET", "HEAD"}


def test_what_cannot_be_read_is_no_empty_listing(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, "a.ts")
    loop = archive.root / "loop"
    loop.symlink_to("loop")
    assert ask(web, "/files/loop") == (200, [])  # a link is not followed, wherever it leads
    archive.close()
    Path(index_path(str(archive.state_dir))).write_bytes(b"x" * 5000)
    for path in (FILES, f"{SPAN}&start=2019-11-13T02&end=2019-11-13T03"):
        status, document = ask(web, path)
        assert (status, document["error"]) == (503, "Service Unavailable")
    assert web.get(FILES).headers["Retry-After"] == "5"


class StuckLists:
    """A tree whose disk hangs."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.ended = threading.Event()

    def entries(self, *parts: str) -> list[str]:
        self.entered.release()
        assert self.ended.wait(20)
        return list(parts)

    def hour_names(self, channel: str, quality: str, hour: str, *, tombstones: bool = False) -> tuple[list[str], bool]:
        raise AssertionError("nobody asks for that")


def test_a_disk_that_hangs_takes_only_so_many_workers() -> None:
    lists = StuckLists()
    app = Flask(__name__)
    app.register_blueprint(files_blueprint(lambda: lists, Turns(most=2, patience_s=0.01)))
    asking = [threading.Thread(target=lambda: app.test_client().get("/files/a")) for _ in range(2)]
    for thread in asking:
        thread.start()
    for _ in asking:
        assert lists.entered.acquire(timeout=20)
    for _ in range(3):
        refused = app.test_client().get("/files/b")
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
    lists.ended.set()
    for thread in asking:
        thread.join()
    assert app.test_client().get("/files/b").json == ["b"]


# -- /api/v1 ----------------------------------------------------------------------------------------------------------


def all_pages(web: FlaskClient, path: str, key: str) -> tuple[list[Any], int]:
    """Everything of all pages, and how many they were."""
    found, cursor, count = [], "", 0
    while True:
        status, document = ask(web, path + cursor)
        assert status == 200, document
        found += document[key]
        count += 1
        if document["next"] is None:
            return found, count
        cursor = "&cursor=" + quote(document["next"])


def test_segments_of_a_span(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, *(f"{stem(second)}.ts" for second in range(0, 60, 2)), "no-time.ts")
    archive.mark(HOUR, stem(12))
    status, document = ask(web, f"{SPAN}&start=2019-11-13T02:00:10Z&end=2019-11-13T04:00:16%2B02:00")
    assert status == 200
    assert document["next"] is None
    assert [one["name"] for one in document["segments"]] == [f"{stem(10)}.ts", f"{stem(14)}.ts"]
    assert document["segments"][0] == {
        "path": f"{HOUR.path}/{stem(10)}.ts",
        "name": f"{stem(10)}.ts",
        "start": "2019-11-13T02:00:10.000000Z",
        "end": "2019-11-13T02:00:12.000000Z",
        "duration_s": 2.0,
        "type": "full",
        "hash": HASH,
    }
    _, best = ask(web, f"{SPAN}&start=2019-11-13T02:00:10&end=2019-11-13T02:00:16&best=true")
    assert [one and one["name"] for one in best["segments"]] == [f"{stem(10)}.ts", None, f"{stem(14)}.ts"]


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
@pytest.mark.parametrize("best", ["true", "false"])
def test_pages_are_one_answer_in_parts(archive: Archive, web: FlaskClient, limit: int, best: str) -> None:
    """With holes, partials, overlaps, hours that lack and a span of more hours than a page looks at."""
    first = hour_number("2019-11-10T00")
    for number in (0, 1, 2, 5, 130, 131):
        hour = HOUR._replace(number=first + number)
        archive.make(hour, *(f"{stem(second)}.ts" for second in (0, 2, 4, 10, 3598)), f"{stem(4, 'partial')}.ts")
        archive.make(hour, f"{stem(6, 'suspect')}.ts", f"{stem(11)}.ts")
    span = f"{SPAN}&start={hour_text(first)}:00:03&end={hour_text(first + 140)}:00&best={best}"
    whole, _ = all_pages(web, f"{span}&limit=10000", "segments")
    parts, count = all_pages(web, f"{span}&limit={limit}", "segments")
    assert parts == whole
    files = [one for one in whole if one is not None]
    assert len(files) == len({one["path"] for one in files})
    assert count >= len(files) / limit
    assert whole.count(None) == (0 if best == "false" else 1 + 2 * 6 + 2)


def test_a_long_page_is_a_stream_and_gives_its_turn_back(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, *(f"{stem(second)}.ts" for second in range(0, 3600, 2)))
    for _ in range(10):  # more than there are turns
        with web.get(f"{SPAN}&start=2019-11-13T02&end=2019-11-13T03&limit=10000") as answer:
            assert answer.is_streamed
            assert len(json.loads(answer.get_data())["segments"]) == 1800
        web.get(f"{SPAN}&start=2019-11-13T02&end=2019-11-13T03&limit=10000").close()  # by who reads none of it


def test_the_ends_of_the_calendar(archive: Archive, web: FlaskClient) -> None:
    last = HOUR._replace(number=hour_number("9999-12-31T23"))
    archive.make(last, f"59:59.000000-99999.0-full-{HASH}.ts")
    assert ask(web, f"{SPAN}&start=0001-01-01T00&end=0001-01-01T01") == (200, {"segments": [], "next": None})
    _, found = ask(web, f"{SPAN}&start=9999-12-31T23:00&end=9999-12-31T23:59:59.9")
    assert [one["end"] for one in found["segments"]] == ["9999-12-31T23:59:59.999999Z"]
    assert ask(web, f"{SPAN}&start=0001-01-01T00&end=0001-01-01T00:30%2B02:00")[0] == 400


def test_a_span_of_years_with_nothing_in_it_ends(web: FlaskClient) -> None:
    found, count = all_pages(web, f"{SPAN}&start=2019-01-01T00&end=2020-01-01T00", "segments")
    assert (found, count) == ([], 88)
    assert all_pages(web, f"{SPAN}&start=2019-01-01T00&end=2019-01-09T00&best=true", "segments") == ([None], 2)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "channel=desertbus&quality=source&start=2019-11-13T02",
        "channel=&quality=source&start=2019-11-13T02&end=2019-11-13T03",
        "channel=..&quality=source&start=2019-11-13T02&end=2019-11-13T03",
        "channel=desertbus&quality=a%2Fb&start=2019-11-13T02&end=2019-11-13T03",
        "channel=desertbus&quality=source&start=2019-11-13T02&end=2019-11-13T02",
        "channel=desertbus&quality=source&start=2019-11-13T03&end=2019-11-13T02",
        "channel=desertbus&quality=source&start=yesterday&end=2019-11-13T02",
        *(
            f"channel=desertbus&quality=source&start=2019-11-13T02&end=2019-11-13T03&{more}"
            for more in [
                "best=1",
                "limit=0",
                "limit=10001",
                "limit=x",
                "limit=-1",
                "limit=",
                "limit=٣",
                "cursor=",
                "cursor=x",
                "cursor=2019-11-13T05",
                "cursor=2019-11-13T02,",
                "cursor=2019-11-13T02,2019-11-13T03/x.ts",
                f"cursor=2019-11-13T02,2019-11-13T03/{stem(0)}.ts",
                "cursor=2019-11-13T02,../../x",
                "end=2019-11-13T04",
            ]
        ),
    ],
)
def test_a_span_that_cannot_be_asked(web: FlaskClient, query: str) -> None:
    status, document = ask(web, f"/api/v1/segments?{query}")
    assert status == 400
    assert document["detail"]


def test_tombstones_since(archive: Archive, web: FlaskClient) -> None:
    at_ns = [NOW_NS + number * 60_000_000_000 for number in (0, 1, 2, 1, 3)]  # a clock that was set back once
    for number, at in enumerate(at_ns):
        archive.hide(HOUR, stem(2 * number), at_ns=at)
    everything, _ = all_pages(web, "/api/v1/tombstones?limit=2", "tombstones")
    assert [one["segment"] for one in everything] == [f"{HOUR.path}/{stem(2 * number)}" for number in (4, 3, 2, 1, 0)]
    assert everything[0]["peers"] == {"node-b": "pending", "node-c": "pending"}
    for limit in (1, 2, 5, 1000):
        since = f"/api/v1/tombstones?limit={limit}&since={iso(NOW_NS + 120_000_000_000)}"
        found, _ = all_pages(web, since, "tombstones")
        assert [one["hidden_at"] for one in found] == [iso(at_ns[4]), iso(at_ns[2])]
    assert len(all_pages(web, "/api/v1/tombstones?since=0001-01-01T00", "tombstones")[0]) == 5
    assert all_pages(web, "/api/v1/tombstones?since=9999-12-31T23", "tombstones") == ([], 1)
    for bad in ("since=x", "since=", "cursor=0", "cursor=x", "limit=0", "limit=1001"):
        assert ask(web, f"/api/v1/tombstones?{bad}")[0] == 400


def test_peers(archive: Archive, web: FlaskClient) -> None:
    archive.hide(HOUR, stem(0))
    status, document = ask(web, "/api/v1/peers")
    assert status == 200
    assert [one["name"] for one in document["peers"]] == sorted(PEERS)
    assert document["peers"][0]["deliveries"] == {"pending": 2, "confirmed": 7}
    assert document["peers"][1]["deliveries"] == {}
    assert document["peers"][1]["oldest_pending_s"] > 0


def test_how_a_segment_stands(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, f"{stem(0)}.ts")
    archive.mark(HOUR, stem(0))
    archive.mark(HOUR._replace(number=HOUR.number + 1), stem(0))
    peer = archive.writer.peer_ids()["node-b"]
    archive.writer.apply([DeliveryOutcomes(peer, [Outcome(1, State.CONFIRMED, NOW_NS)], lambda _: None)])
    for ending in ("", ".ts", ".json", ".tombstone"):
        status, document = ask(web, f"/api/v1/status/{quote(stem(0))}{ending}")
        assert (status, len(document["segments"])) == (200, 2)
        status, document = ask(web, f"/api/v1/status/{quote(HOUR.path)}/{quote(stem(0))}{ending}")
        assert (status, len(document["segments"])) == (200, 1)
    (found,) = document["segments"]
    assert (found["segment"], found["origin"]) == (f"{HOUR.path}/{stem(0)}", "node-a")
    assert (found["tombstone_here"], found["data_here"]) == (True, True)
    states = {one["peer"]: (one["state"], one["configured"]) for one in found["peers"]}
    assert states == {"node-b": ("confirmed", True), "node-c": ("pending", True)}
    for path in (stem(2), f"{HOUR.path}/{stem(2)}", f"none/none/{HOUR.text}/{stem(0)}"):
        assert ask(web, f"/api/v1/status/{quote(path)}")[0] == 404
    for path, code in ((f"a/b/c/{stem(0)}", 400), (f"a/../{HOUR.text}/x", 403), (".x", 403), ("a%0Ab", 400)):
        assert ask(web, f"/api/v1/status/{path}")[0] == code


def test_without_an_index_only_the_tree_can_be_told_of(archive: Archive, web: FlaskClient) -> None:
    archive.make(HOUR, f"{stem(0)}.ts", f"{stem(2)}.ts", f"{stem(2)}.tombstone")
    archive.close()
    os.unlink(index_path(str(archive.state_dir)))
    assert ask(web, FILES) == (200, [f"{stem(0)}.ts"])
    assert len(ask(web, f"{SPAN}&start=2019-11-13T02&end=2019-11-13T03")[1]["segments"]) == 1
    for path in ("/api/v1/peers", "/api/v1/tombstones", "/api/v1/status/x"):
        assert ask(web, path)[0] == 503

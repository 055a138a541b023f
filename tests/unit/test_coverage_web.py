"""Coverage over HTTP: pages of hours, maps, what was kept by the client, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.index import HASH, HOUR, STEM, add, hide
from tombsync.coverage import CoverageView, draw
from tombsync.coverage.rows import to_batch
from tombsync.coverage.rules import Reach, judge, sort_out
from tombsync.index import Made, Writer
from tombsync.timeline import HOUR_US
from tombsync.web import coverage_blueprint
from tombsync.web.app import build_app
from tombsync.web.turns import Turns

PLACE = "channel=desertbus&quality=source"
DAY = 24


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """A day of hours, each with one visible segment of 2 s, in the second one that is hidden."""
    writer = Writer(str(tmp_path / "index.sqlite"))
    for number in range(DAY):
        hour = HOUR._replace(number=HOUR.number + number)
        add(writer, hour, f"{STEM}.ts")
        hidden = {STEM} if number == 1 else set()
        if hidden:
            hide(writer, hour, STEM)
        found = judge(sort_out(hour, [f"{STEM}.ts"], hidden), Reach(), (hour.number + 2) * HOUR_US, lambda _: 1)
        writer.apply([to_batch(hour, Made(len(hidden), 1, len(hidden), None), found)])
    yield writer
    writer.close()


@pytest.fixture
def client(writer: Writer) -> Iterator[FlaskClient]:
    view = CoverageView(writer.path)
    app: Flask = build_app(
        metrics_app=lambda environ, start: [],
        health=dict,
        ready=lambda: True,
        ready_detail=lambda: "",
        stale_after_s=1,
        blueprints=[coverage_blueprint(hours=view.hours, picture=view.map, draw=draw, turns=Turns())],
    )
    yield app.test_client()
    view.close()


def test_hours_come_with_their_totals(client: FlaskClient) -> None:
    found = client.get(f"/api/v1/coverage?{PLACE}").get_json()
    assert [hour["hour"] for hour in found["hours"][:2]] == ["2019-11-13T02", "2019-11-13T03"]
    assert len(found["hours"]) == DAY and found["next"] is None
    one, other = found["hours"][:2]
    assert (one["covered_s"], one["tombstoned_s"], one["hole_s"]) == (2, 0, 3598)
    assert (other["covered_s"], other["tombstoned_s"], other["hole_s"]) == (0, 2, 3598)
    assert one["current"] and one["files"]["full"] == 1 and other["files"]["hidden"] == 1
    totals = found["totals"]
    assert (totals["hours"], totals["covered_s"], totals["tombstoned_s"]) == (DAY, 2 * (DAY - 1), 2)
    assert totals["covered_s"] + totals["tombstoned_s"] + totals["hole_s"] == totals["span_s"] == 3600 * DAY


def test_pages_are_all_of_it_once(client: FlaskClient) -> None:
    hours, start, pages = [], "2019-11-13T02", 0
    while start:
        found = client.get(f"/api/v1/coverage?{PLACE}&limit=7&from={start}").get_json()
        hours += [hour["hour"] for hour in found["hours"]]
        start, pages = found["next"], pages + 1
    assert pages == 4
    assert len(hours) == len(set(hours)) == DAY and hours == sorted(hours)


def test_a_range_is_the_hours_that_it_lies_in(client: FlaskClient) -> None:
    found = client.get(f"/api/v1/coverage?{PLACE}&from=2019-11-13T04:59:59&to=2019-11-13T06:00:01").get_json()
    assert [hour["hour"] for hour in found["hours"]] == ["2019-11-13T04", "2019-11-13T05", "2019-11-13T06"]
    assert found["totals"]["hours"] == 3
    found = client.get(f"/api/v1/coverage?{PLACE}&from=2019-11-13T06:00%2B02:00&to=2019-11-13T05:00").get_json()
    assert [hour["hour"] for hour in found["hours"]] == ["2019-11-13T04"]


def test_what_changed_since_is_said_to_be_old(client: FlaskClient, writer: Writer) -> None:
    add(writer, HOUR, "more.ts", watched=True)
    hours = client.get(f"/api/v1/coverage?{PLACE}").get_json()["hours"]
    assert [hour["current"] for hour in hours] == [False] + [True] * (DAY - 1)


@pytest.mark.parametrize("path", [f"/api/v1/coverage?{PLACE}", "/coverage/desertbus/source.png"])
def test_what_a_client_has_is_not_sent_again(path: str, client: FlaskClient, writer: Writer) -> None:
    first = client.get(path)
    assert first.status_code == 200 and first.headers["Cache-Control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    found = judge(
        sort_out(HOUR, [f"00:00.000000-4.0-full-{HASH}.ts"], ()), Reach(), (HOUR.number + 2) * HOUR_US, lambda _: 1
    )
    writer.apply([to_batch(HOUR, Made(0, 1, 0, None), found)])
    changed = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"] and changed.data != first.data


def test_a_map_is_a_picture(client: FlaskClient) -> None:
    answer = client.get("/coverage/desertbus/source.png?from=2019-11-13T02&to=2019-11-13T05:00")
    assert answer.content_type == "image/png" and answer.data.startswith(b"\x89PNG\r\n")
    assert client.head("/coverage/desertbus/source.png").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/coverage?channel=desertbus&quality=none", 404),
        ("/api/v1/coverage?channel=none&quality=source", 404),
        ("/coverage/desertbus/none.png", 404),
        ("/coverage/desertbus/source.png?from=2020-01-01T00&to=2020-01-02T00", 200),
        ("/coverage/desertbus/source.png?to=2018-01-01T00", 404),
        ("/coverage/desertbus/source.png?from=2030-01-01T00", 404),
        ("/coverage/desertbus/source.png?from=9999-12-31T23", 404),
        ("/coverage/desertbus/source.png?to=9999-12-31T23:59:59", 200),
        ("/coverage/desertbus/source.png?to=0001-01-01T00", 404),
        ("/api/v1/coverage", 400),
        ("/api/v1/coverage?channel=desertbus", 400),
        ("/api/v1/coverage?channel=..&quality=source", 400),
        ("/api/v1/coverage?channel=a%2Fb&quality=source", 400),
        ("/api/v1/coverage?channel=a%00b&quality=source", 400),
        ("/coverage/.tombsync/source.png", 400),
        ("/coverage/a%0Ab/source.png", 400),
        (f"/api/v1/coverage?{PLACE}&limit=0", 400),
        (f"/api/v1/coverage?{PLACE}&limit=1001", 400),
        (f"/api/v1/coverage?{PLACE}&limit={'9' * 5000}", 400),
        (f"/api/v1/coverage?{PLACE}&limit=-1", 400),
        (f"/api/v1/coverage?{PLACE}&limit=0000000011999999", 400),
        (f"/api/v1/coverage?{PLACE}&limit=1{'9' * 30}", 400),
        (f"/api/v1/coverage?{PLACE}&limit=\u0661", 400),
        (f"/api/v1/coverage?{PLACE}&from=yesterday", 400),
        (f"/api/v1/coverage?{PLACE}&from=2019-11-13T04&to=2019-11-13T04", 400),
        (f"/api/v1/coverage?{PLACE}&from=2019-11-13T04&to=2019-11-13T03", 400),
    ],
)
def test_what_is_answered_to_other_questions(path: str, status: int, client: FlaskClient) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    if status >= 400:
        assert answer.get_json()["detail"]

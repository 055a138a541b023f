"""The server keeps every promise of the API's description, whatever it is asked: real index, tree and sockets."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry, make_wsgi_app
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.archive import Archive
from tests.support.index import BAD_UTF8, HOUR, NOW_NS, ODD_NAMES, stem_of
from tombsync.daemon.pages import Pages
from tombsync.plan import State
from tombsync.web import WebServer, build_app

DESCRIPTION = json.loads(resources.files("tombsync.web").joinpath("openapi.json").read_bytes())
PEERS = {"node-b"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A server with something to tell of each kind."""
    archive = Archive(tmp_path_factory.mktemp("archive"), peers=PEERS)
    odd_names = [name for name in ODD_NAMES if name != BAD_UTF8]  # whose surrogates this tool takes for no JSON
    archive.make(HOUR, *(f"{stem_of(second)}.ts" for second in range(0, 60, 2)), *(f"{name}.ts" for name in odd_names))
    archive.mark(HOUR, stem_of(0), stem_of(2), *odd_names)
    archive.settle(HOUR)
    for part in ("0", "1", "a"):  # such short names are asked for often
        archive.make(HOUR._replace(channel=part, quality=part), f"{part}.ts", f"{part}.tombstone")
        archive.hide(HOUR, part, at_ns=NOW_NS)
    pages = Pages(
        node="node-a",
        root=str(archive.root),
        state_dir=str(archive.state_dir),
        peer_names=lambda: PEERS,
        counts=lambda: {1: {State.PENDING: 5}},
    )
    app = build_app(
        metrics_app=make_wsgi_app(CollectorRegistry()),
        health=dict,
        ready=lambda: True,
        ready_detail=lambda: "",
        stale_after_s=1.0,
        blueprints=pages.blueprints(),
    )
    server = WebServer(app, "127.0.0.1:0")
    server.start()
    yield server
    assert server.close()
    pages.close()
    archive.close()


api = schemathesis.openapi.from_dict(DESCRIPTION)


@api.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(300)
def test_every_answer_is_one_that_is_described(case: schemathesis.Case[Any], served: WebServer) -> None:
    # Neither an order of two times nor what makes a name of an hour or a cursor can be said in a schema.
    free = case.operation.definition.raw["operationId"].removesuffix("Head") in ("segments", "status", "statusOfStem")
    case.call_and_validate(base_url=base_url(served), excluded_checks=[positive_data_acceptance] if free else [])


def base_url(served: WebServer) -> str:
    host, port = served.address
    return f"http://{host}:{port}"


def test_the_server_gives_the_description_itself(served: WebServer) -> None:
    with urllib.request.urlopen(f"{base_url(served)}/api/v1/openapi.json", timeout=20) as answer:
        assert json.loads(answer.read()) == DESCRIPTION


def test_every_route_is_described(served: WebServer) -> None:
    app = served._app
    routes = {
        rule.rule.replace("<", "{").replace(">", "}")
        for rule in app.url_map.iter_rules()  # type: ignore[attr-defined] # a Flask application
    }
    assert routes - {"/metrics", "/healthz", "/readyz"} == set(DESCRIPTION["paths"])

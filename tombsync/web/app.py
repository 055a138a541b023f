"""The HTTP application: metrics and health, and the room for what else is read over HTTP.

Read-only: GET and HEAD. Whatever goes wrong is answered as JSON, without a traceback; the traceback goes to the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# Set where a route says nothing else. The policy is that of an answer that no browser should run or embed.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def build_app(
    *,
    metrics_app: WSGIApplication,
    health: Callable[[], Mapping[str, float]],
    ready: Callable[[], bool],
    ready_detail: Callable[[], str],
    stale_after_s: float,
    blueprints: Sequence[Blueprint] = (),
) -> Flask:
    """The application with `/metrics`, `/healthz` and `/readyz`, and with the routes of `blueprints`.

    `health` gives for each worker the seconds since its last beat; older than `stale_after_s` is stalled. The callables
    are called by several threads at once and should wait for nothing.
    """
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # OPTIONS is a method like any other here: 405
    app.url_map.merge_slashes = False  # `//metrics` is no page, and no redirect to one

    @app.get("/metrics")
    def metrics() -> BaseResponse:
        # The metrics library answers HEAD with 405; werkzeug drops the body of an answer to HEAD by itself. Buffered
        # gives it a Content-Length, without which the connection would be closed after each scrape.
        return Response.from_app(metrics_app, {**request.environ, "REQUEST_METHOD": "GET"}, buffered=True)

    @app.get("/healthz")
    def healthz() -> tuple[Response, int]:
        ages = health()
        stalled = sorted(worker for worker, age_s in ages.items() if not age_s <= stale_after_s)  # NaN is stalled
        # JSON has no infinity: a worker that never beat has the age null.
        workers = {worker: round(age_s, 3) if math.isfinite(age_s) else None for worker, age_s in ages.items()}
        if stalled:
            return jsonify(status="stalled", stalled=stalled, workers=workers), 503
        return jsonify(status="ok", workers=workers), 200

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        if ready():
            return jsonify(status="ready", detail=ready_detail()), 200
        return jsonify(status="not ready", detail=ready_detail()), 503

    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    app.register_error_handler(HTTPException, _as_json)
    app.after_request(_add_headers)
    return app


def _as_json(error: HTTPException) -> BaseResponse:
    """Answer an error as JSON; an exception in a route arrives here as a 500 and was logged before."""
    if error.response is not None:  # a route aborted with an answer of its own
        return error.get_response()
    code = error.code or 500
    body: dict[str, str | int] = {"status": code, "error": error.name}
    if error.description and error.description != type(error).description:  # a route's own words
        body["detail"] = error.description
    response = jsonify(body)
    response.status_code = code
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers.add(name, value)  # Allow, for example
    return response


def _add_headers(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response

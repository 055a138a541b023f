"""Coverage over HTTP: the hours of a channel and quality as JSON, page by page, and their map as a picture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Protocol

from flask import Blueprint, Response, abort, jsonify, request

from tombsync.errors import BadName, BadTime
from tombsync.names import strict_hour
from tombsync.timeline import HOUR_US, parse_time
from tombsync.web.asking import in_turn
from tombsync.web.turns import Turns

MOST_HOURS = 1000  # of a page: 0.3 MB of JSON, made in 10 ms
_LIMIT_PATTERN = re.compile(r"[0-9]{1,4}", re.ASCII)
_ANY_HOUR = "2000-01-01T00"  # makes channel and quality an Hour, of which only these two are looked at


class Picture(Protocol):
    """A map that can be drawn."""

    @property
    def tag(self) -> str:
        """Another one whenever the picture is another one."""


def coverage_blueprint(
    *,
    hours: Callable[[str, str, int | None, int | None, int], dict[str, Any] | None],
    picture: Callable[[str, str, int | None, int | None], Picture | None],
    draw: Callable[[Any], bytes],
    turns: Turns,
) -> Blueprint:
    """The routes. `hours` gives a page of at most so many hours, `picture` what a map shows, each for channel, quality,
    first hour and the hour before which to end (None: all); None where nothing is known of the place. `draw` makes the
    PNG, and is called only where the client has not this very picture already.
    """
    blueprint = Blueprint("coverage", __name__)

    @blueprint.get("/api/v1/coverage")
    @in_turn(turns)
    def coverage_hours() -> Response:
        channel, quality = (request.args.get(key, "") for key in ("channel", "quality"))
        limit = request.args.get("limit", str(MOST_HOURS))
        if not _LIMIT_PATTERN.fullmatch(limit) or not 1 <= int(limit) <= MOST_HOURS:
            abort(400, f"limit: a number from 1 to {MOST_HOURS}")
        found = hours(*_place(channel, quality), *_range(), int(limit))
        if found is None:
            abort(404, "no hour of this channel and quality is known here")
        answer = jsonify(found)
        return _with_tag(answer, hashlib.blake2b(answer.get_data(), digest_size=16).hexdigest())

    @blueprint.get("/coverage/<channel>/<quality>.png")
    @in_turn(turns)
    def coverage_map(channel: str, quality: str) -> Response:
        asked = picture(*_place(channel, quality), *_range())
        if asked is None:
            abort(404, "no hour of this channel and quality is known here")
        if request.if_none_match.contains(asked.tag):
            return _with_tag(Response(status=304), asked.tag)
        return _with_tag(Response(draw(asked), mimetype="image/png"), asked.tag)

    return blueprint


def _place(channel: str, quality: str) -> tuple[str, str]:
    try:
        hour = strict_hour(channel, quality, _ANY_HOUR)
    except BadName as exc:
        abort(400, f"channel and quality: {exc.reason}")
    return hour.channel, hour.quality


def _range() -> tuple[int | None, int | None]:
    """The first hour and the one before which to end, of `from` and `to`: whole hours that the times lie in."""
    found: list[int | None] = []
    for key, up in (("from", False), ("to", True)):
        text = request.args.get(key)
        if text is None:
            found.append(None)
            continue
        try:
            moment_us = parse_time(text)
        except BadTime as exc:
            abort(400, f"{key}: {exc}; {exc.hint}")
        found.append(-(-moment_us // HOUR_US) if up else moment_us // HOUR_US)
    first, end = found
    if first is not None and end is not None and end <= first:
        abort(400, "to: it has to be after from")
    return first, end


def _with_tag(answer: Response, tag: str) -> Response:
    """Let clients keep it, and ask each time whether it is still the same."""
    answer.set_etag(tag)
    answer.headers["Cache-Control"] = "no-cache"
    answer.make_conditional(request)  # in place
    return answer

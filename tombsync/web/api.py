"""`/api/v1`: segments in time, tombstones, peers, and how a segment stands everywhere. Described by `openapi.json`.

No answer is longer than what the server keeps for a slow reader, so none of them holds a worker up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from itertools import chain
from typing import Any, NamedTuple, Protocol

from flask import Blueprint, Response

from tombsync.errors import EmptySpan
from tombsync.names import Marked, strict_hour, strict_marked
from tombsync.timeline import Piece, parse_time, time_text, wall_ns
from tombsync.web.asking import argument, as_json, boolean, in_turn, number, path_parts, refuse, required
from tombsync.web.paging import Page, Segments, Span, parse_cursor
from tombsync.web.turns import Turns

# Of files a page: some 350 bytes each, so 3.5 MB at most, where the server holds 16 MiB for one reader.
MOST_SEGMENTS = 10_000
DEFAULT_SEGMENTS = 1_000
MOST_TOMBSTONES = 1_000
DEFAULT_TOMBSTONES = 100
_MAX_KEY_DIGITS = 18  # SQLite's keys have 63 bits
_CHUNK_CHARACTERS = 64 * 1024  # sent at once: some 200 segments
_MAX_NS = 2**63 - 1  # SQLite's integers, and the year 2262
_STATUS = "/api/v1/status"


class TombstonePage(NamedTuple):
    """Tombstones as they are told to programs, newest first; `next`: the key below which the next page begins."""

    tombstones: list[dict[str, Any]]
    next: int | None


class Knowledge(Segments, Protocol):
    """What the answers are made of. Raises as `client.Client` does."""

    def tombstones(self, since_ns: int, *, below: int | None, limit: int) -> TombstonePage:
        """Those that were hidden at `since_ns` (wall time) or later, with a key below this one."""

    def peers(self) -> list[Mapping[str, Any]]:
        """Every peer."""

    def status_of(self, marked: Marked) -> list[Mapping[str, Any]]:
        """How this stem of this hour stands; [] where it is not marked."""

    def status_of_stem(self, name: str) -> list[Mapping[str, Any]]:
        """How a stem stands in each hour in which it is marked. Raises TooManyHours."""


def api_blueprint(knowledge: Callable[[], Knowledge], turns: Turns) -> Blueprint:
    """The routes below `/api/v1`. `knowledge`: gives that of the thread that asks."""
    blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
    description = resources.files("tombsync.web").joinpath("openapi.json").read_bytes()

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Response(description, mimetype="application/json")

    @blueprint.get("/segments")
    @in_turn(turns)
    def segments() -> Response:
        start, end = required("start"), required("end")
        span = Span(required("channel"), required("quality"), parse_time(start), parse_time(end))
        if span.end_us <= span.start_us:
            raise EmptySpan(start, end)
        limit = number("limit", default=DEFAULT_SEGMENTS, most=MOST_SEGMENTS)
        cursor = parse_cursor(argument("cursor"), span)
        page = Page(knowledge(), span, cursor, best=boolean("best"), limit=limit)
        parts = _stream(page)
        first = next(parts)  # what cannot be read is found before an answer has begun
        whole = first.endswith("\n")
        return Response(first if whole else chain([first], parts), mimetype="application/json")

    @blueprint.get("/tombstones")
    @in_turn(turns)
    def tombstones() -> Response:
        since = argument("since")
        since_ns = min(max(0, wall_ns(parse_time(since))), _MAX_NS) if since is not None else 0
        limit = number("limit", default=DEFAULT_TOMBSTONES, most=MOST_TOMBSTONES)
        below = number("cursor", default=0, most=10**_MAX_KEY_DIGITS - 1) or None
        page = knowledge().tombstones(since_ns, below=below, limit=limit)
        return as_json({"tombstones": page.tombstones, "next": None if page.next is None else str(page.next)})

    @blueprint.get("/peers")
    @in_turn(turns)
    def peers() -> Response:
        return as_json({"peers": knowledge().peers()})

    @blueprint.get("/status/<stem>")
    @in_turn(turns)
    def status_of_stem(**_: str) -> Response:
        return _status(knowledge().status_of_stem(*path_parts(_STATUS)))

    @blueprint.get("/status/<channel>/<quality>/<hour>/<name>")
    @in_turn(turns)
    def status(**_: str) -> Response:
        channel, quality, hour, name = path_parts(_STATUS)
        return _status(knowledge().status_of(strict_marked(strict_hour(channel, quality, hour), name)))

    return blueprint


def _status(found: list[Mapping[str, Any]]) -> Response:
    if not found:
        refuse(404, "no tombstone of this name is known here")
    return as_json({"segments": found})


def _stream(page: Page) -> Iterator[str]:
    """The document in parts of _CHUNK_CHARACTERS; the last ends with the only line break in it."""
    text = '{"segments":['
    for number_, one in enumerate(page):
        text += ("," if number_ else "") + json.dumps(_facts(one), separators=(",", ":"))
        if len(text) > _CHUNK_CHARACTERS:
            yield text
            text = ""
    yield f'{text}],"next":{json.dumps(page.next)}}}\n'


def _facts(one: Piece | None) -> dict[str, object] | None:
    if one is None:
        return None
    return {
        "path": one.path,
        "name": one.name,
        "start": time_text(one.start_us),
        "end": time_text(one.end_us),
        "duration_s": one.duration_us / 1_000_000,
        "type": one.type,
        "hash": one.hash,
    }

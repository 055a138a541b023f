"""`/files`: what this node lists, as the archive's own listing service answers.

Names, the empty array where nothing is, and the codes 400 (another value of `tombstones`) and 403 (a part that begins
with a dot) are those of that service, so that a program which asks it can ask here. Links to directories are not
followed, and a part that cannot be a name here (a control character, more than 255 bytes) is refused with 400.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from flask import Blueprint, Response, request

from tombsync.web.asking import as_json, boolean, in_turn, path_parts
from tombsync.web.turns import Turns

_PREFIX = "/files"
READ_FROM = "X-Tombsync-Read"  # what the names of an hour were read from: `index` or `directory`


class Lists(Protocol):
    """What gives the names: `client.Client`. Raises as that does."""

    def entries(self, *parts: str) -> list[str]:
        """The names in a directory above the hours."""

    def hour_names(self, channel: str, quality: str, hour: str, *, tombstones: bool = False) -> tuple[list[str], bool]:
        """The names in an hour, and whether the index gave them."""


def files_blueprint(lists: Callable[[], Lists], turns: Turns) -> Blueprint:
    """The routes below `/files`. `lists`: gives the one of the thread that asks."""
    blueprint = Blueprint("files", __name__)

    @blueprint.get("/files")
    @blueprint.get("/files/<channel>")
    @blueprint.get("/files/<channel>/<quality>")
    @in_turn(turns)
    def entries(**_: str) -> Response:
        return as_json(lists().entries(*path_parts(_PREFIX)))

    @blueprint.get("/files/<channel>/<quality>/<hour>")
    @in_turn(turns)
    def names(**_: str) -> Response:
        channel, quality, hour = path_parts(_PREFIX)
        found, from_index = lists().hour_names(channel, quality, hour, tombstones=boolean("tombstones"))
        answer = as_json(found)
        answer.headers[READ_FROM] = "index" if from_index else "directory"
        answer.headers["Cache-Control"] = "no-cache"  # kept, and asked about each time
        # Of the very text: whatever was read, and however often the index was made anew, equal means unchanged.
        answer.set_etag(hashlib.blake2b(answer.get_data(), digest_size=16).hexdigest())
        answer.make_conditional(request)
        return answer

    return blueprint

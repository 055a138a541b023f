"""`/auth`: whether a web server may serve a URL of the tree, for nginx's auth_request and its like.

The web server sends the URI as its client wrote it in `X-Original-URI`, and where the URLs of the tree begin in
`X-Segments-Prefix` (`/segments` where that is missing). It is answered with

- 204: the segment is visible, or what is asked for is nothing that a tombstone could hide: a directory, a file outside
  of the hour directories;
- 403: it is hidden, or not to be served: a tombstone, a name that begins with a dot, what is reached through a linked
  directory (no listing follows one, and what is behind it may be hidden by its name), whatever else no archive lists
  in an hour directory, a URI outside of the prefix or one that cannot be read as a path;
- 400: without `X-Original-URI`;
- 503: it cannot be told, as the index or the tree cannot be read. A web server refuses then.

A segment is hidden by the index or by a tombstone that stands beside it, even if the index does not know it yet.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from urllib.parse import unquote_to_bytes

from flask import Blueprint, request
from werkzeug.exceptions import BadRequest, Forbidden, ServiceUnavailable

from tombsync.errors import BadName, IndexDamaged, IndexMissing, RootMissing, RootNotBelieved, StateRefused
from tombsync.index import Reader
from tombsync.names import TOMBSTONE_SUFFIX, Kind, Marked, classify, is_hour, strict_path, unsafe
from tombsync.tree import Tree, open_below, standing
from tombsync.web.turns import Turns

URI_HEADER = "X-Original-URI"  # as nginx's own documentation of auth_request calls it
PREFIX_HEADER = "X-Segments-Prefix"
DEFAULT_PREFIX = "/segments"
_HOUR_DEPTH = 3  # CHANNEL/QUALITY/HOUR
_BAD_ESCAPE_PATTERN = re.compile(r"%(?![0-9A-Fa-f]{2})", re.ASCII)


def segment_of(uri: str, prefix: str) -> Marked | None:
    """The segment that a URI asks for; None where it is nothing that a tombstone could hide.

    `uri` as a client wrote it, and `prefix`, are as WSGI gives headers: one character for each byte. Doubled slashes
    count as one, as they do for the kernel. Raises BadName for what is not to be served.
    """
    path = uri.partition("?")[0]
    if not path.startswith("/") or "#" in path or _BAD_ESCAPE_PATTERN.search(path):
        raise BadName(path, "not the path of a URI")
    decoded = os.fsdecode(unquote_to_bytes(path.encode("latin-1")))
    parts = [part for part in decoded.split("/") if part]
    before = [part for part in os.fsdecode(prefix.encode("latin-1")).split("/") if part]
    if parts[: len(before)] != before:
        raise BadName(decoded, f"not below {prefix}")
    below = parts[len(before) :]
    for part in below:
        if reason := unsafe(part):
            raise BadName(decoded, reason)
        if part.endswith(TOMBSTONE_SUFFIX):
            raise BadName(decoded, "a tombstone")
    if len(below) <= _HOUR_DEPTH or not is_hour(below[_HOUR_DEPTH - 1]):
        return None
    if classify(below[-1])[0] not in (Kind.TS, Kind.JSON) or decoded.endswith("/"):
        raise BadName(decoded, "no archive lists that in an hour directory")
    return strict_path("/".join(below))


class Auth:
    """The route `/auth`. The reader is shared by the HTTP threads, under `_lock`."""

    def __init__(self, tree: Tree, index_path: str) -> None:
        """Raises what `index.Reader` does."""
        self._tree = tree
        self._lock = threading.Lock()
        self._reader = Reader(index_path)

    def blueprint(self, turns: Turns) -> Blueprint:
        """The route, which takes its turns beside the others that read the tree."""
        blueprint = Blueprint("auth", __name__)
        blueprint.get("/auth", endpoint="auth")(lambda: self._answer(turns))
        return blueprint

    def _answer(self, turns: Turns) -> tuple[str, int]:
        uri = request.headers.get(URI_HEADER)
        if not uri:
            raise BadRequest(f"{URI_HEADER} is missing: it is asked about a URI")
        try:
            marked = segment_of(uri, request.headers.get(PREFIX_HEADER, DEFAULT_PREFIX))
        except BadName as exc:
            raise Forbidden(exc.reason) from exc
        if marked is not None:
            if not turns.take():
                raise ServiceUnavailable("the segment tree does not answer")
            try:
                hidden = self._hidden(marked)
            except (IndexMissing, IndexDamaged, StateRefused, RootMissing, RootNotBelieved) as exc:
                raise ServiceUnavailable("the index or the tree cannot be read") from exc
            finally:
                turns.give_back()
            if hidden:
                raise Forbidden("hidden")
        return "", 204

    def _hidden(self, marked: Marked) -> bool:
        with self._lock:
            row = self._reader.marker(marked)
            identity: str | None = self._reader.fact("root")
        if row is not None and row.hides:
            return True
        with self._tree.open_believed(identity) if identity else self._tree.open_root() as root_fd:
            try:
                return _behind_a_link(root_fd, marked) or standing(root_fd, marked).tombstone
            except OSError as exc:
                reason = f"cannot be read in {marked.hour.path}: {os.strerror(exc.errno or 0)}"
                raise RootMissing(self._tree.root, reason) from exc

    def close(self) -> None:
        """Close the reader."""
        with self._lock:
            self._reader.close()


def _behind_a_link(root_fd: int, marked: Marked) -> bool:
    """Whether a link stands in its way: no listing follows it, and what it leads to may be hidden by its own name."""
    try:
        os.close(open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text))
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            return True
        if exc.errno != errno.ENOENT:
            raise
    return False

"""What the routes share: the parts of a path and the arguments as they were sent, a turn at the tree, and errors."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from flask import Response, abort, request

from tombsync import errors
from tombsync.names import unsafe
from tombsync.web.turns import Turns

P = ParamSpec("P")

RETRY_AFTER_S = 5
_BOOLEANS = {"true": True, "false": False}


def refuse(code: int, detail: str) -> NoReturn:
    """End the request with an error of these words (see app: it is answered as JSON)."""
    abort(code, detail)


def path_parts(prefix: str) -> list[str]:
    """The parts of the request's path below a prefix, each as the file name that it stands for, byte by byte.

    Not as the framework gives them: it would put a sign of its own in place of bytes that are not UTF-8. Ends the
    request with 403 where a part begins with a dot, with 400 where it cannot be the name of a directory here.
    """
    path = os.fsdecode(request.environ["PATH_INFO"].encode("latin-1"))  # PEP 3333: bytes, as latin-1
    parts = path.removeprefix(prefix).split("/")[1:]
    for part in parts:
        if part.startswith("."):
            refuse(403, "no part of the path may begin with a dot")
        if reason := unsafe(part):
            refuse(400, reason)
    return parts


def argument(name: str) -> str | None:
    """One argument of the query; None without it. Ends the request with 400 where it was given several times."""
    values = request.args.getlist(name)
    if len(values) > 1:
        refuse(400, f"{name} is given more than once")
    return values[0] if values else None


def required(name: str) -> str:
    """An argument that must be there; else the request ends with 400."""
    value = argument(name)
    if not value:
        refuse(400, f"{name} is missing")
    return value


def boolean(name: str) -> bool:
    """An argument that is true or false in whatever case, false without it; else the request ends with 400."""
    text = argument(name)
    value = False if text is None else _BOOLEANS.get(text.lower())
    if value is None:
        refuse(400, f"{name} must be one of: true, false")
    return value


def number(name: str, *, default: int, most: int) -> int:
    """An argument that is a number from 1 to `most`; else the request ends with 400."""
    text = argument(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        refuse(400, f"{name} must be a number from 1 to {most}")
    return int(text)


def as_json(value: object) -> Response:
    """An answer whose names keep their bytes: what is not UTF-8 stands as lone surrogates (`\\udcXX`), as the archive's
    own listing has it, so that the text is ASCII and every name comes back through `os.fsencode`.
    """
    return Response(json.dumps(value, separators=(",", ":")) + "\n", mimetype="application/json")


def in_turn(turns: Turns) -> Callable[[Callable[P, Response]], Callable[P, Response]]:
    """A route that reads index and tree: with a turn until its answer is made, and errors as answers.

    503 where the disk or the index cannot be read now, 400 where what was asked cannot be.
    """

    def decorate(route: Callable[P, Response]) -> Callable[P, Response]:
        @functools.wraps(route)
        def answer(*args: P.args, **kwargs: P.kwargs) -> Response:
            if not turns.take():
                return _later("the segment tree does not answer")
            try:
                made = _answer(route, *args, **kwargs)
            except BaseException:
                turns.give_back()
                raise
            if made.is_streamed:
                made.call_on_close(turns.give_back)  # the tree is read until the last of it was made
            else:
                turns.give_back()
            return made

        return answer

    return decorate


def _answer(route: Callable[P, Response], *args: P.args, **kwargs: P.kwargs) -> Response:
    try:
        return route(*args, **kwargs)
    except (errors.BadName, errors.BadTime, errors.EmptySpan, errors.BadCursor, errors.TooManyHours) as exc:
        refuse(400, f"{exc}; {exc.hint}" if exc.hint else str(exc))
    except (
        errors.DirectoryUnreadable,
        errors.RootMissing,
        errors.RootNotBelieved,
        errors.IndexMissing,
        errors.IndexDamaged,
        errors.IndexTooNew,
        errors.StateRefused,
    ) as exc:
        return _later(str(exc))


def _later(detail: str) -> Response:
    answer = as_json({"status": 503, "error": "Service Unavailable", "detail": detail})
    answer.status_code = 503
    answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer

"""The status page at `/`: made here as a whole, so that it is complete without its script, which only refreshes it.

The script asks `/live` for the parts that change. They are made at most once in KEPT_S, whoever asks: a hundred open
pages cost no more than one. All links are relative, so that the page also works below a path of a web server in front.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qs

from flask import Blueprint, Response, render_template, request
from markupsafe import Markup
from werkzeug.wrappers import Response as BaseResponse

from tombsync import __version__
from tombsync.errors import TombsyncError
from tombsync.index import DeliveryGlance, Reader
from tombsync.names import printable
from tombsync.web import search
from tombsync.web.live import Agent, look
from tombsync.web.marks import Cell, cells_of, moment_of, notes_of
from tombsync.web.turns import Turns
from tombsync.web.words import Badge, age_text, count_text, duration_text, name_html, time_html

KEPT_S = 1.0
OLD_AFTER_S = 10.0  # it takes some milliseconds to make: then a disk hangs, and nothing old is passed off as new
PATIENCE_S = 1.0  # of those who come while the first one is made
REFRESH_S = 5  # of an open page, told to the script

# Scripts, styles and images only from files of this server, nothing inline; questions only to this server.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)


class FoundView(NamedTuple):
    """A row of what was searched for."""

    path: str
    moment: str
    badge: Badge
    hidden_at_ns: int | None
    notes: list[str]
    cells: list[Cell]


def status_page(agent: Agent, turns: Turns, *, clock: Callable[[], float] = time.monotonic) -> Blueprint:
    """The routes of the page: `/`, `/live` and `/static/…`. What reads a disk takes one of `turns`."""
    page = Blueprint("page", __name__, template_folder="templates", static_folder="static", static_url_path="/static")
    page.add_app_template_filter(printable, "printable_name")  # in attributes, which hold no elements
    kept = _Kept(lambda: _render_live(agent), turns, clock)

    @page.get("/")
    def index() -> str | tuple[Response, int]:
        live = kept.get()
        if live is None:
            return _failed("the disk of the index or of the segment tree does not answer")
        question = _question(request.query_string)
        return render_template(
            "page.html",
            node=agent.node,
            version=__version__,
            refresh_s=REFRESH_S,
            question=question,
            question_text=printable(question),  # as an attribute; the rest goes through `name`
            answer=_search(agent, question, turns) if question.strip() else None,
            live=live,
            **_words(time.time_ns()),
        )

    @page.get("/live")
    def live() -> BaseResponse | tuple[Response, int]:
        made = kept.get()
        if made is None:
            return _failed("the disk of the index or of the segment tree does not answer")
        response = Response(made, mimetype="text/html")
        response.headers["Cache-Control"] = "no-cache"  # kept, and asked for again: mostly nothing has changed
        response.add_etag()
        return response.make_conditional(request)

    @page.errorhandler(TombsyncError)
    def index_failed(error: TombsyncError) -> tuple[Response, int]:
        return _failed(f"{error}{'. ' + error.hint if error.hint else ''}")

    @page.after_request
    def allow(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return page


def _failed(reason: str) -> tuple[Response, int]:
    return Response(f"The status page cannot be made: {printable(reason)}\n", mimetype="text/plain"), 503


class _Kept:
    """What was made last, for KEPT_S. Who comes while it is made is given the one before, and waits for no disk."""

    def __init__(self, make: Callable[[], Markup], turns: Turns, clock: Callable[[], float]) -> None:
        self._make = make
        self._turns = turns
        self._clock = clock
        self._making = threading.Lock()
        self._made: tuple[float, Markup] | None = None  # when; replaced as a whole, by whoever has the lock

    def get(self) -> Markup | None:
        """None where nothing could be made for OLD_AFTER_S."""
        made = self._made
        if made is None or self._clock() >= made[0] + KEPT_S:
            self._renew(made)
            made = self._made
        return made[1] if made is not None and self._clock() < made[0] + OLD_AFTER_S else None

    def _renew(self, made: tuple[float, Markup] | None) -> None:
        """Make a new one, unless somebody else is just making it; of the first one all wait for a moment."""
        if not self._making.acquire(timeout=0 if made is not None else PATIENCE_S):
            return
        try:
            if self._made is made and self._turns.take():
                try:
                    self._made = (self._clock(), self._make())
                finally:
                    self._turns.give_back()
        finally:
            self._making.release()


def _render_live(agent: Agent) -> Markup:
    live = look(agent)
    return Markup(render_template("live.html", live=live, root=agent.root, **_words(live.at_ns)))  # noqa: S704 (escaped by Jinja)


def _words(now_ns: int) -> dict[str, object]:
    """What templates say things with."""
    return {
        "when": lambda at_ns: time_html(at_ns, now_ns),
        "when_s": lambda at_s: time_html(int(at_s * 1e9), now_ns),
        "since_s": lambda at_s: age_text(now_ns / 1e9 - at_s),
        "now_ns": now_ns,
        "age": age_text,
        "duration": duration_text,
        "count": count_text,
        "name": name_html,
    }


def _question(query: bytes) -> str:
    """What was typed; bytes that are not UTF-8 stay what they are, as in names of the tree."""
    try:
        fields = parse_qs(query.decode("ascii", "surrogateescape"), errors="surrogateescape", max_num_fields=16)
    except ValueError:  # more fields than the form has
        return ""
    return fields.get("q", [""])[0]


class AnswerView(NamedTuple):
    """What a search found, for the template."""

    found: list[FoundView]
    looked: str
    problem: str
    hint: str


def _search(agent: Agent, question: str, turns: Turns) -> AnswerView:
    if not turns.take():
        return AnswerView([], "", "The disk of the index or of the segment tree does not answer.", "ask again later")
    try:
        answer, deliveries = agent.ask(lambda reader: _of_index(reader, question, agent.root))
    finally:
        turns.give_back()
    peers = sorted(peer for peer, _ in agent.sources.peers_up())
    views = []
    for one in answer.found:
        marker = one.marker
        files = [f"{name.rpartition('.')[2]} file here" for name in one.files]
        views.append(
            FoundView(
                path=one.marked.path,
                moment=moment_of(one.marked),
                badge=_visibility(one),
                hidden_at_ns=marker.hidden_at_ns if marker is not None else None,
                notes=files + (notes_of(marker) if marker is not None else []),
                cells=cells_of(marker, deliveries.get(marker.marker, []), peers) if marker is not None else [],
            )
        )
    return AnswerView(views, answer.looked, answer.problem, answer.hint)


def _visibility(found: search.Found) -> Badge:
    if found.is_hidden:
        return Badge("hidden", "calm", "hidden" if found.files else "hidden, no data here")
    return Badge("eye", "good", "visible") if found.files else Badge("dash", "calm", "no data here")


def _of_index(reader: Reader, question: str, root: str) -> tuple[search.Answer, dict[int, list[DeliveryGlance]]]:
    answer = search.answer(question, root, reader)
    return answer, reader.deliveries_of([one.marker.marker for one in answer.found if one.marker is not None])

"""What the status page shows of this node: facts of the agent's parts and of the index, put into words and shapes.

Every state is told by a word and a shape; its tone (colour) only repeats them. Nothing here is proportional to the
tree: counts are those that the agent keeps, and of the tombstones only the last ones are looked at.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from tombsync.index import DeliveryGlance, MarkerRow, PeerGlance, Reader
from tombsync.metrics import Sources
from tombsync.names import unsafe
from tombsync.plan import State
from tombsync.timeline import parse_time, time_text
from tombsync.tree import Takedown
from tombsync.web.marks import MarkView, badge_of, mark_view
from tombsync.web.words import Badge, count_text, list_text

T = TypeVar("T")

LAST_MARKS = 50
MOST_TAKEDOWNS = 20

_USUAL_STATES = (State.PENDING, State.RECEIVED, State.CONFIRMED)


class PeerView(NamedTuple):
    """A row of the peers' table. `oldest_s`: age of what it has not confirmed; 0 where there is nothing."""

    name: str
    badge: Badge
    pending: int
    confirmed: int
    others: list[tuple[Badge, int]]
    oldest_s: float
    since_ns: int | None
    verified_at_ns: int | None
    error: str
    error_at_ns: int | None


class PlaceView(NamedTuple):
    """A channel and quality, with its files counted.

    `coverage_s`: seconds by state, of the hours that were judged; empty before any was. `map`: where its picture is,
    "" where there is none. The address changes when the figures do, so that an open page asks for the new picture.
    """

    channel: str
    quality: str
    visible: int
    hidden: int
    coverage_s: dict[str, float]
    map: str


class TakedownView(NamedTuple):
    """A takedown that was not ended."""

    id: str
    channel: str
    qualities: str
    start: str
    end: str
    rules: str
    created_at_ns: int
    actor: str
    reason: str


class Live(NamedTuple):
    """All that changes by itself."""

    at_ns: int
    summary: list[tuple[Badge, str]]
    problems: list[str]
    doing: str
    tree: Badge
    crew: Badge
    workers: list[tuple[str, bool]]  # name, whether it is stalled
    rescans: list[tuple[str, float]]  # kind, Unix time
    watches: int
    visible: int
    hidden: int
    tombstones: int
    inboxes: list[tuple[str, int]]
    peers: list[PeerView]
    marks: list[MarkView]
    takedowns: list[TakedownView]
    more_takedowns: int
    places: list[PlaceView]


class Ask(Protocol):
    """Puts a short question to the index. Raises IndexMissing, IndexDamaged, IndexTooNew, StateRefused."""

    def __call__(self, question: Callable[[Reader], T], /) -> T:
        """The answer of the question."""


@dataclass(frozen=True)
class Agent:
    """Where the page's facts come from. Every callable is quick, and safe to call from any thread.

    `ask`: puts a short question to the index, with the reader of the calling thread.
    """

    node: str
    root: str
    sources: Sources
    ready: Callable[[], bool]
    doing: Callable[[], str]
    stale_after_s: float
    ask: Ask
    takedowns: Callable[[], Sequence[Takedown]]


def look(agent: Agent) -> Live:
    """Everything as it stands now. Raises IndexMissing, IndexDamaged, StateRefused."""
    glances, rows, deliveries = agent.ask(_of_index)
    ask = agent.sources
    up = dict(ask.peers_up())
    peers = _peers(ask, up, glances)
    names = [peer.name for peer in peers]
    marks = [mark_view(row, deliveries.get(row.marker, []), names) for row in rows]
    # As /healthz counts: NaN, of one that never had a turn, is stalled.
    workers = [(name, not age_s <= agent.stale_after_s) for name, age_s in sorted(ask.beat_ages_s().items())]
    places = _places(ask)
    tombstones, believed = ask.tombstones(), ask.root_believed()
    open_marks = sum(any(cell.badge.tone in ("wait", "care", "bad") for cell in mark.cells) for mark in marks)
    stalled = [name for name, stale in workers if stale]
    doing = agent.doing()
    takedowns = sorted(agent.takedowns(), key=lambda one: one.created_at, reverse=True)
    return Live(
        at_ns=time.time_ns(),
        summary=[
            _of_node(ready=agent.ready(), believed=believed, doing=doing, stalled=stalled, watches=ask.watches()),
            _of_peers(peers),
            _of_marks(len(marks), open_marks, tombstones, bool(peers)),
        ],
        problems=_problems(ask, stalled, believed=believed),
        doing=doing,
        tree=Badge("check", "good", "the known one") if believed else Badge("cross", "bad", "not believed"),
        crew=Badge("cross", "bad", f"{len(stalled)} stalled") if stalled else Badge("check", "good", "all at work"),
        workers=workers,
        rescans=sorted(ask.rescans_completed()),
        watches=ask.watches(),
        visible=sum(place.visible for place in places),
        hidden=sum(place.hidden for place in places),
        tombstones=tombstones,
        inboxes=[(sender, waiting) for sender, waiting in ask.inbox_waiting() if waiting],
        peers=peers,
        marks=marks,
        takedowns=[_takedown(one) for one in takedowns[:MOST_TAKEDOWNS]],
        more_takedowns=max(0, len(takedowns) - MOST_TAKEDOWNS),
        places=places,
    )


def _of_index(
    reader: Reader,
) -> tuple[dict[str, PeerGlance], list[MarkerRow], dict[int, list[DeliveryGlance]]]:
    rows = reader.marker_rows(limit=LAST_MARKS)
    glances = {glance.name: glance for glance in reader.peer_glances()}
    return glances, rows, reader.deliveries_of([row.marker for row in rows])


# -- the summary ------------------------------------------------------------------------------------------------------


def _of_node(*, ready: bool, believed: bool, doing: str, stalled: Sequence[str], watches: int) -> tuple[Badge, str]:
    if stalled:
        return Badge("cross", "bad", "stalled"), f"No turn of {list_text(stalled)} ended for too long."
    if not believed:
        return Badge("cross", "bad", "paused"), "The segment tree is not there, or is another one."
    if not ready:
        return Badge("wait", "wait", "not ready"), f"Marks made while it was down are still looked for: {doing}."
    directories = f"{watches:,} {'directory' if watches == 1 else 'directories'} watched"
    also = "" if doing == "ready" else f", {doing.removeprefix('ready, ')}"
    return Badge("check", "good", "ready"), f"{directories}{also}."


def _of_peers(peers: Sequence[PeerView]) -> tuple[Badge, str]:
    if not peers:
        return Badge("dash", "calm", "no peers"), "Nobody else is told of tombstones."
    down = [peer.name for peer in peers if peer.badge.word != "up"]
    word = f"{len(peers) - len(down)} of {count_text(len(peers), 'peer')} up"
    if down:
        return Badge("down", "bad", word), f"No session with {list_text(down)}."
    return Badge("check", "good", word), ""


def _of_marks(shown: int, open_marks: int, tombstones: int, has_peers: bool) -> tuple[Badge, str]:
    word = count_text(tombstones, "tombstone")
    if not shown or not has_peers:
        return Badge("dash", "calm", word), ""
    last = f"the last {shown}" if shown < tombstones else "them"
    if open_marks:
        return Badge("wait", "wait", word), f"{open_marks:,} of {last} not confirmed by every peer yet."
    return Badge("check", "good", word), "The last ones are with every peer that keeps their hours."


def _problems(ask: Sources, stalled: Sequence[str], *, believed: bool) -> list[str]:
    found = []
    if not believed:
        found.append("Nothing is hidden, delivered or changed until the known segment tree is back.")
    if stalled:
        found.append(f"The agent is about to be restarted: {list_text(stalled)} stalled.")
    if lost := ask.journal_dropped():
        found.append(f"{count_text(lost, 'audit record')} lost since the start: see the journal's limits.")
    return found


# -- peers ------------------------------------------------------------------------------------------------------------


def _peers(ask: Sources, up: Mapping[str, bool], glances: Mapping[str, PeerGlance]) -> list[PeerView]:
    counts: dict[str, Counter[State]] = {name: Counter() for name in up}
    for name, state, count in ask.deliveries():
        if name in counts:
            counts[name][state] = count
    oldest_s = dict(ask.oldest_unconfirmed_s())
    return [_peer(name, up[name], counts[name], oldest_s.get(name, 0.0), glances.get(name)) for name in sorted(up)]


def _peer(name: str, is_up: bool, counts: Counter[State], oldest_s: float, glance: PeerGlance | None) -> PeerView:
    error = glance.error if glance is not None else ""
    if is_up:
        badge = Badge("up", "good", "up")
    else:
        badge = Badge("down", "bad", "down") if error else Badge("wait", "wait", "connecting")
    return PeerView(
        name=name,
        badge=badge,
        pending=counts[State.PENDING] + counts[State.RECEIVED],
        confirmed=counts[State.CONFIRMED],
        others=[
            (badge_of(state), count) for state, count in sorted(counts.items()) if count and state not in _USUAL_STATES
        ],
        oldest_s=oldest_s,
        # Of a session that stands it is told when it began; the index may be a moment behind.
        since_ns=glance.changed_at_ns if glance is not None and glance.up == is_up else None,
        verified_at_ns=glance.verified_at_ns if glance is not None else None,
        error="" if is_up else error,
        error_at_ns=glance.error_at_ns if glance is not None else None,
    )


# -- channels and qualities -------------------------------------------------------------------------------------------


def _places(ask: Sources) -> list[PlaceView]:
    judged: dict[tuple[str, str], dict[str, float]] = {}
    for channel, quality, state, length_s in ask.coverage_s():
        judged.setdefault((channel, quality), {})[state] = length_s
    return [
        PlaceView(channel, quality, visible, hidden, figures, _map_of(channel, quality, figures))
        for channel, quality, visible, hidden in sorted(ask.segments())
        for figures in [judged.get((channel, quality), {})]
    ]


def _map_of(channel: str, quality: str, figures: dict[str, float]) -> str:
    """Only of what was judged, and of names that an address can carry."""
    try:
        parts = [quote(part, safe="") for part in (channel, quality)]
    except UnicodeEncodeError:
        return ""
    if not any(figures.values()) or unsafe(channel) or unsafe(quality):
        return ""
    version = "-".join(f"{length_s:.0f}" for length_s in figures.values())
    return f"coverage/{'/'.join(parts)}.png?v={version}"


# -- takedowns --------------------------------------------------------------------------------------------------------


def _takedown(one: Takedown) -> TakedownView:
    rules = ["what arrives late is marked at once" if one.sticky else "what arrives late is told"]
    rules += ["also chat"] if one.chat else []
    rules += [] if one.twins else ["without twins"]
    created_us = parse_time(one.created_at) - parse_time("1970-01-01T00:00")
    return TakedownView(
        id=one.id,
        channel=one.channel,
        qualities=", ".join(one.qualities) or "all qualities",
        start=_short(one.start_us),
        end=_short(one.end_us),
        rules="; ".join(rules),
        created_at_ns=created_us * 1000,
        actor=one.actor,
        reason=one.reason,
    )


def _short(moment_us: int) -> str:
    """To the millisecond, as segments are written in the table above."""
    return time_text(moment_us).replace("T", " ")[:-4]

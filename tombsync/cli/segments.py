"""Where single segments stand, at this node and at every peer: what the index knows, or what the peers answer now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from tombsync import errors
from tombsync.cli.common import (
    age,
    exit_code,
    locate_segment,
    owner,
    say,
    say_json,
    say_table,
    tell_error,
    when,
)
from tombsync.cli.progress import Bar
from tombsync.config import PeerSettings, Settings
from tombsync.index import MarkerRow, PeerRow, Reader
from tombsync.names import Marked
from tombsync.plan import State
from tombsync.timeline import iso
from tombsync.tree import Standing, Tree

if TYPE_CHECKING:
    from tombsync.proof import Heard, Question, Stand

NOT_SENT = "not sent to peers: it is no regular file, or its name may not cross a border"
_PAGE = 500
_MOST_HOURS = 1000  # in which one stem may be marked, and be named without its hour; it stands in one, but for copies


def find_markers(settings: Settings, reader: Reader, text: str) -> list[MarkerRow]:
    """The markers that a person means by a stem or a path. Raises BadName, OutsideRoot, TooManyHours."""
    if "/" in text:
        row = reader.marker(locate_segment(text, Tree(settings.root)))
        return [row] if row else []
    from tombsync.proof import markers_of_stem

    return markers_of_stem(reader, text, most=_MOST_HOURS)


def named_markers(settings: Settings, reader: Reader, stems: Sequence[str]) -> list[MarkerRow]:
    """The markers of what was named. Raises NotMarked for the first that has none: a slip must delete nothing."""
    rows: dict[int, MarkerRow] = {}
    for stem in stems:
        found = find_markers(settings, reader, stem)
        if not found:
            raise errors.NotMarked(stem)
        rows.update((row.marker, row) for row in found)
    return list(rows.values())


def ask_peers(
    settings: Settings,
    reader: Reader,
    peers: Sequence[PeerSettings],
    rows: Iterable[MarkerRow],
    *,
    witnesses: Callable[[str], Iterable[tuple[int, Marked]]] | None = None,
) -> list[tuple[Heard, list[Question]]]:
    """Ask these peers now about these markers, and whether they have data: what each heard and was asked.

    `witnesses`: by the name of a peer, key and path of the markers to ask it for besides (see Question).
    """
    from tombsync.daemon import target_of, target_text
    from tombsync.proof import Question, ask

    rows = list(rows)
    known = {row.name: row.target for row in reader.peers()}
    states = {row.marker: {d.peer: d.state for d in reader.deliveries(row.marker)} for row in rows}
    questions = {}
    for peer in peers:
        same = known.get(peer.name) == target_text(peer)  # what another target has confirmed says nothing of this one
        asked = [
            Question(row.marker, row.marked, durable=same and states[row.marker].get(peer.name) is State.CONFIRMED)
            for row in rows
        ]
        asked += [
            Question(marker, marked, durable=same, witness=True)
            for marker, marked in (witnesses(peer.name) if witnesses is not None else ())
            if marker not in states
        ]
        questions[target_of(peer, settings.node)] = asked
    with Bar(f"asking {len(questions)} peers") as bar:
        return list(zip(ask(questions, data=True, on_progress=bar.show), questions.values(), strict=True))


def tell_segments(settings: Settings, reader: Reader, stems: Sequence[str], *, live: bool, as_json: bool) -> int:
    """Print how each stands; the exit code: 3 where some are not known here, or a peer could not be asked."""
    found: list[tuple[str, MarkerRow | errors.TombsyncError]] = []  # in the order in which they were asked for
    for stem in stems:
        try:
            rows = find_markers(settings, reader, stem)
            if not rows:
                raise errors.NotMarked(stem)
        except errors.TombsyncError as exc:
            found.append((stem, exc))
            tell_error(exc)
        else:
            found += [(stem, row) for row in rows]
    markers = [row for _, row in found if isinstance(row, MarkerRow)]
    heard = hear(settings, reader, markers) if live else {}
    documents: list[dict[str, Any]] = []
    facts = facts_of(settings, reader, markers, heard)
    for stem, row in found:
        if not isinstance(row, MarkerRow):
            documents.append({"asked": stem, "segment": None, "error": str(row)})
            continue
        here, stands, document = next(facts)
        documents.append({"asked": stem, **document})
        if not as_json:
            for line in segment_lines(row, here, stands):
                say(line)
    if as_json:
        say_json(documents)
    elif markers:
        say("nodes that are not configured as peers were not asked")
    silent = [each.error for each in heard.values() if each.error is not None]
    for error in silent:
        tell_error(error)
    code = exit_code(len(markers), len(found) - len(markers))
    return code if code or not silent else errors.EXIT_IN_PART


def tell_pending(settings: Settings, reader: Reader, *, limit: int, as_json: bool) -> int:
    """Print what is not everywhere yet and why, newest first, `limit` segments of each peer at most."""
    documents: list[dict[str, Any]] = []
    left = False
    for lines in _all_pending(settings, reader):
        documents += islice(lines, limit)
        left = left or next(lines, None) is not None
    if as_json:
        say_json(documents)
        return 0
    if not documents:
        say("every peer has confirmed, or does not keep, all that is hidden here")
        return 0
    say_table(
        ("SEGMENT", "PEER", "STATE", "HIDDEN", "WHY"),
        ([d[key] or "-" for key in ("segment", "peer", "state", "hidden_at", "why")] for d in documents),
    )
    if left:
        say(f"… and more: --limit shows more than {limit} of a peer")
    return 0


def _all_pending(settings: Settings, reader: Reader) -> Iterator[Iterator[dict[str, Any]]]:
    yield _new_peers(settings, reader)
    for peer in reader.peers():
        yield _pending_at(reader, peer)
    yield _unsent(reader)


def _new_peers(settings: Settings, reader: Reader) -> Iterator[dict[str, Any]]:
    """Peers in the settings of which the agent has no deliveries: they lack everything that is hidden here."""
    from tombsync.daemon import target_text

    known = {row.name: row.target for row in reader.peers()}
    for peer in settings.peers:
        if peer.name not in known:
            yield _pending(peer=peer.name, why="the agent has not taken this peer up yet: restart it")
        elif known[peer.name] != target_text(peer):
            yield _pending(peer=peer.name, why="the agent knows this peer by older settings: restart it")


def _pending_at(reader: Reader, peer: PeerRow) -> Iterator[dict[str, Any]]:
    for delivery in reader.unconfirmed(peer.peer, limit=_PAGE):
        row = reader.marker_of_key(delivery.marker)
        if row is not None:
            why = delivery.detail or (None if peer.up else peer.error) or None
            asked_at_ns = delivery.asked_at_ns
            yield _pending(row, peer=peer.name, state=delivery.state.word, asked_at_ns=asked_at_ns, why=why)


def _unsent(reader: Reader) -> Iterator[dict[str, Any]]:
    below = None
    while rows := reader.unpushable(below=below, limit=_PAGE):
        for row in rows:
            yield _pending(row, why=NOT_SENT)
        below = rows[-1].marker


def _pending(
    row: MarkerRow | None = None,
    *,
    peer: str | None = None,
    state: str | None = None,
    asked_at_ns: int | None = None,
    why: str | None,
) -> dict[str, Any]:
    """A line of `status --pending`. Without a row it is about all that is hidden here, without a peer about each."""
    return {
        "segment": row and row.marked.path,
        "peer": peer,
        "state": state,
        "hidden_at": row and iso(row.hidden_at_ns),
        "asked_at": iso(asked_at_ns),
        "why": why,
    }


def hear(settings: Settings, reader: Reader, rows: Sequence[MarkerRow]) -> dict[str, Heard]:
    """What each peer answers now, by its name."""
    sent = {row.marker: row for row in rows if row.pushable}  # no other name may cross a border
    return {heard.peer: heard for heard, _ in ask_peers(settings, reader, settings.peers, sent.values())}


def facts_of(
    settings: Settings, reader: Reader, rows: Sequence[MarkerRow], heard: dict[str, Heard]
) -> Iterator[tuple[Standing | None, list[Stand], dict[str, Any]]]:
    """How each stands here and at each peer, and the same for programs."""
    from tombsync.proof import segment_facts, standing_here, stands_of

    tree = Tree(settings.root)
    peers = {peer.name: peer for peer in reader.peers({})}
    configured = {peer.name for peer in settings.peers}
    for row in rows:
        here = standing_here(tree, reader, row)
        stands = stands_of(reader, row, peers, heard, configured=configured)
        yield here, stands, segment_facts(row, here, stands, node=settings.node, owner=owner(row.owner_uid))


def segment_lines(row: MarkerRow, here: Standing | None, stands: Sequence[Stand]) -> list[str]:
    """How it stands, in words."""
    by = f"brought by {row.sender}, marked on {row.origin}" if row.sender else f"owner {owner(row.owner_uid) or '-'}"
    lines = [
        row.marked.path,
        f"  hidden here {when(row.hidden_at_ns)} (seen by {row.source}, {by}); {_words_here(row, here)}",
        *(f"  {one.peer}: {_words(one)}" for one in stands),
    ]
    if not row.pushable:
        lines.append(f"  {NOT_SENT}")
    elif not stands:
        lines.append("  no peers are configured: nobody else was told")
    return lines


def _words_here(row: MarkerRow, here: Standing | None) -> str:
    if here is None:
        return "what stands here is not known, as the known segment tree cannot be seen"
    if here.tombstone:
        tombstone = "its tombstone stands here"
    elif row.in_tree:
        tombstone = "its tombstone does not stand here any more"
    else:
        tombstone = "received, its tombstone is not yet written here"
    return f"{tombstone}; {'its data is still here' if here.data else 'its data is not here'}"


def _words(one: Stand) -> str:
    if one.state is State.CONFIRMED:
        words = [f"confirmed {when(one.confirmed_at_ns)}"]
    else:
        words = [one.state.word if one.state is not None else "not taken up by the agent yet"]
    if one.asked_now:
        words.append("asked now")
    elif one.asked_at_ns:
        words.append(f"asked {_ago(one.asked_at_ns)} ago")
    if one.data is not None:
        still = "its data is still there" if one.data else "its data is not there"
        words.append(still if one.asked_now else f"{still}, {_ago(one.data_asked_at_ns)} ago")
    if one.unreachable_since_ns is not None and not one.asked_now:
        words.append(f"unreachable since {when(one.unreachable_since_ns)}")
    if not one.configured:
        words.append("no longer a peer in the settings")
    return ", ".join(words) + (f" ({one.detail})" if one.detail else "")


def _ago(at_ns: int | None) -> str:
    return age(max(0.0, time.time() - (at_ns or 0) / 1e9))

"""`tombsync status`: this node and its peers, or where single segments stand."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click

from tombsync import errors
from tombsync.cli.common import (
    Place,
    age,
    exit_code,
    iso,
    json_option,
    locate_segment,
    open_reader,
    owner,
    place_options,
    say,
    say_json,
    say_table,
    tell_error,
    tree_doubt,
    when,
)
from tombsync.config import Settings
from tombsync.index import MarkerRow, PeerRow, Reader, agent_pid
from tombsync.names import Kind, classify
from tombsync.plan import State
from tombsync.tree import Tree


@click.command()
@click.argument("stems", nargs=-1, metavar="[STEM...]")
@place_options
@json_option
def status(stems: tuple[str, ...], place: Place, as_json: bool) -> int:
    """Show this node and its peers, or for each STEM (or path) which peers have confirmed its tombstone, and when.

    All of it is what the index knows: the agent's last answers from the peers, not a question asked now. Nodes that are
    not configured as peers were not asked.

    \b
    Example
      tombsync status
      tombsync status 45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM
    """
    settings = place.settings()
    reader = open_reader(settings)
    try:
        if stems:
            return _stems(settings, reader, stems, as_json)
        facts = node_facts(settings, reader)
        if as_json:
            say_json(facts)
        else:
            _say_node(settings, reader, facts)
        return 0
    finally:
        reader.close()


# -- the node ---------------------------------------------------------------------------------------------------------


def node_facts(settings: Settings, reader: Reader) -> dict[str, Any]:
    """Everything `status --json` says of the node."""
    hours, files, hidden, markers = reader.totals()
    pid = agent_pid(settings.state_dir)
    return {
        "node": settings.node,
        "root": settings.root,
        "root_believed": tree_doubt(settings, reader) is None,
        "agent": {"running": bool(pid), "pid": pid or None},
        "hours": hours,
        "segments": {"visible": files - hidden, "hidden": hidden},
        "tombstones": markers,
        "rescan": _rescan_facts(reader),
        "peers": [_peer_facts(row, running=bool(pid)) for row in reader.peers()],
        "inboxes": json.loads(reader.fact("inboxes") or "[]"),
    }


def _rescan_facts(reader: Reader) -> dict[str, Any]:
    kind = reader.fact("rescan_kind")
    running = None
    if kind is not None:
        running = {
            "kind": kind,
            "done": reader.fact("rescan_done") or 0,
            "total": reader.fact("rescan_total") or 0,
            "started_at": iso(reader.fact("rescan_started_ns")),
        }
    ended = {name: iso(reader.fact(f"rescan_{name}_ns")) for name in ("interval", "full")}
    return {"running": running, "completed_at": ended}


def _peer_facts(row: PeerRow, *, running: bool) -> dict[str, Any]:
    oldest_s = None if row.oldest_unconfirmed_ns is None else max(0.0, time.time() - row.oldest_unconfirmed_ns / 1e9)
    return {
        "name": row.name,
        "target": row.target,
        "up": row.up if running else None,
        "since": iso(row.changed_at_ns),
        "deliveries": {state.word: count for state, count in sorted(row.counts.items())},
        "pending": row.counts.get(State.PENDING, 0),
        "confirmed": row.counts.get(State.CONFIRMED, 0),
        "oldest_pending_s": oldest_s,
        "last_error": row.error or None,
        "last_error_at": iso(row.error_at_ns),
        "verified_at": iso(row.verified_at_ns),
    }


def _say_node(settings: Settings, reader: Reader, facts: dict[str, Any]) -> None:
    agent, segments, rescan = facts["agent"], facts["segments"], facts["rescan"]
    running = f"running (process {agent['pid']})" if agent["running"] else "not running; this is what it knew last"
    say(f"node       {settings.node}   tree {settings.root}")
    say(f"agent      {running}")
    if doubt := tree_doubt(settings, reader):
        say("tree       not the known one: nothing is changed or delivered until it is back")
        tell_error(doubt)
    say(f"segments   {segments['visible']} visible, {segments['hidden']} hidden, in {facts['hours']} hours")
    say(f"tombstones {facts['tombstones']}")
    if rescan["running"] and agent["running"]:
        done, total = rescan["running"]["done"], rescan["running"]["total"]
        share = f" {100 * done // total} % ({done} of {total} hours)" if total else ""
        say(f"rescan     {rescan['running']['kind']} running{share}")
    ended = [f"{kind} {at}" for kind, at in rescan["completed_at"].items() if at]
    say(f"rescanned  {', '.join(ended) or 'never'}")
    if not facts["peers"]:
        say("peers      none configured: nobody else is told")
        _say_inboxes(facts["inboxes"])
        return
    say()
    say_table(
        ("PEER", "STATE", "SINCE", "PENDING", "CONFIRMED", "OLDEST", "OTHER", "LAST ERROR"),
        (_peer_line(row, running=agent["running"]) for row in reader.peers()),
    )
    _say_inboxes(facts["inboxes"])
    if any(peer["up"] is False for peer in facts["peers"]):
        say("`tombsync peer test PEER` walks the way to a peer that is down, and says what to do")


def _say_inboxes(inboxes: list[dict[str, Any]]) -> None:
    """Only what is not as it should be."""
    for inbox in inboxes:
        told = [text for text in (inbox["problem"], inbox["trouble"]) if text]
        if inbox["over_quota"]:
            told.append("over its quota: the rest waits")
        for text in told:
            say(f"inbox      {inbox['sender']}: {text}")


def _peer_line(row: PeerRow, *, running: bool) -> tuple[object, ...]:
    facts = _peer_facts(row, running=running)
    state = "unknown" if not running else "up" if row.up else "down" if row.error else "connecting"
    usual = (State.PENDING, State.CONFIRMED)
    other = ", ".join(
        f"{count} {state.word}" for state, count in sorted(row.counts.items()) if count and state not in usual
    )
    oldest = facts["oldest_pending_s"]
    return (
        row.name,
        state,
        when(row.changed_at_ns),
        facts["pending"],
        facts["confirmed"],
        "-" if oldest is None else age(oldest),
        other or "-",
        row.error or "-",
    )


# -- single segments --------------------------------------------------------------------------------------------------


def _stems(settings: Settings, reader: Reader, stems: tuple[str, ...], as_json: bool) -> int:
    documents, found, missing = [], 0, 0
    for stem in stems:
        try:
            rows = find_markers(settings, reader, stem)
            if not rows:
                raise errors.NotMarked(stem)
        except errors.TombsyncError as exc:
            missing += 1
            documents.append({"asked": stem, "segment": None, "error": str(exc)})
            tell_error(exc)
            continue
        found += 1
        for row in rows:
            documents.append({"asked": stem, **_stem_facts(settings, reader, row)})
            if not as_json:
                _say_stem(settings, reader, row)
    if as_json:
        say_json(documents)
    return exit_code(found, missing)


def find_markers(settings: Settings, reader: Reader, text: str) -> list[MarkerRow]:
    """The markers that a person means by a stem or a path. Raises BadName, OutsideRoot."""
    if "/" in text:
        row = reader.marker(locate_segment(text, Tree(settings.root)))
        return [row] if row else []
    kind, stem = classify(text)
    return reader.stems_like(classify(stem)[1] if kind is Kind.MISTAKE else stem)


def _stem_facts(settings: Settings, reader: Reader, row: MarkerRow) -> dict[str, Any]:
    return {
        "segment": row.marked.path,
        "hidden_at": iso(row.hidden_at_ns),
        "source": row.source,
        "owner": owner(row.owner_uid),
        "data_here": _data_here(settings, row),
        "sent_to_peers": row.pushable,
        "peers": [
            {
                "peer": delivery.peer,
                "state": delivery.state.word,
                "confirmed_at": iso(delivery.confirmed_at_ns),
                "asked_at": iso(delivery.asked_at_ns),
                "detail": delivery.detail or None,
            }
            for delivery in reader.deliveries(row.marker)
        ],
    }


def _data_here(settings: Settings, row: MarkerRow) -> bool:
    return any(os.path.lexists(f"{settings.root}/{row.marked.path}{extension}") for extension in (".ts", ".json"))


def _say_stem(settings: Settings, reader: Reader, row: MarkerRow) -> None:
    data = "its data is still here" if _data_here(settings, row) else "its data is not here"
    say(row.marked.path)
    say(f"  hidden here {when(row.hidden_at_ns)} (seen by {row.source}, owner {owner(row.owner_uid) or '-'}); {data}")
    deliveries = reader.deliveries(row.marker)
    if not row.pushable:
        say("  not sent to peers: it is no regular file, or its name may not cross a border")
    elif not deliveries:
        say("  no peers are configured: nobody else was told")
    for delivery in deliveries:
        confirmed = (
            f"confirmed {when(delivery.confirmed_at_ns)}" if delivery.state is State.CONFIRMED else delivery.state.word
        )
        asked = f", asked {when(delivery.asked_at_ns)}" if delivery.asked_at_ns else ""
        say(f"  {delivery.peer}: {confirmed}{asked}" + (f" ({delivery.detail})" if delivery.detail else ""))

"""`tombsync status`: this node and its peers, or where single segments stand."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from tombsync.cli.common import (
    Place,
    age,
    json_option,
    open_reader,
    place_options,
    say,
    say_json,
    say_table,
    tell_error,
    tree_doubt,
    when,
)
from tombsync.cli.segments import tell_pending, tell_segments
from tombsync.config import Settings
from tombsync.index import PeerRow, Reader, agent_pid, peer_facts
from tombsync.plan import State
from tombsync.timeline import iso


@click.command()
@click.argument("stems", nargs=-1, metavar="[STEM...]")
@place_options
@click.option("--pending", is_flag=True, help="List what is not everywhere yet, and why.")
@click.option("--limit", default=1000, show_default=True, help="With --pending: lines of each peer at most.")
@click.option("--live", is_flag=True, help="Ask every peer now, instead of telling what it answered last.")
@json_option
def status(stems: tuple[str, ...], place: Place, pending: bool, limit: int, live: bool, as_json: bool) -> int:
    """Show this node and its peers, or for each STEM (or path) how it stands at every node.

    For each: has it the tombstone, confirmed when, asked when, and still the data. Without --live it is what the agent
    was last answered. Nodes that are not configured as peers are not asked. Exit code 3 where a peer could not be asked
    now.

    --pending also lists marks that no peer is sent, and peers in the settings that the agent has not taken up.

    \b
    Example
      tombsync status
      tombsync status --pending
      tombsync status --live 45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM
    """
    if live and not stems:
        raise click.UsageError("--live asks about segments: name some")
    if pending and stems:
        raise click.UsageError("--pending lists all that is not everywhere: name no segments")
    settings = place.settings()
    reader = open_reader(settings)
    try:
        if stems:
            return tell_segments(settings, reader, stems, live=live, as_json=as_json)
        if pending:
            return tell_pending(settings, reader, limit=max(1, limit), as_json=as_json)
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
        "peers": [peer_facts(row, running=bool(pid), now_ns=time.time_ns()) for row in reader.peers()],
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
    facts = peer_facts(row, running=running, now_ns=time.time_ns())
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

"""`tombsync release`: let a mass of marks, which is held, go to the peers."""

from __future__ import annotations

import sys

import click

from tombsync import errors
from tombsync.cli.common import (
    Place,
    agent_runs,
    await_request,
    dry_run_option,
    json_option,
    on_terminal,
    open_reader,
    owner,
    place_options,
    say,
    say_json,
    say_table,
    when,
)
from tombsync.cli.mark import claimed_actor
from tombsync.config import Settings
from tombsync.index import MarkerRow, Reader
from tombsync.timeline import iso

_PAGE = 500
_SHOWN = 20


@click.command()
@place_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
def release(place: Place, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Let held marks go to the peers.

    More marks within a minute than `breaker.most_per_minute` are hidden on this node and wait, as they may be a
    mistake: nothing that a peer has can be taken back. This shows what is held, asks, and lets all of it go. What is
    marked meanwhile stays held.

    \b
    Example
      tombsync release --dry-run
      tombsync release
    """
    settings = place.settings()
    reader = open_reader(settings)
    try:
        held = held_rows(reader)
    finally:
        reader.close()
    if held and not as_json:
        _show(held)
    released = bool(held) and not dry_run
    if released:
        if not yes:
            _confirm(held, ask=not as_json)
        _let_go(settings, held)
    if as_json:
        say_json({"held": [_facts(row) for row in held], "released": released})
    elif not held:
        say("nothing is held")
    elif released and agent_runs(settings):
        say(f"released {len(held)} tombstones; `tombsync status` shows how they arrive")
    elif released:
        say("no agent runs here: its next start lets them go")
    return 0


def _confirm(held: list[MarkerRow], *, ask: bool) -> None:
    if not ask or not on_terminal(sys.stdin):
        raise errors.NotConfirmed(f"{len(held)} tombstones would go to every peer, and that cannot be taken back")
    click.confirm(f"Tell every peer of these {len(held)} tombstones?", abort=True, err=True)


def _let_go(settings: Settings, held: list[MarkerRow]) -> None:
    """Ask the agent, and wait until it has done so; one that is down does it when it starts."""
    from tombsync.daemon import request_release

    path = request_release(settings.state_dir, up_to=held[0].marker, actor=claimed_actor())
    await_request(settings, path, "to release them")


def held_rows(reader: Reader) -> list[MarkerRow]:
    """All that is held, newest first."""
    rows: list[MarkerRow] = []
    below = None
    while page := reader.held_markers(below=below, limit=_PAGE):
        rows += page
        below = page[-1].marker
    return rows


def _facts(row: MarkerRow) -> dict[str, object]:
    return {"segment": row.marked.path, "hidden_at": iso(row.hidden_at_ns), "owner": owner(row.owner_uid)}


def _show(held: list[MarkerRow]) -> None:
    say_table(
        ("SEGMENT", "MARKED", "OWNER"),
        ((row.marked.path, when(row.ctime_ns), owner(row.owner_uid) or "-") for row in held[:_SHOWN]),
    )
    if len(held) > _SHOWN:
        hours = len({row.marked.hour for row in held})
        say(f"… and {len(held) - _SHOWN} more: {len(held)} in {hours} hours (--json lists them all)")

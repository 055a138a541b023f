"""`tombsync unmark`: take mistaken marks back, while no other node has them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from tombsync import errors
from tombsync.audit import Event
from tombsync.cli import complete
from tombsync.cli.common import (
    Place,
    agent_runs,
    await_request,
    dry_run_option,
    exit_code,
    json_option,
    known_root,
    on_terminal,
    open_reader,
    owner,
    place_options,
    say,
    say_json,
    say_table,
    seconds_of,
    tell_error,
    warn,
    when,
)
from tombsync.cli.mark import claimed_actor
from tombsync.cli.progress import Bar
from tombsync.cli.records import Records
from tombsync.cli.release import held_rows
from tombsync.cli.segments import ask_peers, kept_the_place, named_markers
from tombsync.config import Settings
from tombsync.index import MarkerRow, Reader
from tombsync.names import Hour, printable
from tombsync.plan import State
from tombsync.timeline import iso
from tombsync.tree import Tree, read_takedowns, remove_tombstones

_SHOWN = 20
_HELD_WITHIN_S = 60.0  # what is on its way to a peer is answered, or given up with its session, well before
_REASON_CHARACTERS = 500
_MOST_REASONS = 5


@click.command()
@click.argument("stems", nargs=-1, metavar="[STEM...]", shell_complete=complete.marks)
@place_options
@click.option("--held", is_flag=True, help="All that waits for `tombsync release`, as very much was marked at once.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the journal.")
@click.option(
    "--again-after",
    "again_after_s",
    default="10min",
    show_default=True,
    callback=seconds_of,
    metavar="TIME",
    help="Stay so long and ask the peers once more.",
)
@click.option("--no-wait", is_flag=True, help="Do not stay to ask once more.")
@click.option("--no-peers", is_flag=True, help="Take back although no peer is configured that could be asked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
def unmark(
    stems: tuple[str, ...],
    place: Place,
    held: bool,
    reason: str,
    again_after_s: int,
    no_wait: bool,
    no_peers: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take mistaken marks back, while no node but this one has them.

    Only what is pending or held to every peer, and only where each peer answers now that it has no such tombstone: one
    that has it would give it back. Where a peer says that it keeps no such hour or channel, something else must be seen
    to stand there: its tree may be unmounted just now. Then the tombstone is removed and the segment is listed again.
    An archive's own backfiller may have listed the tombstone before, so the peers are asked once more after ten
    minutes. Nodes that are not configured are not asked.

    What a sticky takedown would mark again is not taken back: end that first.

    STEM is a stem, or a path as `tombsync mark` takes it. Exit code 0: all is taken back, 1: nothing, 3: a part, or a
    peer has it all the same.

    \b
    Example
      tombsync unmark 45:51.608000-2.0-full-… --reason "the wrong minute"
      tombsync unmark --held --dry-run
    """
    if bool(stems) == held:
        raise click.UsageError("name segments, or say --held")
    if len(reason) > _REASON_CHARACTERS:
        raise click.UsageError(f"--reason takes {_REASON_CHARACTERS} characters")
    settings = place.settings()
    if not settings.peers and not no_peers:
        raise errors.UnmarkRefused(("no peer is configured that could be asked; --no-peers says that there is none",))
    reader = open_reader(settings)
    try:
        rows = held_rows(reader) if held else named_markers(settings, reader, stems)
        if not as_json:
            _show(rows)
        if rows:
            _require_ours(settings, reader, rows)
            _require_no_takedown(settings, reader, rows)
            if not dry_run:
                if not agent_runs(settings):
                    raise errors.AgentNotRunning(settings.state_dir)
                if not yes:
                    _confirm(rows, ask=not as_json)
            _require_nowhere_else(settings, reader, rows)
        if dry_run or not rows:
            return _tell(rows, {}, {}, done=False, as_json=as_json)
        kept = _take_back(settings, reader, rows, reason)
        gone = [row for row in rows if row.marker not in kept]
        if gone and not as_json:
            say(f"{len(gone)} marks are taken back: their segments are listed again")
        elsewhere = {} if no_wait or not gone else _ask_again(settings, reader, gone, again_after_s)
    finally:
        reader.close()
    return _tell(rows, kept, elsewhere, done=True, as_json=as_json)


def _show(rows: Sequence[MarkerRow]) -> None:
    say_table(
        ("SEGMENT", "MARKED", "OWNER"),
        ((row.marked.path, when(row.ctime_ns), owner(row.owner_uid) or "-") for row in rows[:_SHOWN]),
    )
    if len(rows) > _SHOWN:
        say(f"… and {len(rows) - _SHOWN} more (--json lists them all)")


def _confirm(rows: Sequence[MarkerRow], *, ask: bool) -> None:
    if not ask or not on_terminal(sys.stdin):
        raise errors.NotConfirmed(f"{len(rows)} segments would be listed again")
    click.confirm(f"Take these {len(rows)} marks back?", abort=True, err=True)


# -- whether they may be taken back -----------------------------------------------------------------------------------


def _require_ours(settings: Settings, reader: Reader, rows: Sequence[MarkerRow], *, held: bool = False) -> None:
    """Raise UnmarkRefused where by the index another node has one, or may have. `held`: all must be held now."""
    allowed = (State.HELD,) if held else (State.HELD, State.PENDING)
    configured = {peer.name for peer in settings.peers}
    reasons = []
    for row in rows:
        shown = printable(row.marked.path)
        if row.sender:
            reasons.append(f"{shown}: it came from {row.sender}")
        elif row.also_from:
            reasons.append(f"{shown}: {row.also_from} brought it too")
        for delivery in reader.deliveries(row.marker):
            if delivery.state not in allowed:
                reasons.append(f"{shown}: {delivery.peer}: {delivery.state.word}")
            elif delivery.ever_there or delivery.confirmed_at_ns is not None:
                reasons.append(f"{shown}: {delivery.peer} had it once, and may have passed it on")
            elif delivery.peer not in configured:
                reasons.append(f"{shown}: {delivery.peer} is no longer in the settings, so it cannot be asked")
    _refuse(reasons)


def _require_no_takedown(settings: Settings, reader: Reader, rows: Sequence[MarkerRow]) -> None:
    """Raise UnmarkRefused where a sticky takedown would mark one again; say so where one would only tell of it."""
    from tombsync.takedown.late import Reach
    from tombsync.takedown.under import takedown_of

    with Tree(settings.root).open_root() as root_fd:
        reaches = [Reach(takedown) for takedown in read_takedowns(root_fd, tell_error) if takedown.runs]
    told: set[str] = set()
    reasons, ids = [], set()
    for row in rows if reaches else ():
        reach = takedown_of(reader, row.marked, reaches)
        if reach is None:
            continue
        id = reach.takedown.id
        if reach.takedown.sticky:
            reasons.append(f"{printable(row.marked.path)}: the sticky takedown {id} would mark it again")
            ids.add(id)
        elif id not in told:
            told.add(id)
            warn(f"the takedown {id} still runs: what is taken back in its span counts as arrived late")
    if reasons:
        _refuse(reasons, f"end it first: `tombsync takedown end {' '.join(sorted(ids))}`")


def _require_nowhere_else(settings: Settings, reader: Reader, rows: Sequence[MarkerRow]) -> None:
    """Ask each peer now. Raises UnmarkRefused with a reason for each that has one, or cannot be asked."""
    _refuse(list(_elsewhere(settings, reader, rows).values()))


def _elsewhere(settings: Settings, reader: Reader, rows: Sequence[MarkerRow]) -> dict[str, str]:
    """Why each peer that is in the way is, by name."""
    from tombsync.proof import held_elsewhere

    sent = [row for row in rows if row.pushable]  # no other name may cross a border, and none was sent
    heard, kept = ask_peers(settings, reader, settings.peers, sent, with_witnesses=True), kept_the_place(reader)
    return {each.peer: why for each, asked in heard if (why := held_elsewhere(each, asked, kept_the_place=kept))}


def _refuse(reasons: Sequence[str], hint: str = errors.UnmarkRefused.hint) -> None:
    if reasons:
        more = [f"(and {len(reasons) - _MOST_REASONS} more)"] if len(reasons) > _MOST_REASONS else []
        raise errors.UnmarkRefused((*reasons[:_MOST_REASONS], *more), hint)


# -- taking back ------------------------------------------------------------------------------------------------------


def _take_back(settings: Settings, reader: Reader, rows: Sequence[MarkerRow], reason: str) -> dict[int, str]:
    """Hold the deliveries, ask again, remove the tombstones, have the agent forget; why some are kept, by marker."""
    tree, identity = Tree(settings.root), known_root(settings, reader)
    kept = {row.marker: "not done" for row in rows}  # until it is
    with _held(settings, reader, rows, kept):
        _require_ours(settings, reader, rows, held=True)
        _require_nowhere_else(settings, reader, rows)
        _remove(tree, identity, rows, kept)
        gone = [row for row in rows if row.marker not in kept]
        if gone:
            _forget(settings, reader, gone, reason)
        for row in gone:
            if reader.marker_of_key(row.marker) is not None:
                kept[row.marker] = "it came back, or was released, meanwhile: it goes on hiding"
                tell_error(errors.NotTakenBack(row.marked.path, kept[row.marker]))
    return kept


@contextmanager
def _held(settings: Settings, reader: Reader, rows: Sequence[MarkerRow], kept: dict[int, str]) -> Iterator[None]:
    """Let the deliveries wait; at the end, also after an error, those of what is kept go on that were not held before.

    What was removed and not forgotten stays held: nobody is told of it, and the rescan puts it back.
    """
    from tombsync.daemon import holding, request_resume

    markers = [row.marker for row in rows]
    pending = [marker for marker in markers if any(d.state is State.PENDING for d in reader.deliveries(marker))]
    with holding(settings.state_dir, markers, pending=pending, actor=claimed_actor()) as path:
        try:
            if not await_request(settings, path, "to hold them back", _HELD_WITHIN_S):
                raise errors.AgentNotRunning(settings.state_dir)
            yield
        finally:
            if resumed := [marker for marker in pending if marker in kept]:
                request_resume(settings.state_dir, resumed)


def _remove(tree: Tree, identity: str, rows: Sequence[MarkerRow], kept: dict[int, str]) -> None:
    """Remove the tombstones; what is removed goes out of `kept`, the rest says why."""
    hours: dict[Hour, dict[str, MarkerRow]] = {}
    for row in rows:
        hours.setdefault(row.marked.hour, {})[row.marked.stem] = row
    for hour, group in hours.items():
        try:
            for marked, error in remove_tombstones(tree, identity, hour, list(group)):
                marker = group[marked.stem].marker
                if error is not None:
                    kept[marker] = error.reason
                    tell_error(error)
                    continue
                del kept[marker]
        except (errors.NotTakenBack, errors.RootMissing, errors.RootNotBelieved) as exc:
            tell_error(exc)


def _forget(settings: Settings, reader: Reader, gone: Sequence[MarkerRow], reason: str) -> None:
    """Have the agent forget them, which records each. Raises AgentNotRunning and AgentSlow: it will not do it later."""
    from tombsync.daemon import taking_back

    actor = claimed_actor()
    try:
        with taking_back(settings.state_dir, [row.marker for row in gone], actor=actor, reason=reason) as path:
            if not await_request(settings, path, "to take the marks back", _HELD_WITHIN_S):
                raise errors.AgentNotRunning(settings.state_dir)
    except (errors.AgentNotRunning, errors.AgentSlow, KeyboardInterrupt):
        records = Records(settings)
        for row in gone:
            if reader.marker_of_key(row.marker) is not None:
                text = (
                    f"{printable(row.marked.path)} was removed by {actor}, and not forgotten: it hides, and is put back"
                )
                records.add(Event.UNMARK_FAILED, text, marked=row.marked, actor=actor)
        records.close()
        raise


# -- afterwards -------------------------------------------------------------------------------------------------------


def _ask_again(settings: Settings, reader: Reader, rows: Sequence[MarkerRow], after_s: int) -> dict[str, str]:
    """Stay, then ask the peers once more; who has one all the same, and why that is known."""
    warn(f"the peers are asked once more in {after_s} s; Ctrl-C ends the waiting alone")
    begun = time.monotonic()
    with Bar("waiting to ask once more") as bar:
        while (waited_s := time.monotonic() - begun) < after_s:
            bar.show(int(waited_s), after_s)
            if back := [row for row in rows if reader.marker(row.marked) is not None]:
                return {settings.node: f"{len(back)} of them were marked again here: see `tombsync tombstones`"}
            time.sleep(min(1.0, after_s - waited_s))
    found = _elsewhere(settings, reader, rows)
    records = Records(settings)
    for peer, why in found.items():
        records.add(Event.UNMARK_OVERTAKEN, f"taken back here, and yet: {why}", peer=peer, actor=claimed_actor())
    records.close()
    return found


def _tell(
    rows: Sequence[MarkerRow], kept: dict[int, str], elsewhere: dict[str, str], *, done: bool, as_json: bool
) -> int:
    if as_json:
        say_json(
            {
                "segments": [
                    {
                        "segment": row.marked.path,
                        "hidden_at": iso(row.hidden_at_ns),
                        "taken_back": done and row.marker not in kept,
                        "error": kept.get(row.marker),
                    }
                    for row in rows
                ],
                "found_elsewhere": elsewhere,
            }
        )
    elif not rows:
        say("nothing is held")
    elif not done:
        say(f"{len(rows)} marks can be taken back: no peer has them")
    for why in elsewhere.values():
        warn(f"{why}; what another node has will come back, and hides there")
    code = exit_code(len(rows) - len(kept), len(kept))
    return code if code or not elsewhere else errors.EXIT_IN_PART

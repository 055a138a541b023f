"""`tombsync takedown …`: the takedowns of this node, and their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from tombsync import errors
from tombsync.audit import Event
from tombsync.cli import complete
from tombsync.cli.common import (
    Place,
    dry_run_option,
    exit_code,
    json_option,
    open_reader,
    place_options,
    say,
    say_json,
    say_table,
    tell_error,
)
from tombsync.cli.mark import claimed_actor
from tombsync.cli.records import Records
from tombsync.config import Settings
from tombsync.names import printable
from tombsync.timeline import time_text
from tombsync.tree import Takedown, Tree, end_takedown, find_takedown, read_takedowns

_REASON_CHARACTERS = 40  # of a line of the table


@click.group()
def takedown() -> None:
    """Show the takedowns of this node, and end them.

    A takedown is made by `tombsync mark --channel … --from … --to …`. While it runs the agent tells what arrives late
    in its span, and hides it at once where it was made with --sticky. It stays on the node where it was made: other
    nodes get the tombstones, and no record of it.

    \b
    Example
      tombsync takedown list
      tombsync takedown end dcdw6
    """


@takedown.command("list")
@place_options
@click.option("--all", "all_", is_flag=True, help="Also those that have ended.")
@json_option
def list_(place: Place, all_: bool, as_json: bool) -> int:
    """List the takedowns that run on this node, the oldest first.

    Works with the agent down. Exit code 3: some record is damaged, or by a newer tombsync.

    \b
    Example
      tombsync takedown list --all
    """
    problems: list[errors.TakedownUnreadable] = []
    with _known_tree(place.settings()) as root_fd:
        found = [one for one in read_takedowns(root_fd, problems.append) if all_ or one.runs]
    for problem in problems:
        tell_error(problem)
    if as_json:
        say_json([_facts(one) for one in found])
    elif found:
        _show(found, ended=all_)
    elif not problems:
        say("no takedown was made here" if all_ else "no takedown runs here")
    return errors.EXIT_IN_PART if problems else 0


@takedown.command("end")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete.takedowns)
@place_options
@dry_run_option
@json_option
def end(ids: tuple[str, ...], place: Place, dry_run: bool, as_json: bool) -> int:
    """End takedowns: what arrives in their span from now on is neither told nor hidden.

    The tombstones stay, here and at the peers. Works with the agent down; one that runs ends it within some seconds.

    Exit code 0: all have ended, 1: none, 3: some.

    \b
    Example
      tombsync takedown end k7mq3
    """
    settings = place.settings()
    results: list[dict[str, object]] = []
    failed = 0
    records = Records(settings)
    with _known_tree(settings) as root_fd:
        for id in dict.fromkeys(ids):
            try:
                before = find_takedown(root_fd, id)
                after = before if dry_run or not before.runs else end_takedown(root_fd, id, claimed_actor())
            except errors.TombsyncError as exc:
                failed += 1
                tell_error(exc)
                results.append({"id": id, "outcome": "failed", "error": str(exc)})
                continue
            outcome = "had-ended" if not before.runs else "would-end" if dry_run else "ended"
            if outcome == "ended":
                _tell_ended(records, after)
            results.append({**_facts(after), "outcome": outcome, "error": None})
            if not as_json:
                _say(after, outcome)
    records.close()
    if as_json:
        say_json(results)
    return exit_code(len(results) - failed, failed)


@contextmanager
def _known_tree(settings: Settings) -> Iterator[int]:
    """ROOT; the tree that the index names, where there is an index. Raises RootMissing, RootNotBelieved."""
    tree = Tree(settings.root)
    identity = None
    try:
        reader = open_reader(settings)
    except errors.TombsyncError:  # an agent never ran here, or its index is damaged: the records are in the tree
        pass
    else:
        try:
            identity = reader.fact("root")
        except errors.TombsyncError:
            pass
        finally:
            reader.close()
    with tree.open_root() as root_fd:
        if identity is not None:
            tree.require(root_fd, identity)
        yield root_fd


# -- the audit --------------------------------------------------------------------------------------------------------


def _tell_ended(records: Records, takedown: Takedown) -> None:
    records.add(
        Event.TAKEDOWN_ENDED,
        f"{takedown.ended_by} ended the takedown {takedown.id} of {_span(takedown)}: its tombstones stay",
        takedown=takedown.id,
        actor=takedown.ended_by,
        channel=takedown.channel,
        start=time_text(takedown.start_us),
        end=time_text(takedown.end_us),
    )


# -- for people and programs ------------------------------------------------------------------------------------------


def _span(takedown: Takedown) -> str:
    return f"{printable(takedown.channel)} from {time_text(takedown.start_us)} to {time_text(takedown.end_us)}"


def _facts(takedown: Takedown) -> dict[str, object]:
    return {
        "id": takedown.id,
        "channel": takedown.channel,
        "from": time_text(takedown.start_us),
        "to": time_text(takedown.end_us),
        "qualities": list(takedown.qualities),
        "chat": takedown.chat,
        "sticky": takedown.sticky,
        "twins": takedown.twins,
        "reason": takedown.reason,
        "actor": takedown.actor,
        "node": takedown.node,
        "created_at": takedown.created_at,
        "ended_at": takedown.ended_at or None,
        "ended_by": takedown.ended_by or None,
    }


def _show(found: Sequence[Takedown], *, ended: bool) -> None:
    say_table(
        ("ID", "CHANNEL", "FROM", "TO", "QUALITIES", "STICKY", "BY", "REASON", *(("ENDED",) if ended else ())),
        (
            (
                one.id,
                one.channel,
                time_text(one.start_us),
                time_text(one.end_us),
                _qualities(one),
                "yes" if one.sticky else "no",
                one.actor or "-",
                _short(one.reason) or "-",
                *((one.ended_at or "runs",) if ended else ()),
            )
            for one in found
        ),
    )


def _qualities(takedown: Takedown) -> str:
    return ",".join([*(takedown.qualities or ("all",)), *(("chat",) if takedown.chat else ())])


def _short(text: str) -> str:
    return text if len(text) <= _REASON_CHARACTERS else text[: _REASON_CHARACTERS - 1] + "…"


def _say(takedown: Takedown, outcome: str) -> None:
    if outcome == "had-ended":
        say(f"{takedown.id} ended at {takedown.ended_at} already")
    else:
        verb = "would end" if outcome == "would-end" else "ended"
        say(f"{verb} {takedown.id} ({_span(takedown)}); its tombstones stay")

"""`tombsync log`: the story of a segment, or of all, as the journal has it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from tombsync import errors
from tombsync.audit import STDIN, Story, read_story, written_s
from tombsync.cli import complete
from tombsync.cli.common import (
    Place,
    json_option,
    locate_segment,
    on_terminal,
    place_options,
    say_json,
    say_table,
    seconds_of,
    warn,
    when,
)
from tombsync.names import Kind, classify, printable
from tombsync.timeline import iso
from tombsync.tree import Tree

_HEADERS = ("TIME", "NODE", "EVENT", "PEER", "MESSAGE")
_WIDTHS = (21, 12, 16, 12)  # of all but the last, where rows come one by one: node and peer names are short
_PREFIX = "TOMBSYNC_"
# What journald itself says of who wrote a record; nobody else can write fields that begin so.
_TRUSTED = {"_HOSTNAME": "host", "_UID": "uid", "_PID": "pid", "_SYSTEMD_UNIT": "unit"}


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """An age like 7d or a time like 2019-11-13T02:45 (UTC where it names no zone), as Unix time."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        try:
            return time.time() - (seconds_of(ctx, param, value) or 0)
        except click.BadParameter as exc:
            raise click.BadParameter(
                "an age is a number and s, min, h or d, like 7d; a time is like 2019-11-13T02:45, in UTC", ctx, param
            ) from exc
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _journal(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("empty; is a variable of the shell not set?", ctx, param)
    return value


@click.command()
@click.argument("stem", required=False)
@place_options
@click.option("--since", callback=_since, metavar="WHEN", help="Only what is newer: an age (7d) or a time in UTC.")
@click.option("--follow", "-f", is_flag=True, help="Go on, and show each record as it comes.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="How many at most.")
@click.option(
    "--journal",
    callback=_journal,
    metavar="PATH",
    shell_complete=complete.files,
    help="A journal file, a directory of them, or what an agent wrote to stderr; - reads the latter from stdin.  "
    "[default: the journal of this machine]",
)
@json_option
def log(
    place: Place, stem: str | None, since: float | None, follow: bool, limit: int, journal: str | None, as_json: bool
) -> int:
    """Show the story of a segment, from its mark to the last confirmation, as the journal has it.

    STEM is a stem or a path; without it every record is shown. Where the journals of other nodes are collected on
    this machine, their records are in the same table. With --follow, --json prints one object a line.

    \b
    Examples
      tombsync log 45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM
      tombsync log --since 1h --follow
      docker logs tombsync 2>&1 | tombsync log --journal -
    """
    story = _story(place, stem, since, None if follow else limit + 1)
    if journal not in (None, STDIN):
        journal = os.path.abspath(str(journal))
    records = read_story(
        story,
        journal,
        follow=follow,
        on_part=lambda: warn("this account sees only a part of the journal; root sees all"),
    )
    if follow:
        _follow(records, as_json=as_json)
        return 0
    found = sorted(records, key=written_s)
    shown = found[-limit:]
    if stem is not None and not found:
        raise errors.NoRecords(stem)
    if as_json:
        say_json([_facts(fields) for fields in shown])
        return 0
    say_table(_HEADERS, (_row(fields) for fields in shown))
    if len(found) > limit:
        warn(f"there are older records: --limit shows more than {limit}")
    return 0


def _story(place: Place, text: str | None, since_s: float | None, newest: int | None) -> Story:
    if text is None:
        return Story(since_s=since_s, newest=newest)
    if "/" in text:
        marked = locate_segment(text, Tree(place.settings().root))
        return Story(marked=marked, since_s=since_s, newest=newest)
    kind, stem = classify(text)
    return Story(stem=classify(stem)[1] if kind is Kind.MISTAKE else stem, since_s=since_s, newest=newest)


def _row(fields: dict[str, str]) -> tuple[str, ...]:
    at_ns = int(written_s(fields) * 1e9)
    words = (fields.get(_PREFIX + key, "-") for key in ("NODE", "EVENT", "PEER"))
    return when(at_ns), *words, fields.get("MESSAGE", "")


def _facts(fields: dict[str, str]) -> dict[str, Any]:
    """A record for programs: our own fields without their prefix, and who journald says that wrote it."""
    own = {key.removeprefix(_PREFIX).lower(): value for key, value in sorted(fields.items()) if key.startswith(_PREFIX)}
    own.pop("time", None)
    trusted = {name: fields[key] for key, name in _TRUSTED.items() if key in fields}
    return {
        "time": iso(round(written_s(fields) * 1e6) * 1000),
        "message": fields.get("MESSAGE"),
        **own,
        "written_by": trusted or None,
    }


def _follow(records: Iterable[dict[str, str]], *, as_json: bool) -> None:
    """Print each as it comes, until Ctrl-C or until nobody reads any more."""
    try:
        for fields in records:
            if as_json:
                click.echo(json.dumps(_facts(fields)))
            else:
                click.echo(_line(_row(fields)))
    except KeyboardInterrupt:  # how it is meant to end
        return
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _line(row: tuple[str, ...]) -> str:
    """A row whose columns stand below one another on a terminal, and tab-separated elsewhere."""
    shown = [printable(cell) for cell in row]
    if on_terminal(sys.stdout):
        return " ".join([*(cell.ljust(width) for cell, width in zip(shown, _WIDTHS, strict=False)), shown[-1]])
    return "\t".join(shown)

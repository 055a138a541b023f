"""`tombsync tombstones`: what is hidden, newest first."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tombsync.cli.common import Place, json_option, open_reader, owner, place_options, say_json, say_table, when
from tombsync.index import MarkerRow, Reader, tombstone_facts
from tombsync.plan import State

_PAGE = 500


@click.command()
@place_options
@click.option("--channel", help="Only this channel.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
@json_option
def tombstones(place: Place, channel: str | None, limit: int, as_json: bool) -> None:
    """List the tombstones that this node knows, newest first, with how many peers have confirmed each.

    \b
    Example
      tombsync tombstones --channel desertbus --limit 20
    """
    reader = open_reader(place.settings())
    try:
        rows = [(row, reader.deliveries(row.marker)) for row in _newest(reader, channel, limit)]
    finally:
        reader.close()
    if as_json:
        say_json([tombstone_facts(row, deliveries, owner=owner(row.owner_uid)) for row, deliveries in rows])
        return
    say_table(
        ("HIDDEN AT", "CONFIRMED", "BY", "SEGMENT"),
        (
            (
                when(row.hidden_at_ns),
                f"{sum(d.state is State.CONFIRMED for d in deliveries)}/{len(deliveries)}",
                owner(row.owner_uid) or "-",
                row.marked.path,
            )
            for row, deliveries in rows
        ),
    )


def _newest(reader: Reader, channel: str | None, limit: int) -> Iterator[MarkerRow]:
    below: int | None = None
    given = 0
    while rows := reader.marker_rows(below=below, limit=_PAGE):
        below = rows[-1].marker
        for row in rows:
            if channel in (None, row.marked.hour.channel):
                yield row
                given += 1
                if given == limit:
                    return

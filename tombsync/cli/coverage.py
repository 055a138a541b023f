"""`tombsync coverage`: how much of each hour can be seen, and what is missing from it."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, json_option, open_reader, place_options, say, say_json, say_table, warn
from tombsync.cli.files import write_over
from tombsync.cli.progress import Bar
from tombsync.config import Settings
from tombsync.coverage import (
    MOST_MAP_HOURS,
    Coverage,
    Map,
    Survey,
    Totals,
    draw,
    figures,
    hour_document,
    map_range,
    totals_of,
)
from tombsync.index import Reader
from tombsync.names import hour_text, unsafe
from tombsync.timeline import HOUR_US, parse_time, time_text, unix_moment_us
from tombsync.tree import Tree

Found = dict[tuple[str, str], list[tuple[int, Coverage]]]


@click.command("coverage")
@click.argument("where", default="", metavar="[CHANNEL[/QUALITY]]")
@place_options
@click.option("--channel", help="Only this channel.")
@click.option("--from", "start", metavar="TIME", help="From the hour of this time on, UTC unless it has an offset.")
@click.option("--to", "end", metavar="TIME", help="Up to this time.")
@click.option("--png", shell_complete=complete.files, metavar="FILE", help="Draw a map of one quality into this file.")
@json_option
def coverage(
    where: str, place: Place, channel: str | None, start: str | None, end: str | None, png: str | None, as_json: bool
) -> None:
    """Show how much of each hour is covered, tombstoned or missing, in seconds.

    PARTIAL is the part of COVERED of which there is no full segment, EDITABLE that without overlaps. An hour that runs
    is judged up to now. --png draws the last week unless a range is given: 2 s a pixel, a column for ten minutes.

    \b
    Example
      tombsync coverage desertbus/source --from 2019-11-13T00:00 --to 2019-11-14T00:00
      tombsync coverage desertbus/source --png map.png
    """
    first, last = _range(start, end)
    parts = _parts(where, channel)
    if png is not None and len(parts) != 2:
        raise click.UsageError("--png draws one quality: name it as CHANNEL/QUALITY")
    settings = place.settings()
    tree = Tree(settings.root)
    reader = _reader(settings)
    with closing(reader) if reader is not None else nullcontext(), tree.open_root() as root_fd:
        identity = reader.fact("root") if reader is not None else None
        if identity is not None:
            tree.require(root_fd, identity)
        survey = Survey(tree, root_fd, reader, unix_moment_us(time.time_ns()))
        places = [pair for pair in tree.places(root_fd) if list(pair[: len(parts)]) == parts]
        if not places:
            raise errors.NothingThere("/".join(parts) or tree.root, "no channel and quality of that name is here")
        numbers = {pair: survey.numbers(*pair, first, last) for pair in places}
        if png is not None:
            first, last = _map_range(numbers[places[0]], first, last, "/".join(parts))
            numbers = {pair: [number for number in some if first <= number < last] for pair, some in numbers.items()}
        found = _judge(survey, numbers, with_strips=png is not None)
    if png is not None and first is not None and last is not None:
        strips = {number: zlib.compress(one.strip) for number, one in found[places[0]]}
        write_over(png, draw(Map(*places[0], first, last, strips)))
    _tell(found, png, as_json=as_json)


def _range(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """The whole hours of a range. Raises BadTime, EmptySpan."""
    start_us = None if start is None else parse_time(start)
    end_us = None if end is None else parse_time(end)
    if start_us is not None and end_us is not None and end_us <= start_us:
        raise errors.EmptySpan(time_text(start_us), time_text(end_us))
    return None if start_us is None else start_us // HOUR_US, None if end_us is None else -(-end_us // HOUR_US)


def _parts(where: str, channel: str | None) -> list[str]:
    """Channel and quality, as far as they are named. Raises BadName, click's UsageError."""
    parts = [part for part in where.split("/") if part]
    if len(parts) > 2:
        exc = errors.BadName(where, "not of the form CHANNEL/QUALITY")
        exc.hint = "`tombsync ls` shows what is there"
        raise exc
    if channel is not None:
        if parts and parts[0] != channel:
            raise click.UsageError(f"two channels are named: {parts[0]} and {channel}")
        parts = parts or [channel]
    for part in parts:
        if reason := unsafe(part):
            raise errors.BadName(part, reason)
    return parts


def _reader(settings: Settings) -> Reader | None:
    try:
        return open_reader(settings)
    except errors.IndexMissing:
        warn("there is no index yet, so every hour is read from its directory")
        return None


def _map_range(numbers: list[int], first: int | None, last: int | None, where: str) -> tuple[int, int]:
    """Raises NothingThere, MapTooWide."""
    if not numbers:
        raise errors.NothingThere(where, "there is no hour in this range to draw")
    if first is not None and last is None:
        last = numbers[-1] + 1
    if first is not None and last is not None and last - first > MOST_MAP_HOURS:
        raise errors.MapTooWide(last - first, MOST_MAP_HOURS)
    return map_range(first, last, numbers[-1])


def _judge(survey: Survey, numbers: dict[tuple[str, str], list[int]], *, with_strips: bool) -> Found:
    found: Found = {}
    total, done = sum(map(len, numbers.values())), 0
    with Bar(f"judging {total} hours") as bar:
        for pair, some in numbers.items():
            found[pair] = []
            for number, one in survey.hours(*pair, some):
                found[pair].append((number, one if with_strips else one._replace(strip=b"")))  # of very many hours
                done += 1
                bar.show(done, total)
    return found


def _tell(found: Found, png: str | None, *, as_json: bool) -> None:
    totals = {pair: totals_of(one for _, one in some) for pair, some in found.items()}
    if as_json:
        document: dict[str, Any] = {
            "places": [
                {
                    "channel": channel,
                    "quality": quality,
                    "totals": {"hours": totals[channel, quality].hours, **figures(totals[channel, quality])},
                    "hours": [hour_document(number, one) for number, one in some],
                }
                for (channel, quality), some in found.items()
            ]
        }
        say_json(document if png is None else {**document, "png": os.path.abspath(png)})
        return
    headers = ("HOUR", "COVERED", "EDITABLE", "PARTIAL", "TOMBSTONED", "HOLE", "OVERLAPS", *_FILES)
    say_table(headers, _lines(found, totals, each_hour=png is None))
    if png is not None:
        say(f"drawn: {png}")


_FILES = ("FULL", "SUSPECT", "PARTIALS", "TEMP", "CHAT", "BAD", "HIDDEN")


def _lines(found: Found, totals: dict[tuple[str, str], Totals], *, each_hour: bool) -> Iterator[tuple[object, ...]]:
    for (channel, quality), some in found.items():
        for number, one in some if each_hour else ():
            yield f"{channel}/{quality}/{hour_text(number)}", *_cells(one)
    for (channel, quality), sums in totals.items():
        yield f"{channel}/{quality}: {sums.hours} hours", *_cells(sums)


def _cells(one: Coverage | Totals) -> tuple[object, ...]:
    seconds = (one.covered_us, one.editable_us, one.partial_us, one.tombstoned_us, one.hole_us)
    overlaps = f"{one.overlaps} ({one.overlap_us / 1e6:.3f} s)" if one.overlaps else "0"
    return *(f"{length_us / 1e6:.3f}" for length_us in seconds), overlaps, *one.counts, one.hidden

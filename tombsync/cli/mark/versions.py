"""`tombsync mark --bad-versions`: instants that have several versions, of which one is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tombsync import errors
from tombsync.cli.common import say, say_json, say_table, warn
from tombsync.cli.mark.hiding import Hiding, confirm, results_json, warn_without_agent
from tombsync.cli.mark.wait import Patience, await_peers, exit_code_of
from tombsync.config import Settings
from tombsync.names import Hour, hour_text
from tombsync.takedown.find import CHAT
from tombsync.takedown.look import Sizes, look_into, qualities, visible
from tombsync.takedown.versions import Instant, versions
from tombsync.timeline import HOUR_US, time_text
from tombsync.tree import hour_numbers


def mark_versions(
    settings: Settings,
    channel: str,
    wanted: Sequence[str],
    within: tuple[int, int] | None,
    *,
    mark_rest: bool,
    reason: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    patience: Patience,
) -> int:
    """List them, hour by hour, and on request mark all but what is served; the exit code."""
    with Hiding(settings, reason=reason, dry_run=dry_run or not mark_rest) as hiding:
        found: list[Instant] = []
        for instants in _of_hours(hiding, channel, wanted, within):
            found += instants
            if not as_json:
                say_table(_HEADERS, [row for instant in instants for row in _rows(instant)])
        rest = [one for instant in found for one in instant.rest]
        document: dict[str, Any] = {
            "channel": channel,
            "instants": [_instant_json(instant) for instant in found],
            "marks": [f"{one.hour.path}/{one.stem}" for one in rest],
            "results": [],
        }
        if not mark_rest or not rest or dry_run:
            if as_json:
                say_json(document)
            elif not found:
                say(f"no instant of {channel} has several versions")
            elif mark_rest:
                say(f"would mark {len(rest)}")
            else:
                say(f"{len(rest)} are not served; --mark-rest marks them")
            return 0
        if not yes:
            confirm(len(rest), ask=not as_json)
        results = [hiding.hide_file(one) for one in rest]
        hiding.let_go(results)
        done = sum(result.outcome != "failed" for result in results)
        if not as_json:
            say(f"marked {done} of {len(rest)}")
        if done:
            warn_without_agent(settings)
        everywhere = False
        try:
            everywhere = await_peers(hiding, results, patience, tell=not as_json)
        finally:
            if as_json:
                say_json({**document, "results": results_json(results)})
    return exit_code_of(results, everywhere=everywhere)


def _of_hours(
    hiding: Hiding, channel: str, wanted: Sequence[str], within: tuple[int, int] | None
) -> Iterator[list[Instant]]:
    """The instants with several versions, one list for each hour that has some. Raises NothingThere, OSError."""
    links: list[str] = []
    present = [one for one in qualities(hiding.root_fd, channel, wanted, links) if one in (wanted or (one,))]
    size_of = Sizes(hiding.root_fd)
    some = False
    for quality in present:
        if quality == CHAT:
            continue
        numbers: Sequence[int]
        if within is None:
            numbers = hour_numbers(hiding.root_fd, channel, quality, links=links)[::-1]
        else:
            numbers = range(within[0] // HOUR_US, -(-within[1] // HOUR_US))
        for number in numbers:
            hour = Hour(channel, quality, number)
            try:
                files = look_into(hiding.root_fd, hour, hiding.known_hidden)
            except errors.NothingThere:
                links.append(hour.path)
                continue
            if files is None:
                continue
            some = True
            shown = visible([files])[quality]
            if within is not None:
                shown = [one for one in shown if within[0] <= one.start_us < within[1]]
            if found := versions(shown, size_of):
                yield found
    for path in links:
        warn(f"{path} is a link or no directory, so it was not looked into: links are not followed")
    if not some:
        where = f"{channel}/{hour_text(within[0] // HOUR_US)}" if within is not None else channel
        raise errors.NothingThere(where, "no such hour is in the segment tree")


_HEADERS = ("INSTANT", "QUALITY", "IS", "NAME")


def _rows(instant: Instant) -> list[tuple[str, ...]]:
    at, quality = time_text(instant.served.start_us), instant.served.hour.quality
    rows: list[tuple[str, ...]] = [(at, quality, f"served: {instant.reason}", instant.served.name)]
    return rows + [(at, quality, "not served", one.name) for one in instant.rest]


def _instant_json(instant: Instant) -> dict[str, object]:
    return {
        "instant": time_text(instant.served.start_us),
        "quality": instant.served.hour.quality,
        "served": instant.served.path,
        "reason": instant.reason,
        "rest": [one.path for one in instant.rest],
    }

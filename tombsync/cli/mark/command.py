"""The command itself: its options, and which of its three ways is meant."""

from __future__ import annotations

import click

from tombsync.cli import complete
from tombsync.cli.common import Place, dry_run_option, json_option, place_options
from tombsync.cli.mark.moment import asked_for, mark_moment, require_parts, span
from tombsync.cli.mark.paths import mark_paths
from tombsync.cli.mark.versions import mark_versions
from tombsync.cli.mark.wait import DEFAULT_TIMEOUT_S, Patience
from tombsync.takedown.find import CHAT


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH...]", shell_complete=complete.files)
@place_options
@click.option("--channel", shell_complete=complete.channels, help="Take down a span of time of this channel.")
@click.option("--from", "start", metavar="TIME", help="The first moment that must go.")
@click.option("--to", "end", metavar="TIME", help="The first moment that may stay.")
@click.option(
    "--quality",
    "qualities",
    multiple=True,
    shell_complete=complete.qualities,
    help="Only this quality, and copies of the same bytes in others; may be given again.  [default: all]",
)
@click.option(
    "--exclude-twins", is_flag=True, help="Leave copies with the same hash, and names up to 10 ms away, as they are."
)
@click.option("--chat", is_flag=True, help="Mark batches of chat that overlap, too.")
@click.option("--sticky", is_flag=True, help="Mark what arrives in that time later, too, until the takedown is ended.")
@click.option("--long", is_flag=True, help="More than an hour is meant.")
@click.option("--bad-versions", is_flag=True, help="List instants with several versions, and which one is served.")
@click.option("--mark-rest", is_flag=True, help="With --bad-versions: mark all but what is served, after asking.")
@click.option("--reason", default="", help="Why; goes into the tombstone and the journal.")
@click.option("--even-if-absent", is_flag=True, help="Mark what is not here (yet), so that it arrives hidden.")
@click.option("--wait", is_flag=True, help="Stay until every peer has confirmed.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help=f"How long --wait stays; exit code 3 where a peer has not confirmed by then.  [default: {DEFAULT_TIMEOUT_S}]",
)
@click.option("--yes", is_flag=True, help="Do not ask, however many there are.")
@dry_run_option
@json_option
def mark(
    paths: tuple[str, ...],
    place: Place,
    channel: str | None,
    start: str | None,
    end: str | None,
    qualities: tuple[str, ...],
    exclude_twins: bool,
    chat: bool,
    sticky: bool,
    long: bool,
    bad_versions: bool,
    mark_rest: bool,
    reason: str,
    even_if_absent: bool,
    wait: bool,
    timeout_s: int | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Hide segments: create a tombstone beside each, durably.

    PATH is absolute, relative to the segment tree, or relative to where you are; it ends in .ts, .json, .tombstone or
    in nothing of these. The segment's data is not touched. Works with the agent down: its next start finds the
    tombstone. More than `breaker.most_per_minute` at once are asked about first, and then not held.

    With --channel, --from and --to instead of PATH whatever carries any part of that time is found and marked: every
    quality, every version of the same instant, and twins. It says what is found, how many seconds go beyond the range,
    and what would be served instead, were one of them hidden alone; --dry-run changes nothing. Batches of chat are
    shown, and marked only with --chat. A TIME is like 2019-11-13T02:45:51.608, UTC, or has an offset (+02:00). A record
    of the takedown is kept, so that what arrives late is told.

    Exit code 0: all are marked, 1: none, 3: some, or a peer has not confirmed in time.

    \b
    Example
      tombsync mark --reason "shows a phone number" desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
      tombsync mark --channel desertbus --from 2019-11-13T02:45:51 --to 2019-11-13T02:46:10 --dry-run
      tombsync mark --channel desertbus --from 2019-11-13T02:45:51 --to 2019-11-13T02:46:10 --sticky --wait
      tombsync mark --bad-versions --channel desertbus --quality source
    """
    of_moments = {"--exclude-twins": exclude_twins, "--chat": chat, "--sticky": sticky, "--long": long}
    of_channels = {"--from": start is not None, "--to": end is not None, "--quality": bool(qualities)}
    if bad_versions or channel is None:
        _require_none(of_moments, "goes with --channel, --from and --to, and without --bad-versions")
    if channel is None:
        _require_none({**of_channels, "--bad-versions": bad_versions}, "goes with --channel")
        if not paths:
            raise click.UsageError("Name some PATH, or a time with --channel, --from and --to.")
    else:
        _require_none({"PATH": bool(paths), "--even-if-absent": even_if_absent}, "does not go with --channel")
        if (start is None) is not (end is None) or (start is None and not bad_versions):
            raise click.UsageError("A time needs both --from and --to.")
    if not bad_versions:
        _require_none({"--mark-rest": mark_rest}, "goes with --bad-versions")
    elif not mark_rest:
        _require_none({"--wait": wait}, "goes with --mark-rest here: nothing is marked without it")
    if not wait:
        _require_none({"--timeout": timeout_s is not None}, "goes with --wait")
    if CHAT in qualities and not chat and not bad_versions:
        raise click.UsageError("Batches of chat are marked only with --chat.")
    patience = Patience(wait, timeout_s or DEFAULT_TIMEOUT_S)
    settings = place.settings()
    within = span(start, end) if start is not None and end is not None else None
    if channel is None:
        return mark_paths(
            settings,
            paths,
            reason=reason,
            even_if_absent=even_if_absent,
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
            patience=patience,
        )
    if within is None or bad_versions:
        require_parts(channel, qualities)
        return mark_versions(
            settings,
            channel,
            qualities,
            within,
            mark_rest=mark_rest,
            reason=reason,
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
            patience=patience,
        )
    return mark_moment(
        settings,
        asked_for(channel, within, qualities, chat=chat, twins=not exclude_twins, long=long),
        sticky=sticky,
        reason=reason,
        yes=yes,
        dry_run=dry_run,
        as_json=as_json,
        patience=patience,
    )


def _require_none(given: dict[str, bool], rule: str) -> None:
    for option, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{option} {rule}.")

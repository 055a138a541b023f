"""`tombsync mark --channel C --from T --to T`: takedown of a span of time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tombsync import errors
from tombsync.cli.common import say, say_json, tell_error, warn
from tombsync.cli.mark.findings import Moment, already, document_of, say_found, warn_of
from tombsync.cli.mark.hiding import Hiding, Result, confirm, results_json, warn_without_agent
from tombsync.cli.mark.note import claimed_actor
from tombsync.cli.mark.wait import Patience, await_peers, exit_code_of
from tombsync.config import Settings
from tombsync.names import unsafe
from tombsync.takedown.find import Asked, find
from tombsync.takedown.look import look
from tombsync.timeline import parse_time, time_text
from tombsync.tree import Takedown, new_takedown_id, write_takedown

MOST_S = 3600  # longer ones need --long: they are more likely a slip in a time
_SECOND_US = 1_000_000
_ENDS = "--from is the first moment that must go, --to the first that may stay"
_MOST_REASON = 4096  # characters that a record takes
# What arrives while the first is being marked is looked for again; what goes on arriving is for --sticky.
_LOOKS = 3


def asked_for(
    channel: str,
    within: tuple[int, int],
    qualities: Sequence[str],
    *,
    chat: bool,
    twins: bool,
    long: bool,
) -> Asked:
    """What was typed, as a takedown. Raises LongRange, BadName."""
    require_parts(channel, qualities)
    start_us, end_us = within
    if end_us - start_us > MOST_S * _SECOND_US and not long:
        raise errors.LongRange((end_us - start_us) / _SECOND_US, MOST_S)
    return Asked(channel, start_us, end_us, tuple(dict.fromkeys(qualities)), chat=chat, twins=twins)


def require_parts(channel: str, qualities: Sequence[str]) -> None:
    """Raise BadName for a channel or quality that can be none."""
    for part in (channel, *qualities):
        if reason := unsafe(part):
            exc = errors.BadName(part, reason)
            exc.hint = "name a channel and qualities as `tombsync ls` and `tombsync ls CHANNEL` show them"
            raise exc


def span(start: str, end: str) -> tuple[int, int]:
    """Both ends of a range. Raises BadTime, EmptySpan."""
    start_us, end_us = parse_time(start), parse_time(end)
    if end_us <= start_us:
        raise errors.EmptySpan(time_text(start_us), time_text(end_us), _ENDS)
    return start_us, end_us


def mark_moment(
    settings: Settings,
    asked: Asked,
    *,
    sticky: bool,
    reason: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    patience: Patience,
) -> int:
    """Find what carries the span, show it, mark it; the exit code."""
    with Hiding(settings, reason=reason, dry_run=dry_run) as hiding:
        moment = Moment(hiding, asked)
        document = document_of(moment, sticky=sticky, reason=reason, dry_run=dry_run) if as_json else {}
        if not as_json:
            say_found(moment)
        warn_of(moment, sticky=sticky)
        if not moment.found.marks and not sticky:
            raise errors.NothingInRange(asked.channel, time_text(asked.start_us), time_text(asked.end_us))
        if len(moment.new) > settings.breaker.most_per_minute and not (yes or dry_run):
            confirm(len(moment.new), ask=not as_json)
        if dry_run:
            if as_json:
                say_json(document)
            else:
                say(f"would mark {len(moment.new)}, {already(moment)}")
            return 0
        kept = _keep(hiding, moment, sticky=sticky, reason=reason)
        results: list[Result] = []
        try:
            mark_all(hiding, moment, results)
        finally:
            failed = sum(result.outcome == "failed" for result in results)
            if not as_json:
                said = sum(result.outcome == "marked" for result in results)
                of = f"takedown {hiding.takedown}: " if kept else ""
                say(f"{of}marked {said}, {already(moment)}" + (f", {failed} failed" if failed else ""))
        hiding.let_go(results)
        if len(results) > failed:
            warn_without_agent(settings)
        everywhere = False
        try:
            everywhere = await_peers(hiding, results, patience, tell=not as_json)
        finally:
            if as_json:
                document |= {"takedown": hiding.takedown or None, "results": results_json(results)}
                say_json(document)
    code = exit_code_of(results, everywhere=everywhere)
    return code if code or kept else errors.EXIT_IN_PART


def mark_all(hiding: Hiding, moment: Moment, results: list[Result]) -> None:
    """Mark what was found, then what arrived meanwhile."""
    seen = set()
    matches = moment.found.marks
    for looks_left in reversed(range(_LOOKS)):
        for match in matches:
            one = match.piece
            seen.add(one)
            results.append(hiding.hide_file(one))
        if not looks_left:
            return
        try:
            files = look(hiding.root_fd, moment.found.asked, hiding.known_hidden).files
        except (errors.NothingThere, OSError) as exc:  # what was found is marked, and that has to be told
            warn(f"whether more arrived meanwhile cannot be seen: {exc}")
            return
        matches = [match for match in find(moment.found.asked, files).marks if match.piece not in seen]
        for match in matches:
            warn(f"{match.piece.path} arrived meanwhile, and is marked too")


def _keep(hiding: Hiding, moment: Moment, *, sticky: bool, reason: str) -> bool:
    """Keep the record of the takedown, before the first tombstone stands: a kill in between leaves it known.

    Hiding matters more than its record: False where that cannot be written. Not so where the record is what was asked
    for: raises TreeRefused for a sticky one.
    """
    asked = moment.found.asked
    takedown = Takedown(
        id=new_takedown_id(),
        channel=asked.channel,
        start_us=asked.start_us,
        end_us=asked.end_us,
        qualities=asked.qualities,
        chat=asked.chat,
        sticky=sticky,
        twins=asked.twins,
        hashes=moment.found.hashes,
        reason=reason[:_MOST_REASON].encode(errors="replace").decode(),  # bytes that are no text spoil no record
        actor=claimed_actor().encode(errors="replace").decode(),
        node=hiding.settings.node,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    )
    try:
        write_takedown(hiding.root_fd, takedown)
    except errors.TreeRefused as exc:
        if sticky:
            raise
        tell_error(exc)
        warn("the takedown is made without its record, so what arrives late in its range will not be told")
        return False
    hiding.begin_takedown(takedown)
    return True

"""`tombsync mark --channel C --from T --to T`: takedown of a span of time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tombsync import errors
from tombsync.cli.common import say, say_json, say_table, tell_error, warn
from tombsync.cli.mark.hiding import ABOUT_CHAT, Hiding, Result, confirm, results_json, warn_without_agent
from tombsync.cli.mark.note import claimed_actor
from tombsync.cli.mark.wait import Patience, await_peers, exit_code_of
from tombsync.config import Settings
from tombsync.names import Marked, unsafe
from tombsync.takedown import Asked, Cost, Found, Looked, Match, Sizes, Visible, Why, cost_of, find, instead_of, look
from tombsync.takedown import visible as visible_of
from tombsync.timeline import Piece, parse_time, time_text
from tombsync.tree import Takedown, new_takedown_id, write_takedown

MOST_S = 3600  # longer ones need --long: they are more likely a slip in a time
_SECOND_US = 1_000_000
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
    """Both ends of a range. Raises BadTime, EmptyRange."""
    start_us, end_us = parse_time(start), parse_time(end)
    if end_us <= start_us:
        raise errors.EmptyRange(time_text(start_us), time_text(end_us))
    return start_us, end_us


class Moment:
    """One look at a span of time, and what to tell of it."""

    def __init__(self, hiding: Hiding, asked: Asked) -> None:
        self.looked: Looked = look(hiding.root_fd, asked, hiding.known_hidden)
        self.found: Found = find(asked, self.looked.files)
        self.visible = visible_of(self.looked.files)
        size_of = Sizes(hiding.root_fd)
        self._shown = {one for pieces in self.visible.values() for one in pieces}
        self._around = {quality: Visible(pieces, size_of) for quality, pieces in self.visible.items()}

    @property
    def new(self) -> list[Match]:
        """What is to be marked and has no tombstone."""
        return [one for one in self.found.marks if not one.is_marked]

    def costs(self) -> dict[str, Cost]:
        """What each quality loses of which something is to be hidden."""
        going: dict[str, set[Piece]] = {}
        for match in self.new:
            if not match.is_chat:
                going.setdefault(match.piece.hour.quality, set()).add(match.piece)
        asked = self.found.asked
        return {
            quality: cost_of(self.visible[quality], pieces, asked.start_us, asked.end_us)
            for quality, pieces in sorted(going.items())
        }

    def instead(self, match: Match) -> tuple[bool, list[Piece]] | None:
        """Whether it is served now, and what would be instead were it alone hidden; None of what is hidden, chat or
        temp."""
        if match.is_chat or match.is_temp or match.piece not in self._shown:
            return None
        return instead_of(self._around[match.piece.hour.quality], match.piece)


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
        document = _document(moment, sticky=sticky, reason=reason, dry_run=dry_run)
        if not as_json:
            _say_found(moment)
        _warn(moment, sticky=sticky)
        if not moment.found.marks and not sticky:
            raise errors.NothingInRange(asked.channel, time_text(asked.start_us), time_text(asked.end_us))
        if len(moment.new) > settings.breaker.most_per_minute and not (yes or dry_run):
            confirm(len(moment.new), ask=not as_json)
        if dry_run:
            if as_json:
                say_json(document)
            else:
                say(f"would mark {len(moment.new)}, {_already(moment)}")
            return 0
        kept = _keep(hiding, moment, sticky=sticky, reason=reason)
        results: list[Result] = []
        try:
            _mark_all(hiding, moment, results)
        finally:
            failed = sum(result.outcome == "failed" for result in results)
            if not as_json:
                said = sum(result.outcome == "marked" for result in results)
                of = f"takedown {hiding.takedown}: " if kept else ""
                say(f"{of}marked {said}, {_already(moment)}" + (f", {failed} failed" if failed else ""))
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


def _mark_all(hiding: Hiding, moment: Moment, results: list[Result]) -> None:
    """Mark what was found, then what arrived meanwhile."""
    seen = set()
    matches = moment.found.marks
    for looks_left in reversed(range(_LOOKS)):
        for match in matches:
            one = match.piece
            seen.add(one)
            result = Result(one.path, hides=(one.name,))
            results.append(result)
            try:
                hiding.hide(Marked(one.hour, one.stem), result)
            except errors.TombsyncError as exc:
                result.segment, result.outcome, result.error = f"{one.hour.path}/{one.stem}", "failed", str(exc)
                tell_error(exc)
        if not looks_left:
            return
        found = find(moment.found.asked, look(hiding.root_fd, moment.found.asked, hiding.known_hidden).files)
        matches = [match for match in found.marks if match.piece not in seen]
        if not matches:
            return
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
    hiding.takedown = takedown.id
    return True


# -- words ------------------------------------------------------------------------------------------------------------


def _warn(moment: Moment, *, sticky: bool) -> None:
    """What a person has to know before."""
    found, looked = moment.found, moment.looked
    for path in looked.links:
        warn(f"{path} is a link or no directory, so it was not looked into: links are not followed")
    for hour in looked.missing:
        warn(f"{hour} is not here, so nothing of that hour was found")
    if found.timeless:
        files = "1 file" if found.timeless == 1 else f"{found.timeless} files"
        warn(f"{files} in these hours have a name that says no time: look whether they show it, and mark them by name")
    if found.temps:
        still = f"{len(found.temps)} of them still being written, and cannot be marked yet"
        warn(f"{still}: --sticky marks what becomes of it")
    if found.chat_left:
        warn(f"batches of chat overlap the range ({len(found.chat_left)}), and are not marked: --chat marks them too")
    if any(match.is_chat for match in found.marks):
        warn(ABOUT_CHAT + ("" if sticky else "; only a takedown with --sticky holds"))


def _already(moment: Moment) -> str:
    return f"{len(moment.found.marks) - len(moment.new)} already marked"


def _state(moment: Moment, match: Match) -> str:
    if match.is_temp:
        return "temp"
    if match.is_marked:
        return "already-marked"
    if match.is_chat and not moment.found.asked.chat:
        return "chat"
    return "mark"


_STATE_WORDS = {
    "mark": "mark",
    "already-marked": "already marked",
    "chat": "not marked: chat",
    "temp": "not marked: temp",
}


def _why(match: Match) -> str:
    of = match.of.name if match.of is not None else ""
    if match.why is Why.NEXT_TO and match.of is not None:
        return f"{abs(match.piece.start_us - match.of.start_us) / 1000:g} ms from {of}"
    return {Why.CARRIES: "carries it", Why.INSTANT: f"same instant as {of}", Why.COPY: f"copy of {of}"}[match.why]


def _document(moment: Moment, *, sticky: bool, reason: str, dry_run: bool) -> dict[str, Any]:
    """All that is told of a takedown, for programs; the same on a dry run, but for `dry_run` itself."""
    found, asked = moment.found, moment.found.asked
    rows = []
    for match in found.matches:
        served = moment.instead(match)
        rows.append(
            {
                "path": match.piece.path,
                "quality": match.piece.hour.quality,
                "type": match.piece.type,
                "start": time_text(match.piece.start_us),
                "end": time_text(match.piece.end_us),
                "why": match.why.value,
                "of": match.of and match.of.path,
                "state": _state(moment, match),
                "served": served and served[0],
                "instead": [one.path for one in served[1]] if served else [],
            }
        )
    return {
        "channel": asked.channel,
        "from": time_text(asked.start_us),
        "to": time_text(asked.end_us),
        "qualities": list(asked.qualities),
        "chat": asked.chat,
        "twins": asked.twins,
        "sticky": sticky,
        "reason": reason,
        "dry_run": dry_run,
        "takedown": None,
        "found": rows,
        "marks": [f"{match.piece.hour.path}/{match.piece.stem}" for match in moment.new],
        "without_a_time": found.timeless,
        "hours_missing": moment.looked.missing,
        "links": moment.looked.links,
        "cost": {quality: _cost_json(cost) for quality, cost in moment.costs().items()},
        "results": [],
    }


def _cost_json(cost: Cost) -> dict[str, float]:
    return {
        "lost_within_s": cost.within_us / _SECOND_US,
        "lost_before_s": cost.before_us / _SECOND_US,
        "lost_after_s": cost.after_us / _SECOND_US,
        "left_within_s": cost.left_us / _SECOND_US,
    }


def _say_found(moment: Moment) -> None:
    """The files that were found, and what it costs."""
    rows = []
    for match in moment.found.matches:
        served = moment.instead(match)
        if served is None:
            instead = "-"
        elif not served[0]:
            instead = "not served now"
        else:
            instead = ", ".join(one.name for one in served[1]) or "nothing"
        rows.append((match.piece.path, _why(match), _STATE_WORDS[_state(moment, match)], instead))
    if rows:
        say_table(("SEGMENT", "WHY", "IS", "WITHOUT IT ALONE"), rows)
    for quality, cost in moment.costs().items():
        within, before, after = (f"{us / _SECOND_US:g} s" for us in cost[:3])
        say(f"{quality}: {within} of the range go, and beyond it {before} before and {after} after")

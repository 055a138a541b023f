"""What one look at a span of time found, and how it is told: a table, lines, JSON, warnings."""

from __future__ import annotations

import sys
from typing import Any

from tombsync.cli.common import on_terminal, say, say_table, warn
from tombsync.cli.mark.hiding import ABOUT_CHAT, Hiding
from tombsync.takedown.cost import Cost, Visible, cost_of, instead_of
from tombsync.takedown.find import Asked, Found, Match, Why, find
from tombsync.takedown.look import Looked, Sizes, look
from tombsync.takedown.look import visible as visible_of
from tombsync.timeline import Piece, time_text

_SHOWN_HASH = 6  # characters: enough to tell the versions of an instant apart
_SECOND_US = 1_000_000


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
        going: dict[str, set[Piece]] = {}  # what is hidden already costs nothing more
        for match in self.new:
            if match.piece in self._shown:
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


def warn_of(moment: Moment, *, sticky: bool) -> None:
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


def already(moment: Moment) -> str:
    """How many need no mark, in words."""
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


def _name(one: Piece) -> str:
    """A file's name; on a terminal with the beginning of its hash, so that a row is one line."""
    return one.name.replace(one.hash, f"{one.hash[:_SHOWN_HASH]}…") if on_terminal(sys.stdout) else one.name


def _why(match: Match) -> str:
    of = _name(match.of) if match.of is not None else ""
    if match.why is Why.NEXT_TO and match.of is not None:
        return f"{abs(match.piece.start_us - match.of.start_us) / 1000:g} ms from {of}"
    return {Why.CARRIES: "carries it", Why.INSTANT: f"same instant as {of}", Why.COPY: f"copy of {of}"}[match.why]


def document_of(moment: Moment, *, sticky: bool, reason: str, dry_run: bool) -> dict[str, Any]:
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


def say_found(moment: Moment) -> None:
    """The files that were found, and what it costs."""
    rows = []
    for match in moment.found.matches:
        served = moment.instead(match)
        if served is None:
            instead = "-"
        elif not served[0]:
            instead = "not served now"
        else:
            instead = ", ".join(map(_name, served[1])) or "nothing"
        rows.append(
            (f"{match.piece.hour.path}/{_name(match.piece)}", _why(match), _STATE_WORDS[_state(moment, match)], instead)
        )
    if rows:
        say_table(("SEGMENT", "WHY", "IS", "WITHOUT IT ALONE"), rows)
    for quality, cost in moment.costs().items():
        within, before, after = (f"{us / _SECOND_US:g} s" for us in cost[:3])
        say(f"{quality}: {within} of the range go, and beyond it {before} before and {after} after")

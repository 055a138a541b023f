"""The status page's search: what a person looks for, read from one line of text, and the segments that answer it.

Three ways to name one: its path (or a URL that ends in it), a moment, or how its name begins. Each has a bound in rows
and hours, and the answer says where it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tombsync.errors import BadName, BadTime, OutsideRoot, TombsyncError
from tombsync.index import MarkerRow, Reader
from tombsync.names import Hour, Marked, classify, locate
from tombsync.timeline import HOUR_US, hours_of, parse_time, piece

MOST_FOUND = 50  # shown; who needs more has the commands and the API
MOST_CHARACTERS = 2048  # of a question: four parts of a path, three bytes of escapes for each of theirs
HOURS_LOOKED_INTO = 1_000  # of all places together; each costs one look into a tree of pages
MARKERS_LOOKED_AT = 20_000  # rows read in one go, some milliseconds
_LOOK_BACK_US = 600_000_000  # what plays at a moment began at most so long before it; chat batches take 60 s
_MOMENT_US = 1_000_000  # a moment is written to the second, so all of that second is meant
_MOST_IN_SPAN = 2_000  # rows of one hour

_STEM_BEGINS = re.compile(r"[0-5]\d:[0-5]\d.*", re.ASCII | re.DOTALL)
_LOOKS_LIKE_A_TIME = re.compile(r"\d{4}-?\d{2}-?\d{2}[T ]?[^/]*", re.ASCII | re.DOTALL)


class Moment(NamedTuple):
    """All that plays in a second is looked for."""

    start_us: int


class Beginning(NamedTuple):
    """All whose name begins so is looked for."""

    text: str


class Found(NamedTuple):
    """One segment: the files of its stem, and its tombstone where there is one."""

    marked: Marked
    files: list[str]
    marker: MarkerRow | None

    @property
    def is_hidden(self) -> bool:
        """Whether no listing shows it."""
        return self.marker is not None and self.marker.hides


class Answer(NamedTuple):
    """What was found. `looked`: where, if not everywhere. `problem`: why nothing was looked for."""

    found: list[Found]
    looked: str = ""
    problem: str = ""
    hint: str = ""


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "a beginning that is not UTF-8 cannot be looked for: name the whole path"
        raise BadName(text, reason) from None


def read_question(text: str, root: str) -> Marked | Moment | Beginning:
    """What one line asks for. `root` is that of the tree. Raises BadName, BadTime, OutsideRoot."""
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        raise BadName(text[:40] + "…", f"longer than {MOST_CHARACTERS} characters")
    if text.startswith(("http://", "https://")):
        return _of_url(text)
    if "/" in text:
        return locate(text, root=root, cwd="/")
    if _STEM_BEGINS.fullmatch(text):
        _require_unicode(text)
        return Beginning(classify(text)[1])
    if _LOOKS_LIKE_A_TIME.fullmatch(text):
        return Moment(parse_time(text))
    raise BadTime(text, hint=EXAMPLES)


EXAMPLES = (
    "write a path (CHANNEL/QUALITY/HOUR/NAME), a moment (2019-11-13T02:45:51, UTC unless it names an offset),"
    " or how the name begins (45:51.608)"
)


def _of_url(text: str) -> Marked:
    """Whatever stands before the last four parts is the web server's own."""
    try:
        path = urlsplit(text).path
    except ValueError:
        raise BadName(text, "not a URL") from None
    parts = path.rstrip("/").split("/")
    if len(parts) < 4:
        raise BadName(text, "it does not end in CHANNEL/QUALITY/HOUR/NAME")
    return locate("/" + "/".join(unquote(part, errors="surrogateescape") for part in parts[-4:]), root="/", cwd="/")


def answer(text: str, root: str, reader: Reader) -> Answer:
    """Look for it. Raises IndexMissing, IndexDamaged, StateRefused."""
    try:
        question = read_question(text, root)
    except (BadName, BadTime, OutsideRoot) as exc:
        return Answer([], problem=_sentence(exc), hint=exc.hint or EXAMPLES)
    match question:
        case Moment():
            stems = list(_playing_at(question.start_us, reader))
            looked = ""
        case Beginning():
            stems, looked = _beginning(question.text, reader)
        case _:
            stems, looked = [question], ""
    found = [Found(marked, reader.files_of(marked), reader.marker(marked)) for marked in stems[:MOST_FOUND]]
    if len(stems) > MOST_FOUND:
        looked = f"These are the first {MOST_FOUND}. {looked}".strip()
    return Answer([one for one in found if one.files or one.marker], looked)


def _sentence(exc: TombsyncError) -> str:
    text = str(exc)
    return text if text.endswith(".") else text + "."


def _playing_at(start_us: int, reader: Reader) -> Iterator[Marked]:
    """Every stem of every place that plays in that second."""
    end_us = start_us + _MOMENT_US
    for channel, quality in sorted(reader.places()):
        for number in hours_of(start_us, end_us):
            hour = Hour(channel, quality, number)
            first_us, last_us = start_us - _LOOK_BACK_US - number * HOUR_US, end_us - number * HOUR_US
            rows = reader.stems_between(
                hour, _clock(max(0, first_us)), _clock(last_us + _MOMENT_US), limit=_MOST_IN_SPAN
            )
            stems = dict.fromkeys(
                stem
                for stem, kind in rows
                if (one := piece(hour, kind, stem)) is not None and one.overlaps(start_us, end_us)
            )
            yield from (Marked(hour, stem) for stem in stems)


def _clock(in_hour_us: int) -> str:
    """How the stems begin that start then; what is behind the hour's last second sorts behind all of them."""
    minute, second = divmod(min(in_hour_us, HOUR_US) // 1_000_000, 60)
    return f"{minute:02d}:{second:02d}"


def _beginning(text: str, reader: Reader) -> tuple[list[Marked], str]:
    """Stems that begin so: hidden ones first, then those of the newest hours; and where that ended."""
    stems = dict.fromkeys(reader.markers_beginning(text, among=MARKERS_LOOKED_AT, limit=MOST_FOUND + 1))
    places = reader.places()
    hours = max(1, HOURS_LOOKED_INTO // max(1, len(places)))
    of_places = [
        marked
        for key, _ in places.values()
        for marked in reader.stems_beginning(key, text, hours=hours, limit=MOST_FOUND + 1)
    ]
    stems |= dict.fromkeys(sorted(of_places, key=lambda marked: (-marked.hour.number, marked)))
    looked = (
        f"Looked at the last {MARKERS_LOOKED_AT:,} tombstones and at the newest {hours:,} hours of each channel and"
        " quality; name a path or a moment to look anywhere."
    )
    return list(stems), looked

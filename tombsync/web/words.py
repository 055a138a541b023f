"""How the status page says counts, ages and times, and what stands beside a word so that no colour is needed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from markupsafe import Markup

from tombsync.names import printable

_MOST_NAMED = 5


class Badge(NamedTuple):
    """A state: its shape (a symbol of shapes.html), its tone (a class of page.css), and the word that says it."""

    shape: str
    tone: str
    word: str


def count_text(count: int, noun: str) -> str:
    """`1 peer`, `1,234 peers`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def list_text(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and 7 more`."""
    shown = [printable(name) for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)


def age_text(seconds: float) -> str:
    """A duration to its largest unit, which changes seldom: `12 s`, `3 min`, `5 h`, `2 days`."""
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= size:
            count = int(seconds // size)
            return count_text(count, unit) if unit == "day" else f"{count} {unit}"
    return f"{int(max(0.0, seconds))} s"


def duration_text(seconds: float) -> str:
    """A length of video in its two largest units: `3 h 12 min`, `2 min 6 s`, `6.0 s`, `0`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "0"
    whole = round(seconds)
    for size, unit, less, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // less
            return f"{whole // size:,} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def time_html(at_ns: int, now_ns: int) -> Markup:
    """A `time` element in UTC: only the time of day where that is within half a day of now, else with the date."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1000)
    recent = abs(now_ns - at_ns) < 43_200 * 1_000_000_000
    text = at.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M:%S")
    return Markup('<time datetime="{}">{}</time>').format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), text)


def name_html(name: str) -> Markup:
    """A name from the tree: nothing in it reorders or breaks what stands around it, whatever its letters are."""
    return Markup("<bdi>{}</bdi>").format(printable(name))

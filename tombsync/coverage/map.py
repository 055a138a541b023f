"""A map of many hours: one pixel for 2 s, a column of 300 for ten minutes, six columns an hour.

A pixel shows the worst state of its 2 s: hole before tombstoned before partial before covered; grey is where there is
no hour directory, or time still to come. The colours are of the set of Okabe and Ito, which people who cannot tell red
from green can tell apart, and differ in brightness too.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tombsync.coverage.rules import COVERED, HOLE, NOTHING, PARTIAL, PIXELS, TOMBSTONED
from tombsync.names import hour_text, printable

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

MAP_HOURS = 168  # a week, unless another range is asked for
MOST_MAP_HOURS = 24 * 31  # 4,464 columns: what is wider nobody looks at
ROWS = 300  # pixels in a column of ten minutes
COLUMNS = PIXELS // ROWS  # of an hour
# https://jfly.uni-koeln.de/color/ gives the set: sky blue, yellow, black, vermillion. Grey is none of it, and no state.
COLOURS = {COVERED: "#56b4e9", PARTIAL: "#f0e442", TOMBSTONED: "#000000", HOLE: "#d55e00", NOTHING: "#dddddd"}
WORDS = {
    COVERED: "covered",
    PARTIAL: "partial or suspect",
    TOMBSTONED: "tombstoned",
    HOLE: "hole",
    NOTHING: "no hour here",
}
_FIRST_HOUR = 24  # 0001-01-01T00, see `names.hour_number`: before it there is nothing that a label could say
_PAPER, _INK = len(COLOURS), len(COLOURS) + 1
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 30, 46, 34  # pixels around the map: minutes, the last label, title and legend, hours
_LEAST_WIDTH = 560  # for the legend
_TITLE_CHARACTERS = 80
_LABEL_WIDTH, _DAY_WIDTH = 36, 72  # pixels that the label of an hour or day takes, the space beside it included


@dataclass(frozen=True)
class Map:
    """What is to be drawn: `strips` holds the compressed states of the known hours from `first` up to `end`."""

    channel: str
    quality: str
    first: int
    end: int
    strips: dict[int, bytes]

    @property
    def tag(self) -> str:
        """Another one whenever the picture is another one."""
        told = hashlib.blake2b(digest_size=16)
        told.update(repr((self.channel, self.quality, self.first, self.end, sorted(self.strips.items()))).encode())
        return told.hexdigest()

    @property
    def title(self) -> str:
        """Channel, quality and hours, in characters that the font has."""
        name = printable(f"{self.channel}/{self.quality}").encode("ascii", "backslashreplace").decode()
        return f"{name[:_TITLE_CHARACTERS]}   {hour_text(self.first)} to {hour_text(self.end - 1)} UTC"

    def pixels(self) -> bytes:
        """A state for each pixel, column after column."""
        nothing = bytes([NOTHING]) * PIXELS
        return b"".join(
            zlib.decompress(self.strips[number]) if number in self.strips else nothing
            for number in range(self.first, self.end)
        )


def map_range(first: int | None, end: int | None, last: int) -> tuple[int, int]:
    """The hours that a map shows: those asked for, else MAP_HOURS up to the `last` known one.

    At most MOST_MAP_HOURS, the last of them.
    """
    high = last + 1 if end is None else end
    low = max(high - MAP_HOURS, _FIRST_HOUR) if first is None else first
    return max(low, high - MOST_MAP_HOURS), high


def draw(asked: Map) -> bytes:
    """The picture as a PNG."""
    # Not above: a node that nobody asks for a map does not pay for it (benchmarks/coverage.py).
    from PIL import Image, ImageDraw, ImageFont

    columns = (asked.end - asked.first) * COLUMNS
    width, height = max(_LEAST_WIDTH, _LEFT + columns + _RIGHT), _TOP + ROWS + _BOTTOM
    picture = Image.new("P", (width, height), _PAPER)
    shown = [*(COLOURS[state] for state in sorted(COLOURS)), "#ffffff", "#222222"]
    picture.putpalette(b"".join(bytes.fromhex(colour[1:]) for colour in shown))
    # Each column is a row of 300 in the bytes, so the picture of them is the map on its side.
    on_side = Image.frombytes("P", (ROWS, columns), asked.pixels())
    picture.paste(on_side.transpose(Image.Transpose.TRANSPOSE), (_LEFT, _TOP))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    pen.text((_LEFT, 6), asked.title, fill=_INK, font=font)
    at = _LEFT
    for state in (COVERED, PARTIAL, TOMBSTONED, HOLE, NOTHING):
        pen.rectangle((at, 27, at + 10, 37), fill=state, outline=_INK)
        pen.text((at + 15, 25), WORDS[state], fill=_INK, font=font)
        at += 15 + int(pen.textlength(WORDS[state], font=font)) + 16
    for minute in range(0, 11, 2):
        y = _TOP + minute * ROWS // 10
        pen.line((_LEFT - 4, y, _LEFT - 1, y), fill=_INK)
        pen.text((_LEFT - 7, y), f"+{minute} min", fill=_INK, font=font, anchor="rm")
    _label_hours(pen, font, asked)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=False)
    return out.getvalue()


def _label_hours(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, asked: Map) -> None:
    """Below the map: a tick an hour, a label where there is room for one, and the day under its first label."""
    every = next(hours for hours in (1, 2, 3, 6, 12, 24) if hours * COLUMNS >= _LABEL_WIDTH or hours == 24)
    bottom, last_day = _TOP + ROWS, ""
    for number in range(asked.first, asked.end + 1):
        x = _LEFT + (number - asked.first) * COLUMNS
        labelled = number % every == 0
        pen.line((x, bottom, x, bottom + (5 if labelled else 2)), fill=_INK)
        if not labelled or number == asked.end:
            continue
        day, _, hour = hour_text(number).partition("T")
        pen.text((x - 2, bottom + 5), f"{hour}:00", fill=_INK, font=font)
        next_day = x + (-number % 24 or 24) * COLUMNS
        if day != last_day and (number % 24 == 0 or (not last_day and next_day - x >= _DAY_WIDTH)):
            pen.text((x - 2, bottom + 18), day, fill=_INK, font=font)
            last_day = day

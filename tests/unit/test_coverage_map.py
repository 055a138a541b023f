"""The map: a pixel for 2 s, a column for ten minutes, and everything that is needed to read it."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import tombsync
from tests.support.index import BAD_UTF8, HOUR
from tombsync.coverage.map import COLOURS, MAP_HOURS, MOST_MAP_HOURS, Map, draw, map_range
from tombsync.coverage.rules import COVERED, HOLE, NOTHING, PARTIAL, PIXELS, TOMBSTONED

LEFT, TOP = 56, 46  # where the first pixel of the first hour stands


def strip(*runs: tuple[int, int]) -> bytes:
    """An hour's states: (state, pixels) one behind the other, the rest covered."""
    states = b"".join(bytes([state]) * count for state, count in runs)
    return zlib.compress(states.ljust(PIXELS, bytes([COVERED])))


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    return picture.convert("RGB")


def colour(picture: Image.Image, column: int, row: int) -> str:
    found = picture.getpixel((LEFT + column, TOP + row))
    assert isinstance(found, tuple)
    return "#" + "".join(f"{part:02x}" for part in found)


def test_a_pixel_is_two_seconds_and_a_column_ten_minutes() -> None:
    # The first hour: 300 pixels of holes are its first column, then one partial, one tombstoned. The second is unknown.
    strips = {HOUR.number: strip((HOLE, 300), (PARTIAL, 1), (TOMBSTONED, 1)), HOUR.number + 2: strip()}
    picture = opened(draw(Map("desertbus", "source", HOUR.number, HOUR.number + 3, strips)))
    assert {colour(picture, 0, row) for row in range(300)} == {COLOURS[HOLE]}
    assert [colour(picture, 1, row) for row in range(4)] == [
        COLOURS[PARTIAL], COLOURS[TOMBSTONED], COLOURS[COVERED], COLOURS[COVERED],
    ]  # fmt: skip
    assert {colour(picture, column, row) for column in range(6, 12) for row in range(300)} == {COLOURS[NOTHING]}
    assert {colour(picture, column, 299) for column in range(12, 18)} == {COLOURS[COVERED]}
    assert colour(picture, 18, 0) == "#ffffff"


def test_every_state_is_in_the_legend_and_no_two_look_alike() -> None:
    picture = opened(draw(Map("desertbus", "source", HOUR.number, HOUR.number + 1, {})))
    above = picture.crop((0, 0, picture.width, TOP - 1))
    pixels = above.tobytes()  # three bytes each
    found = {"#" + pixels[at : at + 3].hex() for at in range(0, len(pixels), 3)}
    assert set(COLOURS.values()) <= found
    # As bright as they look, so that they differ without any hue at all.
    bright = sorted(
        0.2126 * int(code[1:3], 16) + 0.7152 * int(code[3:5], 16) + 0.0722 * int(code[5:7], 16)
        for state, code in COLOURS.items()
        if state != NOTHING
    )
    assert min(after - before for before, after in pairwise(bright)) > 40


def test_title_and_hours_are_written_beside_it() -> None:
    def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
        return sum(count for count, pixel in picture.crop(box).getcolors(1 << 16) or [] if pixel == (0x22, 0x22, 0x22))

    one = opened(draw(Map("desertbus", "source", HOUR.number, HOUR.number + 24, {})))
    other = opened(draw(Map("desertbus", "160p", HOUR.number, HOUR.number + 24, {})))
    later = opened(draw(Map("desertbus", "source", HOUR.number + 3, HOUR.number + 27, {})))
    title, below = (0, 0, one.width, 24), (0, TOP + 301, one.width, one.height)
    assert ink(one, title) > 100 and ink(one, below) > 100
    assert one.crop(title).tobytes() != other.crop(title).tobytes()
    assert one.crop(below).tobytes() == other.crop(below).tobytes()
    assert one.crop(below).tobytes() != later.crop(below).tobytes()


@pytest.mark.parametrize("channel", [BAD_UTF8, "\u4e2d\u6587", "a\nb", "x" * 255])
def test_a_channel_of_any_name_has_a_map(channel: str) -> None:
    asked = Map(channel, "source", HOUR.number, HOUR.number + 1, {HOUR.number: strip()})
    assert opened(draw(asked)).height == TOP + 300 + 34
    assert asked.tag


def test_another_picture_has_another_tag() -> None:
    one = Map("desertbus", "source", HOUR.number, HOUR.number + 2, {HOUR.number: strip()})
    assert one.tag == Map("desertbus", "source", HOUR.number, HOUR.number + 2, {HOUR.number: strip()}).tag
    others = [
        Map("desertbus", "160p", HOUR.number, HOUR.number + 2, one.strips),
        Map("desertbus", "source", HOUR.number, HOUR.number + 3, one.strips),
        Map("desertbus", "source", HOUR.number, HOUR.number + 2, {HOUR.number: strip((HOLE, 1))}),
        Map("desertbus", "source", HOUR.number, HOUR.number + 2, {HOUR.number + 1: strip()}),
    ]
    assert len({one.tag, *(other.tag for other in others)}) == 5


def test_which_hours_a_map_shows() -> None:
    assert map_range(None, None, 1000) == (1001 - MAP_HOURS, 1001)
    assert map_range(990, None, 1000) == (990, 1001)
    assert map_range(None, None, 30) == (24, 31)  # no hour is before the first of the calendar
    assert map_range(None, 900, 1000) == (900 - MAP_HOURS, 900)
    assert map_range(10, 20, 1000) == (10, 20)
    assert map_range(0, 1000, 1000) == (1000 - MOST_MAP_HOURS, 1000)


def test_nothing_of_the_drawing_library_is_imported_before_a_map_is_drawn() -> None:
    code = "import sys, tombsync.daemon, tombsync.cli.coverage; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(tombsync.__file__).parents[1]).returncode == 0

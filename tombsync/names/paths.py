"""Segment paths, stems, hours and tombstones.

The tree is `ROOT/CHANNEL/QUALITY/HOUR/NAME`. The formats are those of the archive whose segments these are:

- HOUR is `YYYY-MM-DDTHH`, UTC.
- A segment is `MM:SS.ffffff-DURATION-TYPE-HASH.ts`: DURATION in seconds, TYPE one of `full`, `suspect`, `partial`,
  `temp`, HASH the unpadded url-safe base64 of a SHA-256 (43 characters), or a UUID where TYPE is `temp`.
- A chat batch covers 60 s and is `MM:SS-HASH.json`.
- `STEM.tombstone` hides `STEM.ts` and `STEM.json` of its own directory.

File names are `str` as `os.fsdecode` gives them, so a name that is not UTF-8 holds lone surrogates and comes back as
the same bytes through `os.fsencode`. Nothing in here touches a file system or a clock.
"""

from __future__ import annotations

import os.path
import re
from datetime import date
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from tombsync.errors import BadName, OutsideRoot

TOMBSTONE_SUFFIX = ".tombstone"
SEGMENT_SUFFIXES = (".ts", ".json")
MAX_NAME_BYTES = 255  # NAME_MAX of Linux
OWN_DIRECTORY = ".tombsync"  # ROOT/.tombsync: begins with a dot, so the archive's listings skip it
CHAT_BATCH_S = 60.0

# A UUID as the archive writes it for `temp`; 43 base64 characters hold 258 bits, so the last one has two zero bits.
_HASH = r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]"
HASH_PATTERN = re.compile(_HASH, re.ASCII)
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SEGMENT_PATTERN = re.compile(
    r"([0-5][0-9]):([0-5][0-9])\.([0-9]{6})-([0-9]{1,5}(?:\.[0-9]{1,9})?)-"
    rf"(?:(full|suspect|partial)-({_HASH})|(temp)-({_UUID}))",
    re.ASCII,
)
_CHAT_PATTERN = re.compile(rf"([0-5][0-9]):([0-5][0-9])-({_HASH})", re.ASCII)
_HOUR_PATTERN = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([01][0-9]|2[0-3])", re.ASCII)
# Category Cc of Unicode: what forges lines in a log or moves a terminal's cursor.
_CONTROL_PATTERN = re.compile("[\x00-\x1f\x7f-\x9f]")


class Kind(IntEnum):
    """What a name in an hour directory is; the values of the two segment kinds are stored in the index."""

    OTHER = 0
    TS = 1
    JSON = 2
    TOMBSTONE = 3
    MISTAKE = 4  # `STEM.ts.tombstone`: hides nothing, and is most likely meant to


EXTENSION = {Kind.TS: ".ts", Kind.JSON: ".json", Kind.TOMBSTONE: TOMBSTONE_SUFFIX}


class Hour(NamedTuple):
    """One hour directory. `number` counts hours since 0001-01-01T00 UTC (see `hour_number`)."""

    channel: str
    quality: str
    number: int

    @property
    def text(self) -> str:
        """The directory's own name, `YYYY-MM-DDTHH`."""
        return hour_text(self.number)

    @property
    def path(self) -> str:
        """`CHANNEL/QUALITY/HOUR`, relative to the root."""
        return f"{self.channel}/{self.quality}/{hour_text(self.number)}"


class Segment(NamedTuple):
    """What a segment's stem says. `start_us` counts microseconds from the start of the hour."""

    start_us: int
    duration_s: float
    type: str
    hash: str


class Marked(NamedTuple):
    """A stem in its hour: what a tombstone hides."""

    hour: Hour
    stem: str

    @property
    def path(self) -> str:
        """The stem's path relative to the root, without an extension."""
        return f"{self.hour.path}/{self.stem}"

    @property
    def tombstone_path(self) -> str:
        """The tombstone's path relative to the root."""
        return f"{self.hour.path}/{self.stem}{TOMBSTONE_SUFFIX}"

    @property
    def unsafe(self) -> str:
        """Why no part of this may be sent to a peer; "" if it may (see `unsafe`)."""
        channel, quality, _ = self.hour
        return _unsafe_again(channel) or _unsafe_again(quality) or unsafe(self.stem + TOMBSTONE_SUFFIX)


def classify(name: str) -> tuple[Kind, str]:
    """Tell what a directory entry is, and its stem. Runs once per file of the tree, so it parses nothing.

    A name that begins with a dot is never listed, and so is OTHER.
    """
    if name.endswith(".ts"):
        if name[0] != ".":
            return Kind.TS, name[:-3]
    elif name.endswith(".json"):
        if name[0] != ".":
            return Kind.JSON, name[:-5]
    elif name.endswith(TOMBSTONE_SUFFIX) and name[0] != ".":
        stem = name[: -len(TOMBSTONE_SUFFIX)]
        return (Kind.MISTAKE if stem.endswith((".ts", ".json", TOMBSTONE_SUFFIX)) else Kind.TOMBSTONE), stem
    return Kind.OTHER, name


def mistake_message(hour: Hour, name: str) -> str:
    """What to tell of a `STEM.ts.tombstone`, with the name that was most likely meant."""
    stem = classify(classify(name)[1])[1]
    path = printable(f"{hour.path}/{name}")
    return f"{path} hides nothing; the tombstone of that segment is {printable(stem)}{TOMBSTONE_SUFFIX}"


def tombstone_name(stem: str) -> str:
    """The file name of a stem's tombstone.

    Raises BadName where the name would be too long to exist (a stem of more than 245 bytes).
    """
    name = stem + TOMBSTONE_SUFFIX
    if (len(name) if name.isascii() else len(os.fsencode(name))) > MAX_NAME_BYTES:
        raise BadName(stem, f"its tombstone's name would be longer than {MAX_NAME_BYTES} bytes")
    return name


@lru_cache(maxsize=4096)
def hour_number(text: str) -> int:
    """Hours since 0001-01-01T00 of the proleptic Gregorian calendar, so that an hour is one small integer.

    Raises BadName for anything but a real UTC hour `YYYY-MM-DDTHH`.
    """
    found = _HOUR_PATTERN.fullmatch(text)
    if found is None:
        raise BadName(text, "not an hour of the form YYYY-MM-DDTHH")
    try:
        day = date.fromisoformat(found[1]).toordinal()
    except ValueError:
        raise BadName(text, "no such day in the calendar") from None
    return day * 24 + int(found[2])


@lru_cache(maxsize=4096)
def hour_text(number: int) -> str:
    """The inverse of `hour_number`."""
    day, hour = divmod(number, 24)
    return f"{date.fromordinal(day).isoformat()}T{hour:02d}"


def is_hour(text: str) -> bool:
    """Whether a directory of this name below a QUALITY is an hour directory."""
    try:
        hour_number(text)
    except BadName:
        return False
    return True


def parse_stem(stem: str) -> Segment | None:
    """Read a video segment's stem; None where it does not parse (such a file is carried without a time)."""
    found = SEGMENT_PATTERN.fullmatch(stem)
    if found is None:
        return None
    minute, second, micro, duration, kind, digest, temp, uuid = found.groups()
    start_us = (int(minute) * 60 + int(second)) * 1_000_000 + int(micro)
    return Segment(start_us, float(duration), kind or temp, digest or uuid)


def parse_chat_stem(stem: str) -> Segment | None:
    """Read a chat batch's stem; its type is `chat` and it covers 60 s. None where it does not parse."""
    found = _CHAT_PATTERN.fullmatch(stem)
    if found is None:
        return None
    return Segment((int(found[1]) * 60 + int(found[2])) * 1_000_000, CHAT_BATCH_S, "chat", found[3])


def segment_stem(segment: Segment) -> str:
    """Build a stem: the inverse of `parse_stem` and `parse_chat_stem`.

    Raises BadName for a start outside of the hour, a duration that the grammar cannot carry, a wrong type or hash.
    """
    seconds, micro = divmod(segment.start_us, 1_000_000)
    minute, second = divmod(seconds, 60)
    if segment.type == "chat":
        stem = f"{minute:02d}:{second:02d}-{segment.hash}"
        parsed = parse_chat_stem(stem)
    else:
        stem = f"{minute:02d}:{second:02d}.{micro:06d}-{segment.duration_s}-{segment.type}-{segment.hash}"
        parsed = parse_stem(stem)
    if parsed != segment:
        raise BadName(stem, "not a segment that can be written as a name")
    return stem


def unsafe(part: str) -> str:
    """Why one part of a path (channel, quality, hour or file name) must not be taken from outside; "" if it may be.

    The rule of everything that crosses a border: no separator, no hidden or parent name, no control character.
    """
    if not part:
        return "a part of the path is empty"
    if part[0] == ".":
        return "a part of the path begins with a dot"
    if "/" in part:
        return "a part of the path holds a slash"
    if _CONTROL_PATTERN.search(part):
        return "a part of the path holds a control character"
    try:
        too_long = (len(part) if part.isascii() else len(os.fsencode(part))) > MAX_NAME_BYTES
    except UnicodeEncodeError:  # a surrogate that stands for no byte, or a character that the locale does not know
        return "a part of the path cannot be a file's name"
    return f"a part of the path is longer than {MAX_NAME_BYTES} bytes" if too_long else ""


_unsafe_again = lru_cache(maxsize=1024)(unsafe)  # channels and qualities are few, and asked for each tombstone


def strict_hour(channel: str, quality: str, hour: str) -> Hour:
    """Build an Hour from parts that come from outside. Raises BadName."""
    for part in (channel, quality):
        if reason := unsafe(part):
            raise BadName(part, reason)
    return Hour(channel, quality, hour_number(hour))


def strict_marked(hour: Hour, name: str) -> Marked:
    """Build a Marked from a file name from outside, with or without `.ts`, `.json` or `.tombstone`. Raises BadName."""
    if reason := unsafe(name):
        raise BadName(name, reason)
    kind, stem = classify(name)
    if kind is Kind.TOMBSTONE:  # a stem of which all of this is true already
        return Marked(hour, stem)
    if kind is Kind.MISTAKE:
        stem = classify(stem)[1]
    if reason := unsafe(stem):
        raise BadName(name, reason)
    if classify(tombstone_name(stem))[0] is not Kind.TOMBSTONE:
        raise BadName(name, "it has several extensions, and its tombstone would hide nothing")
    return Marked(hour, stem)


def strict_path(path: str) -> Marked:
    """Read `CHANNEL/QUALITY/HOUR/NAME` from outside, NAME with or without its extension. Raises BadName."""
    parts = path.split("/")
    if len(parts) != 4:
        raise BadName(path, "not of the form CHANNEL/QUALITY/HOUR/NAME")
    return strict_marked(strict_hour(*parts[:3]), parts[3])


def locate(path: str, *, root: str, cwd: str) -> Marked:
    """Read a path that a person typed: absolute, relative to the root, or relative to the directory they are in.

    Purely textual: `root` and `cwd` are absolute and resolved by the caller, nothing below the root is resolved.
    Raises BadName and OutsideRoot.
    """
    if "\0" in path:
        raise BadName(path, "a part of the path holds a control character")
    if not path.startswith("/"):
        if path.count("/") == 3 and not path.startswith("."):
            return strict_path(path)
        path = f"{cwd}/{path}"
    if ".." in path.split("/"):
        raise BadName(path, "a part of the path begins with a dot")
    path = os.path.normpath("/" + path.lstrip("/"))  # normpath keeps two leading slashes, as from a cwd of `/`
    prefix = root.rstrip("/") + "/"
    if not path.startswith(prefix):
        raise OutsideRoot(path, root)
    return strict_path(path[len(prefix) :])


def printable(text: str) -> str:
    """A name as one line that a terminal and a log can take: control characters and bad UTF-8 are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")

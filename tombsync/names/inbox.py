"""The one encoding of a tombstone as the name of a single file, for a peer's inbox.

    1,GENERATION,NODE,CHANNEL,QUALITY,HOUR,STEM     a tombstone
    1,canary,NODE,TOKEN                             a canary: it asks only whether the receiving agent takes it

- `1` is the version of this encoding.
- GENERATION is a decimal number without leading zeros: 0 is a mark, and all that is understood for now.
- NODE is the node of origin, where the segment was marked first, by the grammar of a node's name in the settings.
- CHANNEL, QUALITY, HOUR and STEM are the parts of the segment's path (see `names.paths`).
- TOKEN is 16 digits of lower-case hexadecimal.

In each field every byte but `A-Z a-z 0-9 - . _ ~ :` is written as `%XX` with upper-case digits (RFC 3986, section 2.1;
`:` stays as it is, as every stem has it). So a name never holds a slash, a control character or a byte above 126, and
each tombstone has exactly one name: whatever decodes to something that would be encoded differently is refused. The
whole has at most 255 bytes (NAME_MAX of Linux); a longer one cannot be delivered in this way.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from tombsync.errors import BadName
from tombsync.names.paths import MAX_NAME_BYTES, Hour, Marked, hour_text, strict_hour, strict_marked, tombstone_name

NODE_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_VERSION = "1"
_CANARY = "canary"
_OTHER_SPELLING = "another spelling of a name in an inbox"
_SAFE = ":"  # besides the unreserved characters, which are always safe
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.~:-]*", re.ASCII)
_GENERATION_PATTERN = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_TOKEN_PATTERN = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Offer(NamedTuple):
    """A tombstone as a peer's inbox names it. `origin`: the node that is said to have marked it first."""

    marked: Marked
    origin: str
    generation: int = 0


class Canary(NamedTuple):
    """A file that only asks to be taken."""

    origin: str
    token: str


def offer_name(offer: Offer) -> str:
    """The file name of a tombstone in an inbox. Raises BadName where it is too long, or the tombstone unsafe."""
    marked = offer.marked
    if reason := marked.unsafe:
        raise BadName(marked.path, reason)
    start = _start(offer.generation, offer.origin, marked.hour)
    name = start + (marked.stem if _PLAIN_PATTERN.fullmatch(marked.stem) else _quoted(marked.stem))
    if len(name) > MAX_NAME_BYTES:
        raise BadName(marked.path, f"its name in an inbox would be longer than {MAX_NAME_BYTES} bytes")
    return name


@lru_cache(maxsize=1024)
def _start(generation: int, origin: str, hour: Hour) -> str:
    """What the names of one hour begin with: a catch-up asks for thousands of them."""
    if not NODE_PATTERN.fullmatch(origin):
        raise BadName(origin, "not a node's name")
    fields = (_VERSION, str(generation), origin, _quoted(hour.channel), _quoted(hour.quality), hour_text(hour.number))
    return ",".join(fields) + ","


def canary_name(canary: Canary) -> str:
    """The file name of a canary."""
    return f"{_VERSION},{_CANARY},{canary.origin},{canary.token}"


def _quoted(part: str) -> str:
    return quote_from_bytes(os.fsencode(part), safe=_SAFE)


def read_inbox_name(name: str) -> Offer | Canary:
    """What a file in an inbox says by its name; the generation may be one that is not understood. Raises BadName."""
    if not name.isascii():
        raise BadName(name, "a byte that a name in an inbox never holds")
    fields = name.split(",")
    if len(fields) == 4 and fields[:2] == [_VERSION, _CANARY]:
        _, _, origin, token = fields
        if not NODE_PATTERN.fullmatch(origin) or not _TOKEN_PATTERN.fullmatch(token):
            raise BadName(name, "not a canary's name")
        return Canary(origin, token)
    start, comma, stem = name.rpartition(",")
    generation, origin, hour = _read_start(start + comma)
    decoded = stem
    if not _PLAIN_PATTERN.fullmatch(stem):
        decoded = os.fsdecode(unquote_to_bytes(stem))
        if _quoted(decoded) != stem:
            raise BadName(name, _OTHER_SPELLING)
    marked = strict_marked(hour, tombstone_name(decoded))
    if marked.stem != decoded:  # `X.ts` has the tombstone `X.ts.tombstone`, which hides nothing
        raise BadName(name, _OTHER_SPELLING)
    return Offer(marked, origin, generation)


@lru_cache(maxsize=1024)
def _read_start(start: str) -> tuple[int, str, Hour]:
    """Generation, origin and hour of what the names of one hour begin with. Raises BadName."""
    fields = start.split(",")
    if fields[0] != _VERSION:
        raise BadName(start, f"not of version {_VERSION} of the names in an inbox")
    if len(fields) != 7:
        raise BadName(start, "not of the form VERSION,GENERATION,NODE,CHANNEL,QUALITY,HOUR,STEM")
    _, generation, origin, *path, _ = fields
    if not _GENERATION_PATTERN.fullmatch(generation):
        raise BadName(start, "no generation")
    channel, quality, hour = (os.fsdecode(unquote_to_bytes(part)) for part in path)
    found = strict_hour(channel, quality, hour)
    if _start(int(generation), origin, found) != start:
        raise BadName(start, _OTHER_SPELLING)
    return int(generation), origin, found

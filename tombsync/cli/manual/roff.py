"""Text as the macros man(7) take it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LITERAL = str.maketrans({"\\": r"\e", "-": r"\-", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga", "'": r"\(aq"})
_CODE = re.compile(r"`([^`]+)`")


def literal(text: str) -> str:
    """What is to be typed: every character is itself, none is made nicer."""
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text.translate(_LITERAL))


def prose(text: str) -> str:
    """One paragraph on one line; `code` becomes bold."""
    flat = " ".join(text.split())
    pieces = _CODE.split(flat)
    line = "".join(f"\\fB{literal(piece)}\\fR" if number % 2 else literal(piece) for number, piece in enumerate(pieces))
    return _line(line)


def item(label: str, paragraphs: Iterable[str]) -> list[str]:
    """A tagged paragraph, with further ones below it."""
    first, *more = paragraphs
    lines = [".TP", f"\\fB{literal(label)}\\fR", prose(first)]
    for text in more:
        lines += [".sp", prose(text)]
    return lines


def example(text: str) -> list[str]:
    """Lines as they are."""
    return [".PP", ".RS 4", ".nf", *(_line(literal(line)) for line in text.splitlines()), ".fi", ".RE"]


def title(name: str, section: int, date: str, version: str, manual: str) -> list[str]:
    """How a page begins."""
    return [f'.TH {literal(name.upper())} {section} {date} "tombsync {version}" "{manual}"', ".nh", ".ad l"]


def _line(line: str) -> str:
    """A full stop or an apostrophe at the beginning would be a request."""
    return f"\\&{line}" if line.startswith((".", "'")) or not line else line

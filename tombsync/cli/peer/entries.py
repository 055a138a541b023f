"""Entries of the settings file, added and taken away as text: nothing else in it changes, comments included.

Whatever the text looks like, the new one counts only if it loads, and says what the old one said but for the entry.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from typing import Any

from tombsync import errors
from tombsync.cli.peer.files import read_text, replace_file
from tombsync.cli.peer.steps import Step
from tombsync.config import Settings, load
from tombsync.config.tables import LISTS

_HEADER_PATTERN = re.compile(r"\s*\[")


def entry(kind: str, values: dict[str, str | int]) -> str:
    """One `[[kind]]` table as text."""
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return f"[[{kind}]]\n{''.join(lines)}"


def parsed(path: str, text: str) -> Settings:
    """The settings that a text holds, as if it were that file's. Raises BadSettings."""
    # `load` reads files, and this one is not to be there before it is known to be good.
    descriptor = os.memfd_create("settings")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        stand_in = f"/proc/self/fd/{descriptor}"
        try:
            return load(stand_in)
        except errors.BadSettings as exc:
            raise errors.BadSettings(
                tuple(
                    errors.Problem(path, problem.key, problem.value, problem.allowed.replace(stand_in, path))
                    for problem in exc.problems
                ),
                "nothing was changed",
            ) from None
    finally:
        os.close(descriptor)


def with_entries(path: str, text: str, entries: list[str]) -> str:
    """The text with entries at its end. Raises BadSettings, SettingsNotEditable."""
    for field, kind in LISTS.items():
        listed = _load(path, text).get(kind)
        if listed is not None and f"[[{kind}]]" in "".join(entries) and not _headers(text, kind):
            raise errors.SettingsNotEditable(path, f"{field} are written as {kind} = [...], which cannot be added to")
    start = text if not text or text.endswith("\n") else f"{text}\n"
    changed = start + "".join(f"\n{new}" if start or number else new for number, new in enumerate(entries))
    parsed(path, changed)
    return changed


def without_entries(path: str, text: str, kind: str, wanted: Callable[[dict[str, Any]], bool]) -> str:
    """The text without the `[[kind]]` tables that are `wanted`. Raises BadSettings, SettingsNotEditable."""
    expected = _load(path, text)
    kept_entries = [table for table in expected.pop(kind, []) if not wanted(table)]
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    at = 0
    while at < len(lines):
        end = _end_of_table(lines, at)
        if not _is_header(lines[at], kind) or not _holds(lines[at:end], kind, wanted):
            kept.append(lines[at])
            at += 1
            continue
        at = end
        if kept and not kept[-1].strip():  # the empty line above it
            kept.pop()
    changed = "".join(kept)
    found = _load(path, changed)
    if found.pop(kind, []) != kept_entries or found != expected:
        raise errors.SettingsNotEditable(path, f"the [[{kind}]] to take out cannot be told from the rest of the text")
    parsed(path, changed)
    return changed


def settings_step(path: str, text: str, description: str, detail: list[str]) -> Step:
    """Put a new text in place of the settings file."""
    return Step(description, lambda: read_text(path) == text, lambda: _write(path, text), detail)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    replace_file(path, text)


def _load(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as exc:
        raise errors.SettingsNotEditable(path, f"is not TOML: {exc}") from exc


def _headers(text: str, kind: str) -> list[str]:
    return [line for line in text.splitlines() if _is_header(line, kind)]


def _is_header(line: str, kind: str) -> bool:
    return re.fullmatch(rf"\s*\[\[\s*{kind}\s*\]\]\s*(#.*)?", line.rstrip("\r\n")) is not None


def _end_of_table(lines: list[str], at: int) -> int:
    """The line after the last key of the table that begins at a line; comments behind it belong to what follows."""
    end = after_key = at + 1
    while end < len(lines) and not _HEADER_PATTERN.match(lines[end]):
        end += 1
        if lines[end - 1].strip() and not lines[end - 1].lstrip().startswith("#"):
            after_key = end
    return after_key


def _holds(lines: list[str], kind: str, wanted: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        (table,) = tomllib.loads("".join(lines))[kind]
    except (ValueError, KeyError):
        return False
    return wanted(table)

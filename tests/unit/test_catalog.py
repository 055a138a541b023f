"""The message catalog: an entry for each event, which journalctl itself can read."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

import tombsync
from tests.support.programs import need
from tombsync.audit import Event

CATALOG = Path(__file__).parents[2] / "systemd" / "catalog" / "tombsync.catalog"
# Recorded where the event is a variable: the fields of each.
INDIRECT = {
    "PEER_DOWN": {"peer", "reason"},
    "HOST_KEY_CHANGED": {"peer", "reason"},
    "RECORDS_LOST": {"count"},
}


@cache
def entries() -> dict[str, tuple[dict[str, str], str]]:
    """MESSAGE_ID -> headers and text."""
    found = {}
    for entry in re.split(r"^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = entry.partition("\n\n")
        message_id, *lines = head.splitlines()
        assert message_id not in found
        found[message_id] = dict(line.split(": ", 1) for line in lines), text.rstrip("\n")
    return found


@cache
def recorded() -> dict[str, set[str]]:
    """Name of an event -> the fields that each of its records in the code is given."""
    found: dict[str, set[str]] = {name: set(fields) for name, fields in INDIRECT.items()}
    for path in Path(tombsync.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="record" | "add"),
                    args=[ast.Attribute(value=ast.Name(id="Event"), attr=name), *_],
                ):
                    fields = {word.arg for word in node.keywords if word.arg}
                    found[name] = found.get(name, fields) & fields
    return found


def test_every_event_has_an_entry_and_nothing_else_has() -> None:
    assert list(entries()) == [event.message_id for event in Event]


@pytest.mark.parametrize("event", Event, ids=lambda event: event.word)
def test_an_entry_says_what_it_means_and_what_to_do(event: Event) -> None:
    headers, text = entries()[event.message_id]
    assert headers.keys() == {"Subject", "Defined-By", "Documentation"}
    assert headers["Defined-By"] == "tombsync"
    meaning, _, advice = text.partition("\n\n")
    assert meaning.strip()
    assert advice.strip()
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("event", Event, ids=lambda event: event.word)
def test_an_entry_uses_only_fields_that_each_of_its_records_has(event: Event) -> None:
    """journalctl leaves the name of a missing field in the text."""
    fields = {"TOMBSYNC_NODE"} | {f"TOMBSYNC_{name.upper()}" for name in recorded()[event.name]}
    if "TOMBSYNC_MARKED" in fields:
        fields |= {"TOMBSYNC_SEGMENT", "TOMBSYNC_HOUR"}
    if "TOMBSYNC_HOUR" in fields:
        fields |= {"TOMBSYNC_CHANNEL", "TOMBSYNC_QUALITY"}
    assert set(re.findall(r"@([A-Z_]+)@", entries()[event.message_id][1])) <= fields


def test_journalctl_takes_it_up(tmp_path: Path) -> None:
    journalctl = need("journalctl")
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, place)
    done = subprocess.run([journalctl, f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([journalctl, f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True)
    assert done.returncode == 0
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told == {event.message_id: f"tombsync: {entries()[event.message_id][0]['Subject']}" for event in Event}

"""What goes into a tombstone, and who says that they mark."""

from __future__ import annotations

import os
import pwd
import time

_NOTE_BYTES = 4096  # readers take no more
_ACTOR_CHARACTERS = 64


def note(node: str, reason: str) -> bytes:
    """What goes into a tombstone: TOML of at most 4 KiB, optional to every reader. Empty texts are left out."""
    facts = {
        "actor": claimed_actor()[:_ACTOR_CHARACTERS],
        "node": node,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "reason": reason,
    }
    text = b"generation = 0\n"
    for key, value in facts.items():
        if value:
            room_bytes = _NOTE_BYTES - len(text) - len(f'{key} = ""\n')
            text += f'{key} = "{_toml_text(value, room_bytes)}"\n'.encode()
    return text


def _toml_text(text: str, room_bytes: int) -> str:
    """The inside of a basic string (https://toml.io/en/v1.0.0#string), cut before the character that has no room."""
    kept = []
    for character in text.encode("utf-8", "replace").decode():  # TOML has no place for bytes that are not UTF-8
        code = ord(character)
        if code < 0x20 or code == 0x7F:
            character = f"\\u{code:04x}"
        elif character in '"\\':
            character = "\\" + character
        room_bytes -= len(character.encode())
        if room_bytes < 0:
            break
        kept.append(character)
    return "".join(kept)


def claimed_actor() -> str:
    """Who says they do this: recorded, and never decided by."""
    for variable in ("SUDO_USER", "DOAS_USER"):
        if name := os.environ.get(variable):
            return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

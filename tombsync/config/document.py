"""Reads the settings file: validated whole, every problem reported at once."""

from __future__ import annotations

import copy
import difflib
import ipaddress
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from tombsync.config.tables import DEFAULT_PATH, LISTS, SSH_PORT, TABLES, Settings
from tombsync.errors import BadSettings, Problem
from tombsync.names import printable

_MAX_SHOWN = 80  # characters of a faulty value
# What a problem names as its file when the value did not come from one.
COMMAND_LINE = "command line"
ENVIRONMENT = "environment"

_TOML_ERROR_PATTERN = re.compile(r"(.*) \(at (line \d+|end of document).*\)", re.DOTALL)
_Loc: TypeAlias = tuple[int | str, ...]  # where a value stands, as pydantic tells it: ("peers", 0, "port")


def load(
    path: str | None,
    *,
    root: str | None = None,
    state_dir: str | None = None,
    node: str | None = None,
    listen: str | None = None,
) -> Settings:
    """Read and check the settings file; the keyword arguments come from the command line and win.

    `path` None means /etc/tombsync/tombsync.toml where that exists, else no file: then the defaults, no peers, and the
    state under `$XDG_STATE_HOME`. Relative paths are refused here too: only the caller knows its directory.
    Raises BadSettings with every problem that was found.
    """
    file, table = _read(path)
    document = _Document(file or DEFAULT_PATH, table)
    document.lay_over(COMMAND_LINE, {"node": node, "root": root, "state_dir": state_dir})
    document.lay_over(COMMAND_LINE, {"listen": listen}, "http")
    if "node" not in table:
        document.lay_over(ENVIRONMENT, {"node": socket.gethostname()})
    if not file and "state_dir" not in table:
        document.lay_over(ENVIRONMENT, {"state_dir": _user_state_dir()})
    return document.settings()


def _read(path: str | None) -> tuple[str, dict[str, Any]]:
    """The name of the file that was read ("" for none) and its content. Raises BadSettings."""
    file = DEFAULT_PATH if path is None else path
    place = "settings file"
    try:
        with open(file, "rb") as stream:
            return file, tomllib.loads(stream.read().decode())
    except OSError as exc:
        if path is None and isinstance(exc, FileNotFoundError):
            return "", {}
        reason = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError as exc:
        newlines = exc.object.count(b"\n", 0, exc.start)
        place, reason = f"line {newlines + 1}", "not UTF-8, which TOML must be"
    except RecursionError:
        reason = "not TOML that can be read: nested too deeply"
    except ValueError as exc:  # TOMLDecodeError; also int(), which refuses thousands of digits
        found = _TOML_ERROR_PATTERN.fullmatch(str(exc))
        reason = f"not TOML: {found[1]}" if found else "not TOML that can be read: a number is too long"
        place = found[2] if found else place
    raise BadSettings((Problem(file, place, "", reason),))


def _user_state_dir() -> str:
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # the XDG Base Directory Specification: a relative one is ignored
        base = os.path.expanduser("~/.local/state")
    return f"{base}/tombsync"


class _Document:
    """A settings file and what was laid over it, while they are checked."""

    def __init__(self, file: str, table: dict[str, Any]) -> None:
        self.file = file
        self.table = table
        self.origins: dict[_Loc, str] = {}  # only of values that are not from the file
        self.faulty: set[_Loc] = set()

    def lay_over(self, origin: str, values: dict[str, str | None], below: str = "") -> None:
        for key, value in values.items():
            table = self.table.setdefault(below, {}) if below and value is not None else self.table
            if value is not None and isinstance(table, dict):  # one that is no table is a problem of its own
                table[key] = value
                self.origins[(below, key) if below else (key,)] = origin

    def settings(self) -> Settings:
        """The settings; raises BadSettings."""
        problems = []
        for field, key in LISTS.items():
            if field in self.table:  # the name of our field, not of the file's key
                problems.append(Problem(self.file, field, "", _unknown("", field)))
            self.table[field] = self.table.pop(key, [])
        try:
            settings = Settings.model_validate(self.table)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False)
            self.faulty = {error["loc"] for error in errors}
            problems += [found for error in errors if (found := self.problem(error["type"], error["loc"]))]
            # Once more without what is faulty, so that no mistake covers up a conflict of other values.
            settings = Settings.model_validate(self.sound_part())
        for reason, locs in _conflicts(settings, self.faulty):
            # Of two that disagree, the one that was just typed is the one to change.
            loc = next((loc for loc in locs if self.origins.get(loc) == COMMAND_LINE), locs[0])
            problems.append(self.tell(loc, _shown(_look(settings, loc)), reason))
        if problems:
            raise BadSettings(tuple(problems))
        return settings

    def sound_part(self) -> dict[str, Any]:
        """The table without its faulty values; names of a peer or sender get a stand-in."""
        table = copy.deepcopy(self.table)
        for loc in self.faulty:
            holder, last = _look(table, loc[:-1]), loc[-1]
            if loc[0] in LISTS and last in ("host", "name", "account") and last in TABLES[str(loc[0])].model_fields:
                holder[last] = f"stand-in-{loc[1]}"
            elif isinstance(last, int):
                holder[last] = {"host" if loc[0] == "peers" else "name": f"stand-in-{last}"}
            else:
                holder.pop(last, None)
        return table

    def problem(self, kind: str, loc: _Loc) -> Problem | None:
        """What to say of one of pydantic's errors; None where it only follows from another."""
        keys = [part for part in loc if isinstance(part, str)]
        table = keys[0] if len(keys) > 1 else ""
        if kind == "extra_forbidden":
            return self.tell(loc, "", _unknown(table, keys[-1]))  # its value might be a secret, put here by mistake
        allowed = str(TABLES[table].model_fields[keys[-1]].description)
        if kind == "missing":
            return self.tell(loc, "", f"must be given: {allowed}")
        if table == "peers" and keys[-1] == "name" and "name" not in _look(self.table, loc[:-1]):
            host = (*loc[:-1], "host")
            reason = f"the host cannot serve as the name, so give it one: {allowed}"
            return None if host in self.faulty else self.tell(loc, _shown(_look(self.table, host)), reason)
        if self.origins.get(loc) == ENVIRONMENT:
            allowed = f"cannot be taken from the environment, so set it in {self.file}: {allowed}"
        return self.tell(loc, _shown(_look(self.table, loc)), allowed)

    def tell(self, loc: _Loc, value: str, allowed: str) -> Problem:
        return Problem(self.origins.get(loc, self.file), printable(self.key(loc)), value, allowed)

    def key(self, loc: _Loc) -> str:
        """A key as an operator looks for it: `http.listen`, `peer 2 (node-b): port`."""
        field = str(loc[0])
        if field not in LISTS or len(loc) == 1:
            return ".".join(LISTS.get(str(part), str(part)) for part in loc)
        number = int(loc[1])
        entry = self.table[field][number]
        name = entry.get("name") or entry.get("host") if isinstance(entry, dict) else None
        who = f"{number + 1} ({name[:64]})" if isinstance(name, str) else str(number + 1)
        return f"{LISTS[field]} {who}" + "".join(f": {key}" for key in loc[2:])


def _look(thing: Any, loc: _Loc) -> Any:
    for part in loc:
        thing = getattr(thing, str(part)) if isinstance(thing, BaseModel) else thing[part]
    return thing


def _shown(value: Any) -> str:
    """A value much as it stands in the file, on one line, cut where it is long."""
    if isinstance(value, dict | list | tuple):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**_MAX_SHOWN:  # str() refuses thousands of digits
        return "a very large number"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return printable(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")


def _unknown(table: str, key: str) -> str:
    """What to say of a key that does not exist: the nearest one, and the table that it would belong to."""
    fields = {name: [LISTS.get(f, f) for f in model.model_fields] for name, model in TABLES.items()}
    hints = [f"did you mean {near}?" for near in difflib.get_close_matches(key, fields[table], 1)]
    hints += [f"{key} belongs {_title(other)}" for other, known in fields.items() if other != table and key in known]
    return "; ".join(["no such key", *(hints or ["here may stand " + ", ".join(fields[table])])])


def _title(table: str) -> str:
    """Where a table is written in the file."""
    if not table:
        return "above the first table"
    return f"under [[{LISTS[table]}]]" if table in LISTS else f"under [{table}]"


def _conflicts(settings: Settings, faulty: set[_Loc]) -> Iterator[tuple[str, list[_Loc]]]:
    """Values that are sound alone but not together: a sentence, and where they stand, the one to correct first.

    What is faulty alone is no part of it: in its place `settings` holds a default or a stand-in.
    """
    locs: list[_Loc] = [("rescan", "full_interval_s"), ("rescan", "interval_s")]
    if settings.rescan.full_interval_s < settings.rescan.interval_s and faulty.isdisjoint(locs):
        yield "at least rescan.interval_s", locs
    locs = [("state_dir",), ("root",)]
    if _nested(settings.root, settings.state_dir) and faulty.isdisjoint(locs):
        yield "root and state_dir must lie apart, neither inside the other", locs
    names: dict[str, int] = {}
    targets: dict[tuple[str, int, str, str], int] = {}
    node = settings.node.casefold()
    for number, peer in enumerate(settings.peers):
        name, host = peer.name.casefold(), peer.host.casefold().rstrip(".")
        locs = [("peers", number, "name"), ("node",)]
        if name == node and faulty.isdisjoint(locs):
            yield "the name of this node itself, which is no peer of its own", locs
        if names.setdefault(name, number) != number:  # a stand-in is like no other name
            yield f"peer {names[name] + 1} has this name already", locs[:1]
        locs = [("peers", number, key) for key in ("host", "port", "user", "path")]
        if not faulty.isdisjoint(locs):
            continue
        other = targets.setdefault((host, peer.port, peer.user, peer.path), number)
        if other != number:
            yield f"peer {other + 1} has the same host, port, user and path already", locs
        locs.append(("root",))
        own = peer.port == SSH_PORT and peer.path == settings.root and _is_local(host, node)
        if own and name != node and faulty.isdisjoint(locs):
            yield "this node's own tree, which is no peer of its own", locs
    yield from _inbox_conflicts(settings, faulty)


def _inbox_conflicts(settings: Settings, faulty: set[_Loc]) -> Iterator[tuple[str, list[_Loc]]]:
    for key in ("root", "state_dir"):
        locs: list[_Loc] = [("inbox", "jail"), (key,)]
        path = getattr(settings, key)
        if settings.senders and _nested(path, settings.inbox.jail) and faulty.isdisjoint(locs):
            yield f"jail and {key} must lie apart, neither inside the other", locs
    for key in ("name", "account"):
        seen: dict[str, int] = {}
        for number, sender in enumerate(settings.senders):
            locs = [("senders", number, key)]
            first = seen.setdefault(getattr(sender, key).casefold(), number)
            if first != number and faulty.isdisjoint(locs):
                yield f"sender {first + 1} has this {key} already", locs


def _nested(path: str, other: str) -> bool:
    """Whether two paths are the same, or one is inside the other."""
    shorter, longer = sorted((path, other), key=len)
    return f"{longer}/".startswith(f"{shorter.rstrip('/')}/")


def _is_local(host: str, node: str) -> bool:
    """Whether a host (folded, no final dot) is this machine by its text alone."""
    if host in (node, socket.gethostname().casefold()) or "localhost" in (*host.split(".")[:1], *host.split(".")[-1:]):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified

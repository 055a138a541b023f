"""Settings: one TOML file, validated whole, every problem reported at once.

`load` is the way in. It is purely textual: no path is resolved, no name is looked up in DNS, nothing is opened but the
settings file itself. Nothing in the settings is secret; the private key is named by its path.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import json
import os
import posixpath
import re
import socket
import tomllib
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tombsync.errors import BadSettings, Problem
from tombsync.names import printable

DEFAULT_PATH = "/etc/tombsync/tombsync.toml"
DEFAULT_ROOT = "/segments"
DEFAULT_STATE_DIR = "/var/lib/tombsync"
SSH_PORT = 22
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path of Linux, less the NUL
MAX_INTERVAL_S = 366 * 86400  # longer than anybody means, and far from the limits of every timer
_MAX_SHOWN = 80  # characters of a faulty value
# What a problem names as its file when the value did not come from one.
COMMAND_LINE = "command line"
ENVIRONMENT = "environment"

_HOST_PATTERN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?\.?")
_TOML_ERROR_PATTERN = re.compile(r"(.*) \(at (line \d+|end of document).*\)", re.DOTALL)
_Loc: TypeAlias = tuple[int | str, ...]  # where a value stands, as pydantic tells it: ("peers", 0, "port")


class Listen(NamedTuple):
    """Where the HTTP side listens: a Unix socket's `path`, or, where that is "", `host` (no brackets) and `port`."""

    path: str
    host: str
    port: int


def split_listen(text: str) -> Listen:
    """Take `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH` apart; port 0 means any free one. Raises ValueError."""
    if text.startswith("unix:"):
        path = _absolute(text.removeprefix("unix:"))
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError("too long for the path of a socket")
        return Listen(path, "", 0)
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("no port")
    bare = host.removeprefix("[").removesuffix("]")
    if host != (f"[{bare}]" if ":" in bare else bare):
        raise ValueError("IPv6 addresses, and only they, stand in brackets")
    return Listen("", _host(bare), int(port))


def _listen(text: str) -> str:
    split_listen(text)
    return text


def _plain(text: str) -> str:
    if not text or any(unicodedata.category(c) == "Cc" for c in text):
        raise ValueError("empty, or a control character")
    return text


def _host(text: str) -> str:
    if ":" in _plain(text):
        return str(ipaddress.IPv6Address(text))
    if not _HOST_PATTERN.fullmatch(text):
        raise ValueError("not a host")
    return text


def _user(text: str) -> str:
    if _plain(text).split() != [text]:
        raise ValueError("white space")
    return text


def _absolute(text: str) -> str:
    """The path without doubled, trailing and `.` parts, so that the same directory compares equal."""
    if not _plain(text).startswith("/") or ".." in text.split("/"):
        raise ValueError("not an absolute path")
    return posixpath.normpath("/" + text.lstrip("/"))


# A description is the sentence that an operator reads where the value is not allowed.
_NAME_RULE = "1 to 64 letters, digits, dots, underscores and hyphens, not beginning with a dot or a hyphen"
_HOST_RULE = "a host name or IP address alone (user and port have keys of their own)"
_USER_RULE = "an account's name, without spaces and control characters"
_PATH_RULE = "an absolute path, without .. and control characters"
_LISTEN_RULE = 'an address like "127.0.0.1:9786" or "[::1]:9786", or a socket like "unix:/run/tombsync/http.sock"'
_SECONDS_RULE = f"a whole number of seconds from 1 to {MAX_INTERVAL_S}"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$", description=_NAME_RULE)]
_Path = Annotated[str, AfterValidator(_absolute), Field(description=_PATH_RULE)]
_Seconds = Annotated[int, Field(ge=1, le=MAX_INTERVAL_S, description=_SECONDS_RULE)]


class _Table(BaseModel):
    # Strict, because TOML has types: a port that is a text is a mistake.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PeerSettings(_Table):
    """One `[[peer]]`. Every key has a default but `host`; `name` is the host where it is not given."""

    host: Annotated[str, AfterValidator(_host), Field(description=_HOST_RULE)]
    name: _Name = ""
    port: Annotated[int, Field(ge=1, le=65535, description="a whole number from 1 to 65535")] = SSH_PORT
    user: Annotated[str, AfterValidator(_user), Field(description=_USER_RULE)] = "tombsync"
    key: _Path = "/etc/tombsync/id_ed25519"
    known_hosts: _Path = "/etc/tombsync/known_hosts"
    delivery: Annotated[Literal["tree", "inbox"], Field(description='"tree" or "inbox"')] = "tree"
    path: _Path = DEFAULT_ROOT  # tree: its segment root; inbox: the view of its root inside the jail
    verify_interval_s: _Seconds = 3600

    @model_validator(mode="before")
    @classmethod
    def _name_is_host(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" not in data and "host" in data:
            return {**data, "name": data["host"]}
        return data


class HttpSettings(_Table):
    """`[http]`: the read side."""

    listen: Annotated[str, AfterValidator(_listen), Field(description=_LISTEN_RULE)] = "127.0.0.1:9786"

    @property
    def address(self) -> Listen:
        """`listen`, taken apart."""
        return split_listen(self.listen)


class RescanSettings(_Table):
    """`[rescan]`: `interval_s` for directories whose mtime says they changed, `full_interval_s` for every directory."""

    interval_s: _Seconds = 300
    full_interval_s: _Seconds = 86400


class Settings(_Table):
    """All settings. One made by hand is checked field by field; `load` also checks them against each other."""

    node: _Name = Field(default_factory=socket.gethostname)
    root: _Path = DEFAULT_ROOT
    state_dir: _Path = DEFAULT_STATE_DIR
    # Where the audit goes: to journald where its socket is, and else to stderr; or to stderr in any case.
    journal: Annotated[Literal["auto", "stderr"], Field(description='"auto" or "stderr"')] = "auto"
    http: Annotated[HttpSettings, Field(description="a table, written under [http]")] = HttpSettings()
    rescan: Annotated[RescanSettings, Field(description="a table, written under [rescan]")] = RescanSettings()
    # `[[peer]]` in the file. Not strict about the sequence: TOML gives a list, frozen settings keep a tuple.
    peers: Annotated[tuple[PeerSettings, ...], Field(strict=False, description="tables, each under [[peer]]")] = ()


_TABLES: dict[str, type[_Table]] = {"": Settings, "http": HttpSettings, "rescan": RescanSettings, "peers": PeerSettings}
_TITLES = {"": "above the first table", "http": "under [http]", "rescan": "under [rescan]", "peers": "under [[peer]]"}


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
        if "peers" in self.table:  # the name of our field, not of the file's key
            problems.append(Problem(self.file, "peers", "", _unknown("", "peers")))
        self.table["peers"] = self.table.pop("peer", [])
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
        """The table without its faulty values; a peer whose host or name is one of them gets a stand-in."""
        table = copy.deepcopy(self.table)
        for loc in self.faulty:
            holder, last = _look(table, loc[:-1]), loc[-1]
            if loc[0] == "peers" and last in ("host", "name"):
                holder[last] = f"stand-in-{loc[1]}"
            elif isinstance(last, int):
                holder[last] = {"host": f"stand-in-{last}"}
            else:
                holder.pop(last, None)
        return table

    def problem(self, kind: str, loc: _Loc) -> Problem | None:
        """What to say of one of pydantic's errors; None where it only follows from another."""
        keys = [part for part in loc if isinstance(part, str)]
        table = keys[0] if len(keys) > 1 else ""
        if kind == "extra_forbidden":
            return self.tell(loc, "", _unknown(table, keys[-1]))  # its value might be a secret, put here by mistake
        allowed = str(_TABLES[table].model_fields[keys[-1]].description)
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
        if loc[0] != "peers" or len(loc) == 1:
            return ".".join("peer" if part == "peers" else str(part) for part in loc)
        number = int(loc[1])
        peer = self.table["peers"][number]
        name = peer.get("name") or peer.get("host") if isinstance(peer, dict) else None
        who = f"{number + 1} ({name[:64]})" if isinstance(name, str) else str(number + 1)
        return f"peer {who}" + "".join(f": {key}" for key in loc[2:])


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
    fields = {name: ["peer" if f == "peers" else f for f in model.model_fields] for name, model in _TABLES.items()}
    hints = [f"did you mean {near}?" for near in difflib.get_close_matches(key, fields[table], 1)]
    hints += [f"{key} belongs {_TITLES[other]}" for other, known in fields.items() if other != table and key in known]
    return "; ".join(["no such key", *(hints or ["here may stand " + ", ".join(fields[table])])])


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

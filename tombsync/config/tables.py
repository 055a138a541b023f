"""The tables of the settings file, each value with its rule. Purely textual: nothing is resolved or looked up."""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import socket
import unicodedata
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

DEFAULT_PATH = "/etc/tombsync/tombsync.toml"
DEFAULT_ROOT = "/segments"
DEFAULT_STATE_DIR = "/var/lib/tombsync"
DEFAULT_JAIL = "/srv/tombsync"  # a chroot must be root's all the way up: not below /var/lib/tombsync, which is ours
ACCOUNT_PREFIX = "tombsync-"
SSH_PORT = 22
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path of Linux, less the NUL
MAX_INTERVAL_S = 366 * 86400  # longer than anybody means, and far from the limits of every timer
MAX_ACCOUNT_CHARACTERS = 32  # of useradd(8)

_HOST_PATTERN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?\.?")


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
_ACCOUNT_RULE = "an account's name: 1 to 32 small letters, digits, underscores and hyphens, not beginning with a hyphen"
_COUNT_RULE = "a whole number from 1 to 1000000000"
_SECONDS_RULE = f"a whole number of seconds from 1 to {MAX_INTERVAL_S}"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$", description=_NAME_RULE)]
_Path = Annotated[str, AfterValidator(_absolute), Field(description=_PATH_RULE)]
_Seconds = Annotated[int, Field(ge=1, le=MAX_INTERVAL_S, description=_SECONDS_RULE)]

_Count = Annotated[int, Field(ge=1, le=1_000_000_000, description=_COUNT_RULE)]


class Table(BaseModel):
    # Strict, because TOML has types: a port that is a text is a mistake.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PeerSettings(Table):
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


class SenderSettings(Table):
    """One `[[sender]]`: a peer that may deliver into an inbox of this node, by an account of its own here."""

    name: _Name
    account: Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9_-]{0,31}$", description=_ACCOUNT_RULE)] = ""

    @model_validator(mode="before")
    @classmethod
    def _account_of_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "account" not in data and isinstance(data.get("name"), str):
            return {**data, "account": account_of(data["name"])}
        return data


def account_of(sender: str) -> str:
    """The account that a sender of this name gets where none is given."""
    plain = re.sub(r"[^a-z0-9_-]", "-", sender.lower())
    return f"{ACCOUNT_PREFIX}{plain}"[:MAX_ACCOUNT_CHARACTERS]


class InboxSettings(Table):
    """`[inbox]`: where the senders' accounts are jailed, and how much each may deliver."""

    jail: _Path = DEFAULT_JAIL
    quota_per_hour: _Count = 10_000

    @property
    def view(self) -> str:
        """The read-only bind mount of ROOT; inside of the jail it is what a sender's `path` names."""
        return f"{self.jail}{DEFAULT_ROOT}"

    @property
    def directories(self) -> str:
        """Where the inboxes are."""
        return f"{self.jail}/inbox"

    def directory(self, account: str) -> str:
        """The inbox of one account."""
        return f"{self.directories}/{account}"


class BreakerSettings(Table):
    """`[breaker]`: more tombstones than this within a minute are hidden here, and wait for `tombsync release`."""

    most_per_minute: _Count = 500


class HttpSettings(Table):
    """`[http]`: the read side."""

    listen: Annotated[str, AfterValidator(_listen), Field(description=_LISTEN_RULE)] = "127.0.0.1:9786"

    @property
    def address(self) -> Listen:
        """`listen`, taken apart."""
        return split_listen(self.listen)


class RescanSettings(Table):
    """`[rescan]`: `interval_s` for directories whose mtime says they changed, `full_interval_s` for every directory."""

    interval_s: _Seconds = 300
    full_interval_s: _Seconds = 86400


class Settings(Table):
    """All settings. One made by hand is checked field by field; `load` also checks them against each other."""

    node: _Name = Field(default_factory=socket.gethostname)
    root: _Path = DEFAULT_ROOT
    state_dir: _Path = DEFAULT_STATE_DIR
    # Where the audit goes: to journald where its socket is, and else to stderr; or to stderr in any case.
    journal: Annotated[Literal["auto", "stderr"], Field(description='"auto" or "stderr"')] = "auto"
    http: Annotated[HttpSettings, Field(description="a table, written under [http]")] = HttpSettings()
    rescan: Annotated[RescanSettings, Field(description="a table, written under [rescan]")] = RescanSettings()
    inbox: Annotated[InboxSettings, Field(description="a table, written under [inbox]")] = InboxSettings()
    breaker: Annotated[BreakerSettings, Field(description="a table, written under [breaker]")] = BreakerSettings()
    # `[[peer]]` and `[[sender]]` in the file. Not strict about the sequence: TOML gives a list, we keep a tuple.
    peers: Annotated[tuple[PeerSettings, ...], Field(strict=False, description="tables, each under [[peer]]")] = ()
    senders: Annotated[
        tuple[SenderSettings, ...], Field(strict=False, description="tables, each under [[sender]]")
    ] = ()


# Field of Settings -> its table, and the words for where that is written in the file.
TABLES: dict[str, type[Table]] = {
    "": Settings,
    "http": HttpSettings,
    "rescan": RescanSettings,
    "inbox": InboxSettings,
    "breaker": BreakerSettings,
    "peers": PeerSettings,
    "senders": SenderSettings,
}
LISTS = {"peers": "peer", "senders": "sender"}  # field -> `[[key]]` of the file

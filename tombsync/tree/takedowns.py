"""The takedowns of this node, kept with the tree itself: ROOT/.tombsync/takedowns/ID.json, one small file each.

They say which time was taken down, so that what arrives later in it is known for what it is. Beside the tree they
survive a new index and a new state directory. Commands write them, each as a whole; the agent only reads them. A
takedown stays on the node where it was made: other nodes get the tombstones, and no record.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from tombsync.errors import BadName, BadTime, NoTakedown, TakedownUnreadable, TreeRefused
from tombsync.names import HASH_PATTERN, OWN_DIRECTORY, hour_number, strict_hour
from tombsync.timeline import HOUR_US, parse_time
from tombsync.tree.directories import open_below
from tombsync.tree.own import FILE_MODE, give_as, make_below, write_all

log = logging.getLogger(__name__)

TAKEDOWNS = "takedowns"
_VERSION = 1
_SUFFIX = ".json"
_ID_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"  # what is not mistaken for another when it is read out or typed
_ID_LENGTH = 5  # 24 million: enough for one node, and an ID that is taken is not used twice
_ID_PATTERN = re.compile(r"[0-9a-z]{1,32}", re.ASCII)
_MOST_BYTES = 16 << 20  # 350,000 hashes: a channel in three qualities for two days and more
_MOST_TEXT = 4096  # characters of a reason
_LAST_US = (hour_number("9999-12-31T23") + 1) * HOUR_US
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Takedown:
    """One takedown. Times are microseconds as in `tombsync.timeline`, the span is half open.

    `qualities`: those it covers, all of them where empty. `chat`: batches of chat too. `sticky`: what arrives late is
    marked at once. `twins`: also copies (by hash) and names a tolerance away. `hashes`: of what was marked. Written by
    a person's command: `actor` is a claim. `created_at` and `ended_at`: ISO 8601, UTC; `ended_at` is "" while it runs.
    """

    id: str
    channel: str
    start_us: int
    end_us: int
    qualities: tuple[str, ...]
    chat: bool
    sticky: bool
    twins: bool
    hashes: tuple[str, ...]
    reason: str
    actor: str
    node: str
    created_at: str
    ended_at: str = ""
    ended_by: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has not been ended."""
        return not self.ended_at


def new_takedown_id() -> str:
    """A new ID: short, and easy to type and to read out."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def write_takedown(root_fd: int, takedown: Takedown) -> None:
    """Keep a new takedown, durably. Raises ValueError where it is none, TreeRefused where it cannot be written or one
    of this ID is there already."""
    _parse(takedown.id, json.loads(_document(takedown)))
    _write(root_fd, takedown, replacing=False)


def end_takedown(root_fd: int, id: str, actor: str) -> Takedown:
    """End a takedown, durably; as it is now. One that has ended is left as it is.

    Raises NoTakedown, TakedownUnreadable, TreeRefused.
    """
    takedown = find_takedown(root_fd, id)
    if takedown.runs:
        ended_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        by = actor[:_MOST_TEXT].encode(errors="replace").decode()  # bytes that are no text must not spoil the record
        takedown = replace(takedown, ended_at=ended_at, ended_by=by)
        _write(root_fd, takedown, replacing=True)
    return takedown


def find_takedown(root_fd: int, id: str) -> Takedown:
    """The takedown of an ID. Raises NoTakedown, TakedownUnreadable."""
    if _ID_PATTERN.fullmatch(id) is None:
        raise NoTakedown(id)
    try:
        directory = open_below(root_fd, OWN_DIRECTORY, TAKEDOWNS)
    except FileNotFoundError:
        raise NoTakedown(id) from None
    except OSError as exc:
        raise TakedownUnreadable(_path(id), os.strerror(exc.errno or 0)) from exc
    try:
        return _read(directory, id)
    finally:
        os.close(directory)


def _tell(problem: TakedownUnreadable) -> None:
    log.warning("%s", problem)


def read_takedowns(root_fd: int, damaged: Callable[[TakedownUnreadable], None] = _tell) -> list[Takedown]:
    """Every takedown that was ever made here, the oldest first, also those that ended. `damaged` is told of each record
    that cannot be followed, or of the directory where that cannot be read."""
    try:
        directory = open_below(root_fd, OWN_DIRECTORY, TAKEDOWNS)
    except FileNotFoundError:
        return []
    except OSError as exc:
        damaged(TakedownUnreadable(f"{OWN_DIRECTORY}/{TAKEDOWNS}", os.strerror(exc.errno or 0)))
        return []
    found = []
    try:
        for name in sorted(os.listdir(directory)):
            id = name.removesuffix(_SUFFIX)
            if id == name or _ID_PATTERN.fullmatch(id) is None:  # also one that a crash left half written
                continue
            try:
                found.append(_read(directory, id))
            except NoTakedown:  # gone meanwhile
                continue
            except TakedownUnreadable as exc:
                damaged(exc)
    except OSError as exc:
        damaged(TakedownUnreadable(f"{OWN_DIRECTORY}/{TAKEDOWNS}", os.strerror(exc.errno or 0)))
    finally:
        os.close(directory)
    return sorted(found, key=lambda takedown: (parse_time(takedown.created_at), takedown.id))


def _path(id: str) -> str:
    return f"{OWN_DIRECTORY}/{TAKEDOWNS}/{id}{_SUFFIX}"


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(directory: int, id: str) -> Takedown:
    """Raises NoTakedown, TakedownUnreadable."""
    try:
        fd = os.open(id + _SUFFIX, _READ, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TakedownUnreadable(_path(id), "it is a directory, a link or a device")
            with open(fd, "rb", closefd=False) as file:
                text = file.read(_MOST_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise NoTakedown(id) from None
    except OSError as exc:
        raise TakedownUnreadable(_path(id), os.strerror(exc.errno or 0)) from exc
    if len(text) > _MOST_BYTES:
        raise TakedownUnreadable(_path(id), f"it is longer than {_MOST_BYTES >> 20} MiB")
    try:
        return _parse(id, json.loads(text))
    except (ValueError, RecursionError) as exc:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = str(exc) if type(exc) is ValueError else "it is no JSON document"
        raise TakedownUnreadable(_path(id), reason) from exc


def _parse(id: str, document: Any) -> Takedown:
    """Read what stands in the file of an ID, and believe nothing of it. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("it is no table")
    version = document.pop("version", None)
    if version != _VERSION or isinstance(version, bool):
        raise ValueError(f"version {version!r} is not known, perhaps one of a newer tombsync")
    for key, is_valid in _VALID.items():
        if key not in document:
            raise ValueError(f"{key} is missing")
        if not is_valid(document[key]):
            raise ValueError(f"{key} is not what it must be")
    if unknown := sorted(set(document) - set(_VALID)):
        raise ValueError(f"it has keys that are not known, {unknown[0]!r} for one")
    if document["id"] != id or _ID_PATTERN.fullmatch(id) is None:
        raise ValueError("its id is not that of its name")
    if document["start_us"] >= document["end_us"]:
        raise ValueError("it ends before it starts")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return Takedown(**values)


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a half of a pair, which no journal and no terminal takes
        return False
    return True


def _is_part(value: object) -> bool:
    """Whether it may be a channel or a quality."""
    try:
        return isinstance(value, str) and bool(strict_hour(value, value, "2000-01-01T00"))
    except BadName:
        return False


def _is_moment(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST_US


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and parse_time(value) >= 0
    except BadTime:
        return False


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and HASH_PATTERN.fullmatch(value) is not None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_VALID: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str),
    "channel": _is_part,
    "start_us": _is_moment,
    "end_us": _is_moment,
    "qualities": lambda value: isinstance(value, list) and all(map(_is_part, value)),
    "chat": _is_flag,
    "sticky": _is_flag,
    "twins": _is_flag,
    "hashes": lambda value: isinstance(value, list) and all(map(_is_hash, value)),
    "reason": _is_text,
    "actor": _is_text,
    "node": _is_text,
    "created_at": _is_time,
    "ended_at": lambda value: value == "" or _is_time(value),
    "ended_by": _is_text,
}


# -- writing ----------------------------------------------------------------------------------------------------------


def _document(takedown: Takedown) -> bytes:
    return json.dumps({"version": _VERSION, **asdict(takedown)}, indent=1).encode() + b"\n"


def _write(root_fd: int, takedown: Takedown, *, replacing: bool) -> None:
    """Write a file beside it, sync it, and give it its name: whoever reads sees all of it, or what was before."""
    name = takedown.id + _SUFFIX
    new = f".{takedown.id}-{secrets.token_hex(8)}"
    try:
        directory = make_below(root_fd, OWN_DIRECTORY, TAKEDOWNS)
        try:
            fd = os.open(new, _NEW, FILE_MODE, dir_fd=directory)
            try:
                try:
                    os.fchmod(fd, FILE_MODE)
                    give_as(directory, fd)
                    write_all(fd, _document(takedown))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                if replacing:
                    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
                else:
                    os.link(new, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(new, dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise TreeRefused(_path(takedown.id), os.strerror(exc.errno or 0), exc.errno or 0) from exc

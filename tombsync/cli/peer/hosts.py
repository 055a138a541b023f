"""The host keys of peers: pinned before anything is sent to them, and never exchanged by a command."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tombsync import errors
from tombsync.cli.peer.files import open_regular, read_text, replace_file, require_roots
from tombsync.cli.peer.keys import KINDS, PublicKey, parse_public_key
from tombsync.cli.peer.steps import Step
from tombsync.config import PeerSettings

if TYPE_CHECKING:
    from tombsync.peers.known_hosts import Pinned

_HINT = "give the host key lines that the other operator's `tombsync peer show` printed, one of them or a file of them"
_MAX_BYTES = 256 * 1024


def known_hosts_line(key: PublicKey, host: str, port: int) -> str:
    """A host key as known_hosts has it."""
    from tombsync.peers import known_hosts  # not above: it takes long to load

    return f"{known_hosts.name_of(host, port)} {key}"


def read_host_keys(given: str) -> list[PublicKey]:
    """The keys of known_hosts lines, or of lines of public keys: given as one line, or as the file that holds them.

    What such a line calls the host does not matter: the keys are of the peer for which they are given. Those of kinds
    that cannot be used here are passed over. Raises BadPublicKey.
    """
    source, lines = (given, _lines(given)) if not set(given.split()) & {*KINDS} else ("--host-key", [given])
    found = [key for line in lines if (key := _read_line(source, line))]
    if not found:
        raise errors.BadPublicKey(source, f"holds no host key of a kind that can be used ({', '.join(KINDS)})", _HINT)
    return list(dict.fromkeys(found))


def _lines(path: str) -> list[str]:
    try:
        with open(open_regular(path), encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_BYTES).splitlines()
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise errors.BadPublicKey(path, f"cannot be read: {getattr(exc, 'strerror', None) or exc}", _HINT) from exc


def _read_line(source: str, line: str) -> PublicKey | None:
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return None
    if fields[0].startswith("@"):
        raise errors.BadPublicKey(source, f"has a line that begins with {fields[0]}: no key to be pinned", _HINT)
    if fields[0] not in KINDS:
        del fields[0]  # the host
    if not fields or fields[0] not in KINDS:
        return None
    return parse_public_key(source, " ".join(fields))


def pin_step(peer: PeerSettings, keys: Sequence[PublicKey]) -> Step:
    """Pin what is not pinned yet, where `known_hosts` is root's alone. Raises OtherHostKeyPinned, FileRefused."""
    _require_no_other(peer, keys)
    lines = [known_hosts_line(key, peer.host, peer.port) for key in _missing(peer, keys)]
    return Step(
        f"pin the host key of {peer.host} in {peer.known_hosts}: {', '.join(key.fingerprint for key in keys)}",
        lambda: not _missing(peer, keys),
        lambda: _append(peer.known_hosts, lines),
        [f"{peer.known_hosts}:", *(f"  {line}" for line in lines)],
    )


def is_pinned(peer: PeerSettings) -> bool:
    """Whether any host key of a peer is known."""
    return bool(_pinned(peer).keys)


def _pinned(peer: PeerSettings) -> Pinned:
    from tombsync.peers import known_hosts

    try:
        return known_hosts.read(peer.known_hosts, host=peer.host, port=peer.port)
    except FileNotFoundError:
        return known_hosts.Pinned(frozenset(), frozenset())
    except OSError as exc:
        raise errors.FileRefused(peer.known_hosts, exc.strerror or str(exc)) from exc


def _entry(key: PublicKey) -> tuple[str, bytes]:
    return key.kind, base64.b64decode(key.blob)


def _missing(peer: PeerSettings, keys: Sequence[PublicKey]) -> list[PublicKey]:
    pinned = _pinned(peer)
    return [key for key in keys if _entry(key) not in pinned.keys]


def _require_no_other(peer: PeerSettings, keys: Sequence[PublicKey]) -> None:
    """Where a key is pinned already, one of another kind comes beside it only together with it: as that machine's."""
    from tombsync.peers import known_hosts

    pinned = _pinned(peer)
    given = {_entry(key) for key in keys}
    kinds = {kind for kind, _ in pinned.keys}
    contradicted = any(kind in kinds and (kind, blob) not in pinned.keys for kind, blob in given)
    reason = ""
    if any(blob in pinned.revoked for _, blob in given):
        reason = "has this key as revoked"
    elif pinned.keys and (contradicted or not given & pinned.keys):
        reason = "has another key"
    if reason:
        name = known_hosts.name_of(peer.host, peer.port)
        raise errors.OtherHostKeyPinned(peer.name, name, peer.known_hosts, reason)


def _append(path: str, lines: Sequence[str]) -> None:
    require_roots(path)
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    before = read_text(path)
    start = before if not before or before.endswith("\n") else f"{before}\n"
    replace_file(path, start + "".join(f"{line}\n" for line in lines))

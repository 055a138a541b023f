"""Pinned host keys: a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), read line by line.

A line that is not understood is passed over with a warning and costs nothing else; paramiko's own loader gives the
whole file up at it. `@revoked` is honoured; `@cert-authority` cannot be, and its line is passed over.
"""

from __future__ import annotations

import hmac
import logging
import os
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha1

import paramiko

from tombsync.errors import HostKeyChanged, HostKeyUnknown

log = logging.getLogger(__name__)

# The signature algorithms that prove a key of each type, best first.
_ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


@dataclass(frozen=True)
class Pinned:
    """The keys that are known for one host, as (type, key blob), and those revoked for it."""

    keys: frozenset[tuple[str, bytes]]
    revoked: frozenset[bytes]

    def algorithms(self) -> tuple[str, ...]:
        """What to offer, so that the server proves itself by a key that is known here. Order of preference."""
        known = {kind for kind, _ in self.keys}
        return tuple(a for kind, algorithms in _ALGORITHMS.items() if kind in known for a in algorithms)

    def require(self, peer: str, key: paramiko.PKey) -> None:
        """Raise HostKeyChanged where the server's key is not a pinned one, or is revoked."""
        blob = key.asbytes()
        if blob in self.revoked:
            raise HostKeyChanged(peer, f"{key.fingerprint} is marked @revoked in known_hosts")
        if (key.get_name(), blob) not in self.keys:
            raise HostKeyChanged(peer, f"it now shows {key.get_name()} {key.fingerprint}")


class HostKeyHalt:
    """After a wrong host key nothing is tried until a person has changed known_hosts. One thread's."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen_ns = 0
        self._halted = False

    def look(self) -> None:
        """Remember the file as it is before an attempt: a correction during it counts."""
        self._seen_ns = self._mtime_ns()

    def begin(self) -> None:
        """The attempt met a wrong key."""
        self._halted = True

    def lifted(self) -> bool:
        """Whether an attempt may be made."""
        self._halted = self._halted and self._mtime_ns() == self._seen_ns
        return not self._halted

    def _mtime_ns(self) -> int:
        try:
            return os.stat(self._path).st_mtime_ns
        except OSError:
            return 0


def load(path: str, *, peer: str, host: str, port: int) -> Pinned:
    """The keys of one host. Raises HostKeyUnknown where the file cannot be read or has none for it."""
    try:
        pinned = read(path, host=host, port=port)
    except OSError as exc:
        raise HostKeyUnknown(peer, f"{path}: {exc.strerror}") from exc
    if not pinned.algorithms():
        raise HostKeyUnknown(peer, f"{path} has no key for {name_of(host, port)}")
    return pinned


def name_of(host: str, port: int) -> str:
    """What a host is called in the file."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def read(path: str, *, host: str, port: int) -> Pinned:
    """What the file says of one host. Raises OSError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    name = name_of(host, port)
    keys: set[tuple[str, bytes]] = set()
    revoked: set[bytes] = set()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) < 3 or marker not in ("", "@revoked", "@cert-authority"):
            log.warning("%s:%d: not a known_hosts line, passed over", path, number)
            continue
        if marker == "@cert-authority" or not _matches(fields[0], name):
            continue
        try:
            blob = b64decode(fields[2], validate=True)
        except ValueError:
            log.warning("%s:%d: a key that is no base64, passed over", path, number)
            continue
        if marker == "@revoked":
            revoked.add(blob)
        else:
            keys.add((fields[1], blob))
    return Pinned(frozenset(keys), frozenset(revoked))


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):  # hashed: |1|base64(salt)|base64(HMAC-SHA1(salt, name))
        try:
            _, _, salt, digest = patterns.split("|")
            expected = hmac.new(b64decode(salt), name.encode(), sha1).digest()
            return hmac.compare_digest(expected, b64decode(digest))
        except ValueError:
            return False
    matched = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        if _wildcard(pattern.lstrip("!"), name):
            if negated:
                return False
            matched = True
    return matched


def _wildcard(pattern: str, name: str) -> bool:
    # Only * and ? are special here; brackets belong to [host]:port, so fnmatch would be wrong. Kept are the places of
    # the name that the pattern so far can reach, so that no line, however strange, takes long.
    reached = {0}
    for character in pattern:
        if character == "*":
            reached = set(range(min(reached), len(name) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(name) and character in ("?", name[at])}
        if not reached:
            return False
    return len(name) in reached

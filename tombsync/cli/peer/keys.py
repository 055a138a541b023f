"""Keys: those that let a sender in, and the one that this node logs in with elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pwd import struct_passwd

from tombsync import errors
from tombsync.cli.files import sync_directory
from tombsync.cli.peer.files import open_regular, read_text, remove_file, replace_file, require_roots
from tombsync.cli.peer.sshd import KEYS
from tombsync.cli.peer.steps import Step, run_program

_MAX_BYTES = 16 * 1024  # an RSA key of 16,384 bits has 2.8 kB
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_FEWEST_RSA_BITS = 2048
# On each line besides what sshd is told of the account: should the drop-in be taken away, the key opens nothing else.
_RESTRICTED = "restrict"


@dataclass(frozen=True)
class PublicKey:
    """A public key as one line has it; `blob` is base64. Two are equal where they are the same key."""

    kind: str
    blob: str

    def __str__(self) -> str:
        return f"{self.kind} {self.blob}"

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen -l shows it."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_public_key(path: str) -> PublicKey:
    """The key of a file that holds one public key and nothing else. Raises BadPublicKey."""
    try:
        with open(open_regular(path), "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise errors.BadPublicKey(path, f"cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if reason := _no_single_line(content):
        raise errors.BadPublicKey(path, reason)
    return parse_public_key(path, content.decode("utf-8", "replace"))


def _no_single_line(content: bytes) -> str:
    if b"PRIVATE KEY" in content:
        return "holds a private key, which must never leave its node: make a new one"
    if len(content) > _MAX_BYTES:
        return "is too long for a public key"
    lines = [line for line in content.splitlines() if line.strip()]
    return "" if len(lines) == 1 else f"holds {len(lines)} lines instead of one public key"


def parse_public_key(path: str, line: str) -> PublicKey:
    """The key of a line, from a file of that path. Raises BadPublicKey."""
    import paramiko  # not above: it takes long to load

    fields = line.split()
    if fields[0] not in KINDS:
        known = next((field for field in fields if field in KINDS), None)
        what = "has options before its key" if known else "does not begin with the type of a key that can be used here"
        raise errors.BadPublicKey(path, f"{what} ({', '.join(KINDS)})" if not known else what)
    try:
        blob = base64.b64decode(fields[1], validate=True)
        key = paramiko.PKey.from_type_string(fields[0], blob)
    except (IndexError, binascii.Error, ValueError, paramiko.SSHException) as exc:
        raise errors.BadPublicKey(path, "is not a public key: damaged or cut off") from exc
    if key.asbytes() != blob or key.get_name() != fields[0]:
        raise errors.BadPublicKey(path, "is not a public key: its parts do not agree")
    if fields[0] == "ssh-rsa" and key.get_bits() < _FEWEST_RSA_BITS:
        raise errors.BadPublicKey(path, f"an RSA key of fewer than {_FEWEST_RSA_BITS} bits")
    return PublicKey(fields[0], base64.b64encode(blob).decode())


# -- who is let in ----------------------------------------------------------------------------------------------------


def authorized(account: str) -> list[PublicKey]:
    """The keys of an account, the newest last."""
    found = []
    for line in read_text(f"{KEYS}/{account}").splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[0] == _RESTRICTED:
            found.append(PublicKey(fields[1], fields[2]))
    return found


def require_unused(key: PublicKey, account: str) -> None:
    """Raise KeyTaken where another account has this key: its owner could log in as either."""
    others = sorted(os.listdir(KEYS)) if os.path.isdir(KEYS) else []
    for other in others:
        if other != account and key in authorized(other):
            raise errors.KeyTaken(key.fingerprint, other)


def authorize_steps(account: str, name: str, keys: Sequence[PublicKey]) -> Iterator[Step]:
    """Let exactly these keys in; `name`: whose they are."""
    path = f"{KEYS}/{account}"
    lines = [f"{_RESTRICTED} {key} {name}" for key in keys]
    text = "".join(f"{line}\n" for line in lines)
    yield Step(f"make the directory {KEYS}, root's, mode 0755", _directory_stands, _make_directory)
    yield Step(
        f"let {', '.join(key.fingerprint for key in keys)} in as {account}",
        lambda: read_text(path) == text and _is_roots(path, 0o644),
        lambda: _write(path, text),
        [f"{path}:", *(f"  {line}" for line in lines)],
    )


def removal_step(account: str) -> Step:
    """Let nobody in."""
    path = f"{KEYS}/{account}"
    return Step(f"remove the keys of {account}", lambda: not os.path.lexists(path), lambda: remove_file(path))


def _directory_stands() -> bool:
    return os.path.isdir(KEYS) and _is_roots(KEYS, 0o755)


def _make_directory() -> None:
    os.makedirs(KEYS, exist_ok=True)
    os.chown(KEYS, 0, 0)
    os.chmod(KEYS, 0o755)


def _write(path: str, text: str) -> None:
    replace_file(path, text)
    os.chown(path, 0, 0)
    os.chmod(path, 0o644)


def _is_roots(path: str, mode: int) -> bool:
    found = os.lstat(path)
    return (found.st_uid, found.st_mode & 0o7777) == (0, mode)


# -- our own ----------------------------------------------------------------------------------------------------------


def own_key_step(path: str, agent: struct_passwd, node: str) -> Step:
    """Make the key that the agent logs in with at its peers, where it is missing. Raises NotRootsAlone."""
    if not os.path.lexists(path):
        require_roots(path)
    return Step(
        f"make this node's key {path}, for {agent.pw_name} to read",
        lambda: os.path.lexists(path),
        lambda: _make_own_key(path, agent, node),
    )


def own_public_key(path: str) -> PublicKey:
    """The public half of a private key file. Raises NoOwnKey."""
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        raise errors.NoOwnKey(path, "there is no key yet") from None
    except OSError as exc:
        raise errors.NoOwnKey(path, f"cannot be read: {exc.strerror}") from exc
    try:
        said = run_program("ssh-keygen", "-y", "-P", "", "-f", "/dev/stdin", stdin=descriptor)
        kind, blob = said.split()[:2]
    except (errors.ProgramFailed, ValueError) as exc:
        raise errors.NoOwnKey(path, f"cannot be read: {exc}") from exc
    finally:
        os.close(descriptor)
    return PublicKey(kind, blob)


def _make_own_key(path: str, agent: struct_passwd, node: str) -> None:
    require_roots(path)  # else the agent's account could exchange what is given to it below
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    workshop = tempfile.mkdtemp(prefix=".key-", dir=os.path.dirname(path))
    try:
        made = f"{workshop}/key"
        run_program("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"tombsync {node}", "-f", made)
        os.chown(made, agent.pw_uid, agent.pw_gid)
        os.rename(made, path)
        sync_directory(os.path.dirname(path))
    finally:
        shutil.rmtree(workshop)

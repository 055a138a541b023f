"""The keys of the demo: one for the agents, one for each server, all made here and gone with the directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

HOST = "127.0.0.1"  # the demo listens nowhere else


def make_key(path: Path) -> paramiko.PKey:
    """Make an Ed25519 key in OpenSSH's own format, readable by its owner alone."""
    private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(private)
    return paramiko.Ed25519Key.from_private_key_file(str(path))


def public_line(key: paramiko.PKey) -> str:
    """The public half, as authorized_keys and known_hosts have it."""
    return f"{key.get_name()} {key.get_base64()}"


def write_known_hosts(path: Path, servers: Iterable[tuple[int, paramiko.PKey]]) -> None:
    """Pin the host keys of servers on this machine, given as (port, key)."""
    path.write_text("".join(f"[{HOST}]:{port} {public_line(key)}\n" for port, key in servers))

"""What the tests of the service do on a node as its operators do: join, mark, and look."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import tombsync
from tests.support.machines import Machine, run
from tests.support.waiting import wait_for

SOURCE = Path(tombsync.__file__).parents[1]
HOUR = "desertbus/source/2019-11-13T02"
SETTINGS = "/etc/tombsync/tombsync.toml"
DELIVERED_S = 60.0
numbers = count(1)  # of stems, so that no two tests mark the same


def make_wheels(source: Path, directory: Path, *options: str) -> None:
    """A wheelhouse of a release."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run(*pip, *options, "--wheel-dir", directory, source, timeout_s=600)


def join_all(nodes: list[Machine], **options: list[str]) -> None:
    """Join each with each; `options` of `peer add` on the node of that name."""
    pairs = [(node, other) for node in nodes for other in nodes if node is not other]
    for node, other in pairs:
        node.run("tombsync", "peer", "add", other.name, "--host", other.name, *options.get(node.name, ()))
    for node, other in pairs:
        join(node, other, *options.get(node.name, ()))


def join(node: Machine, other: Machine, *options: str) -> None:
    """Let another node deliver here, and deliver to it: with its key and host key, as its operator sent them."""
    node.write("/root/key.pub", other.says("ssh-keygen", "-y", "-f", "/etc/tombsync/id_ed25519") + "\n")
    node.write("/root/hosts", other.says("cat", "/etc/ssh/ssh_host_ed25519_key.pub") + "\n")
    words = ["--key", "/root/key.pub", "--host", other.name, "--host-key", "/root/hosts"]
    node.run("tombsync", "peer", "add", other.name, *words, *options)


def new_stems(many: int = 1) -> list[str]:
    return [f"45:51.{next(numbers):06d}-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM" for _ in range(many)]


def touch(node: Machine, *stems: str) -> None:
    """Mark as an operator does."""
    node.shell(f'cd {node.tree}/{HOUR}; for stem; do touch "$stem.tombstone"; done', *stems)


def hides(node: Machine, *stems: str) -> bool:
    """Whether its index and its tree have them."""
    there = node.says("ls", f"{node.tree}/{HOUR}").splitlines()
    listed = node.says("tombsync", "tombstones", "--limit", "100000", "--json")
    return all(f"{stem}.tombstone" in there and stem in listed for stem in stems)


def everywhere(nodes: list[Machine], *stems: str) -> None:
    """Wait until every node hides these."""
    for node in nodes:
        wait_for(lambda: hides(node, *stems), f"all hidden on {node.name}", DELIVERED_S, pause_s=0.2)


def restarts(node: Machine) -> int:
    return int(node.property("NRestarts"))


def is_active(node: Machine) -> bool:
    return node.property("ActiveState") == "active"


def events(node: Machine, event: str) -> list[dict[str, str]]:
    return node.journal(f"TOMBSYNC_EVENT={event}")

"""A sender's key is exchanged while it delivers: `peer rotate` here, another `key` there, and no delivery fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.machine import CONFIG, Machine
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
SETTINGS = 'state_dir = "/run/tombsync"\njournal = "stderr"\n[http]\nlisten = "unix:/run/tombsync/http.sock"\n'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """The receiving node, whose agent runs once a sender was added."""
    with Machine(tmp_path / "machine") as machine:
        make_hour(machine.path(machine.root), HOUR)
        machine.path("/run/tombsync").mkdir()
        machine.write_settings(SETTINGS)
        yield machine


def table(machine: Machine, key: Path, known_hosts: Path) -> str:
    return (
        f'[[peer]]\nname = "node-a"\nhost = "127.0.0.1"\nport = {machine.port}\nuser = "tombsync-node-b"\n'
        f'key = "{key}"\nknown_hosts = "{known_hosts}"\ndelivery = "inbox"\npath = "/segments"\n'
    )


def stop(program: subprocess.Popen[str]) -> None:
    """End what was started in a machine: the child of the one that went into its namespaces, which then ends too."""
    for child in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    program.communicate(timeout=20)


@pytest.mark.timeout(120)
def test_a_key_is_exchanged_without_a_failed_delivery(machine: Machine, tmp_path: Path) -> None:
    old, old_public = machine.make_key("b")
    new, new_public = machine.make_key("new")
    machine.tombsync("peer", "add", "node-b", "--key", old_public)
    machine.start_sshd()
    known_hosts = tmp_path / "known_hosts"
    host_key = machine.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
    known_hosts.write_text(f"[127.0.0.1]:{machine.port} {host_key}")
    receiver = machine.start("run", "--config", CONFIG)
    sender = AgentProcess(tmp_path / "sender", node="node-b", peers=[table(machine, old, known_hosts)])
    make_hour(sender.root, HOUR)
    marks = iter(range(100))

    def deliver() -> None:
        stem = segment_stem(next(marks))
        touch(sender.root / HOUR, stem)
        wait_for(lambda: sender.states(f"{HOUR}/{stem}") == {"node-a": "confirmed"}, "the confirmation", 30)
        assert machine.path(machine.root / HOUR / f"{stem}.tombstone").is_file()

    try:
        with sender:
            deliver()
            machine.tombsync("peer", "rotate", "node-b", "--key", new_public)
            deliver()
            sender.stop()
            sender.start()
            deliver()  # a new session by the old key
            sender.stop()
            sender.write_settings([table(machine, new, known_hosts)])
            sender.start()
            deliver()
            machine.tombsync("peer", "rotate", "node-b", "--finish")
            deliver()
            sender.stop()
            sender.start()
            deliver()
            count = next(marks)
            wait_for(lambda: len(sender.records("delivered")) == count, "each delivery to be told")
            assert [*sender.records("undelivered"), *sender.records("peer-down")] == []
            sender.stop()
            sender.write_settings([table(machine, old, known_hosts)])
            sender.start()
            wait_for(lambda: sender.records("peer-down"), "the old key to be refused")
    finally:
        stop(receiver)

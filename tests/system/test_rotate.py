"""The key of a node that delivers here is exchanged: nothing that it delivers meanwhile fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.machine import Machine
from tests.support.waiting import wait_for
from tombsync.errors import LoginRefused

HOUR = "desertbus/source/2019-11-13T02"
ACCOUNT = "tombsync-node-b"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "machine") as machine:
        make_hour(machine.path(machine.root), HOUR)
        machine.write_settings(
            f'state_dir = "{machine.base}/state"\njournal = "stderr"\n[http]\nlisten = "unix:/run/http.sock"\n'
        )
        yield machine


def table(machine: Machine, directory: Path, key: Path) -> str:
    """The machine as a `[[peer]]` of the node that delivers to it."""
    known_hosts = directory / "known_hosts"
    public = machine.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    known_hosts.write_text(f"[127.0.0.1]:{machine.port} {' '.join(public)}\n")
    values = {"name": "node-a", "host": "127.0.0.1", "port": machine.port, "user": ACCOUNT, "key": str(key),
              "known_hosts": str(known_hosts), "delivery": "inbox", "path": "/segments"}  # fmt: skip
    return "[[peer]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def test_no_delivery_fails_while_a_key_is_exchanged(machine: Machine, tmp_path: Path) -> None:
    old, old_public = machine.make_key("b")
    new, new_public = machine.make_key("new")
    machine.tombsync("peer", "add", "node-b", "--key", old_public)
    machine.start_sshd()
    sender = AgentProcess(tmp_path / "sender", node="node-b", peers=[table(machine, tmp_path, old)])
    hour = make_hour(sender.root, HOUR, segments=5)

    def deliver(number: int) -> None:
        stem = segment_stem(2 * number)
        touch(hour, stem)
        wait_for(lambda: sender.states(f"{HOUR}/{stem}") == {"node-a": "confirmed"}, f"tombstone {number}")
        assert machine.path(machine.root / HOUR / f"{stem}.tombstone").exists()

    def rotate(*words: str | Path) -> str:
        done = machine.tombsync("peer", "rotate", "node-b", *words)
        return done.stdout + done.stderr

    # nsenter hands no signal on.
    agent = ("setpriv", "--pdeathsig=TERM", sys.executable, "-m", "tombsync", "run")
    with machine.start_program(*agent) as receiver:
        with sender:
            deliver(0)
            rotate("--key", new_public)
            deliver(1)
            sender.write_settings([table(machine, tmp_path, new)])
            sender.stop()
            sender.start()
            deliver(2)
            stolen = paramiko.Transport(("127.0.0.1", machine.port))
            try:
                stolen.connect(username=ACCOUNT, pkey=paramiko.Ed25519Key.from_private_key_file(str(old)))
                assert "sessions that began with an older key go on" in rotate("--finish")
                deliver(3)
                assert stolen.is_active()
                assert f"would end the sessions of {ACCOUNT}" in rotate("--finish", "--end-sessions", "--dry-run")
                assert stolen.is_active()
                rotate("--finish", "--end-sessions")
                wait_for(lambda: not stolen.is_active(), "the session with the old key to be ended")
            finally:
                stolen.close()
            deliver(4)
            wait_for(lambda: len(sender.records("delivered")) == 5, "the journal to have them all")
        receiver.terminate()
        receiver.communicate(timeout=20)
    assert all(record["TOMBSYNC_REASON"] != LoginRefused.reason for record in sender.records("peer-down"))


def test_a_new_key_is_made_where_the_settings_name_one(machine: Machine) -> None:
    words = ("peer", "add", "node-a-peer", "--host", "b.example")
    machine.tombsync(*words)
    (before,) = machine.json("peer", "show", "node-a-peer")["peers"]
    config = machine.path("/etc/tombsync/tombsync.toml")
    config.write_text(f'{config.read_text()}key = "/etc/tombsync/id_ed25519-2"\n')
    machine.tombsync(*words)
    (after,) = machine.json("peer", "show", "node-a-peer")["peers"]
    assert after["public_key"] != before["public_key"]
    assert machine.path("/etc/tombsync/id_ed25519").exists()

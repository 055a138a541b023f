"""The takedown report: what it says, and that one changed byte is found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
STEM = segment_stem(0)


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        make_hour(server.root)
        yield server


@pytest.fixture
def agent(tmp_path: Path, server: Sshd) -> Iterator[AgentProcess]:
    """A node with one segment marked by command, which its peer has confirmed."""
    agent = AgentProcess(tmp_path, peers=[peer_table("node-b", server)])
    make_hour(agent.root)
    with agent:
        agent.run("mark", "--reason", "shows a phone number", f"{HOUR}/{STEM}.ts")
        wait_for(lambda: agent.states(f"{HOUR}/{STEM}") == {"node-b": "confirmed"}, "the confirmation")
        yield agent


@pytest.fixture
def signer(tmp_path: Path) -> tuple[Path, Path]:
    """A key, and a file that allows it."""
    key = tmp_path / "id"
    subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    allowed = tmp_path / "signers"
    allowed.write_text(f"auditor@example {key.with_suffix('.pub').read_text()}")
    return key, allowed


def test_it_says_who_when_why_and_where_data_still_is(agent: AgentProcess) -> None:
    document = json.loads(agent.run("report", STEM, "--live", "--json").stdout)
    (segment,) = document["segments"]
    assert segment["segment"] == f"{HOUR}/{STEM}"
    assert segment["claimed"]["reason"] == "shows a phone number"
    assert segment["claimed"]["node"] == "node-a"
    assert segment["data_here"] is True
    (peer,) = segment["peers"]
    assert (peer["peer"], peer["state"], peer["data_there"], peer["asked_now"]) == ("node-b", "confirmed", True, True)
    assert peer["confirmed_at"]
    text = agent.run("report", STEM).stdout
    assert "nobody was asked now" in text
    assert "reason shows a phone number" in text
    assert "no tombstone of this name" in agent.run("report", "nonsense", expect=1).stderr


def test_a_peer_that_could_not_be_asked_is_in_it(agent: AgentProcess, server: Sshd) -> None:
    server.stop()
    done = agent.run("report", STEM, "--live", "--json", expect=3)
    (peer,) = json.loads(done.stdout)["segments"][0]["peers"]
    assert peer["asked_now"] is False
    assert "cannot be reached" in peer["error"]


def test_one_changed_byte_is_found(agent: AgentProcess, signer: tuple[Path, Path], tmp_path: Path) -> None:
    key, allowed = signer
    path = tmp_path / "report.json"
    agent.run("report", STEM, "--output", str(path), "--sign", str(key))
    assert path.stat().st_mode & 0o077 == 0

    def verify(expect: int, *more: str) -> str:
        command = ["tombsync", "report", "verify", str(path), "--allowed-signers", str(allowed), *more]
        done = subprocess.run([*agent.program, *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    assert "is as auditor@example signed it" in verify(0)
    assert "auditor@example" in verify(0, "--identity", "auditor@example")
    assert json.loads(verify(0, "--json"))["signed_by"] == "auditor@example"
    assert "the signature does not hold" in verify(1, "--identity", "somebody@example")
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "the signature does not hold" in verify(1)
    path.write_bytes(whole)
    allowed.write_text("")
    assert "the signature does not hold" in verify(1)
    assert "cannot be read" in verify(1, "--signature", "/nonexistent")


def test_a_name_with_a_line_break_makes_no_line(agent: AgentProcess, tmp_path: Path) -> None:
    odd = "a\n  node-b: confirmed"
    (agent.root / HOUR / f"{odd}.tombstone").touch()
    wait_for(lambda: agent.run("report", odd, expect=None).returncode == 0, "the odd name to be hidden")
    agent.run("report", odd, "--output", str(tmp_path / "report"))
    printed = agent.run("report", odd).stdout
    for text in (printed, (tmp_path / "report").read_text()):
        assert f"{HOUR}/a\\n  node-b: confirmed" in text.splitlines()
        assert "  node-b: confirmed" not in text.splitlines()


def test_what_is_there_is_not_replaced(agent: AgentProcess, signer: tuple[Path, Path], tmp_path: Path) -> None:
    key, _ = signer
    path, signature = tmp_path / "report.json", tmp_path / "report.json.sig"
    path.write_text("mine")
    assert "File exists" in agent.run("report", STEM, "--output", str(path), expect=1).stderr
    path.rename(signature)
    refused = agent.run("report", STEM, "--output", str(path), "--sign", str(key), expect=1)
    assert f"{signature}: File exists" in refused.stderr
    assert signature.read_text() == "mine"
    assert not path.exists()
    assert agent.run("report", STEM, "--sign", str(key), expect=2).returncode == 2


def test_a_key_that_cannot_sign_leaves_nothing_behind(
    agent: AgentProcess, signer: tuple[Path, Path], tmp_path: Path
) -> None:
    key, allowed = signer
    directory = tmp_path / "reports"
    directory.mkdir()
    path = directory / "report.json"
    for bad in (tmp_path / "none", allowed):
        refused = agent.run("report", STEM, "--output", str(path), "--sign", str(bad), expect=1)
        assert f"cannot sign with {bad}" in refused.stderr
        assert list(directory.iterdir()) == []
    agent.run("report", STEM, "--output", str(path), "--sign", str(key))  # so it can be tried again
    assert {one.name for one in directory.iterdir()} == {"report.json", "report.json.sig"}


def test_it_says_whether_the_tombstone_stands_here(agent: AgentProcess) -> None:
    def segment() -> dict[str, object]:
        (found,) = json.loads(agent.run("report", STEM, "--json").stdout)["segments"]
        assert isinstance(found, dict)
        return found

    assert segment()["tombstone_here"] is True
    assert "its tombstone stands here; its data is still here" in agent.run("report", STEM).stdout
    agent.stop()
    (agent.root / HOUR / f"{STEM}.tombstone").unlink()
    assert segment()["tombstone_here"] is False
    assert "its tombstone does not stand here any more" in agent.run("report", STEM).stdout
    agent.root.rename(agent.base / "unmounted")
    agent.root.mkdir()
    assert (segment()["tombstone_here"], segment()["data_here"]) == (None, None)
    assert "what stands here is not known" in agent.run("report", STEM).stdout

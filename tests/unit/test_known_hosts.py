"""Pinned host keys, read from files as people, ssh and ssh-keygen write them."""

from __future__ import annotations

import logging
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.programs import need
from tombsync.errors import HostKeyChanged, HostKeyUnknown
from tombsync.peers import known_hosts
from tombsync.peers.known_hosts import Pinned

Write = Callable[[str | bytes], Path]

HOST, PORT = "b.example", 2022
NAME = f"[{HOST}]:{PORT}"


def blob(text: str) -> str:
    return b64encode(text.encode()).decode()


ED25519 = f"ssh-ed25519 {blob('ed25519')}"
ECDSA = f"ecdsa-sha2-nistp256 {blob('ecdsa')}"
RSA = f"ssh-rsa {blob('rsa')}"
PINNED_ED25519 = frozenset({("ssh-ed25519", b"ed25519")})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "known_hosts"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def load(path: Path, host: str = HOST, port: int = PORT) -> Pinned:
    return known_hosts.load(str(path), peer="node-b", host=host, port=port)


def is_known(path: Path, host: str = HOST, port: int = PORT) -> bool:
    try:
        load(path, host, port)
    except HostKeyUnknown:
        return False
    return True


# -- which lines are for a host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "host", "port", "known"),
    [
        ("b.example", "b.example", 22, True),
        ("b.example", "b.example", 2022, False),
        ("[b.example]:2022", "b.example", 2022, True),
        ("[b.example]:2022", "b.example", 2023, False),
        ("[b.example]:2022", "b.example", 22, False),
        ("B.Example", "b.example", 22, True),
        ("b.example", "B.EXAMPLE", 22, True),
        ("b.example", "b.example.org", 22, False),
        ("b.example", "xb.example", 22, False),
        ("a.example,b.example,192.0.2.7", "b.example", 22, True),
        ("a.example,b.example,192.0.2.7", "192.0.2.7", 22, True),
        ("a.example,b.example,192.0.2.7", "c.example", 22, False),
        ("2001:db8::1", "2001:db8::1", 22, True),
        ("[2001:db8::1]:2022", "2001:db8::1", 2022, True),
        ("*.example", "b.example", 22, True),
        ("*.example", "b.c.example", 22, True),
        ("*.example", "example", 22, False),
        ("?.example", "b.example", 22, True),
        ("?.example", "bb.example", 22, False),
        ("node-?.*", "node-b.example", 22, True),
        ("*", "b.example", 22, True),
        ("*", "b.example", 2022, True),
        ("[*.example]:2022", "b.example", 2022, True),
        ("[*.example]:*", "b.example", 2023, True),
        # Brackets are no set of characters here, as they are to a shell.
        ("[b].example", "b.example", 22, False),
        ("*.example,!b.example", "b.example", 22, False),
        ("!b.example,*.example", "b.example", 22, False),
        ("*.example,!b.example", "c.example", 22, True),
        ("!b.example", "c.example", 22, False),
        ("*.example,!*b*", "ab.example", 22, False),
        ("", "b.example", 22, False),
    ],
)
def test_patterns(write: Write, patterns: str, host: str, port: int, known: bool) -> None:
    assert is_known(write(f"{patterns} {ED25519}\n"), host, port) is known


def test_a_line_of_stars_takes_no_time(write: Write) -> None:
    many = "*" * 5000 + "x," + "*a" * 2000
    path = write(f"{many} hosts of the archive {'*' * 70}\n{many} {RSA}\n{NAME} {ED25519}\n")
    assert load(path).keys == PINNED_ED25519


# -- hashed names, as ssh-keygen -H makes them -------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "port"), [(HOST, PORT), (HOST, 22), ("192.0.2.7", 22), ("2001:db8::1", 2022)])
def test_hashed_by_ssh_keygen(tmp_path: Path, host: str, port: int) -> None:
    keygen = need("ssh-keygen")
    key = tmp_path / "key"
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    kind, encoded = key.with_suffix(".pub").read_text().split()[:2]
    name = host if port == 22 else f"[{host}]:{port}"
    path = tmp_path / "known_hosts"
    path.write_text(f"{name} {kind} {encoded}\nelsewhere.example {kind} {encoded}\n")
    subprocess.run([keygen, "-H", "-f", str(path)], check=True, capture_output=True)
    assert host not in path.read_text()
    assert {kind for kind, _ in load(path, host, port).keys} == {"ssh-ed25519"}
    assert is_known(path, "elsewhere.example", 22)
    assert not is_known(path, "other.example", port)
    assert not is_known(path, host, port + 1)


@pytest.mark.parametrize(
    "name",
    ["|1|", "|1||", "|1|c2FsdA==", "|1|c2FsdA==|", "|1|c2FsdA==|AAAA", "|1|!|!", "|1|a|b|c", "|2|c2FsdA==|A", "|1|é|é"],
)
def test_a_hash_that_is_none_matches_nothing(write: Write, name: str) -> None:
    assert load(write(f"{name} {RSA}\n{NAME} {ED25519}\n")).keys == PINNED_ED25519


# -- what stands in a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(f"{NAME} {ED25519}", id="plain"),
        pytest.param(f"{NAME} {ED25519} root@b, made in 2019", id="with a comment"),
        pytest.param(f"{NAME}  ssh-ed25519   {blob('ed25519')}", id="double spaces"),
        pytest.param(f" \t{NAME}\tssh-ed25519\t{blob('ed25519')}\t", id="tabs, and space around"),
        pytest.param(f"{NAME} {ED25519}\r", id="CRLF"),
    ],
)
def test_a_line_is_read_however_it_is_spaced(write: Write, line: str) -> None:
    assert load(write(f"# our peers\n\n{line}\n")).keys == PINNED_ED25519
    assert load(write(line)).keys == PINNED_ED25519  # without a final newline


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"garbage", id="one word"),
        pytest.param(b"<<<<<<< HEAD\n=======\n>>>>>>> theirs", id="a merge conflict"),
        pytest.param(NAME.encode() + b" ssh-ed25519", id="a name and a type alone"),
        pytest.param(NAME.encode() + b" ssh-ed25519 not*base64", id="a key that is no base64"),
        pytest.param(NAME.encode() + b" ssh-ed25519 AAAAA", id="base64 with a character too few"),
        pytest.param(NAME.encode() + b" ssh-ed25519 \xff\xfe", id="a key that is no text"),
        pytest.param(b"\x00\x01\xff\xfe\x80 \xff \xff", id="binary"),
        pytest.param(b"@revoked", id="a marker alone"),
        pytest.param(b"@revoked " + NAME.encode(), id="a marker and a name"),
        pytest.param(b"@unknown " + NAME.encode() + b" " + RSA.encode(), id="an unknown marker"),
        pytest.param(NAME.encode() + b" 1024 37 1234567890", id="protocol 1"),
        pytest.param(b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END", id="a private key"),
    ],
)
def test_a_line_that_is_not_understood_costs_nothing_else(write: Write, garbage: bytes) -> None:
    sound = f"{NAME} {ED25519}".encode()
    for content in (garbage + b"\n" + sound + b"\n", sound + b"\n" + garbage + b"\n", sound + b"\n" + garbage):
        pinned = load(write(content))
        assert pinned.algorithms() == ("ssh-ed25519",)
        assert ("ssh-ed25519", b"ed25519") in pinned.keys
        assert not pinned.revoked
    with pytest.raises(HostKeyUnknown):
        load(write(garbage))


def test_a_line_that_is_passed_over_is_named_in_a_warning(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(f"# comment\n\n{NAME} {ED25519}\ngarbage here\n")
    with caplog.at_level(logging.WARNING):
        load(path)
    assert [record.getMessage() for record in caplog.records] == [f"{path}:4: not a known_hosts line, passed over"]


def test_several_keys_of_one_host(write: Write) -> None:
    pinned = load(write(f"{NAME} {RSA}\nother {ECDSA}\n{NAME} {ECDSA}\n{NAME} {ED25519}\n{NAME} {ED25519}\n"))
    assert pinned.keys == {("ssh-rsa", b"rsa"), ("ecdsa-sha2-nistp256", b"ecdsa"), ("ssh-ed25519", b"ed25519")}
    assert pinned.algorithms() == ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")


@pytest.mark.parametrize(
    ("line", "algorithms"),
    [
        (ED25519, ("ssh-ed25519",)),
        (ECDSA, ("ecdsa-sha2-nistp256",)),
        (f"ecdsa-sha2-nistp384 {blob('x')}", ("ecdsa-sha2-nistp384",)),
        (f"ecdsa-sha2-nistp521 {blob('x')}", ("ecdsa-sha2-nistp521",)),
        (RSA, ("rsa-sha2-512", "rsa-sha2-256")),  # never the SHA-1 signatures of the key type's own name
    ],
)
def test_only_algorithms_of_known_keys_are_offered(write: Write, line: str, algorithms: tuple[str, ...]) -> None:
    assert load(write(f"{NAME} {line}\n")).algorithms() == algorithms


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param(f"# {NAME} {ED25519}", id="a comment"),
        pytest.param(f"elsewhere {ED25519}", id="another host"),
        pytest.param(f"{NAME} ssh-dss {blob('dss')}", id="a type that nobody should use"),
        pytest.param(f"@cert-authority {NAME} {ED25519}", id="an authority"),
        pytest.param(f"@revoked {NAME} {ED25519}", id="a revoked key alone"),
    ],
)
def test_a_host_without_a_usable_key_is_unknown(write: Write, line: str) -> None:
    path = write(f"{line}\n")
    with pytest.raises(HostKeyUnknown) as unknown:
        load(path)
    assert unknown.value.peer == "node-b"
    assert unknown.value.detail == f"{path} has no key for {NAME}"


def test_an_authority_is_passed_over_and_its_hosts_are_not_trusted(write: Write) -> None:
    pinned = load(write(f"@cert-authority * {RSA}\n@cert-authority {NAME} {ECDSA}\n{NAME} {ED25519}\n"))
    assert pinned.keys == PINNED_ED25519
    assert not pinned.revoked


@pytest.mark.parametrize("missing", ["absent", "", "known_hosts/below"])
def test_a_file_that_cannot_be_read(write: Write, missing: str) -> None:
    path = write("").parent / missing
    with pytest.raises(HostKeyUnknown, match=str(path)) as unknown:
        load(path)
    assert unknown.value.hint


@given(st.binary(max_size=200))
def test_no_file_does_more_than_know_nothing(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    assert not is_known(path)


# -- the key that a server shows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


def line_of(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def test_the_pinned_key_is_taken(write: Write, key: paramiko.PKey) -> None:
    load(write(f"{NAME} {line_of(key)}\n{NAME} {ED25519}\n")).require("node-b", key)


def test_another_key_is_refused(write: Write, key: paramiko.PKey) -> None:
    other = paramiko.ECDSAKey.generate()
    pinned = load(write(f"{NAME} {line_of(other)}\n"))
    with pytest.raises(HostKeyChanged) as changed:
        pinned.require("node-b", key)
    assert key.fingerprint in changed.value.detail
    assert other.fingerprint not in changed.value.detail


def test_the_key_under_another_type_is_refused(write: Write, key: paramiko.PKey) -> None:
    with pytest.raises(HostKeyChanged):
        load(write(f"{NAME} ssh-ed25519 {key.get_base64()}\n")).require("node-b", key)


@pytest.mark.parametrize("patterns", [NAME, "*"])
@pytest.mark.parametrize("first", [True, False])
def test_a_revoked_key_is_refused_wherever_its_line_stands(
    write: Write, key: paramiko.PKey, patterns: str, first: bool
) -> None:
    lines = [f"@revoked {patterns} {line_of(key)}", f"{NAME} {line_of(key)}"]
    pinned = load(write("\n".join(lines if first else lines[::-1])))
    with pytest.raises(HostKeyChanged, match="@revoked"):
        pinned.require("node-b", key)


def test_a_key_revoked_for_another_host_counts_here(write: Write, key: paramiko.PKey) -> None:
    load(write(f"@revoked elsewhere {line_of(key)}\n{NAME} {line_of(key)}\n")).require("node-b", key)

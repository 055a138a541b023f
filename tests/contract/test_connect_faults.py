"""What goes wrong between us and a peer: a real OpenSSH server, a network that fails, servers that misbehave.

Whatever happens, `connect` and `collect` raise the PeerError that names it, and never anything else.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from base64 import encodebytes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.agent import segment_stem
from tests.support.programs import need
from tests.support.relay import Relay, SilentServer, free_port
from tests.support.sessions import WAIT_S, exchange, target_of, wait_readable
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync import errors
from tombsync.names import strict_path
from tombsync.peers import CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S, Answer, Connector, Job, Session, Target, require_usable
from tombsync.peers.session import LEFT_OUT_S
from tombsync.plan import State

HOUR = "desertbus/source/2019-11-13T02"


def jobs(count: int) -> list[Job]:
    return [Job(number, strict_path(f"{HOUR}/{segment_stem(number)}")) for number in range(1, count + 1)]


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Sshd]:
    """A server whose tree has the hour of `jobs`."""
    with Sshd(**options) as server:
        (server.root / HOUR).mkdir(parents=True)
        yield server


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with serving() as server:
        yield server


@pytest.fixture
def target(sshd: Sshd) -> Target:
    return target_of(sshd)


def through(target: Target, port: int, directory: Path) -> Target:
    """The target behind another port, with the same pinned keys."""
    known_hosts = directory / f"known_hosts-{port}"
    lines = Path(target.known_hosts).read_text()
    known_hosts.write_text(lines.replace(f"]:{target.port} ", f"]:{port} "))
    return replace(target, port=port, known_hosts=str(known_hosts))


@contextlib.contextmanager
def session_with(target: Target) -> Iterator[Session]:
    session = Connector(target).connect()
    try:
        yield session
    finally:
        session.close()


def refused(target: Target) -> errors.PeerError:
    """What `connect` raises, with what it must have: a peer, a word for the metric and a hint."""
    with pytest.raises(errors.PeerError) as raised:
        Connector(target).connect().close()
    error = raised.value
    assert error.peer == target.name
    assert error.reason != errors.PeerError.reason
    assert error.hint
    assert len(error.detail) < 400
    return error


def assert_works(target: Target) -> None:
    with session_with(target) as session:
        assert {answer.state for answer in exchange(session, jobs(3))} == {State.CONFIRMED}


def keygen(path: Path, *arguments: str, passphrase: str = "") -> Path:
    command = [need("ssh-keygen"), "-q", "-N", passphrase, "-f", str(path), *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path


def restart_with(server: Sshd, pattern: str, line: str) -> None:
    """Replace a line of the server's configuration."""
    server.stop()
    config = server.directory / "sshd_config"
    text, count = re.subn(pattern, line, config.read_text(), flags=re.MULTILINE)
    assert count == 1
    config.write_text(text)
    server.start()


# Hosts that a test answers for in the name servers' place; single operations of a dict need no lock.
ANSWERS: dict[str, Callable[[], list[Any]]] = {}


@pytest.fixture(scope="module", autouse=True)
def name_servers() -> Iterator[None]:
    look_up: Callable[..., list[Any]] = socket.getaddrinfo

    def answer(host: str, *arguments: Any, **more: Any) -> list[Any]:
        return ANSWERS[host]() if host in ANSWERS else look_up(host, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answer)
        yield


@contextlib.contextmanager
def name_server(host: str, answer: Callable[[], list[Any]]) -> Iterator[None]:
    """Who looks this host up is answered so."""
    ANSWERS[host] = answer
    try:
        yield
    finally:
        del ANSWERS[host]


def address_of(port: int) -> tuple[Any, ...]:
    """An address on loopback as a name server gives it."""
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))


def pin_as(target: Target, host: str, directory: Path) -> Target:
    known_hosts = directory / f"known_hosts-{host}"
    lines = Path(target.known_hosts).read_text()
    known_hosts.write_text(lines.replace(f"[{target.host}]", f"[{host}]"))
    return replace(target, host=host, known_hosts=str(known_hosts))


# -- host keys ---------------------------------------------------------------------------------------------------------


def log_of_a_connection(server: Sshd, connect: Callable[[], object]) -> str:
    """What the server logs of a connection that the client ends."""
    wait_for(lambda: not server.sessions(), "earlier connections to end, and to be logged")
    before = len(server.log())
    connect()
    ends = ("Connection closed by", "Unable to negotiate")
    wait_for(lambda: any(end in server.log()[before:] for end in ends), "the server to notice the end")
    return server.log()[before:]


def tried_to_log_in(log: str, user: str) -> bool:
    return user in log or "publickey" in log


def test_an_unknown_host_is_not_even_connected_to(target: Target) -> None:
    with SilentServer("silent") as server:
        error = refused(replace(target, host=server.host, port=server.port))
        assert isinstance(error, errors.HostKeyUnknown)
        assert f"[{server.host}]:{server.port}" in error.detail
        assert server.connections_total == 0


def test_a_changed_host_key_stops_before_anything_is_sent() -> None:
    with serving() as server:
        target = target_of(server)
        assert_works(target)
        server.new_host_key()
        found: list[errors.PeerError] = []
        log = log_of_a_connection(server, lambda: found.append(refused(target)))
        assert isinstance(found[0], errors.HostKeyChanged)
        assert "SHA256:" in found[0].detail
        assert not tried_to_log_in(log, server.user), log
        server.pin()
        assert_works(target)


def test_a_refused_login_is_seen_in_the_log(target: Target, sshd: Sshd, tmp_path: Path) -> None:
    """What the tests of host keys look for really is there after an attempt to log in."""
    stranger = keygen(tmp_path / "stranger", "-t", "ed25519")
    log = log_of_a_connection(sshd, lambda: refused(replace(target, key=str(stranger))))
    assert tried_to_log_in(log, sshd.user)


def test_a_pinned_type_that_the_server_no_longer_has_is_a_changed_key() -> None:
    with Sshd(host_key_types=("ecdsa",)) as server:
        known_hosts = server.known_hosts_path
        ed25519 = keygen(server.directory / "old", "-t", "ed25519").with_suffix(".pub").read_text()
        known_hosts.write_text(f"[{server.host}]:{server.port} {ed25519}")
        found: list[errors.PeerError] = []
        log = log_of_a_connection(server, lambda: found.append(refused(target_of(server))))
        assert isinstance(found[0], errors.HostKeyChanged)
        assert "pinned type" in found[0].detail
        assert not tried_to_log_in(log, server.user), log


def test_a_revoked_host_key_is_refused() -> None:
    with serving() as server:
        target = target_of(server)
        assert_works(target)
        key = server.known_hosts_path.read_text().partition(" ")[2]
        with server.known_hosts_path.open("a") as file:
            file.write(f"@revoked * {key}")
        found: list[errors.PeerError] = []
        log = log_of_a_connection(server, lambda: found.append(refused(target)))
        assert isinstance(found[0], errors.HostKeyChanged)
        assert "@revoked" in found[0].detail
        assert not tried_to_log_in(log, server.user), log


@pytest.fixture(scope="module")
def many_keys() -> Iterator[Sshd]:
    with serving(host_key_types=("ed25519", "ecdsa", "rsa")) as server:
        yield server


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_server_with_several_keys_proves_itself_by_the_one_that_is_pinned(
    many_keys: Sshd, kind: str, tmp_path: Path
) -> None:
    lines = many_keys.known_hosts_path.read_text().splitlines()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("".join(f"{line}\n" for line in lines if f" {kind} " in line))
    assert_works(replace(target_of(many_keys), known_hosts=str(known_hosts)))
    known_hosts.write_text(many_keys.known_hosts_path.read_text())
    assert_works(replace(target_of(many_keys), known_hosts=str(known_hosts)))


def test_of_several_keys_the_one_that_changed_is_noticed(many_keys: Sshd, tmp_path: Path) -> None:
    """The others that still match are no reason to go on with the best one, which does not."""
    other = keygen(tmp_path / "other", "-t", "ed25519").with_suffix(".pub").read_text()
    kept = [line for line in many_keys.known_hosts_path.read_text().splitlines() if "ssh-ed25519" not in line]
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("\n".join([*kept, f"[{many_keys.host}]:{many_keys.port} {other}"]))
    assert isinstance(refused(replace(target_of(many_keys), known_hosts=str(known_hosts))), errors.HostKeyChanged)


# -- our own key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-t", "ed25519"], id="ed25519"),
        pytest.param(["-t", "ecdsa", "-b", "256"], id="ecdsa 256"),
        pytest.param(["-t", "ecdsa", "-b", "384"], id="ecdsa 384"),
        pytest.param(["-t", "ecdsa", "-b", "521"], id="ecdsa 521"),
        pytest.param(["-t", "rsa", "-b", "2048"], id="rsa"),
        pytest.param(["-t", "rsa", "-b", "2048", "-m", "PEM"], id="rsa in PEM"),
        pytest.param(["-t", "ecdsa", "-m", "PEM"], id="ecdsa in PEM"),
    ],
)
def test_keys_of_every_kind_log_in(target: Target, sshd: Sshd, tmp_path: Path, arguments: Sequence[str]) -> None:
    key = keygen(tmp_path / "key", *arguments)
    with sshd.authorized_keys_path.open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    require_usable(replace(target, key=str(key)))
    assert_works(replace(target, key=str(key)))


def write_passphrase(path: Path) -> None:
    keygen(path, "-t", "ed25519", passphrase="secret")


def write_passphrase_pem(path: Path) -> None:
    keygen(path, "-t", "rsa", "-b", "2048", "-m", "PEM", passphrase="secret")


def write_public(path: Path) -> None:
    keygen(path, "-t", "ed25519")
    path.with_suffix(".pub").rename(path)


def write_hardware_key(path: Path) -> None:
    """The private half of a key that lives in a security token: PROTOCOL.u2f and PROTOCOL.key of OpenSSH."""

    def string(value: bytes) -> bytes:
        return len(value).to_bytes(4, "big") + value

    public = string(b"sk-ssh-ed25519@openssh.com") + string(bytes(32)) + string(b"ssh:")
    private = bytes(8) + public + b"\1" + string(b"handle") + string(b"") + string(b"comment")
    private += bytes(range(1, 9 - len(private) % 8))
    head = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + (1).to_bytes(4, "big")
    write_pem(path, head + string(public) + string(private))


def write_pem(path: Path, content: bytes) -> None:
    kind = "OPENSSH PRIVATE KEY"
    path.write_text(f"-----BEGIN {kind}-----\n{encodebytes(content).decode()}-----END {kind}-----\n")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file or directory"),
    "a directory": (Path.mkdir, "Is a directory"),
    "with a passphrase": (write_passphrase, "has a passphrase, which a service cannot type"),
    "with a passphrase, in PEM": (write_passphrase_pem, "has a passphrase, which a service cannot type"),
    "a public key": (write_public, "is a public key; keys in an ssh-agent cannot serve"),
    "in a security token": (write_hardware_key, "is no private key that can be read"),
    "empty": (Path.touch, "is no private key that can be read"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256))), "is no private key that can be read"),
    "garbage in a frame": (lambda path: write_pem(path, b"garbage"), "is no private key that can be read"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_key_that_cannot_be_used_is_named_and_nobody_is_asked(target: Target, tmp_path: Path, what: str) -> None:
    write, why = UNUSABLE[what]
    path = tmp_path / "key"
    write(path)
    with SilentServer("silent") as server:
        elsewhere = replace(through(target, server.port, tmp_path), key=str(path))
        error = refused(elsewhere)
        assert isinstance(error, errors.KeyUnusable)
        assert str(path) in error.detail
        assert why in error.detail
        with pytest.raises(errors.KeyUnusable):
            require_usable(elsewhere)
        assert server.connections_total == 0


# -- the login ---------------------------------------------------------------------------------------------------------


def test_a_key_that_the_peer_does_not_know(target: Target, tmp_path: Path) -> None:
    error = refused(replace(target, key=str(keygen(tmp_path / "stranger", "-t", "ed25519"))))
    assert isinstance(error, errors.LoginRefused)


def test_an_account_that_the_peer_does_not_have(target: Target) -> None:
    assert isinstance(refused(replace(target, user="no-such-account")), errors.LoginRefused)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(["AuthenticationMethods publickey,password", "PasswordAuthentication yes"], id="and a password"),
        pytest.param(["AuthenticationMethods password", "PasswordAuthentication yes"], id="only a password"),
    ],
)
def test_a_peer_that_wants_a_password(config: Sequence[str]) -> None:
    with Sshd(config=config) as server:
        error = refused(target_of(server))
        assert isinstance(error, errors.LoginRefused)
        assert "password" in error.detail


def test_a_connection_that_ends_during_the_login_is_no_refusal(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    # exec: a shell whose child is stopped before it has become another program cannot be stopped itself.
    command = f"/bin/sh -c 'touch {asked}; exec sleep 100'"
    config = [f"AuthorizedKeysCommand {command}", f"AuthorizedKeysCommandUser {getuser()}"]
    stranger = keygen(tmp_path / "stranger", "-t", "ed25519")
    with Sshd(config=config) as server, ThreadPoolExecutor(1) as pool:
        target = replace(target_of(server), key=str(stranger))
        connecting = pool.submit(Connector(target).connect)
        wait_for(asked.exists, "the server to look for the key")
        server.kill_sessions()
        assert type(connecting.exception(WAIT_S)) is errors.PeerLost


def test_an_address_that_may_not_connect_now() -> None:
    with serving() as server:
        restart_with(server, "^MaxStartups .*$", "MaxStartups 1")
        with socket.create_connection((server.host, server.port), WAIT_S):
            wait_for(server.sessions, "the first connection")
            assert isinstance(refused(target_of(server)), errors.PeerLost)

        def let_in() -> bool:  # soon after the first connection has ended
            with contextlib.suppress(errors.PeerLost):
                Connector(target_of(server)).connect().close()
                return True
            return False

        wait_for(let_in, "a connection that is let in")


# -- SFTP --------------------------------------------------------------------------------------------------------------


def test_a_server_without_sftp() -> None:
    with Sshd() as server:
        restart_with(server, "^Subsystem .*$", "")
        assert isinstance(refused(target_of(server)), errors.SftpRefused)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ForceCommand /bin/false", errors.SftpRefused),
        ("ForceCommand echo no", errors.SftpRefused),
        ("ForceCommand echo Welcome to node-b; cat", errors.PeerProtocol),  # what a shell's start file may say
        ("MaxSessions 0", errors.SftpRefused),
    ],
)
def test_an_account_without_sftp(line: str, kind: type[errors.PeerError]) -> None:
    with Sshd(config=[line]) as server:
        assert isinstance(refused(target_of(server)), kind)


def test_a_server_without_a_common_algorithm_is_no_changed_host_key() -> None:
    """That would stop the peer until a person has changed known_hosts, which cannot help."""
    with Sshd(config=["KexAlgorithms diffie-hellman-group1-sha1"]) as server:
        assert isinstance(refused(target_of(server)), errors.PeerProtocol)


# A server of SFTP that does one thing wrong; sshd runs it in place of its own.
ODD_SERVER = """
import os, struct, sys
fault = sys.argv[1]
source, sink = sys.stdin.buffer, sys.stdout.buffer

def string(value):
    return struct.pack(">I", len(value)) + value

def send(kind, body):
    packet = struct.pack(">IB", 1 + len(body), kind) + body
    if fault == "slowly":
        for byte in packet:
            sink.write(bytes([byte]))
            sink.flush()
            for _ in range(50): os.sched_yield()
    else:
        sink.write(packet)
        sink.flush()

def status(request, code):
    send(101, struct.pack(">II", request, code) + string(b"odd") + string(b""))

while len(head := source.read(4)) == 4:
    packet = source.read(struct.unpack(">I", head)[0])
    kind, request = packet[0], struct.unpack(">I", packet[1:5])[0]
    if kind == 1:  # INIT
        if fault == "not VERSION": status(3, 0)
        elif fault == "version 6": send(2, struct.pack(">I", 6))
        elif fault == "short VERSION": send(2, struct.pack(">I", 3) + struct.pack(">I", 99) + b"fsync")
        else: send(2, struct.pack(">I", 3) + string(b"fsync@openssh.com") + string(b"1"))
        if fault == "dies": sys.exit(1)
    elif kind == 7:  # LSTAT: the root is there, nothing else is
        if fault == "no mode": send(105, struct.pack(">II", request, 0))
        elif fault == "leaves one out" and b"left-out" in packet: pass
        elif b".tombstone" in packet: status(request, 2)
        else: send(105, struct.pack(">IIQIII", request, 7, 0, 0, 0, 0o40755))
    elif kind == 3:  # OPEN
        directory = b".tombstone" not in packet
        if fault == "unknown type": send(104, struct.pack(">I", request))
        elif fault == "nobody asked": status(request + 1000, 0)
        elif fault == "absurd length": sink.write(b"\\xff" * 64); sink.flush()
        elif fault == "cut short": send(102, struct.pack(">I", request) + struct.pack(">I", 9))
        elif fault == "no directories" and directory: status(request, 3)
        else: send(102, struct.pack(">I", request) + string(b"handle"))
    elif kind == 200 and fault == "fsync fails": status(request, 4)
    elif kind == 200 and fault == "no fsync after all": status(request, 8)
    else: status(request, 0)
"""


@contextlib.contextmanager
def odd_server(fault: str, directory: Path) -> Iterator[Target]:
    script = directory / "odd_server.py"
    script.write_text(ODD_SERVER)
    with Sshd(config=[f"ForceCommand {sys.executable} -I {script} '{fault}'"]) as server:
        yield target_of(server)


@pytest.mark.parametrize("fault", ["not VERSION", "version 6", "short VERSION", "no mode"])
def test_a_server_that_begins_wrong(fault: str, tmp_path: Path) -> None:
    with odd_server(fault, tmp_path) as target:
        assert isinstance(refused(target), errors.PeerProtocol)


@pytest.mark.parametrize("fault", ["unknown type", "nobody asked", "absurd length", "cut short"])
def test_a_server_that_goes_on_wrong(fault: str, tmp_path: Path) -> None:
    with odd_server(fault, tmp_path) as target, session_with(target) as session:
        with pytest.raises(errors.PeerProtocol):
            exchange(session, jobs(3))


def test_a_server_that_dies_at_once(tmp_path: Path) -> None:
    with odd_server("dies", tmp_path) as target:
        assert isinstance(refused(target), errors.SftpRefused)


@pytest.mark.parametrize("fault", ["nothing", "slowly", "no directories"])
def test_replies_may_come_in_any_pieces_and_directories_may_be_closed_to_us(fault: str, tmp_path: Path) -> None:
    with odd_server(fault, tmp_path) as target, session_with(target) as session:
        expected = [Answer(number, State.CONFIRMED, placed=True) for number in range(1, 21)]
        assert exchange(session, jobs(20)) == expected
        assert exchange(session, jobs(20)[:1]) == expected[:1]


def test_a_server_that_leaves_one_request_out_is_given_up(tmp_path: Path) -> None:
    """It looks alive, as it answers all others."""
    with odd_server("leaves one out", tmp_path) as target, session_with(target) as session:
        now = time.monotonic()
        left_out = Job(1, strict_path(f"{HOUR}/left-out"), probe=True)
        session.submit([left_out])
        assert session.collect(now) == []
        for turn, job in enumerate(jobs(4)[1:], start=1):
            session.submit([job])
            answers: list[Answer] = []
            while not answers:
                wait_readable(session, time.monotonic() + WAIT_S)
                answers = session.collect(now + turn * REPLY_TIMEOUT_S * 0.9)
            assert [answer.marker for answer in answers] == [job.marker]
        session.ping()
        wait_readable(session, time.monotonic() + WAIT_S)
        with pytest.raises(errors.PeerTimeout, match="leaves one request out"):
            session.collect(now + LEFT_OUT_S + 1)


def test_a_failing_fsync_is_tried_again(tmp_path: Path) -> None:
    with odd_server("fsync fails", tmp_path) as target, session_with(target) as session:
        for count in (1, 20):
            answers = exchange(session, jobs(count))
            assert {(a.state, a.reason, a.placed) for a in answers} == {(State.PENDING, "fsync", True)}


def test_a_server_that_promised_fsync_and_has_none(tmp_path: Path) -> None:
    with odd_server("no fsync after all", tmp_path) as target, session_with(target) as session:
        for count in (1, 20):
            assert {answer.state for answer in exchange(session, jobs(count))} == {State.NOT_DURABLE}


# -- no server, or none of SSH -----------------------------------------------------------------------------------------


def test_a_closed_port(target: Target, tmp_path: Path) -> None:
    error = refused(through(target, free_port(), tmp_path))
    assert isinstance(error, errors.PeerUnreachable)
    assert error.detail == "Connection refused"


def test_a_name_that_nobody_knows(target: Target, tmp_path: Path) -> None:
    def fail() -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with name_server("b.invalid", fail):
        error = refused(pin_as(target, "b.invalid", tmp_path))
    assert isinstance(error, errors.PeerUnreachable)
    assert error.detail == "Name or service not known"


@pytest.mark.parametrize("right", [0, 1, 2, None])
def test_every_address_of_a_name_is_tried(target: Target, tmp_path: Path, right: int | None) -> None:
    addresses = [address_of(target.port if number == right else free_port()) for number in range(3)]
    with name_server("b.invalid", lambda: addresses):
        if right is None:
            assert isinstance(refused(pin_as(target, "b.invalid", tmp_path)), errors.PeerUnreachable)
        else:
            assert_works(pin_as(target, "b.invalid", tmp_path))


def test_a_name_without_an_address(target: Target, tmp_path: Path) -> None:
    with name_server("b.invalid", list):
        assert isinstance(refused(pin_as(target, "b.invalid", tmp_path)), errors.PeerUnreachable)


def key_exchange(lists: bytes) -> bytes:
    """A banner, and a first packet that is no KEXINIT anybody could have meant (RFC 4253, 6 and 7.1)."""
    payload = b"\x14" + bytes(16) + lists
    padding = 16 - (5 + len(payload)) % 8
    length = (1 + len(payload) + padding).to_bytes(4, "big")
    return b"SSH-2.0-odd\r\n" + length + bytes([padding]) + payload + bytes(padding)


@pytest.mark.parametrize(
    "banner",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n" + b"header: x\r\n" * 100, id="HTTP"),
        pytest.param(b"220 ready\r\n" * 101, id="a hundred lines and no banner"),
        pytest.param(b"x" * 5000 + b"\r\n" + b"y\r\n" * 100, id="a very long line"),
        pytest.param(b"\xff\xfe\r\n", id="no text"),
        pytest.param(b"SSH-1.5-old\r\n", id="SSH 1"),
        pytest.param(b"SSH-2.0\r\n", id="half a banner"),
        pytest.param(b"SSH-2.0-x\r\n" + b"\xff" * 4000, id="packets of 4 GiB"),
        pytest.param(key_exchange(b""), id="an empty key exchange"),
        pytest.param(key_exchange(b"\x00\x00\x00\x02\xff\xfe" + bytes(80)), id="algorithms that are no text"),
        pytest.param(key_exchange(b"\x7f\xff\xff\xff" + bytes(80)), id="a list longer than its packet"),
    ],
)
def test_a_server_of_something_else(target: Target, tmp_path: Path, banner: bytes) -> None:
    with SilentServer("banner", banner=banner) as server:
        assert isinstance(refused(through(target, server.port, tmp_path)), errors.PeerProtocol)


def test_garbage(target: Target, tmp_path: Path) -> None:
    with SilentServer("garbage") as server:
        assert isinstance(refused(through(target, server.port, tmp_path)), errors.PeerProtocol)


# -- servers and networks that hang ------------------------------------------------------------------------------------


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue of connections is full, so that the kernel drops every further attempt."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(100):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            if connecting_to(port):
                break
        yield port


def connecting_to(port: int) -> list[str]:
    """The attempts that nobody has answered yet (state SYN_SENT of proc(5), net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "02" and row[2].endswith(f":{port:04X}")]


def connected_to(port: int) -> bool:
    """Whether somebody's connection to this port stands (state ESTABLISHED)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "01" and row[2].endswith(f":{port:04X}") for row in rows)


@contextlib.contextmanager
def slow_name_server() -> Iterator[tuple[str, threading.Event]]:
    """A host name whose looking up does not end inside of the block; and the event that it has begun."""
    begun, ended = threading.Event(), threading.Event()

    def wait() -> list[Any]:
        begun.set()
        ended.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with name_server("slow.invalid", wait):
        try:
            yield "slow.invalid", begun
        finally:
            ended.set()


def stop_in_the_middle(relay: Relay, moment: Callable[[], bool]) -> None:
    """Hold every byte from a moment on; each byte takes 0.2 s there and back, so that it is not over before."""
    wait_for(moment, "the moment")
    relay.stall()


def nothing() -> None:
    pass


class Hang(NamedTuple):
    """Whom to connect to, what to do meanwhile so that it hangs, and whether it has come so far."""

    target: Target
    act: Callable[[], None] = nothing
    begun: Callable[[], object] = nothing


def an_sshd(stack: contextlib.ExitStack, **options: Any) -> Target:
    return target_of(stack.enter_context(Sshd(**options)))


def hang_silent(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(SilentServer("silent"))
    return Hang(through(an_sshd(stack), server.port, directory), begun=lambda: connected_to(server.port))


def hang_after_banner(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(SilentServer("banner"))
    return Hang(through(an_sshd(stack), server.port, directory))


def hang_endless_banner(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(SilentServer("slow-line"))
    return Hang(through(an_sshd(stack), server.port, directory))


def hang_black_hole(stack: contextlib.ExitStack, directory: Path) -> Hang:
    port = stack.enter_context(black_hole())
    before = len(connecting_to(port))
    return Hang(through(an_sshd(stack), port, directory), begun=lambda: len(connecting_to(port)) > before)


def hang_many_black_holes(stack: contextlib.ExitStack, directory: Path) -> Hang:
    port = stack.enter_context(black_hole())
    stack.enter_context(name_server("many.invalid", lambda: [address_of(port)] * 10))
    return Hang(pin_as(through(an_sshd(stack), port, directory), "many.invalid", directory))


def hang_name_server(stack: contextlib.ExitStack, directory: Path) -> Hang:
    host, begun = stack.enter_context(slow_name_server())
    return Hang(pin_as(an_sshd(stack), host, directory), begun=begun.is_set)


def hang_frozen(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(Sshd())
    server.freeze()
    return Hang(target_of(server), begun=lambda: connected_to(server.port))


def hang_in_the_key_exchange(stack: contextlib.ExitStack, directory: Path) -> Hang:
    target = an_sshd(stack)
    relay = stack.enter_context(Relay((target.host, target.port), delay_s=0.1))
    moment = partial(stop_in_the_middle, relay, lambda: relay.bytes_down > 0)
    return Hang(through(target, relay.port, directory), moment)


def hang_in_the_login(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(Sshd())
    relay = stack.enter_context(Relay((server.host, server.port), delay_s=0.1))
    moment = partial(stop_in_the_middle, relay, lambda: "Accepted publickey" in server.log())
    return Hang(through(target_of(server), relay.port, directory), moment)


def hang_frozen_after_the_login(stack: contextlib.ExitStack, directory: Path) -> Hang:
    server = stack.enter_context(Sshd())
    relay = stack.enter_context(Relay((server.host, server.port), delay_s=0.1))

    def freeze() -> None:
        wait_for(lambda: "Starting session" in server.log(), "the session")
        server.freeze()

    return Hang(through(target_of(server), relay.port, directory), freeze)


def hang_in_sftp(stack: contextlib.ExitStack, directory: Path) -> Hang:
    return Hang(an_sshd(stack, config=["ForceCommand cat >/dev/null"]))


HANGS: dict[str, tuple[Callable[[contextlib.ExitStack, Path], Hang], type[errors.PeerError]]] = {
    "silent": (hang_silent, errors.PeerTimeout),
    "after the banner": (hang_after_banner, errors.PeerTimeout),
    "endless banner": (hang_endless_banner, errors.PeerTimeout),
    "black hole": (hang_black_hole, errors.PeerTimeout),
    "ten black holes": (hang_many_black_holes, errors.PeerTimeout),
    "name server": (hang_name_server, errors.PeerUnreachable),
    "frozen": (hang_frozen, errors.PeerTimeout),
    "in the key exchange": (hang_in_the_key_exchange, errors.PeerTimeout),
    "in the login": (hang_in_the_login, errors.PeerTimeout),
    "frozen after the login": (hang_frozen_after_the_login, errors.PeerTimeout),
    "in SFTP": (hang_in_sftp, errors.PeerTimeout),
}


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseException | None]:
    """What became of each attempt, all of them at the same time: each takes as long as it may."""

    def attempt(name: str) -> BaseException | None:
        with contextlib.ExitStack() as stack:
            hang = HANGS[name][0](stack, tmp_path_factory.mktemp("hung"))
            with ThreadPoolExecutor(1) as pool:
                connecting = pool.submit(lambda: Connector(hang.target).connect().close())
                hang.act()
                return connecting.exception(3 * CONNECT_TIMEOUT_S)

    with ThreadPoolExecutor(len(HANGS)) as pool:
        return dict(zip(HANGS, pool.map(attempt, HANGS), strict=True))


@pytest.mark.parametrize("name", HANGS)
def test_what_hangs_is_given_up(hung: dict[str, BaseException | None], name: str) -> None:
    error = hung[name]
    assert type(error) is HANGS[name][1], repr(error)
    assert error.detail


@pytest.mark.parametrize("name", ["silent", "black hole", "name server", "frozen"])
def test_abort_from_another_thread_ends_a_connect_that_hangs(name: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        hang = HANGS[name][0](stack, tmp_path)
        connector = Connector(hang.target)
        with ThreadPoolExecutor(1) as pool:
            connecting = pool.submit(connector.connect)
            wait_for(hang.begun, "the attempt to begin")
            assert not connecting.done()
            connector.abort()
            assert isinstance(connecting.exception(CONNECT_TIMEOUT_S / 3), errors.PeerError)
        with pytest.raises(errors.PeerLost, match="stopping"):
            connector.connect()
        connector.abort()  # and once more is no harm


def test_an_abort_before_connect_lets_none_begin(target: Target) -> None:
    connector = Connector(target)
    connector.abort()
    with pytest.raises(errors.PeerLost, match="stopping"):
        connector.connect()


def test_an_abort_in_the_middle_of_dialling_is_not_lost(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is not connected yet cannot be shut down."""
    connector = Connector(target)

    class Slow(socket.socket):
        def connect(self, address: Any) -> None:
            connector.abort()
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Slow)
    with pytest.raises(errors.PeerLost, match="stopping"):
        connector.connect()


# -- a session that ends, or hangs, in the middle ----------------------------------------------------------------------


def collect_until_it_fails(session: Session) -> errors.PeerError:
    until = time.monotonic() + WAIT_S
    with pytest.raises(errors.PeerError) as raised:
        while True:
            wait_readable(session, until)
            session.collect(time.monotonic())
    return raised.value


def test_a_frozen_session_is_given_up(sshd: Sshd, target: Target) -> None:
    with session_with(target) as session:
        exchange(session, jobs(10))
        sshd.freeze()
        try:
            session.submit(jobs(50))
            now = time.monotonic()
            assert session.collect(now) == []
            assert session.collect(now + REPLY_TIMEOUT_S / 2) == []
            with pytest.raises(errors.PeerTimeout):
                session.collect(now + 2 * REPLY_TIMEOUT_S)
        finally:
            sshd.thaw()
    with session_with(target) as session:
        assert {answer.state for answer in exchange(session, jobs(50))} == {State.CONFIRMED}


def test_a_dead_session_shows_by_a_ping(sshd: Sshd, target: Target) -> None:
    with session_with(target) as session:
        now = time.monotonic()
        assert session.collect(now + 1000) == []  # nothing was asked, so nothing is late
        session.ping()
        wait_readable(session, time.monotonic() + WAIT_S)
        assert session.collect(now + 2000) == []
        sshd.freeze()
        try:
            session.ping()
            assert session.collect(now + 2000) == []
            with pytest.raises(errors.PeerTimeout):
                session.collect(now + 2001 + REPLY_TIMEOUT_S)
        finally:
            sshd.thaw()


@pytest.mark.parametrize("end", ["reset", "killed"])
def test_a_connection_that_ends_in_the_middle(sshd: Sshd, target: Target, tmp_path: Path, end: str) -> None:
    with Relay((sshd.host, sshd.port)) as relay:
        behind = through(target, relay.port, tmp_path)
        with session_with(behind) as session:
            exchange(session, jobs(10))
            relay.stall("down")  # no answer arrives before the end does
            session.submit(jobs(50))
            if end == "reset":
                relay.reset()
            else:
                sshd.kill_sessions()
                relay.resume("down")
            assert isinstance(collect_until_it_fails(session), errors.PeerLost)
        relay.resume()
        with session_with(behind) as session:
            assert {answer.state for answer in exchange(session, jobs(50))} == {State.CONFIRMED}


def test_a_reset_while_connecting(sshd: Sshd, target: Target, tmp_path: Path) -> None:
    with Relay((sshd.host, sshd.port), delay_s=0.1) as relay, ThreadPoolExecutor(1) as pool:
        behind = through(target, relay.port, tmp_path)
        connecting = pool.submit(lambda: Connector(behind).connect().close())
        wait_for(lambda: relay.bytes_down, "the server's banner")
        relay.reset()
        assert isinstance(connecting.exception(WAIT_S), errors.PeerLost | errors.PeerUnreachable)
        relay.set_delay(0.0)
        assert_works(behind)


def test_a_slow_network_is_none_that_hangs(sshd: Sshd, target: Target, tmp_path: Path) -> None:
    with Relay((sshd.host, sshd.port), delay_s=0.1) as relay:
        with session_with(through(target, relay.port, tmp_path)) as session:
            assert {answer.state for answer in exchange(session, jobs(300))} == {State.CONFIRMED}


def test_sessions_leave_no_threads_and_no_connections(sshd: Sshd, target: Target) -> None:
    before = set(threading.enumerate())
    for _ in range(5):
        with session_with(target) as session:
            exchange(session, jobs(5))
    refused(replace(target, user="no-such-account"))
    wait_for(lambda: set(threading.enumerate()) <= before, "the threads to end")
    wait_for(lambda: not sshd.sessions(), "the connections to end")

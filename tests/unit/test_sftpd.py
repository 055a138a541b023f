"""The demo's SFTP server, by paramiko's client and by raw packets; what it shares with OpenSSH is asked of both."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import paramiko
import pytest

from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.cli.demo.sftp_packets import BadPacket, Splitter
from tombsync.cli.demo.sftpd import EmbeddedSftpServer, Jail

TIMEOUT_S = 10.0
INIT, VERSION, OPEN, CLOSE, WRITE, LSTAT, MKDIR, REMOVE, EXTENDED = 1, 2, 3, 4, 6, 7, 14, 13, 200
STATUS, HANDLE, ATTRS, EXTENDED_REPLY = 101, 102, 105, 201
OK, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, OP_UNSUPPORTED = 0, 2, 3, 4, 5, 8
READ_FLAG, WRITE_FLAG, APPEND_FLAG, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 16, 32


def text(value: bytes | str | Path) -> bytes:
    encoded = value if isinstance(value, bytes) else os.fsencode(value)
    return struct.pack(">I", len(encoded)) + encoded


class Answer(NamedTuple):
    kind: int
    request: int
    body: bytes

    @property
    def code(self) -> int:
        """The status; a handle or attributes count as none."""
        assert self.kind == STATUS, self
        return int.from_bytes(self.body[:4], "big")

    @property
    def handle(self) -> bytes:
        assert self.kind == HANDLE, self
        return self.body[4:]


class Wire:
    """SFTP by hand over one channel: what is sent and what comes back, packet by packet."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self.channel = transport.open_session(timeout=TIMEOUT_S)
        self.channel.settimeout(TIMEOUT_S)
        self.channel.invoke_subsystem("sftp")
        self._numbers = iter(range(1, 1_000_000))

    def greet(self) -> bytes:
        self.channel.sendall(struct.pack(">IBI", 5, INIT, 3))
        packet = self._receive()
        assert packet[0] == VERSION
        return packet[1:]

    def request(self, kind: int, body: bytes) -> bytes:
        """One request as bytes, to be sent with others."""
        return struct.pack(">IBI", 5 + len(body), kind, next(self._numbers)) + body

    def ask(self, kind: int, body: bytes) -> Answer:
        self.channel.sendall(self.request(kind, body))
        return self.answer()

    def open(self, path: str | bytes | Path, flags: int) -> Answer:
        return self.ask(OPEN, text(path) + struct.pack(">II", flags, 0))

    def answer(self) -> Answer:
        packet = self._receive()
        return Answer(packet[0], int.from_bytes(packet[1:5], "big"), packet[5:])

    def _receive(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(4), "big"))

    def _exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            part = self.channel.recv(count - len(received))
            if not part:
                raise EOFError
            received += part
        return received


@contextlib.contextmanager
def transport_to(
    port: int, key: paramiko.PKey, user: str = "anybody", host_key: paramiko.PKey | None = None
) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport(("127.0.0.1", port))
    try:
        transport.start_client(timeout=TIMEOUT_S)
        if host_key is not None:
            assert transport.get_remote_server_key().asbytes() == host_key.asbytes()
        transport.auth_publickey(user, key)
        yield transport
    finally:
        transport.close()
        transport.join(TIMEOUT_S)


class Served(NamedTuple):
    port: int
    user: str
    key: paramiko.PKey
    root: Path


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


@pytest.fixture(scope="module")
def key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


@pytest.fixture
def embedded(tmp_path: Path, host_key: paramiko.PKey, key: paramiko.PKey) -> Iterator[Served]:
    root = tmp_path.resolve() / "served"
    root.mkdir()
    server = EmbeddedSftpServer(host_key, key, str(root))
    try:
        yield Served(server.start(), "anybody", key, root)
    finally:
        server.close()


@pytest.fixture
def wire(embedded: Served) -> Iterator[Wire]:
    with transport_to(embedded.port, embedded.key) as transport:
        wire = Wire(transport)
        wire.greet()
        yield wire


@pytest.fixture(scope="module")
def openssh() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@pytest.fixture(params=["embedded", "openssh"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Wire, Path]]:
    """A session and the directory to use, of the embedded server and of a real one."""
    if request.param == "embedded":
        served: Served = request.getfixturevalue("embedded")
    else:
        server: Sshd = request.getfixturevalue("openssh")
        root = tmp_path.resolve() / "served"
        root.mkdir()
        served = Served(server.port, server.user, paramiko.Ed25519Key(filename=str(server.key_path)), root)
    with transport_to(served.port, served.key, served.user) as transport:
        wire = Wire(transport)
        wire.greet()
        yield wire, served.root


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for some thousand open files in this process, in which the embedded server runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000 if hard == resource.RLIM_INFINITY else min(hard, 10_000)
    if wanted < 5_000:
        pytest.skip(f"this account may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- the same answers as OpenSSH ---------------------------------------------------------------------------------------


def test_exclusive_create_then_the_second_fails_and_lstat_tells(either: tuple[Wire, Path]) -> None:
    wire, root = either
    path = root / "a.tombstone"
    first = wire.open(path, CREATE | EXCLUSIVE)
    assert path.stat().st_size == 0
    assert wire.ask(CLOSE, text(first.handle)).code == OK

    assert wire.open(path, CREATE | EXCLUSIVE).code == FAILURE
    attrs = wire.ask(LSTAT, text(path))
    assert attrs.kind == ATTRS
    flags, size, uid, gid, mode, _, mtime = struct.unpack(">IQIIIII", attrs.body)
    assert flags & 0xF == 0xF
    status = path.lstat()
    assert (size, uid, gid, mode, mtime) == (0, status.st_uid, status.st_gid, status.st_mode, int(status.st_mtime))
    assert stat.S_ISREG(mode)


def test_fsync_of_a_file_and_of_a_directory_handle(either: tuple[Wire, Path]) -> None:
    wire, root = either
    for opened in (wire.open(root / "a", CREATE | EXCLUSIVE), wire.open(root, READ_FLAG)):
        assert wire.ask(EXTENDED, text(b"fsync@openssh.com") + text(opened.handle)).code == OK
        assert wire.ask(CLOSE, text(opened.handle)).code == OK
        assert wire.ask(CLOSE, text(opened.handle)).code == NO_SUCH_FILE


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("absent", NO_SUCH_FILE),
        ("absent/below", NO_SUCH_FILE),
        ("file/below", NO_SUCH_FILE),
        ("n" * 256, BAD_MESSAGE),
    ],
)
def test_status_of_a_path_that_cannot_be(either: tuple[Wire, Path], path: str, code: int) -> None:
    wire, root = either
    (root / "file").touch()
    assert wire.ask(LSTAT, text(root / path)).code == code
    assert wire.open(root / path, READ_FLAG).code == code
    if path != "absent":
        assert wire.open(root / path, CREATE | EXCLUSIVE).code == code


def test_mkdir(either: tuple[Wire, Path]) -> None:
    wire, root = either
    assert wire.ask(MKDIR, text(root / "hour") + struct.pack(">II", 4, 0o750)).code == OK
    assert stat.S_IMODE((root / "hour").stat().st_mode) == 0o750
    assert wire.ask(MKDIR, text(root / "hour") + struct.pack(">I", 0)).code == FAILURE
    assert wire.ask(MKDIR, text(root / "no" / "hour") + struct.pack(">I", 0)).code == NO_SUCH_FILE


def test_open_of_a_directory_for_writing_fails(either: tuple[Wire, Path]) -> None:
    wire, root = either
    assert wire.open(root, WRITE_FLAG).code == FAILURE


def test_no_permission(either: tuple[Wire, Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root is refused nothing")
    wire, root = either
    (root / "closed").mkdir(mode=0o500)
    assert wire.open(root / "closed" / "a", CREATE | EXCLUSIVE).code == PERMISSION_DENIED


def test_unknown_extension(either: tuple[Wire, Path]) -> None:
    wire, _ = either
    assert wire.ask(EXTENDED, text(b"no-such@example.com")).code == OP_UNSUPPORTED


def test_limits(either: tuple[Wire, Path]) -> None:
    wire, _ = either
    answer = wire.ask(EXTENDED, text(b"limits@openssh.com"))
    assert answer.kind == EXTENDED_REPLY
    max_packet, max_read, max_write, max_handles = struct.unpack(">4Q", answer.body)
    assert (max_packet, max_read, max_write) == (256 * 1024, 255 * 1024, 255 * 1024)
    assert max_handles > 0


def test_extensions_are_announced(embedded: Served) -> None:
    with transport_to(embedded.port, embedded.key) as transport:
        expected = [text(part) for part in (b"fsync@openssh.com", b"1", b"limits@openssh.com", b"1")]
        assert Wire(transport).greet() == struct.pack(">I", 3) + b"".join(expected)


# -- paramiko's own client ---------------------------------------------------------------------------------------------


def test_paramiko_client(embedded: Served, host_key: paramiko.PKey) -> None:
    with transport_to(embedded.port, embedded.key, host_key=host_key) as transport:
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        path = str(embedded.root / "x.tombstone")
        client.mkdir(str(embedded.root / "hour"))
        client.open(path, "x").close()
        with pytest.raises(OSError, match="Failure") as exists:
            client.open(path, "x")
        assert exists.value.errno is None
        assert client.lstat(path).st_size == 0
        with pytest.raises(FileNotFoundError):
            client.lstat(path + "y")
        with pytest.raises(PermissionError):
            client.open("/etc/passwd")
        assert client.normalize(".") == str(embedded.root)
        assert client.normalize(f"{embedded.root}/hour/../hour/.") == f"{embedded.root}/hour"
        with pytest.raises(OSError, match="unsupported"):
            client.remove(path)
        client.close()


def test_another_key_and_a_password_are_refused(embedded: Served) -> None:
    with pytest.raises(paramiko.AuthenticationException), transport_to(embedded.port, paramiko.ECDSAKey.generate()):
        pass
    transport = paramiko.Transport(("127.0.0.1", embedded.port))
    try:
        transport.start_client(timeout=TIMEOUT_S)
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_password("anybody", "guess")
        assert refused.value.allowed_types == ["publickey"]
    finally:
        transport.close()
        transport.join(TIMEOUT_S)


def test_nothing_but_sftp_is_served(embedded: Served) -> None:
    with transport_to(embedded.port, embedded.key) as transport:
        asks: list[Callable[[paramiko.Channel], None]] = [
            lambda channel: channel.exec_command("id"),
            lambda channel: channel.invoke_shell(),
            lambda channel: channel.get_pty(),
            lambda channel: channel.invoke_subsystem("other"),
        ]
        for ask in asks:
            with pytest.raises(paramiko.SSHException):
                ask(transport.open_session(timeout=TIMEOUT_S))
        with pytest.raises(paramiko.ChannelException):
            transport.open_channel("direct-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 2), timeout=TIMEOUT_S)
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)


# -- the jail ----------------------------------------------------------------------------------------------------------


def test_outside_is_refused(wire: Wire, embedded: Served) -> None:
    root = embedded.root
    beside = root.parent / "served-too"
    beside.mkdir()
    outside: list[str | Path] = [
        "/etc/passwd",
        "relative",
        "",
        "/",
        root.parent,
        beside / "a",
        f"{root}/../served-too/a",
        f"{root}/a/..",
    ]
    for path in outside:
        assert wire.ask(LSTAT, text(path)).code == PERMISSION_DENIED, path
        assert wire.open(path, READ_FLAG).code == PERMISSION_DENIED, path
        assert wire.open(path, CREATE | EXCLUSIVE).code == PERMISSION_DENIED, path
        assert wire.ask(MKDIR, text(path) + struct.pack(">I", 0)).code == PERMISSION_DENIED, path
    assert not list(beside.iterdir())
    assert not list(root.iterdir())
    assert wire.ask(LSTAT, text(f"{root}/a\0b")).code == BAD_MESSAGE


def test_no_symbolic_link_is_followed(wire: Wire, embedded: Served) -> None:
    root = embedded.root
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "directory").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "new")
    assert wire.open(root / "directory" / "secret", READ_FLAG).code == NO_SUCH_FILE
    assert wire.open(root / "directory" / "new", CREATE | EXCLUSIVE).code == NO_SUCH_FILE
    assert wire.ask(MKDIR, text(root / "directory" / "new") + struct.pack(">I", 0)).code == NO_SUCH_FILE
    assert wire.open(root / "directory", READ_FLAG).code == NO_SUCH_FILE
    assert wire.open(root / "file", READ_FLAG).code == NO_SUCH_FILE
    assert wire.open(root / "dangling", CREATE).code == NO_SUCH_FILE
    assert wire.open(root / "dangling", CREATE | EXCLUSIVE).code == FAILURE
    mode = struct.unpack(">IQIIIII", wire.ask(LSTAT, text(root / "file")).body)[4]
    assert stat.S_ISLNK(mode)
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_what_exists_is_never_changed(wire: Wire, embedded: Served) -> None:
    segment = embedded.root / "segment.ts"
    segment.write_bytes(b"data")
    assert wire.open(segment, WRITE_FLAG | CREATE | TRUNCATE).code == OP_UNSUPPORTED
    assert wire.open(segment, WRITE_FLAG | APPEND_FLAG).code == OP_UNSUPPORTED
    assert wire.open(segment, WRITE_FLAG | CREATE | TRUNCATE | EXCLUSIVE).code == FAILURE
    opened = wire.open(segment, WRITE_FLAG)
    assert wire.ask(WRITE, text(opened.handle) + struct.pack(">Q", 0) + text(b"x")).code == OP_UNSUPPORTED
    assert wire.ask(REMOVE, text(segment)).code == OP_UNSUPPORTED
    assert segment.read_bytes() == b"data"


def test_a_fifo_does_not_hang_the_session(wire: Wire, embedded: Served) -> None:
    os.mkfifo(embedded.root / "fifo")
    assert wire.open(embedded.root / "fifo", READ_FLAG).kind == HANDLE
    assert wire.open(embedded.root / "absent", READ_FLAG).code == NO_SUCH_FILE


def test_a_root_that_is_the_whole_file_system() -> None:
    jail = Jail("/")
    assert os.path.samestat(jail.lstat(b"/"), os.lstat("/"))
    assert os.path.samestat(jail.lstat(b"/proc"), os.lstat("/proc"))
    assert jail.absolute(b"proc/../x") == b"/x"


# -- many at once, and the end -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_files")
def test_two_thousand_opens_in_flight_are_answered_in_order(wire: Wire, embedded: Served) -> None:
    count = 2000
    names = [embedded.root / f"{number}.tombstone" for number in range(count)]
    opens = [wire.request(OPEN, text(path) + struct.pack(">II", CREATE | EXCLUSIVE, 0)) for path in names]
    wire.channel.sendall(b"".join(opens))
    answers = [wire.answer() for _ in range(count)]
    assert [answer.request for answer in answers] == list(range(1, count + 1))
    assert len({answer.handle for answer in answers}) == count
    assert len(list(embedded.root.iterdir())) == count

    follow = [
        wire.request(EXTENDED, text(b"fsync@openssh.com") + text(answer.handle))
        + wire.request(CLOSE, text(answer.handle))
        for answer in answers
    ]
    wire.channel.sendall(b"".join(follow))
    closed = [wire.answer() for _ in range(2 * count)]
    assert [answer.request for answer in closed] == list(range(count + 1, 3 * count + 1))
    assert {answer.code for answer in closed} == {OK}


def test_one_open_more_than_the_limit_fails(tmp_path: Path, host_key: paramiko.PKey, key: paramiko.PKey) -> None:
    server = EmbeddedSftpServer(host_key, key, str(tmp_path), max_open_handles=2)
    try:
        with transport_to(server.start(), key) as transport:
            wire = Wire(transport)
            wire.greet()
            assert struct.unpack(">4Q", wire.ask(EXTENDED, text(b"limits@openssh.com")).body)[3] == 2
            first = wire.open(f"{server.root}/0", CREATE | EXCLUSIVE)
            wire.open(f"{server.root}/1", CREATE | EXCLUSIVE)
            assert wire.open(f"{server.root}/2", CREATE | EXCLUSIVE).code == FAILURE
            assert not (tmp_path / "2").exists()
            assert wire.ask(CLOSE, text(first.handle)).code == OK
            assert wire.open(f"{server.root}/2", CREATE | EXCLUSIVE).kind == HANDLE
    finally:
        server.close()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(struct.pack(">IB", 0xFFFFFFFF, OPEN), id="a length of 4 GiB"),
        pytest.param(struct.pack(">IB", 0, OPEN), id="a length of nothing"),
        pytest.param(struct.pack(">IBI", 9, LSTAT, 1) + struct.pack(">I", 100), id="a string longer than its packet"),
        pytest.param(struct.pack(">IB", 1, LSTAT), id="no request id"),
    ],
)
def test_what_is_not_sftp_ends_the_session(wire: Wire, embedded: Served, sent: bytes) -> None:
    wire.channel.sendall(sent)
    with pytest.raises(EOFError):
        wire.answer()
    with transport_to(embedded.port, embedded.key) as transport:  # and only that session
        Wire(transport).greet()


def test_a_request_before_init_ends_the_session(embedded: Served) -> None:
    with transport_to(embedded.port, embedded.key) as transport:
        wire = Wire(transport)
        with pytest.raises(EOFError):
            wire.ask(LSTAT, text(embedded.root))


def test_packets_are_found_wherever_the_reads_end() -> None:
    stream = b"".join(struct.pack(">IBI", 5, LSTAT, number) for number in range(20))
    for size in range(1, 30):
        splitter = Splitter()
        found = []
        for at in range(0, len(stream), size):
            for packet in splitter.feed(stream[at : at + size]):
                found.append((packet.byte(), packet.uint32()))
                with pytest.raises(BadPacket):
                    packet.byte()
        assert found == [(LSTAT, number) for number in range(20)]


def test_a_lost_client_leaves_no_open_files(embedded: Served) -> None:
    path = embedded.root / "a"

    def open_here() -> bool:
        links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return any(link.exists() and os.path.samefile(link, path) for link in links)

    with transport_to(embedded.port, embedded.key) as transport:
        wire = Wire(transport)
        wire.greet()
        wire.open(path, CREATE | EXCLUSIVE)
        assert open_here()
    wait_for(lambda: not open_here(), "the file to be closed")


def test_close_ends_everything_within_a_bound(tmp_path: Path, host_key: paramiko.PKey, key: paramiko.PKey) -> None:
    before = set(threading.enumerate())
    server = EmbeddedSftpServer(host_key, key, str(tmp_path))
    port = server.start()
    with transport_to(port, key) as transport, transport_to(port, key) as other:
        wire = Wire(transport)
        wire.greet()
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 5.0
        with pytest.raises((EOFError, OSError, paramiko.SSHException)):
            wire.ask(LSTAT, text(server.root))
        other.join(TIMEOUT_S)
        assert not other.is_active()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    assert set(threading.enumerate()) <= before
    server.close()  # and once more is no harm

"""The tests' own tools really do what they say: the SSH server, the relay and the servers that misbehave."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.support.relay import MAX_HELD_BYTES, Misbehaviour, Relay, SilentServer, free_port
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 10.0
# A read that must not be answered waits this long; what would answer it takes a millisecond.
SILENCE_S = 0.3
# What paramiko raises for a connection that has ended, as it happens to notice.
GONE = (OSError, EOFError, paramiko.SSHException)


# -- sshd --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


@contextlib.contextmanager
def sftp_to(server: Sshd) -> Iterator[paramiko.SFTPClient]:
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(server.known_hosts_path))
        client.connect(
            server.host,
            server.port,
            username=server.user,
            key_filename=str(server.key_path),
            look_for_keys=False,
            allow_agent=False,
            timeout=TIMEOUT_S,
            banner_timeout=TIMEOUT_S,
            auth_timeout=TIMEOUT_S,
        )
        with client.open_sftp() as sftp:
            channel = sftp.get_channel()
            assert channel is not None
            channel.settimeout(TIMEOUT_S)
            yield sftp


def host_key_of(server: Sshd) -> tuple[str, str]:
    transport = paramiko.Transport((server.host, server.port))
    try:
        transport.start_client(timeout=TIMEOUT_S)
        key = transport.get_remote_server_key()
        return key.get_name(), key.get_base64()
    finally:
        transport.close()
        transport.join(TIMEOUT_S)


def ended(pid: int) -> bool:
    """A zombie has ended too: nobody has asked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_sshd_serves_a_segment_tree_to_its_key(sshd: Sshd) -> None:
    with sftp_to(sshd) as sftp:
        sftp.mkdir(f"{sshd.root}/channel")
        sftp.open(f"{sshd.root}/channel/a", "x").close()
    assert (sshd.root / "channel" / "a").stat().st_size == 0
    assert f"Accepted publickey for {sshd.user}" in sshd.log()


def test_sshd_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError), Sshd() as server, sftp_to(server):
        pids = [server.pid, *server.sessions()]
        assert len(pids) >= 2
        (server.root / "closed").mkdir()
        (server.root / "closed" / "file").touch()
        (server.root / "closed").chmod(0)
        raise ZeroDivisionError
    assert all(ended(pid) for pid in pids)
    assert not server.directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), TIMEOUT_S)


def test_sshd_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="NoSuchOption"), Sshd(config=["NoSuchOption yes"]):
        pass
    assert not list(tmp_path.iterdir())


def test_sshd_stop_drops_sessions_and_start_is_the_same_server_again(sshd: Sshd) -> None:
    before = sshd.port, host_key_of(sshd), sshd.pid
    with sftp_to(sshd) as sftp:
        session = sshd.sessions()
        sshd.stop()
        assert all(ended(pid) for pid in [before[2], *session])
        assert sshd.sessions() == []
        with pytest.raises(GONE):
            sftp.lstat("/")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((sshd.host, sshd.port), TIMEOUT_S)
    sshd.stop()
    sshd.start()
    assert (sshd.port, host_key_of(sshd)) == before[:2]
    assert sshd.pid != before[2]


def test_sshd_freeze_makes_a_read_time_out_and_thaw_continues_it(sshd: Sshd) -> None:
    with sftp_to(sshd) as sftp:
        channel = sftp.get_channel()
        assert channel is not None
        sshd.freeze()
        channel.settimeout(SILENCE_S)
        # By hand: SFTPClient reads no further after a timeout, and the answer must still come.
        body = struct.pack(">I", 1) + b"/"
        channel.sendall(struct.pack(">IBI", 5 + len(body), 7, 99) + body)
        with pytest.raises(TimeoutError):
            channel.recv(4096)
        with socket.create_connection((sshd.host, sshd.port), TIMEOUT_S) as newcomer:  # the kernel takes it
            newcomer.settimeout(SILENCE_S)
            with pytest.raises(TimeoutError):
                newcomer.recv(4096)
            sshd.thaw()
            channel.settimeout(TIMEOUT_S)
            newcomer.settimeout(TIMEOUT_S)
            assert channel.recv(4096)[4:9] == struct.pack(">BI", 105, 99)
            assert newcomer.recv(4096).startswith(b"SSH-2.0-")


def test_sshd_can_be_stopped_while_frozen(sshd: Sshd) -> None:
    with sftp_to(sshd):
        sshd.freeze()
        sshd.kill_sessions()
        assert sshd.sessions() == []
        sshd.stop()
        sshd.start()
    host_key_of(sshd)


def test_sshd_kill_sessions_keeps_the_listener(sshd: Sshd) -> None:
    listener = sshd.pid
    with sftp_to(sshd) as sftp:
        (session,) = sshd.sessions()
        sshd.kill_sessions()
        assert ended(session)
        with pytest.raises(GONE):
            sftp.lstat("/")
    assert sshd.sessions() == []
    with sftp_to(sshd) as sftp:
        sftp.lstat("/")
    assert sshd.pid == listener


def test_sshd_new_host_key_changes_it_but_not_known_hosts(sshd: Sshd) -> None:
    pinned, old = sshd.known_hosts_path.read_text(), host_key_of(sshd)
    sshd.new_host_key()
    assert host_key_of(sshd) != old
    assert sshd.known_hosts_path.read_text() == pinned
    with pytest.raises(paramiko.BadHostKeyException), sftp_to(sshd):
        pass
    sshd.pin()
    with sftp_to(sshd):
        pass


def test_sshd_options() -> None:
    with Sshd(
        sftp_args="-u 0077 -p open,close,lstat",
        host_key_types=["ed25519", "ecdsa"],
        limit_open_files=60,
        config=["MaxSessions 1"],
    ) as server:
        kinds = [line.split()[1] for line in server.known_hosts_path.read_text().splitlines()]
        assert kinds == ["ssh-ed25519", "ecdsa-sha2-nistp256"]
        with sftp_to(server) as sftp:
            sftp.open(f"{server.root}/a", "x").close()
            assert (server.root / "a").stat().st_mode & 0o777 == 0o600
            with pytest.raises(PermissionError):
                sftp.mkdir(f"{server.root}/b")
            for pid in (server.pid, *server.sessions()):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (60, 60)
            opened: list[paramiko.SFTPFile] = []
            with pytest.raises(OSError, match="Failure"):
                while len(opened) < 100:
                    opened.append(sftp.open(f"{server.root}/{len(opened)}", "x"))
            for file in opened:
                file.close()


# -- the relay ---------------------------------------------------------------------------------------------------------


class Echo:
    """Sends back what it reads, on every connection; remembers how each ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.ends: list[str] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(TIMEOUT_S)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 20):
                    connection.sendall(data)
                self.ends.append("end")
            except ConnectionResetError:
                self.ends.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay(echo.address) as relay:
        yield relay


def connect(relay: Relay | SilentServer) -> socket.socket:
    return socket.create_connection((relay.host, relay.port), TIMEOUT_S)


def exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = connection.recv(count - len(received))
        assert part, "the connection ended early"
        received += part
    return bytes(received)


def test_relay_passes_on_every_byte_and_the_end(relay: Relay, echo: Echo) -> None:
    data = os.urandom(3_000_000)
    with connect(relay) as client:
        sender = threading.Thread(target=client.sendall, args=(data,), daemon=True)
        sender.start()
        assert exactly(client, len(data)) == data
        sender.join(TIMEOUT_S)
        assert (relay.bytes_up, relay.bytes_down) == (len(data), len(data))
        assert (relay.connections, relay.connections_total) == (1, 1)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    wait_for(lambda: relay.connections == 0)
    assert echo.ends == ["end"]
    assert relay.connections_total == 1


def test_relay_delays_each_direction(relay: Relay) -> None:
    relay.set_delay(0.05, "up")
    relay.set_delay(0.1, "down")
    with connect(relay) as client:
        for _ in range(3):
            started = time.monotonic()
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert time.monotonic() - started >= 0.15
        relay.set_delay(0.0)
        client.sendall(b"y")
        assert client.recv(1) == b"y"


def test_relay_keeps_the_order_when_the_delay_shrinks(relay: Relay) -> None:
    relay.set_delay(0.2, "up")
    with connect(relay) as client:
        client.sendall(b"1")
        wait_for(lambda: relay.connections == 1)
        time.sleep(0.02)  # so that the relay has read the first on its own
        relay.set_delay(0.0)
        client.sendall(b"2")
        assert exactly(client, 2) == b"12"


def test_relay_delays_the_last_of_many_bytes_too(relay: Relay) -> None:
    relay.set_delay(0.025)
    data = b"x" * 8_000_000
    with connect(relay) as client:
        started = time.monotonic()
        sender = threading.Thread(target=client.sendall, args=(data,), daemon=True)
        sender.start()
        exactly(client, len(data))
        sender.join(TIMEOUT_S)
        assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_relay_stall_holds_bytes_and_resume_gives_them(relay: Relay, direction: str) -> None:
    with connect(relay) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        stalled = {"up": relay.bytes_up, "down": relay.bytes_down}
        if direction == "up":
            relay.stall("up")
        elif direction == "down":
            relay.stall("down")
        else:
            relay.stall()
        client.sendall(b"b")
        client.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert relay.bytes_down == stalled["down"]
        assert relay.bytes_up == stalled["up"] + (direction == "down")  # one way only
        assert relay.connections == 1
        client.settimeout(TIMEOUT_S)
        relay.resume()
        assert client.recv(1) == b"b"


def test_relay_stall_holds_a_reset_too(relay: Relay, echo: Echo) -> None:
    """In a one-way partition the news of the far side's end is lost as well."""
    with SilentServer("silent") as far:
        relay.target = (far.host, far.port)
        client = connect(relay)
        wait_for(lambda: far.connections_total == 1)
        relay.stall("down")
    with client:
        client.settimeout(SILENCE_S)
        for _ in range(3):
            client.sendall(b"x")
            with pytest.raises(TimeoutError):
                client.recv(1)
        client.settimeout(TIMEOUT_S)
        relay.resume("down")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_for(lambda: relay.connections == 0)


def test_relay_reset_is_seen_as_reset_on_both_sides(relay: Relay, echo: Echo) -> None:
    with connect(relay) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        relay.reset()
        assert relay.connections == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_for(lambda: echo.ends == ["reset"])
    with connect(relay) as client:
        client.sendall(b"b")
        assert client.recv(1) == b"b"


def test_relay_refuse_and_accept_on_the_same_port(relay: Relay) -> None:
    with connect(relay) as standing:
        standing.sendall(b"a")
        assert standing.recv(1) == b"a"
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(relay)
        standing.sendall(b"b")
        assert standing.recv(1) == b"b"
        relay.refuse()
        relay.accept()
        relay.accept()
        with connect(relay) as client:
            client.sendall(b"c")
            assert client.recv(1) == b"c"


def test_relay_to_nobody_resets(relay: Relay) -> None:
    relay.target = ("127.0.0.1", free_port())
    with pytest.raises(ConnectionResetError), connect(relay) as client:  # by chance even while it connects
        client.recv(1)
    wait_for(lambda: relay.connections == 0)


def test_relay_holds_what_a_slow_reader_does_not_take(relay: Relay) -> None:
    """The sender is held up in the end, and then every byte arrives."""
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        relay.target = far.getsockname()
        relay.set_delay(0.001)
        client = stack.enter_context(connect(relay))
        reader, _ = far.accept()
        stack.enter_context(reader)
        total = MAX_HELD_BYTES + 20_000_000
        sender = threading.Thread(target=client.sendall, args=(bytes(total),), daemon=True)
        sender.start()
        sender.join(SILENCE_S)
        reader.settimeout(TIMEOUT_S)
        assert len(exactly(reader, total)) == total
        sender.join(TIMEOUT_S)
        assert not sender.is_alive()


def test_relay_in_front_of_sshd(sshd: Sshd) -> None:
    with Relay((sshd.host, sshd.port), delay_s=0.01) as relay:
        transport = paramiko.Transport(connect(relay))
        try:
            transport.start_client(timeout=TIMEOUT_S)
            transport.auth_publickey(sshd.user, paramiko.Ed25519Key(filename=str(sshd.key_path)))
            sftp = paramiko.SFTPClient.from_transport(transport)
            assert sftp is not None
            started = time.monotonic()
            sftp.lstat("/")
            assert time.monotonic() - started >= 0.02
        finally:
            transport.close()
            transport.join(TIMEOUT_S)


def test_relay_and_silent_server_leave_no_thread(echo: Echo) -> None:
    before = set(threading.enumerate())
    with Relay(echo.address) as relay, SilentServer("slow-line") as silent, connect(relay), connect(silent):
        relay.stall()
    assert set(threading.enumerate()) - before <= set(echo.threads)


# -- servers that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misbehaviour", "first", "count"),
    [
        ("silent", b"", 0),
        ("banner", b"SSH-2.0-", len("SSH-2.0-OpenSSH_9.2\r\n")),
        ("garbage", b"", 64 * 1024),
        ("slow-line", b"xxxx", 1000),
        ("fast-line", b"xxxx", 1000),
    ],
)
def test_silent_server(misbehaviour: Misbehaviour, first: bytes, count: int) -> None:
    with SilentServer(misbehaviour, line_bytes=1000) as server, connect(server) as client:
        received = exactly(client, count)
        assert received.startswith(first)
        assert misbehaviour == "banner" or b"SSH-" not in received
        client.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert server.connections_total == 1


def test_silent_server_ends_in_the_middle_of_a_line_that_nobody_reads() -> None:
    started = time.monotonic()
    with SilentServer("fast-line") as server, connect(server) as client:
        assert exactly(client, 10) == b"x" * 10
    assert time.monotonic() - started < 5.0


def test_all_kinds_of_tests_run_in_ci() -> None:
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    (kinds,) = re.findall(r"^kinds=\((.*)\)$", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)
    there = [str(path.parent.relative_to(REPOSITORY)) for path in REPOSITORY.glob("tests/*/test_*.py")]
    assert sorted(kinds.split()) == sorted(settings["tool:pytest"]["testpaths"].split()) == sorted(set(there))

"""What a peer can do with its own key, on a real sshd with the drop-in as it is shipped: create names in its inbox, ask
for names in the view, and nothing else. The segment tree is writable for everybody here: only the jail protects.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import paramiko
import pytest

from tests.support.agent import segment_stem
from tests.support.machine import Machine
from tests.support.programs import need
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
SEGMENT = f"{segment_stem()}.ts"
PLACES = [HOUR, "desertbus/160p/2019-11-13T02"]  # the second is on a disk of its own
CONTENT = b"the content of a segment"
ATTACKER, VICTIM = "tombsync-node-b", "tombsync-node-c"
OWN, OTHER = f"/inbox/{ATTACKER}", f"/inbox/{VICTIM}"
JAIL = "/srv/tombsync"
OK, NO_SUCH_FILE, DENIED, FAILURE, UNSUPPORTED = 0, 2, 3, 4, 8
STATUS, HANDLE, ATTRS = 101, 102, 105
READ, WRITE, APPEND, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 4, 8, 0x10, 0x20
INBOX_NAMES = 12_000


class Jail(NamedTuple):
    """A machine with two peers; `key` is that of the attacker."""

    machine: Machine
    key: Path


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jail]:
    base = tmp_path_factory.mktemp("jail")
    with Machine(base / "machine") as machine:
        attacker, victim = machine.make_key("b"), machine.make_key("c")
        for place in (HOUR, "desertbus/160p"):
            machine.path(machine.root / place).mkdir(parents=True)
        machine.run("mount", "-t", "tmpfs", "tmpfs", machine.root / "desertbus/160p")
        for place in PLACES:
            hour = machine.path(machine.root / place)
            hour.mkdir(parents=True, exist_ok=True)
            (hour / SEGMENT).write_bytes(CONTENT)
            (hour / "way-out").symlink_to("/etc")
        machine.run("chmod", "-R", "a+rwX", machine.root)
        machine.tombsync("peer", "add", "node-b", "--key", attacker[1])
        machine.tombsync("peer", "add", "node-c", "--key", victim[1])
        machine.path(f"{JAIL}{OTHER}/waiting").touch()
        machine.start_sshd()
        yield Jail(machine, attacker[0])


@pytest.fixture
def unchanged(jail: Jail) -> Iterator[None]:
    """Nothing outside the attacker's inbox is another after the test, and nothing in it has any content."""
    own = f"{JAIL}{OWN}"
    before = jail.machine.snapshot(own)
    yield
    for left in jail.machine.path(own).iterdir():
        assert left.lstat().st_size == 0
        left.unlink()
    after = jail.machine.snapshot(own)
    assert {key: value for key, value in after.items() if key != own} == {
        key: value for key, value in before.items() if key != own
    }


def packed(*parts: str | bytes | int) -> bytes:
    """Strings as SFTP has them, numbers as 32 bits."""
    body = b""
    for part in parts:
        if isinstance(part, int):
            body += struct.pack(">I", part)
        else:
            text = part.encode() if isinstance(part, str) else part
            body += struct.pack(">I", len(text)) + text
    return body


class Answer(NamedTuple):
    """A reply: its kind, and its status, or OK where it is none."""

    kind: int
    code: int
    body: bytes

    @property
    def handle(self) -> bytes:
        """Of a reply to OPEN that succeeded."""
        assert self.kind == HANDLE, self
        return self.body[4:]


class Sftp:
    """A session with the attacker's key that sends whatever packet it likes."""

    def __init__(self, jail: Jail, user: str = ATTACKER) -> None:
        self.transport = paramiko.Transport(("127.0.0.1", jail.machine.port))
        try:
            self.transport.connect(username=user, pkey=paramiko.Ed25519Key.from_private_key_file(str(jail.key)))
        except BaseException:
            self.transport.close()
            raise

    def __enter__(self) -> Self:
        self.channel = self.transport.open_session(timeout=20)
        self.channel.settimeout(20)
        self.channel.invoke_subsystem("sftp")
        self.channel.sendall(struct.pack(">IBI", 5, 1, 3))
        assert self._receive()[0] == 2
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def ask(self, kind: int, *parts: str | bytes | int) -> Answer:
        """One request and its reply."""
        self.send(kind, *parts)
        return self.reply()

    def send(self, kind: int, *parts: str | bytes | int) -> None:
        """One request; its reply is fetched later."""
        body = struct.pack(">BI", kind, 7) + packed(*parts)
        self.channel.sendall(struct.pack(">I", len(body)) + body)

    def reply(self) -> Answer:
        """The next reply."""
        kind, *_ = packet = self._receive()
        body = bytes(packet[5:])
        return Answer(kind, struct.unpack_from(">I", body)[0] if kind == STATUS else OK, body)

    def open(self, path: str, flags: int) -> Answer:
        """OPEN with the attributes that give everybody everything."""
        return self.ask(3, path, flags, 4, 0o777)

    def _receive(self) -> bytes:
        return self._exactly(struct.unpack(">I", self._exactly(4))[0])

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.channel.recv(size - len(found))
            assert part, "the session has ended"
            found += part
        return found


@pytest.fixture
def sftp(jail: Jail, unchanged: None) -> Iterator[Sftp]:
    with Sftp(jail) as session:
        yield session


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_a_name_can_be_created_in_its_inbox_and_only_the_agent_may_take_it(jail: Jail, sftp: Sftp) -> None:
    made = sftp.open("1,a-name", CREATE | EXCLUSIVE | READ)
    assert sftp.ask(4, made.handle).code == OK
    assert sftp.ask(7, "1,a-name").kind == ATTRS
    assert sftp.open("1,a-name", CREATE | EXCLUSIVE | READ).code == FAILURE
    found = jail.machine.path(f"{JAIL}{OWN}/1,a-name").lstat()
    assert found.st_mode & 0o777 == 0o700  # of the 0777 that was asked for, the umask leaves the owner's part
    assert jail.machine.path(f"{JAIL}{OWN}").lstat().st_mode & 0o7777 == 0o730


def test_the_view_shows_what_is_in_the_tree(jail: Jail, sftp: Sftp) -> None:
    for place in PLACES:
        assert sftp.ask(7, f"/segments/{place}/{SEGMENT}").kind == ATTRS
        assert sftp.ask(7, f"/segments/{place}/no-such-segment").code == NO_SUCH_FILE


def test_only_the_jail_protects_the_tree_here(jail: Jail) -> None:
    """Else the attacks below would prove nothing."""
    account = ["setpriv", f"--reuid={ATTACKER}", f"--regid={ATTACKER}", "--clear-groups"]
    open_to_all = "/run/tree"
    jail.machine.run("mkdir", open_to_all)
    jail.machine.run("mount", "--rbind", jail.machine.root, open_to_all)
    for place in PLACES:
        jail.machine.run(*account, "test", "-w", f"{open_to_all}/{place}")
        jail.machine.run(*account, "test", "-w", f"{open_to_all}/{place}/{SEGMENT}")
    jail.machine.run("umount", "-R", open_to_all)


# -- attacks by SFTP ---------------------------------------------------------------------------------------------------

WAYS_TO_OPEN = {
    "truncate": WRITE | TRUNCATE,
    "truncate, opened for reading": READ | TRUNCATE,
    "truncate or create": WRITE | CREATE | TRUNCATE,
    "overwrite": WRITE,
    "overwrite, read and write": READ | WRITE,
    "append": WRITE | APPEND,
    "create again": WRITE | CREATE,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("flags", WAYS_TO_OPEN.values(), ids=WAYS_TO_OPEN)
def test_a_segment_cannot_be_written(sftp: Sftp, place: str, flags: int) -> None:
    for path in (f"/segments/{place}/{SEGMENT}", f"../../segments/{place}/{SEGMENT}"):
        opened = sftp.open(path, flags)
        if opened.kind == HANDLE:  # TRUNC without WRITE means nothing to open(2) on some systems
            assert sftp.ask(6, opened.handle, 0, 0, b"spoilt").code == DENIED
        else:
            assert opened.code in (DENIED, FAILURE)


@pytest.mark.parametrize("place", PLACES)
def test_a_segment_cannot_be_read(sftp: Sftp, place: str) -> None:
    opened = sftp.open(f"/segments/{place}/{SEGMENT}", READ)
    answer = sftp.ask(5, opened.handle, 0, 0, 1000)
    assert answer.code == DENIED
    assert CONTENT not in answer.body


def test_not_even_an_own_file_can_be_written_or_read(sftp: Sftp) -> None:
    made = sftp.open("1,own", CREATE | READ | WRITE)
    assert sftp.ask(6, made.handle, 0, 0, b"content").code == DENIED
    assert sftp.ask(5, made.handle, 0, 0, 1000).code == DENIED


@pytest.mark.parametrize("place", PLACES)
def test_nothing_can_be_created_in_the_view(sftp: Sftp, place: str) -> None:
    for name in (f"{segment_stem()}.tombstone", "new"):
        assert sftp.open(f"/segments/{place}/{name}", CREATE | EXCLUSIVE | READ).code in (DENIED, FAILURE)


REQUESTS: dict[str, tuple[int, Callable[[str], tuple[str | bytes | int, ...]]]] = {
    "remove": (13, lambda path: (path,)),
    "rename away": (18, lambda path: (path, "1,stolen")),
    "rename over": (18, lambda path: ("1,mine", path)),
    "posix-rename": (200, lambda path: ("posix-rename@openssh.com", "1,mine", path)),
    "symlink to it": (20, lambda path: (path, "1,link")),
    "symlink in its place": (20, lambda path: ("/etc/passwd", path)),
    "hard link to it": (200, lambda path: ("hardlink@openssh.com", path, "1,link")),
    "hard link in its place": (200, lambda path: ("hardlink@openssh.com", "1,mine", f"{path}-new")),
    "setstat size": (9, lambda path: (path, 1, 0, 0)),
    "setstat mode": (9, lambda path: (path, 4, 0o777)),
    "setstat owner": (9, lambda path: (path, 2, 0, 0)),
    "setstat times": (9, lambda path: (path, 8, 1, 1)),
    "lsetstat": (200, lambda path: ("lsetstat@openssh.com", path, 4, 0o777)),
    "mkdir": (14, lambda path: (f"{path}-new", 0)),
    "mkdir in the inbox": (14, lambda _: ("1,directory", 0)),
    "rmdir": (15, lambda path: (path.rpartition("/")[0],)),
    "list": (11, lambda path: (path.rpartition("/")[0],)),
    "list its inbox": (11, lambda _: (".",)),
    "list the inboxes": (11, lambda _: ("/inbox",)),
    "list the jail": (11, lambda _: ("/",)),
    "stat": (17, lambda path: (path,)),
    "readlink": (19, lambda path: (f"{path.rpartition('/')[0]}/way-out",)),
    "realpath": (16, lambda path: (path,)),
    "statvfs": (200, lambda path: ("statvfs@openssh.com", path)),
    "expand-path": (200, lambda _: ("expand-path@openssh.com", "~root")),
    "home-directory": (200, lambda _: ("home-directory", "root")),
    "users-groups-by-id": (200, lambda _: ("users-groups-by-id@openssh.com", packed(0), packed(0))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_not_on_the_list_is_refused(sftp: Sftp, name: str, place: str) -> None:
    sftp.open("1,mine", CREATE | EXCLUSIVE | READ)
    kind, parts = REQUESTS[name]
    for path in (f"/segments/{place}/{SEGMENT}", f"{OTHER}/waiting"):
        answer = sftp.ask(kind, *parts(path))
        assert (answer.kind, answer.code) in {(STATUS, DENIED), (STATUS, UNSUPPORTED)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["fsetstat", "fstat", "fsync", "fstatvfs", "readdir", "copy-data"])
def test_nothing_can_be_done_with_a_handle(sftp: Sftp, name: str, place: str) -> None:
    """OPEN for reading is allowed, as paramiko and the agent need it to create."""
    handle = sftp.open(f"/segments/{place}/{SEGMENT}", READ).handle
    mine = sftp.open("1,mine", CREATE | READ | WRITE).handle
    answer = {
        "fsetstat": lambda: sftp.ask(10, handle, 4, 0o777),
        "fstat": lambda: sftp.ask(8, handle),
        "fsync": lambda: sftp.ask(200, "fsync@openssh.com", handle),
        "fstatvfs": lambda: sftp.ask(200, "fstatvfs@openssh.com", handle),
        "readdir": lambda: sftp.ask(12, handle),
        "copy-data": lambda: sftp.ask(200, "copy-data", handle, 0, 0, 0, 0, mine, 0, 0),
    }[name]()
    assert (answer.kind, answer.code) in {(STATUS, DENIED), (STATUS, UNSUPPORTED)}


@pytest.mark.parametrize(
    "path",
    [
        "/new", "/inbox/new", "/segments/new", "/etc/new", "../new", "../../new", "../../../../../../../tmp/new",
        f"{OTHER}/new", f"../{VICTIM}/new", f"../{VICTIM}/../{VICTIM}/new", f"{OWN}/../../new", "no-such/new",
        f"/segments/{HOUR}/way-out/new", "/proc/self/root/new", "",
    ],
)  # fmt: skip
def test_nothing_can_be_created_anywhere_else(jail: Jail, sftp: Sftp, path: str) -> None:
    for flags in (CREATE | EXCLUSIVE | READ, CREATE | WRITE | TRUNCATE):
        assert sftp.open(path, flags).code in (DENIED, FAILURE, NO_SUCH_FILE)
    assert not jail.machine.path("/tmp/new").exists()


@pytest.mark.parametrize("path", [f"{OTHER}/waiting", f"../{VICTIM}/waiting"])
def test_another_inbox_cannot_be_looked_into(sftp: Sftp, path: str) -> None:
    assert sftp.ask(7, path).code == DENIED
    for flags in (READ, WRITE, WRITE | TRUNCATE, CREATE | EXCLUSIVE | READ):
        assert sftp.open(path, flags).code == DENIED


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", f"/segments/{HOUR}/way-out/passwd", "/proc/1/stat"]
)
def test_nothing_outside_the_jail_can_be_seen(sftp: Sftp, path: str) -> None:
    assert sftp.ask(7, path).code == NO_SUCH_FILE
    assert sftp.open(path, READ).code == NO_SUCH_FILE


def test_a_flood_fills_its_own_inbox_and_no_other(jail: Jail, unchanged: None) -> None:
    codes = []
    with Sftp(jail) as session:
        for start in range(0, INBOX_NAMES + 500, 500):
            for number in range(start, start + 500):
                session.send(3, f"1,{number}", CREATE | EXCLUSIVE | READ, 0)
            answers = [session.reply() for _ in range(500)]
            made = [answer.handle for answer in answers if answer.code == OK]
            for handle in made:
                session.send(4, handle)
            assert [session.reply().code for _ in made] == [OK] * len(made)
            codes += [answer.code for answer in answers]
    assert 0 < codes.count(OK) < INBOX_NAMES
    assert set(codes) == {OK, FAILURE}
    free = os.statvfs(jail.machine.path(f"{JAIL}{OTHER}"))
    assert (free.f_files, free.f_ffree) == (INBOX_NAMES, INBOX_NAMES - 2)  # its directory, and what waits in it


# -- attacks by SSH ----------------------------------------------------------------------------------------------------


def ssh(jail: Jail, *arguments: str, stdin: str = "", program: str = "ssh") -> subprocess.CompletedProcess[str]:
    """The client with the attacker's key."""
    return subprocess.run(
        client(jail, *arguments, program=program), input=stdin, capture_output=True, text=True, timeout=40
    )


def client(jail: Jail, *arguments: str, program: str = "ssh") -> list[str]:
    options = {
        "IdentityFile": jail.key, "IdentitiesOnly": "yes", "BatchMode": "yes", "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no", "Port": jail.machine.port, "LogLevel": "ERROR", "ExitOnForwardFailure": "yes",
    }  # fmt: skip
    return [need(program), "-F", "none", *(f"-o{key}={value}" for key, value in options.items()), *arguments]


AT = f"{ATTACKER}@127.0.0.1"


@pytest.mark.parametrize(
    "arguments",
    [
        ("-T", AT), ("-tt", AT), (AT, "id; touch /tmp/new"), (AT, "/bin/sh"), ("-tt", AT, "id"),
        (AT, "internal-sftp"), (AT, "/usr/lib/openssh/sftp-server"), (AT, f"scp -t {OWN}"), (AT, "rsync --server . /"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_there_is_no_shell_and_no_command(jail: Jail, unchanged: None, arguments: tuple[str, ...]) -> None:
    """Whatever is asked for, SFTP answers, and takes the words of a shell for a packet that is too long."""
    done = ssh(jail, *arguments, stdin="id\ntouch /tmp/new\nexit 0\n")
    assert "uid=" not in done.stdout
    assert done.returncode != 0
    assert not jail.machine.path("/tmp/new").exists()


def test_there_is_no_terminal(jail: Jail, unchanged: None) -> None:
    with Sftp(jail) as session, pytest.raises(paramiko.SSHException):
        session.transport.open_session().get_pty()


def test_scp_cannot_fetch_or_bring_content(jail: Jail, unchanged: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for protocol in ("-O", "-s"):
        fetched = ssh(jail, protocol, f"{AT}:/segments/{HOUR}/{SEGMENT}", f"{tmp_path}/fetched", program="scp")
        assert fetched.returncode != 0
        assert not (tmp_path / "fetched").exists() or (tmp_path / "fetched").stat().st_size == 0
        assert ssh(jail, protocol, f"{tmp_path}/file", f"{AT}:{OWN}/brought", program="scp").returncode != 0


@contextlib.contextmanager
def listener(kind: socket.AddressFamily, address: tuple[str, int] | str) -> Iterator[tuple[Any, list[str]]]:
    """A server's address, and a list that gets longer when somebody connects."""
    noted: list[str] = []
    with socket.socket(kind) as server:
        server.bind(address)
        server.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    noted.append("somebody")

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname(), noted
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def test_no_port_of_the_machine_can_be_reached(jail: Jail, unchanged: None) -> None:
    with listener(socket.AF_INET, ("127.0.0.1", 0)) as (address, noted), Sftp(jail) as session:
        with pytest.raises(paramiko.ChannelException):
            session.transport.open_channel("direct-tcpip", address, ("127.0.0.1", 1))
        assert ssh(jail, "-W", f"{address[0]}:{address[1]}", AT).returncode != 0
        assert noted == []


def test_no_socket_of_the_machine_can_be_reached(jail: Jail, unchanged: None, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with listener(socket.AF_UNIX, str(there)) as (_, noted):
        process = subprocess.Popen(
            client(jail, "-N", "-L", f"{here}:{there}", AT), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(20)
                wait_for(lambda: probe.connect_ex(str(here)) == 0, "the client to listen")  # the name is there before
                with contextlib.suppress(ConnectionResetError):
                    assert probe.recv(1) == b""
        finally:
            process.kill()
            process.wait(20)
        assert noted == []


@pytest.mark.parametrize("wanted", ["127.0.0.1:0:127.0.0.1:1", f"{OWN}/socket:127.0.0.1:1", "/tmp/socket:127.0.0.1:1"])
def test_nothing_listens_on_the_machine_for_it(jail: Jail, unchanged: None, wanted: str) -> None:
    done = ssh(jail, "-N", "-R", wanted, AT)
    assert done.returncode != 0
    assert "forwarding failed" in done.stderr


def test_no_display_is_forwarded(jail: Jail, unchanged: None) -> None:
    with Sftp(jail) as session, pytest.raises(paramiko.SSHException):
        session.transport.open_session().request_x11()


def test_every_way_out_is_shut_by_name(jail: Jail) -> None:
    """What cannot be tried without a device or an agent of one's own, too."""
    said = jail.machine.run("sshd", "-T", "-C", f"user={ATTACKER},host=localhost,addr=127.0.0.1").stdout
    found = dict(line.split(" ", 1) for line in said.splitlines())
    ways = ["allowtcpforwarding", "allowstreamlocalforwarding", "allowagentforwarding", "x11forwarding", "gatewayports"]
    ways += ["permittunnel", "permittty", "permituserrc", "passwordauthentication", "kbdinteractiveauthentication"]
    ways += ["hostbasedauthentication", "permitemptypasswords"]
    assert {found[way] for way in ways} == {"no"}
    assert (found["permitopen"], found["permitlisten"], found["disableforwarding"]) == ("none", "none", "yes")
    others = jail.machine.run("sshd", "-T", "-C", "user=root,host=localhost,addr=127.0.0.1").stdout
    assert "chrootdirectory none" in others  # the block is about the peers alone


@pytest.mark.parametrize("user", [VICTIM, "root", "tombsync-node-x", "sshd", "nobody"])
def test_its_key_opens_no_other_account(jail: Jail, unchanged: None, user: str) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        Sftp(jail, user)


def test_there_is_no_password_to_guess(jail: Jail, unchanged: None) -> None:
    transport = paramiko.Transport(("127.0.0.1", jail.machine.port))
    try:
        transport.start_client(timeout=20)
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_none(ATTACKER)
        assert caught.value.allowed_types == ["publickey"]
    finally:
        transport.close()


def test_a_connection_has_two_sessions_at_most(jail: Jail, unchanged: None) -> None:
    with Sftp(jail) as session:
        second = session.transport.open_session()
        with pytest.raises(paramiko.ChannelException):
            session.transport.open_session()
        second.close()

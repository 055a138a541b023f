"""The contract of `tombsync.peers`, run on the tests' double, on OpenSSH and on the demo's server, and by inbox on
OpenSSH with the worker that takes from it.

Every exchange (`ask`) also asserts what always holds: each job gets exactly one answer, and whatever stood in the
peer's tree before is there afterwards, with the same content and times.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import paramiko
import pytest

from tests.support.agent import segment_stem
from tests.support.inbox import ReceivingNode, account_of
from tests.support.inbox_worker import NO_LIMIT, InboxWorker
from tests.support.memory_peer import Entry, MemoryPeer
from tests.support.programs import need
from tests.support.sessions import WAIT_S, exchange, target_of, wait_readable
from tests.support.sshd import Sshd
from tests.support.trees import need_root
from tests.support.waiting import wait_for
from tombsync.cli.demo.sftpd import EmbeddedSftpServer
from tombsync.errors import PeerError, PeerLost
from tombsync.inbox import Box
from tombsync.names import MAX_NAME_BYTES, OWN_DIRECTORY, Offer, offer_name, strict_path
from tombsync.peers import Answer, Connector, Job, Session, Target
from tombsync.peers.session import SftpSession
from tombsync.plan import State

PLACE = "desertbus/source"
HOUR = f"{PLACE}/2019-11-13T02"
STEM = segment_stem(7)
MARKED = strict_path(f"{HOUR}/{STEM}")
TOMBSTONE = MARKED.tombstone_path

FIRST = Job(1, MARKED)
PROBE = Job(1, MARKED, probe=True)
VERIFY = Job(1, MARKED, probe=True, make_hour=False, durable=True)
DOUBTFUL_VERIFY = Job(1, MARKED, probe=True, make_hour=False, durable=False)
every_job = pytest.mark.parametrize(
    "job",
    [
        pytest.param(FIRST, id="first"),
        pytest.param(PROBE, id="probe"),
        pytest.param(VERIFY, id="verify"),
        pytest.param(DOUBTFUL_VERIFY, id="verify of one that was not durable"),
    ],
)


class Tree(Protocol):
    """A peer's segment tree, as a test changes it and looks at it. Paths are relative to its root; "" is the root."""

    def make_directory(self, path: str) -> None: ...
    def make_file(self, path: str, content: bytes = b"") -> None: ...
    def make_link(self, path: str, target: str) -> None: ...
    def make_fifo(self, path: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def look(self) -> dict[str, Entry]: ...
    def without_room(self) -> contextlib.AbstractContextManager[None]: ...
    def without_right(self, path: str) -> contextlib.AbstractContextManager[None]: ...


class DirectoryTree:
    """A tree on disk. `without_room` needs one that is a tmpfs of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make_directory(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def make_file(self, path: str, content: bytes = b"") -> None:
        (self.root / path).write_bytes(content)

    def make_link(self, path: str, target: str) -> None:
        (self.root / path).symlink_to(target)

    def make_fifo(self, path: str) -> None:
        os.mkfifo(self.root / path)

    def remove(self, path: str) -> None:
        gone = self.root / path
        if gone.is_dir() and not gone.is_symlink():
            for below in gone.iterdir():
                self.remove(str(below.relative_to(self.root)))
            gone.rmdir()
        else:
            gone.unlink()

    def look(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for path in [self.root, *self.root.rglob("*")] if self.root.exists() else []:
            status = path.lstat()
            relative = "" if path == self.root else str(path.relative_to(self.root))
            if stat.S_ISDIR(status.st_mode):
                found[relative] = Entry(status.st_mode)
                continue
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(path))
            found[relative] = Entry(status.st_mode, content, status.st_mtime_ns)
        return found

    @contextlib.contextmanager
    def without_room(self) -> Iterator[None]:
        space = os.statvfs(self.root)
        self._remount(f"nr_inodes={space.f_files - space.f_ffree}")
        yield
        self._remount(f"nr_inodes={space.f_files}")

    @contextlib.contextmanager
    def without_right(self, path: str) -> Iterator[None]:
        directory = self.root / path
        if os.geteuid() == 0:  # whom no mode keeps out
            run(need("chattr"), "+i", str(directory))
            try:
                yield
            finally:
                run(need("chattr"), "-i", str(directory))
        else:
            directory.chmod(0o555)
            try:
                yield
            finally:
                directory.chmod(0o755)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """The whole tree can only be read, inside of the block."""
        self._remount("ro")
        yield
        self._remount("rw")

    def _remount(self, options: str) -> None:
        run(need("mount"), "-o", f"remount,{options}", str(self.root))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@dataclass(frozen=True)
class Way:
    """What the ways of delivery answer differently, as it lies in their nature.

    `blocked`, `forbidden`: the state and reason where there is no room for a tombstone now, and no right to create it.
    `looks`: the state of one that stands, where nothing but asking is allowed and nothing is known of it.
    `shows_lost_root`: whether it can be seen that the whole tree was removed. `always_marked`: whether it is an agent's
    tree, which has a root marker. `longest`: bytes of a stem in the hour of these tests.
    """

    blocked: tuple[State, str] = (State.PENDING, "failure")
    forbidden: tuple[State, str] = (State.REFUSED, "permission")
    looks: State = State.CONFIRMED
    shows_lost_root: bool = True
    always_marked: bool = False
    longest: int = MAX_NAME_BYTES - len(".tombstone")

    def confirmed(self, job: Job, *, stood: bool = False, waited: bool = False) -> Sequence[Answer]:
        """What may be answered where the tombstone is durable at last. `stood`: it did before; `waited`: it could not
        be written when this was asked before.
        """
        return [Answer(job.marker, State.CONFIRMED, placed=not stood)]


class ByInbox(Way):
    """Who writes is the peer's agent, for as long as it takes: the sender sees the tree, and its own inbox."""

    def __init__(self) -> None:
        waits = (State.RECEIVED, "")
        longest = MAX_NAME_BYTES - len(offer_name(Offer(MARKED, NODE))) + len(STEM)
        # A view goes on showing a directory that was removed, without anything in it.
        super().__init__(
            waits, waits, looks=State.NOT_DURABLE, shows_lost_root=False, always_marked=True, longest=longest
        )

    def confirmed(self, job: Job, *, stood: bool = False, waited: bool = False) -> Sequence[Answer]:
        placed = {not stood}
        if waited:  # by the time of the second question, the first one may have been answered
            placed = {True, False}
        elif job.make_hour and not job.durable:  # a first delivery does not look before
            placed = {True}
        return [Answer(job.marker, State.CONFIRMED, placed=one) for one in placed]


@dataclass
class Peer:
    """`impatient`: inside of its block nobody waits long for what does not happen."""

    tree: Tree
    connect: Callable[[], Session]
    way: Way = field(default_factory=Way)
    impatient: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


# -- the implementations -----------------------------------------------------------------------------------------------

# All that the agent may ask of a peer: a server that allows nothing else must do.
REQUESTS = "open,close,lstat,mkdir,fsync,limits"
NODE = "node-a"  # delivers; a peer's inbox is of this sender


@pytest.fixture(scope="module")
def openssh() -> Iterator[Sshd]:
    with Sshd(sftp_args=f"-p {REQUESTS}") as server:
        yield server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[paramiko.PKey, paramiko.PKey, Path]:
    """A host key, a client's key, and the client's file."""
    path = tmp_path_factory.mktemp("keys") / "id_ecdsa"
    host, client = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    client.write_private_key_file(str(path))
    return host, client, path


@contextlib.contextmanager
def embedded(root: Path, keys: tuple[paramiko.PKey, paramiko.PKey, Path]) -> Iterator[Peer]:
    host_key, client_key, path = keys
    server = EmbeddedSftpServer(host_key, client_key, str(root))
    port = server.start()
    known_hosts = root.parent / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
    target = Target("peer", "127.0.0.1", port, "anybody", str(path), str(known_hosts), str(root))
    try:
        yield Peer(DirectoryTree(root), lambda: Connector(target).connect())
    finally:
        server.close()


@pytest.fixture(scope="module")
def receiving() -> Iterator[ReceivingNode]:
    """A node with an inbox and a view that shows nothing yet."""
    with contextlib.ExitStack() as stack:
        node = ReceivingNode(stack, "peer", [NODE])
        node.unmount()
        yield node


@contextlib.contextmanager
def shown(root: Path, node: ReceivingNode) -> Iterator[Target]:
    """The node shows this tree, and nobody takes from the inbox, which is empty."""
    server, box = node.server, node.inbox(NODE)
    ours = (account_of(NODE), str(server.key_path), str(server.known_hosts_path))
    node.mount(root)
    try:
        yield Target("peer", server.host, server.port, *ours, str(node.view), "inbox", NODE)
    finally:
        for name in os.listdir(box):
            (box / name).unlink()
        node.unmount()


@contextlib.contextmanager
def by_inbox(root: Path, node: ReceivingNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A worker takes what comes into the inbox, and puts it into this tree."""
    be_patient(monkeypatch, WAIT_S)
    box = Box(NODE, account_of(NODE), str(node.inbox(NODE)), NO_LIMIT)
    with (
        shown(root, node) as target,
        InboxWorker(root.parent / "receiver", root=root, view=node.view, box=box) as worker,
        worker.running(),
    ):
        worker.record_place(MARKED.hour)
        connect = Connector(target).connect
        yield Peer(DirectoryTree(root), connect, ByInbox(), lambda: impatience(monkeypatch))


def be_patient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long a sender waits for its peer's worker: on a loaded machine it may need long for what it can do."""
    monkeypatch.setattr("tombsync.peers.inbox.PATIENCE_S", seconds)
    monkeypatch.setattr("tombsync.peers.inbox.PROBE_PATIENCE_S", seconds)


@contextlib.contextmanager
def impatience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be_patient(monkeypatch, 0.2)
    yield
    be_patient(monkeypatch, WAIT_S)


@contextlib.contextmanager
def peer_of(kind: str, root: Path, request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer of one kind; its tree holds one hour with some data."""
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            memory = stack.enter_context(MemoryPeer())
            peer = Peer(memory, memory.connect)
        elif kind == "sshd":
            target = target_of(request.getfixturevalue("openssh"), root)
            peer = Peer(DirectoryTree(root), lambda: Connector(target).connect())
        elif kind == "inbox":
            node = request.getfixturevalue("receiving")
            peer = stack.enter_context(by_inbox(root, node, request.getfixturevalue("monkeypatch")))
        else:
            peer = stack.enter_context(embedded(root, request.getfixturevalue("keys")))
        peer.tree.make_directory(HOUR)
        for second in range(3):
            peer.tree.make_file(f"{HOUR}/{segment_stem(second)}.ts", b"segment %d" % second)
        peer.tree.make_file(f"{HOUR}/{STEM}.ts", b"what is to be hidden")
        yield peer


KINDS = ["memory", "sshd", "embedded", "inbox"]


@pytest.fixture(params=KINDS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    root = tmp_path / "segments"
    root.mkdir()
    with peer_of(request.param, root, request) as peer:
        yield peer


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of our own, with 500 inodes."""
    need_root()
    root = tmp_path / "segments"
    root.mkdir()
    run(need("mount"), "-t", "tmpfs", "-o", "size=4m,nr_inodes=500,mode=755", "tombsync-test", str(root))
    try:
        yield root
    finally:
        run(need("umount"), "--lazy", str(root))


@pytest.fixture(params=KINDS)
def small_peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    """A peer whose tree can be filled up."""
    root = tmp_path if request.param == "memory" else request.getfixturevalue("tmpfs")
    with peer_of(request.param, root, request) as peer:
        yield peer


# -- asking ------------------------------------------------------------------------------------------------------------


def ask_all(peer: Peer, jobs: Sequence[Job]) -> list[Answer]:
    before = peer.tree.look()
    session = peer.connect()
    try:
        answers = exchange(session, jobs)
    finally:
        session.close()
    after = peer.tree.look()
    assert {path: after.get(path) for path in before} == before
    return answers


def ask(peer: Peer, job: Job) -> Answer:
    (answer,) = ask_all(peer, [job])
    return answer


def new_in(peer: Peer, before: dict[str, Entry]) -> set[str]:
    return set(peer.tree.look()) - set(before)


# -- only asking -------------------------------------------------------------------------------------------------------

LOOK = Job(1, MARKED, ask_only=True, ask_data=True)


def test_a_look_creates_nothing(peer: Peer) -> None:
    before = peer.tree.look()
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, State.PENDING, data=True)
    assert peer.tree.look() == before


def test_a_look_finds_what_is_there(peer: Peer) -> None:
    ask(peer, FIRST)
    before = peer.tree.look()
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, peer.way.looks, data=True)
    assert ask(peer, LOOK._replace(durable=True)) == Answer(1, State.CONFIRMED, data=True)
    peer.tree.remove(f"{HOUR}/{STEM}.ts")
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, peer.way.looks, data=False)
    peer.tree.make_file(f"{HOUR}/{STEM}.json")
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, peer.way.looks, data=True)
    assert set(peer.tree.look()) - set(before) == {f"{HOUR}/{STEM}.json"}


def test_a_look_into_an_hour_that_is_gone_makes_none(peer: Peer) -> None:
    peer.tree.remove(HOUR)
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, State.HOUR_GONE, data=False)
    peer.tree.remove(PLACE)
    assert ask(peer, LOOK)._replace(detail="") == Answer(1, State.NOT_SERVED, "", "not-served", data=False)


def test_a_verify_learns_of_data(peer: Peer) -> None:
    ask(peer, FIRST)
    assert ask(peer, VERIFY._replace(ask_data=True)) == Answer(1, State.CONFIRMED, data=True)


def walk_canary(session: Session, *, marker_seen: bool) -> str:
    """What is wrong with the way now; "" where it stands. Nothing was found to be wrong in this session before."""
    assert session.canary_problem == ""
    before_s, until = time.monotonic(), time.monotonic() + WAIT_S
    session.walk_canary(marker_seen=marker_seen)
    while True:
        assert not session.collect(time.monotonic())
        if session.canary_problem:
            assert (session.canary_at or 0.0) < before_s
            return session.canary_problem
        if (session.canary_at or 0.0) >= before_s:
            return ""
        wait_readable(session, until)


@pytest.mark.parametrize("marker_seen", [False, True])
def test_a_canary_comes_back_and_leaves_nothing(peer: Peer, marker_seen: bool) -> None:
    peer.tree.make_directory(OWN_DIRECTORY)
    before = peer.tree.look()
    session = peer.connect()
    try:
        assert session.marker_there
        assert walk_canary(session, marker_seen=marker_seen) == ""
    finally:
        session.close()
    assert peer.tree.look() == before


def test_a_tree_that_lost_its_root_marker_is_not_whole_in_any_session(peer: Peer) -> None:
    """Most likely it is an empty mount point, then."""
    peer.tree.make_directory(OWN_DIRECTORY)
    with contextlib.closing(peer.connect()) as before:
        peer.tree.remove(OWN_DIRECTORY)
        assert "is it mounted there?" in walk_canary(before, marker_seen=True)
        assert not before.marker_there
    with contextlib.closing(peer.connect()) as after:
        assert not after.marker_there
        assert "is it mounted there?" in walk_canary(after, marker_seen=True)
    peer.tree.make_file(OWN_DIRECTORY)  # what is no directory holds no marker
    with contextlib.closing(peer.connect()) as last:
        assert not last.marker_there
        assert "is it mounted there?" in walk_canary(last, marker_seen=True)
        assert not last.marker_there


def test_a_tree_that_never_had_a_root_marker_is_whole_but_that_of_an_agent(peer: Peer) -> None:
    if peer.way.always_marked:
        peer.tree.remove(OWN_DIRECTORY)
    with contextlib.closing(peer.connect()) as session:
        assert bool(walk_canary(session, marker_seen=False)) is peer.way.always_marked


# -- placing -----------------------------------------------------------------------------------------------------------


@every_job
def test_a_missing_tombstone_is_placed_and_nothing_else(peer: Peer, job: Job) -> None:
    before = peer.tree.look()
    assert ask(peer, job) == Answer(1, State.CONFIRMED, placed=True)
    assert new_in(peer, before) == {TOMBSTONE}


@every_job
@pytest.mark.parametrize("again", [FIRST, PROBE, VERIFY], ids=["first", "probe", "verify"])
def test_a_job_done_twice_ends_as_it_did_the_first_time(peer: Peer, job: Job, again: Job) -> None:
    ask(peer, again)
    before = peer.tree.look()
    assert ask(peer, job) in peer.way.confirmed(job, stood=True)
    assert peer.tree.look() == before


def test_a_tombstone_is_an_empty_file_that_everybody_may_read(peer: Peer) -> None:
    ask(peer, FIRST)
    mask = os.umask(0o022)
    os.umask(mask)
    placed = peer.tree.look()[TOMBSTONE]
    assert placed.mode == stat.S_IFREG | (0o644 & ~mask)
    assert placed.content == b""


@every_job
def test_a_tombstone_with_a_note_in_it_is_left_as_it_is(peer: Peer, job: Job) -> None:
    peer.tree.make_file(TOMBSTONE, b'reason = "a phone number"\n')
    assert ask(peer, job) in peer.way.confirmed(job, stood=True)  # `ask` compares content and times


@every_job
@pytest.mark.parametrize("kind", ["directory", "link", "dangling link", "fifo"])
def test_something_else_of_that_name_is_refused(peer: Peer, job: Job, kind: str) -> None:
    if kind == "directory":
        peer.tree.make_directory(TOMBSTONE)
    elif kind == "fifo":
        peer.tree.make_fifo(TOMBSTONE)
    else:
        peer.tree.make_link(TOMBSTONE, f"{STEM}.ts" if kind == "link" else "nowhere")
    before = peer.tree.look()
    answer = ask(peer, job)
    assert (answer.state, answer.reason, answer.placed) == (State.REFUSED, "not-regular", False)
    assert answer.detail
    assert peer.tree.look() == before


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(os.fsdecode(b"desertbus/source/2019-11-13T02/\xff\xfe caf\xe9"), id="a stem that is no UTF-8"),
        pytest.param(os.fsdecode(b"\xe9t\xe9/\xff/2019-11-13T02/stem"), id="a channel and a quality that are no UTF-8"),
        pytest.param("desertbus/source/2019-11-13T02/für später 🪦", id="UTF-8"),
        pytest.param("desertbus/source/2019-11-13T02/ -rf * 'a' \"b\" $HOME `id` \\n", id="what a shell would read"),
    ],
)
def test_names_are_bytes(peer: Peer, path: str) -> None:
    marked = strict_path(path)
    peer.tree.make_directory(marked.hour.path)
    before = peer.tree.look()
    assert ask(peer, Job(1, marked)) == Answer(1, State.CONFIRMED, placed=True)
    assert new_in(peer, before) == {f"{path}.tombstone"}
    probe = Job(1, marked, probe=True)
    assert ask(peer, probe) in peer.way.confirmed(probe, stood=True)


def test_the_longest_name(peer: Peer) -> None:
    before = peer.tree.look()
    longest = strict_path(f"{HOUR}/{'x' * peer.way.longest}")
    assert ask(peer, Job(1, longest)) == Answer(1, State.CONFIRMED, placed=True)
    assert new_in(peer, before) == {longest.tombstone_path}
    if peer.way.longest < Way().longest:
        longer = strict_path(f"{longest.path}x")
        answer = ask(peer, Job(1, longer))
        assert (answer.state, answer.reason) == (State.REFUSED, "name")
        assert new_in(peer, before) == {longest.tombstone_path}


# -- what is missing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [FIRST, PROBE], ids=["first", "probe"])
def test_a_first_delivery_makes_a_missing_hour_and_only_that(peer: Peer, job: Job) -> None:
    peer.tree.remove(HOUR)
    before = peer.tree.look()
    assert ask(peer, job) == Answer(1, State.CONFIRMED, placed=True)
    assert new_in(peer, before) == {HOUR, TOMBSTONE}
    assert stat.S_ISDIR(peer.tree.look()[HOUR].mode)


@pytest.mark.parametrize("job", [VERIFY, DOUBTFUL_VERIFY], ids=["durable", "not durable"])
def test_a_verify_never_makes_an_hour_again(peer: Peer, job: Job) -> None:
    peer.tree.remove(HOUR)
    before = peer.tree.look()
    answer = ask(peer, job)
    assert (answer.state, answer.reason, answer.placed) == (State.HOUR_GONE, "", False)
    assert peer.tree.look() == before


@every_job
@pytest.mark.parametrize("missing", [PLACE, "desertbus", ""], ids=["quality", "channel", "root"])
def test_what_is_above_the_hour_is_never_made(peer: Peer, job: Job, missing: str) -> None:
    peer.tree.remove(missing)
    before = peer.tree.look()
    answer = ask(peer, job)
    assert (answer.state, answer.reason, answer.placed) == (State.NOT_SERVED, "not-served", False)
    assert peer.tree.look() == before


@pytest.mark.parametrize("job", [FIRST, PROBE], ids=["first", "probe"])
def test_a_file_in_the_place_of_the_hour_is_waited_for(peer: Peer, job: Job) -> None:
    peer.tree.remove(HOUR)
    peer.tree.make_file(HOUR, b"not a directory")
    with peer.impatient():
        answer = ask(peer, job)
    assert (answer.state, answer.reason) == peer.way.blocked
    peer.tree.remove(HOUR)
    assert ask(peer, job) in peer.way.confirmed(job, waited=True)


def test_many_tombstones_of_one_missing_hour(peer: Peer) -> None:
    """The way of each finds the hour missing, and all but one find that somebody else has made it."""
    peer.tree.remove(HOUR)
    jobs = [Job(n, strict_path(f"{HOUR}/{segment_stem(n)}")) for n in range(1, 51)]
    assert ask_all(peer, jobs) == [Answer(n, State.CONFIRMED, placed=True) for n in range(1, 51)]


# -- what a peer does not allow, or has no room for --------------------------------------------------------------------


@pytest.mark.parametrize("job", [FIRST, PROBE, VERIFY], ids=["first", "probe", "verify"])
def test_permission_denied_is_refused_and_no_more_once_it_is_granted(peer: Peer, job: Job) -> None:
    with peer.tree.without_right(HOUR), peer.impatient():
        answer = ask(peer, job)
        assert (answer.state, answer.reason, answer.placed) == (*peer.way.forbidden, False)
        assert ("permission denied" in answer.detail) == (answer.state is State.REFUSED)
    assert ask(peer, job) in peer.way.confirmed(job, waited=True)


def test_an_hour_that_may_not_be_made_is_refused(peer: Peer) -> None:
    peer.tree.remove(HOUR)
    with peer.tree.without_right(PLACE), peer.impatient():
        answer = ask(peer, FIRST)
        assert (answer.state, answer.reason) == peer.way.forbidden
    assert ask(peer, FIRST).state is State.CONFIRMED


def test_what_stands_is_confirmed_where_nothing_may_be_created(peer: Peer) -> None:
    ask(peer, FIRST)
    with peer.tree.without_right(HOUR):
        for job in (FIRST, PROBE, VERIFY, DOUBTFUL_VERIFY):
            assert ask(peer, job) in peer.way.confirmed(job, stood=True)


@pytest.mark.parametrize("job", [FIRST, PROBE, VERIFY], ids=["first", "probe", "verify"])
def test_a_full_disk_is_waited_for(small_peer: Peer, job: Job) -> None:
    before = small_peer.tree.look()
    with small_peer.tree.without_room(), small_peer.impatient():
        answer = ask(small_peer, job)
        assert (answer.state, answer.reason, answer.placed) == (*small_peer.way.blocked, False)
        assert small_peer.tree.look() == before
    assert ask(small_peer, job) in small_peer.way.confirmed(job, waited=True)


def test_a_disk_without_room_for_the_hour_is_waited_for(small_peer: Peer) -> None:
    small_peer.tree.remove(HOUR)
    with small_peer.tree.without_room(), small_peer.impatient():
        assert ask(small_peer, FIRST).state is small_peer.way.blocked[0]
    assert ask(small_peer, FIRST) in small_peer.way.confirmed(FIRST, waited=True)


def test_a_disk_that_fills_up_half_way(small_peer: Peer) -> None:
    """What was placed is confirmed, and the session goes on."""
    jobs = [Job(n, strict_path(f"{HOUR}/{segment_stem(n)}")) for n in range(100, 130)]
    session = small_peer.connect()
    try:
        assert {answer.state for answer in exchange(session, jobs[:10])} == {State.CONFIRMED}
        with small_peer.tree.without_room(), small_peer.impatient():
            states = [answer.state for answer in exchange(session, jobs)]
            blocked = small_peer.way.blocked[0]
            assert states[10:] == [blocked] * 20
            # One batch of a worker waits as a whole.
            assert set(states[:10]) <= {State.CONFIRMED, *([blocked] if blocked is State.RECEIVED else [])}
        for number, answer in enumerate(exchange(session, jobs)):
            assert answer in small_peer.way.confirmed(jobs[number], stood=number < 10, waited=True)
    finally:
        session.close()


@pytest.mark.parametrize("kind", ["sshd", "embedded", "inbox"])
def test_a_read_only_file_system_is_waited_for(kind: str, tmpfs: Path, request: pytest.FixtureRequest) -> None:
    with peer_of(kind, tmpfs, request) as peer:
        with DirectoryTree(tmpfs).read_only(), peer.impatient():
            assert ask(peer, FIRST).state is peer.way.blocked[0]
        assert ask(peer, FIRST) in peer.way.confirmed(FIRST, waited=True)


# -- many --------------------------------------------------------------------------------------------------------------


def test_three_thousand_jobs_in_mixed_hours_get_one_answer_each(peer: Peer) -> None:
    """Hours that are there, that are not yet, that are gone, and channels that are not served, all mixed up."""
    expected: dict[int, Sequence[Answer]] = {}
    jobs = []
    for number in range(1, 3001):
        hour = f"2019-11-{number % 17 + 1:02d}T{number % 24:02d}"
        stem = segment_stem(number)
        if number % 7 == 0:
            marked, state = strict_path(f"elsewhere/source/{hour}/{stem}"), State.NOT_SERVED
        elif number % 5 == 0:
            marked, state = strict_path(f"{PLACE}/2010-01-{number % 28 + 1:02d}T00/{stem}"), State.HOUR_GONE
        else:
            marked, state = strict_path(f"{PLACE}/{hour}/{stem}"), State.CONFIRMED
        stands = state is State.CONFIRMED and number % 3 == 0
        if stands:
            peer.tree.make_directory(marked.hour.path)
            peer.tree.make_file(marked.tombstone_path)
        make_hour = state is not State.HOUR_GONE
        job = Job(number, marked, probe=number % 2 == 0, make_hour=make_hour, durable=number % 11 == 0)
        jobs.append(job)
        confirmed = peer.way.confirmed(job, stood=stands)
        expected[number] = confirmed if state is State.CONFIRMED else [Answer(number, state)]
    answers = ask_all(peer, jobs)
    for answer, wanted in zip(answers, expected.values(), strict=True):
        assert answer._replace(detail="", reason="") in wanted
    there = peer.tree.look()
    for job in jobs:
        assert (job.marked.tombstone_path in there) is (expected[job.marker][0].state is State.CONFIRMED)
    assert not any(path.startswith(("elsewhere", f"{PLACE}/2010")) for path in there)


def test_a_thousand_jobs_in_one_hour(peer: Peer) -> None:
    jobs = [Job(n, strict_path(f"{HOUR}/{segment_stem(n)}")) for n in range(1000, 2000)]
    assert ask_all(peer, jobs) == [Answer(n, State.CONFIRMED, placed=True) for n in range(1000, 2000)]
    again = [Job(job.marker, job.marked, probe=True, make_hour=False, durable=job.marker % 2 == 0) for job in jobs]
    assert ask_all(peer, again) == [Answer(n, State.CONFIRMED) for n in range(1000, 2000)]


def test_a_session_goes_on_after_every_kind_of_answer(peer: Peer) -> None:
    peer.tree.make_directory(TOMBSTONE)
    session = peer.connect()
    try:
        for number in range(3):
            marked = strict_path(f"{HOUR}/{segment_stem(100 + number)}")
            jobs = [FIRST, Job(2, strict_path(f"elsewhere/source/2019-11-13T02/{STEM}")), Job(3, marked)]
            answers = exchange(session, jobs)
            assert [a.state for a in answers] == [State.REFUSED, State.NOT_SERVED, State.CONFIRMED]
            session.ping()
    finally:
        session.close()


# -- the session -------------------------------------------------------------------------------------------------------


def test_an_idle_session_has_nothing_to_collect(peer: Peer) -> None:
    session = peer.connect()
    try:
        assert session.room(0) == 0
        assert session.room(1) == 1
        assert session.outstanding == 0
        assert session.collect(time.monotonic()) == []
        session.submit([])
        session.ping()
        assert session.outstanding == 0
        assert exchange(session, [FIRST]) == [Answer(1, State.CONFIRMED, placed=True)]
    finally:
        session.close()


def root_there(peer: Peer) -> bool:
    session = peer.connect()
    try:
        return session.root_there
    finally:
        session.close()


def test_a_session_knows_whether_there_is_a_tree(peer: Peer) -> None:
    assert root_there(peer)
    peer.tree.remove("")
    assert root_there(peer) is not peer.way.shows_lost_root


def test_close_from_another_thread_ends_a_wait(peer: Peer) -> None:
    session = peer.connect()
    raised: list[PeerError] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            while True:
                wait_readable(session, time.monotonic() + WAIT_S)
                session.collect(time.monotonic())
        except PeerError as exc:
            raised.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(WAIT_S)
    session.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [type(exc) for exc in raised] == [PeerLost]
    with pytest.raises(PeerError):
        session.submit([FIRST])
        session.collect(time.monotonic())
    session.close()  # and once more is no harm


def test_two_sessions_with_one_peer_do_not_disturb_each_other(peer: Peer) -> None:
    first, second = peer.connect(), peer.connect()
    try:
        first.submit([FIRST])
        second.submit([FIRST])
        until = time.monotonic() + WAIT_S
        answers = []
        for session in (first, second):
            while session.outstanding:
                wait_readable(session, until)
                answers += session.collect(time.monotonic())
        assert [answer.state for answer in answers] == [State.CONFIRMED] * 2
        placed = [answer.placed for answer in answers]
        assert any(placed)
        # Of two that do not look before, both may have brought it.
        assert not all(placed) or any(answer.placed for answer in peer.way.confirmed(FIRST, stood=True))
        first.close()
        assert exchange(second, [VERIFY]) == [Answer(1, State.CONFIRMED)]
    finally:
        first.close()
        second.close()


# -- servers that can do less ------------------------------------------------------------------------------------------


def sshd_peer(server: Sshd) -> Peer:
    tree = DirectoryTree(server.root)
    tree.make_directory(HOUR)
    return Peer(tree, lambda: Connector(target_of(server)).connect())


@contextlib.contextmanager
def peer_that_cannot_sync(kind: str) -> Iterator[Peer]:
    if kind == "memory":
        with MemoryPeer() as memory:
            memory.can_sync = False
            memory.make_directory(HOUR)
            yield Peer(memory, memory.connect)
    else:
        with Sshd(sftp_args="-P fsync") as server:
            yield sshd_peer(server)


@pytest.mark.parametrize("kind", ["memory", "sshd"])
def test_a_server_without_fsync_is_never_called_durable(kind: str) -> None:
    with peer_that_cannot_sync(kind) as peer:
        answer = ask(peer, FIRST)
        assert (answer.state, answer.placed) == (State.NOT_DURABLE, True)
        for job in (FIRST, PROBE, DOUBTFUL_VERIFY):
            answer = ask(peer, job)
            assert (answer.state, answer.placed) == (State.NOT_DURABLE, False)
        assert ask(peer, VERIFY) == Answer(1, State.CONFIRMED)  # it was durable once, and still stands


@pytest.mark.parametrize(
    ("forbidden", "job", "detail"),
    [
        ("open", FIRST, "may not be created there: permission denied"),
        ("open", VERIFY, "may not be created there: permission denied"),
        ("lstat", PROBE, "may not be asked for there: permission denied"),
        ("mkdir", FIRST, "its hour may not be made there: permission denied"),
    ],
)
def test_a_server_that_forbids_a_request_has_refused(forbidden: str, job: Job, detail: str) -> None:
    with Sshd(sftp_args=f"-P {forbidden}") as server:
        peer = sshd_peer(server)
        if forbidden == "mkdir":
            peer.tree.remove(HOUR)
        before = peer.tree.look()
        assert ask(peer, job) == Answer(1, State.REFUSED, detail, "permission")
        assert peer.tree.look() == before


@pytest.mark.parametrize("limit", [64, 256])
def test_a_server_that_may_open_few_files(limit: int) -> None:
    with Sshd(limit_open_files=limit) as server:
        peer = sshd_peer(server)
        marks = [strict_path(f"{PLACE}/2019-11-{n % 30 + 1:02d}T{n % 24:02d}/{segment_stem(n)}") for n in range(1500)]
        answers = ask_all(peer, [Job(n, marked) for n, marked in enumerate(marks)])
        assert {(answer.state, answer.placed) for answer in answers} == {(State.CONFIRMED, True)}


def test_a_round_trip_that_grows_asks_for_no_more_files_than_there_are() -> None:
    """What is on its way and what is still to be closed share the files of the server."""
    with Sshd(limit_open_files=1024) as server:
        peer = sshd_peer(server)
        session = peer.connect()
        assert isinstance(session, SftpSession)
        try:
            waiting = deque(Job(n, strict_path(f"{HOUR}/{segment_stem(n)}")) for n in range(3000))
            answers: list[Answer] = []
            until = time.monotonic() + WAIT_S
            while waiting or session.outstanding:
                # A window of 256 leaves many handles open; then it grows as if the peer had moved far away.
                session.round_trip_s = 0.0 if len(waiting) > 2000 else 1.0
                session.submit([waiting.popleft() for _ in range(session.room(len(waiting)))])
                wait_readable(session, until)
                answers += session.collect(time.monotonic())
            assert len(answers) == 3000
            assert {(answer.state, answer.placed) for answer in answers} == {(State.CONFIRMED, True)}
        finally:
            session.close()


def test_handles_are_closed_behind_what_is_placed() -> None:
    """While there is more to place they are kept, as closing takes the server's time; then none stays open."""
    with Sshd() as server:
        peer = sshd_peer(server)
        session = peer.connect()
        try:
            jobs = [Job(n, strict_path(f"{HOUR}/{segment_stem(n)}")) for n in range(1000, 3000)]
            assert {answer.state for answer in exchange(session, jobs)} == {State.CONFIRMED}

            def none_is_open() -> bool:
                session.collect(time.monotonic())
                return not server.open_files(server.root)

            wait_for(none_is_open, "the handles to be closed")
        finally:
            session.close()


# -- inboxes that can do less ------------------------------------------------------------------------------------------


def test_a_canary_that_nobody_takes_is_a_broken_way(
    receiving: ReceivingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there is never more than the one."""
    monkeypatch.setattr("tombsync.peers.inbox._CANARY_PATIENCE_S", 0.2)
    tree, box = DirectoryTree(tmp_path / "segments"), receiving.inbox(NODE)
    tree.make_directory(OWN_DIRECTORY)
    with shown(tree.root, receiving) as target:
        for _ in range(2):
            with contextlib.closing(Connector(target).connect()) as session:
                assert walk_canary(session, marker_seen=True) == "its agent takes nothing from the inbox"
                (name,) = os.listdir(box)
                assert name.startswith("1,canary,")


def test_a_full_inbox_is_waited_for(receiving: ReceivingNode, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root, box = tmp_path / "segments", receiving.inbox(NODE)
    root.mkdir()
    with peer_of("inbox", root, request) as peer:
        owner = box.stat()
        run(need("mount"), "-t", "tmpfs", "-o", f"nr_inodes=1,mode=730,gid={owner.st_gid}", "tombsync-test", str(box))
        try:
            answer = ask(peer, FIRST)
        finally:
            run(need("umount"), "--lazy", str(box))
        assert (answer.state, answer.reason) == (State.PENDING, "inbox-full")
        assert ask(peer, FIRST) == Answer(1, State.CONFIRMED, placed=True)


def test_what_is_taken_and_does_not_come_to_stand_is_refused(receiving: ReceivingNode, tmp_path: Path) -> None:
    tree, box = DirectoryTree(tmp_path / "segments"), receiving.inbox(NODE)
    tree.make_directory(HOUR)
    with shown(tree.root, receiving) as target:
        session = Connector(target).connect()
        try:
            session.submit([FIRST])
            answers, until = list[Answer](), time.monotonic() + WAIT_S
            while not answers:
                wait_readable(session, until)
                answers += session.collect(time.monotonic())
                for name in os.listdir(box):
                    (box / name).unlink()
        finally:
            session.close()
    assert [(answer.state, answer.reason, answer.placed) for answer in answers] == [
        (State.REFUSED, "not-applied", False)
    ]

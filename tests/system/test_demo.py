"""`tombsync demo`, run for real: it holds, it tells the truth when it does not, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tombsync
from tests.support.programs import need, was_interrupted
from tests.support.waiting import wait_for
from tombsync import confine
from tombsync.cli.demo import material
from tombsync.cli.demo.command import demo
from tombsync.cli.demo.patience import DidNotHold, Interrupted, Patience
from tombsync.index import agent_pid

LIMIT_S = 30.0
NODES = ["node-a", "node-b", "node-c"]
ORDINARY = 1  # the account `daemon`: there everywhere. (Of `nobody`, systemd tells sshd that it is locked.)
WITHOUT_ACCOUNT = 54321
PR_SET_CHILD_SUBREAPER = 36


class Demos:
    """Runs demos that put everything below `temporary`, and finds what they left."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.prefix: tuple[str, ...] = ()
        self.python = sys.executable
        self.environment = {**os.environ, "TMPDIR": str(temporary), "HOME": "/nonexistent"}
        self._known = set(children())

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, self.python, "-m", "tombsync", "demo", *arguments]

    def become(self, uid: int) -> None:
        """Run as another user from now on; skips the test where that one can reach neither interpreter nor package."""
        if os.geteuid() != 0:
            pytest.skip("only root can become another user; the other tests run as an ordinary one here")
        self.prefix = (need("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--")
        os.chown(self.temporary, uid, uid)
        package = str(Path(tombsync.__file__).parents[1])
        self.environment["PYTHONPATH"] = os.pathsep.join([package, *site.getsitepackages()])
        probe = "import os, sys, tombsync.cli.main; sys.exit(not os.access(sys.executable, os.X_OK))"
        for python in (sys.executable, "/usr/bin/python3"):  # a venv may stand on an interpreter in root's home
            command = [*self.prefix, python, "-c", probe]
            if subprocess.run(command, env=self.environment, cwd="/", capture_output=True).returncode == 0:
                self.python = python
                return
        pytest.skip(f"uid {uid} can reach no interpreter that imports this package")

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        begun = time.monotonic()
        command = self.command(*arguments)
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert time.monotonic() - begun < LIMIT_S
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """In a group of its own, so that a signal can be sent as a terminal does: to the whole group."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def directory(self) -> Path:
        """The one directory of a demo."""
        (found,) = self.temporary.iterdir()
        return found

    def require_nothing_left(self, *, directories: int = 0) -> None:
        """No process (they would have become children of this one), and no directory but so many."""
        # A session that was told to end may need a moment; one that was forgotten never ends.
        wait_for(lambda: not self._left(), "the demo's processes to end", timeout_s=10.0)
        assert len(list(self.temporary.iterdir())) == directories

    def _left(self) -> list[int]:
        left = [pid for pid in children() if pid not in self._known]
        for pid in list(left):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    left.remove(pid)
        return left

    def clean_up(self) -> None:
        for pid in self._left():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(self.temporary)


def children() -> list[int]:
    """The pids of this process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def demos() -> Iterator[Demos]:
    # Not pytest's own: another user has to get there, and the path of a socket must be short.
    temporary = Path(tempfile.mkdtemp(prefix="d-"))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    ready = Demos(temporary)
    try:
        yield ready
    finally:
        ready.clean_up()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(params=["openssh", "embedded"])
def server(request: pytest.FixtureRequest) -> str:
    if request.param == "openssh":
        need("sshd")
    return str(request.param)


def arguments_for(server: str) -> tuple[str, ...]:
    return ("--embedded",) if server == "embedded" else ()


def require_all_held(document: dict[str, Any], server: str) -> None:
    """Everything that a demo that held has to say."""
    assert document["held"] is True
    assert document["failure"] is None
    assert document["server"] == server
    assert document["confined"] is (confine.abi_version() > 0)
    assert document["chain"] == NODES
    assert len(document["marks"]) == 5
    assert len({mark["segment"] for mark in document["marks"]}) == 5
    for mark in document["marks"]:
        assert list(mark["hidden_ms"]) == NODES or sorted(mark["hidden_ms"]) == NODES
        assert 0 < max(mark["hidden_ms"].values()) < mark["confirmed_ms"] < 5000
    for node in NODES:
        assert document["best"]["hidden_ms"][node] == min(mark["hidden_ms"][node] for mark in document["marks"])
    assert document["best"]["confirmed_ms"] == min(mark["confirmed_ms"] for mark in document["marks"])
    outage = document["outage"]
    assert outage["node"] == "node-c"
    assert outage["pending_at"] == "node-b"
    assert sorted(outage["hidden_ms"]) == NODES[:2]
    assert outage["segment"] not in {mark["segment"] for mark in document["marks"]}
    assert 0 < outage["caught_up_ms"] <= outage["confirmed_ms"]
    assert document["listed"] == dict.fromkeys(NODES, material.SEGMENTS_PER_HOUR - 6)
    assert document["files_unchanged"] == 3 * len(material.hours()) * material.SEGMENTS_PER_HOUR
    assert document["took_s"] < LIMIT_S


def test_it_holds(demos: Demos, server: str) -> None:
    done = demos.run("--json", *arguments_for(server))
    document = json.loads(done.stdout)
    require_all_held(document, server)
    assert document["directory"] is None
    assert done.stderr == ""
    demos.require_nothing_left()


def test_it_holds_for_an_ordinary_user(demos: Demos, server: str) -> None:
    demos.become(ORDINARY)
    require_all_held(json.loads(demos.run("--json", *arguments_for(server)).stdout), server)
    demos.require_nothing_left()


def test_it_holds_for_a_uid_without_an_account(demos: Demos) -> None:
    demos.become(WITHOUT_ACCOUNT)
    require_all_held(json.loads(demos.run("--json").stdout), "embedded")
    demos.require_nothing_left()


def test_plain_lines_and_what_is_kept(demos: Demos) -> None:
    done = demos.run("--keep", "--embedded")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    labels = [line[:10].rstrip() for line in lines[3:-2]]
    marks = [f"mark {number}" for number in range(1, 6)]
    assert labels == ["started", *marks, "best", "stopped", "mark 6", "pending", "caught up", "listed", "untouched"]
    times = r"hidden on node-a after [\d.]+ ms, on node-b after [\d.]+ ms, on node-c after [\d.]+ ms"
    assert re.search(rf"{times}; confirmed by peers after [\d.]+ ms$", lines[4])
    assert re.fullmatch(r"All of it held, in [\d.]+ s\.", lines[-2])
    directory = demos.directory()
    assert lines[-1] == f"Kept: {directory.resolve()}"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "id_ed25519").stat().st_mode & 0o777 == 0o600
    for node in NODES:
        assert (directory / node / "tombsync.toml").is_file()
        assert len(list((directory / node / "segments").rglob("*.tombstone"))) == 6
        if confine.abi_version():
            assert '"TOMBSYNC_CONFINED": "1"' in (directory / node / "agent.log").read_text()
    demos.require_nothing_left(directories=1)


@pytest.mark.parametrize(
    ("number", "when", "options"),
    [
        (signal.SIGINT, "", ()),
        (signal.SIGINT, "mark 1", ("--embedded",)),
        (signal.SIGTERM, "stopped", ()),
        (signal.SIGHUP, "pending", ("--embedded",)),
    ],
)
def test_a_signal_in_the_middle_cleans_up(
    demos: Demos, number: signal.Signals, when: str, options: Sequence[str]
) -> None:
    process = demos.start(*options)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        for line in process.stdout:
            if line.startswith(when) if when else line == "\n":
                break
        os.killpg(process.pid, number)
        assert process.wait(20) == 128 + number
        assert process.stderr.read() == "tombsync: interrupted; the demo has cleaned up\n"
    demos.require_nothing_left()


def test_a_reader_that_goes_away(demos: Demos) -> None:
    process = demos.start("--embedded")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        process.wait(20)
        assert "Traceback" not in process.stderr.read()
    demos.require_nothing_left()


def lines_until_started(demos: Demos) -> list[str]:
    """What a demo prints until its agents run; then it is ended."""
    process = demos.start()
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    with process.stdout, process.stderr:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("started"):
                break
        process.send_signal(signal.SIGINT)
        assert was_interrupted(process.wait(20))
    return lines


def test_what_does_not_hold_is_said_in_one_line(demos: Demos) -> None:
    process = demos.start("--embedded")
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        for line in process.stdout:
            if line.startswith("started"):
                break
        os.kill(agent_pid(str(demos.directory() / "node-b" / "state")), signal.SIGKILL)
        assert process.wait(20) == 1
        told = process.stderr.read()
    what = "the demo did not hold: the agent of node-b ended with -9"
    logs = f"the logs are in {demos.directory().resolve()}"
    assert re.fullmatch(rf"tombsync: {re.escape(f'{what}; {logs}')}.*\n", told)
    assert (demos.directory() / "node-b" / "agent.log").stat().st_size > 0
    demos.require_nothing_left(directories=1)


def test_json_of_what_does_not_hold(demos: Demos) -> None:
    demos.environment["TMPDIR"] = str(demos.temporary / ("long" * 20))
    os.mkdir(demos.environment["TMPDIR"])
    done = demos.run("--json", "--embedded", code=1)
    document = json.loads(done.stdout)
    assert document["held"] is False
    why = "is too long a path for a socket; set TMPDIR to a shorter one"
    assert document["failure"] == f"{document['directory']} {why}"
    assert Path(document["directory"]).is_dir()
    assert done.stderr.startswith("tombsync: the demo did not hold: ")
    demos.require_nothing_left(directories=1)


def test_an_openssh_that_does_not_work_here_is_replaced(demos: Demos) -> None:
    programs = demos.temporary / "bin"
    programs.mkdir()
    (programs / "sshd").write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 255\n")
    (programs / "sshd").chmod(0o755)
    demos.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    lines = lines_until_started(demos)
    assert "embedded   OpenSSH does not serve this user: no such luck\n" in lines
    assert "3 SFTP servers (tombsync's own)" in lines[-1]
    demos.require_nothing_left(directories=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide sshd")
def test_without_openssh(demos: Demos) -> None:
    unshare = need("unshare")
    if subprocess.run([unshare, "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    hide = 'mount --bind /dev/null "$0" && exec "$@"'
    demos.prefix = (unshare, "--mount", "sh", "-c", hide, os.path.realpath(need("sshd")))
    lines = lines_until_started(demos)
    assert "embedded   OpenSSH is not installed\n" in lines
    assert "3 SFTP servers (tombsync's own)" in lines[-1]
    demos.require_nothing_left()


def test_on_a_terminal(demos: Demos) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    demos.environment["TERM"] = "xterm-256color"
    command = demos.command("--embedded")
    with subprocess.Popen(command, env=demos.environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last one that had it open is gone
            while received := os.read(master, 65536):
                shown += received
        os.close(master)
        assert process.wait(20) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = text[text.rindex("Three nodes on this machine") :]
    for wanted in ("best", "back ", "ok  stopped", "ok  caught up", "ok  untouched", "All of it held"):
        assert wanted in last
    assert "pending" in text
    assert max(len(line) for line in last.splitlines()) <= 80
    assert len(last.splitlines()) <= 24
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is shown again"
    demos.require_nothing_left()


def test_the_help_has_an_example() -> None:
    shown = CliRunner().invoke(demo, ["--help"])
    assert shown.exit_code == 0
    assert "tombsync demo --json" in shown.output
    assert "--embedded" in shown.output


# -- the proofs of the demo can fail ----------------------------------------------------------------------------------


def test_the_tree_is_the_same_on_every_node(tmp_path: Path) -> None:
    one = material.make_tree(tmp_path / "one")
    assert one == material.make_tree(tmp_path / "two")
    assert len(one) == material.SEGMENTS_PER_HOUR
    hashes = [
        {path: trace.sha256 for path, trace in material.traces(tmp_path / name).items()} for name in ("one", "two")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("change", ["write", "same size", "touch", "replace", "remove", "add"])
def test_a_changed_tree_is_noticed(tmp_path: Path, change: str) -> None:
    segment = tmp_path / (material.make_tree(tmp_path)[7].path + ".ts")
    before = material.traces(tmp_path)
    segment.with_suffix(".tombstone").touch()
    (tmp_path / ".tombsync").mkdir()
    (tmp_path / ".tombsync" / "root-x").touch()
    assert material.first_difference(before, material.traces(tmp_path)) == ""
    stat, content = segment.stat(), segment.read_bytes()
    changed = segment
    if change == "write":
        segment.write_bytes(content + b"x")
    elif change == "same size":
        segment.write_bytes(b"x" + content[1:])
        os.utime(segment, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "touch":
        os.utime(segment)
    elif change == "replace":
        other = tmp_path / "other"
        other.write_bytes(content)
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.rename(segment)
    elif change == "remove":
        segment.unlink()
    else:
        changed = segment.with_name("other.ts")
        changed.write_bytes(b"")
    assert material.first_difference(before, material.traces(tmp_path)) == str(changed.relative_to(tmp_path))


def test_no_wait_is_without_an_end() -> None:
    with pytest.raises(DidNotHold, match=r"^it did not come within 0\.05 s$"):
        Patience(1000).until(lambda: False, lambda: "it did not come", limit_s=0.05)
    with pytest.raises(DidNotHold, match=r"^it did not come before the demo's 0\.05 s were over"):
        Patience(0.05).until(lambda: False, lambda: "it did not come", limit_s=1000)


def test_a_signal_ends_a_wait() -> None:
    patience = Patience(1000)
    with patience.signals_caught():
        with pytest.raises(Interrupted) as caught:
            patience.until(lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: "", limit_s=1000)
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

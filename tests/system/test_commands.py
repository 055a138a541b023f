"""Every command as an operator runs it: a process of its own, with the agent up and with the agent down."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
import inotify_simple
import pytest

import tombsync
from tests.support.agent import HASH, AgentProcess, make_hour, peer_table, segment_stem
from tests.support.programs import need, was_interrupted
from tests.support.relay import free_port
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.cli.main import cli
from tombsync.names import printable

HOUR = "desertbus/source/2019-11-13T02"
PROGRAM = (sys.executable, "-m", "tombsync")
# The package is found wherever a command is run, and nobody seems to be behind sudo.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("SUDO_USER", "DOAS_USER")} | {
    "PYTHONPATH": str(Path(tombsync.__file__).parents[1])
}
# What moves a terminal's cursor or forges a line. Tabs stand between the columns of a table.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as the one JSON document that it is."""
        return json.loads(self.out)

    @property
    def complaints(self) -> list[str]:
        """What it says is wrong, without warnings and hints."""
        lines = [line for line in self.err.split("\n") if line.startswith("tombsync: ")]
        return [line for line in lines if not line.startswith("tombsync: warning: ")]


# The imports of most of a second are made once; each command is a fork of that, with streams and arguments of its own.
FORKER = """
import gc, json, os, sys
import tombsync.cli.main, tombsync.daemon, rich.progress

for name in tombsync.cli.main.cli.list_commands(None):
    tombsync.cli.main.cli.get_command(None, name)
gc.freeze()
while line := sys.stdin.readline():
    request = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(request["cwd"])
        for descriptor, path in enumerate(request["streams"]):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        sys.argv = ["tombsync", *request["arguments"]]
        tombsync.cli.main.main()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forker:
    """A process that runs commands, one at a time. A context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(20) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, arguments: Sequence[str | bytes | Path], cwd: Path, stdin: bytes) -> Done:
        """Run one command and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as directory:
            streams = [Path(directory, name) for name in ("in", "out", "err")]
            for stream in streams:
                stream.write_bytes(stdin if stream.name == "in" else b"")
            request = {
                "arguments": [os.fsdecode(argument) for argument in arguments],
                "cwd": str(cwd),
                "streams": [str(stream) for stream in streams],
            }
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return Done(code, streams[1].read_bytes().decode(), streams[2].read_bytes().decode())


FORKS = Forker()


@pytest.fixture(scope="module", autouse=True)
def _forks() -> Iterator[None]:
    with FORKS:
        yield


def command(
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    prefix: Sequence[str] = (),
    stdin: str = "",
    expect: int | None = 0,
) -> Done:
    """Run a command, under another one where there is a `prefix`.

    Whatever it is: no traceback, and no control character in what it prints.
    """
    if prefix:
        ran = subprocess.run(
            [*prefix, *PROGRAM, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=50, cwd=cwd, env=ENVIRONMENT,
        )  # fmt: skip
        done = Done(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
    else:
        done = FORKS.run(arguments, cwd or Path.cwd(), stdin.encode())
    told = f"{arguments}: exit {done.code}\n{done.out}\n{done.err}"
    assert "Traceback" not in done.err, told
    assert not CONTROL.search(done.out + done.err), told
    assert expect is None or done.code == expect, told
    assert done.code == 0 or done.err or arguments[0] == "check", told
    return done


class Place:
    """A segment tree, a state directory and a settings file. Nothing runs on them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "segments"
        self.state_dir = base / "state"
        self.config = base / "tombsync.toml"
        self.root.mkdir()
        self.state_dir.mkdir()
        self.write_settings()

    def write_settings(self, more: str = "") -> None:
        """Write the settings file anew, with more tables."""
        self.config.write_text(
            f'node = "node-a"\nroot = "{self.root}"\nstate_dir = "{self.state_dir}"\njournal = "stderr"\n{more}'
        )

    def run(
        self,
        *arguments: str | bytes | Path,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        stdin: str = "",
        expect: int | None = 0,
    ) -> Done:
        """Run a command on these settings."""
        name, *rest = arguments
        words = (name, rest.pop(0)) if name == "peer" else (name,)
        place = ("--config", self.config)
        return command(*words, *place, *rest, cwd=cwd, prefix=prefix, stdin=stdin, expect=expect)

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """Everything there is, with modes, mtimes and content, but for the files that SQLite keeps beside the index."""
        found = {}
        for path in [self.root, *self.base.rglob("*")]:
            if path == self.state_dir or path.name in ("index.sqlite-wal", "index.sqlite-shm"):
                continue
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
        return found

    def tombstones(self) -> set[str]:
        """The tombstones in the tree, relative to it."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*.tombstone")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Three segments, of the seconds 0, 2 and 4; no index yet."""
    place = Place(tmp_path)
    make_hour(place.root, HOUR)
    return place


def restricted() -> list[str]:
    """What to run a command under, so that modes bind it also where the tests run as root."""
    if os.geteuid() != 0:
        return []
    rights = "-dac_override,-dac_read_search"
    return [need("setpriv"), f"--bounding-set={rights}", "--inh-caps=-all"]


# -- a node with some history, its agent up or down --------------------------------------------------------------------

ODD = os.fsdecode(b"odd \x1b[31m\xff")  # a name that colours a terminal, and is no UTF-8
ODD_HIDDEN = os.fsdecode(b"gone\n\xfe")
SHOWN, HIDDEN = segment_stem(0), segment_stem(2)
VISIBLE = [f"{SHOWN}.ts", f"{segment_stem(4)}.ts", f"{ODD}.ts"]


class History:
    """A node that has hidden two stems, one of which its peer has confirmed; the other may not cross a border."""

    def __init__(self, agent: AgentProcess, server: Sshd, *, up: bool) -> None:
        self.agent = agent
        self.server = server
        self.up = up

    def run(self, *arguments: str | bytes | Path, expect: int | None = 0, cwd: Path | None = None) -> Done:
        """Run a command on its settings."""
        name, *rest = arguments
        words = (name, rest.pop(0)) if name == "peer" else (name,)
        return command(*words, "--config", self.agent.config, *rest, expect=expect, cwd=cwd)


@pytest.fixture(scope="module", params=["up", "down"])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with Sshd() as server:
        (server.root / "desertbus" / "source").mkdir(parents=True)
        agent = AgentProcess(tmp_path_factory.mktemp("history"), peers=[peer_table("node-b", server)])
        hour = make_hour(agent.root, HOUR)
        make_hour(agent.root, "desertbus/source/2019-11-13T03", segments=0)
        make_hour(agent.root, "other/160p/2020-01-01T00", segments=1)
        for name in (f"{ODD}.ts", f"{ODD_HIDDEN}.ts", f"{ODD_HIDDEN}.tombstone", f"{HIDDEN}.tombstone"):
            (hour / name).touch()
        with agent:
            wait_for(lambda: agent.states(f"{HOUR}/{HIDDEN}") == {"node-b": "confirmed"})
            if request.param == "down":
                assert agent.stop() == 0
            yield History(agent, server, up=request.param == "up")


# -- help --------------------------------------------------------------------------------------------------------------


def every_command(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command and group."""
    yield above
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from every_command(found, (*above, name))
        else:
            yield (*above, name)


@pytest.mark.parametrize("words", list(every_command(cli)), ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...]) -> None:
    shown = command(*words, "--help").out
    assert shown.startswith(" ".join(["Usage: tombsync", *words]))
    assert re.search(rf"\n  Example.*\n    tombsync {' '.join(words)}", shown)


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest() -> None:
    done = command("tombstone", expect=2)
    assert "Did you mean 'tombstones'?" in done.err
    assert done.out == ""
    assert "mean" not in command("nothing-like-it", expect=2).err


# -- mark: how a segment is named --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["absolute", "by-root", "by-cwd", "by-hour", "by-link", "by-linked-cwd", "doubled"])
def test_mark_takes_a_path_in_every_form(place: Place, way: str) -> None:
    hour = place.root / HOUR
    wanted = [segment_stem(second) for second in range(20, 28, 2)]
    names = [f"{wanted[0]}.ts", f"{wanted[1]}.json", f"{wanted[2]}.tombstone", wanted[3]]
    for stem, extension in zip(wanted, (".ts", ".json", ".ts", ".ts"), strict=True):
        (hour / (stem + extension)).write_bytes(b"data")
    data = {path.name: (path.read_bytes(), path.lstat().st_mtime_ns) for path in hour.iterdir()}
    link = place.base / "link"
    link.symlink_to(place.root)
    before, cwd = {
        "absolute": (f"{hour}/", None),
        "by-root": (f"{HOUR}/", None),
        "by-cwd": ("source/2019-11-13T02/", place.root / "desertbus"),
        "by-hour": ("", hour),
        "by-link": (f"{link}/{HOUR}/", None),
        "by-linked-cwd": ("./", link / HOUR),
        "doubled": (f"{place.root}//{HOUR}/./", None),
    }[way]
    done = place.run("mark", *(before + name for name in names), cwd=cwd)
    assert place.tombstones() == {f"{HOUR}/{stem}.tombstone" for stem in wanted}
    assert len(done.out.splitlines()) == 4
    assert "no agent runs here" in done.err
    now = {path.name: (path.read_bytes(), path.lstat().st_mtime_ns) for path in hour.iterdir() if path.name in data}
    assert now == data


def test_mark_through_a_settings_file_whose_root_is_a_symlink(place: Place) -> None:
    link = place.base / "link"
    link.symlink_to(place.root)
    place.config.write_text(f'root = "{link}"\nstate_dir = "{place.state_dir}"\n')
    place.run("mark", f"{link}/{HOUR}/{segment_stem(0)}.ts", f"{place.root}/{HOUR}/{segment_stem(2)}.ts")
    assert len(place.tombstones()) == 2


def test_mark_follows_no_symlink_below_the_root(place: Place) -> None:
    (place.root / "alias").symlink_to(place.root / "desertbus")
    done = place.run("mark", f"{place.root}/alias/source/2019-11-13T02/{segment_stem(0)}", expect=1)
    assert len(done.complaints) == 1
    assert place.tombstones() == set()


def test_mark_understands_the_likely_mistake(place: Place) -> None:
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}.ts.tombstone")
    assert place.tombstones() == {f"{HOUR}/{segment_stem(0)}.tombstone"}
    assert "warning" in done.err
    assert "hides nothing" in done.err


def test_mark_of_chat_warns_of_what_it_cannot_do(place: Place) -> None:
    chat = make_hour(place.root, "desertbus/chat/2019-11-13T02", segments=0)
    (chat / f"00:00-{HASH}.json").write_text("[]")
    done = place.run("mark", f"desertbus/chat/2019-11-13T02/00:00-{HASH}.json", f"{HOUR}/{segment_stem(0)}")
    assert done.err.count("can come back under another name") == 1
    assert len(place.tombstones()) == 2


def test_mark_from_a_directory_that_was_removed(place: Place) -> None:
    lost = place.base / "lost"
    lost.mkdir()
    inside = ["sh", "-c", 'rmdir "$0" && exec "$@"', str(lost)]  # a shell that removes what it stands in
    place.run("mark", f"{HOUR}/{segment_stem(0)}", cwd=lost, prefix=inside)
    assert len(place.tombstones()) == 1


# -- mark: what it refuses ---------------------------------------------------------------------------------------------

LONG = "x" * 300
REFUSED = {
    "outside": ("/etc/passwd", "not inside the segment tree"),
    "a neighbour of the root": ("{root}er/{hour}/{stem}", "not inside the segment tree"),
    "up and out": ("../../../../../etc/passwd", "begins with a dot"),
    "up and in again": ("{root}/desertbus/../{hour}/{stem}.ts", "begins with a dot"),
    "no hour": ("desertbus/source/2019-11-13T09/{stem}.ts", "hour directory is not here"),
    "no channel": ("nosuch/source/2019-11-13T09/{stem}.ts", "hour directory is not here"),
    "not an hour": ("desertbus/source/2019-13-13T02/{stem}.ts", "no such day"),
    "an hour directory": ("{root}/{hour}", "not of the form"),
    "the root": ("{root}", "not inside the segment tree"),
    "temp": ("{hour}/{temp}.ts", "still being written"),
    "absent": ("{hour}/{absent}.ts", "would hide nothing"),
    "hidden name": ("{hour}/.{stem}.ts", "begins with a dot"),
    "too long": (f"{{hour}}/{LONG}.ts", "longer than 255 bytes"),
    "a stem too long for a tombstone": (f"{{hour}}/{'y' * 250}.ts", "longer than 255 bytes"),
    "empty": ("", "cannot be empty"),
    "a newline": ("{hour}/a\nb.ts", "control character"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_mark_refuses(place: Place, what: str) -> None:
    path, reason = REFUSED[what]
    temp = "00:06.608000-2.0-temp-12345678-1234-1234-1234-123456789abc"
    for stem in (temp, "y" * 250):
        (place.root / HOUR / f"{stem}.ts").touch()
    before = place.snapshot()
    named = path.format(root=place.root, hour=HOUR, stem=segment_stem(0), absent=segment_stem(999), temp=temp)
    for more in ((), ("--even-if-absent",)) if what != "absent" else ((),):
        done = place.run("mark", *more, "--", named, expect=1)
        (complaint,) = done.complaints
        assert reason in complaint
        assert "\n  hint: " in done.err
        assert done.out == ""
    assert place.snapshot() == before
    done = place.run("mark", "--json", "--", named, expect=1)
    (refused,) = done.json
    assert len(done.complaints) == 1
    assert refused["outcome"] == "failed"
    assert reason in refused["error"]


def test_mark_in_part_marks_what_it_can(place: Place) -> None:
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", "nosuch", f"{HOUR}/{segment_stem(2)}.ts", "/etc/x", expect=3)
    assert place.tombstones() == {f"{HOUR}/{segment_stem(second)}.tombstone" for second in (0, 2)}
    assert len(done.out.splitlines()) == len(done.complaints) == 2


def test_mark_of_nothing_at_all_is_a_usage_error(place: Place) -> None:
    before = place.snapshot()
    assert "PATH" in place.run("mark", expect=2).err
    assert place.snapshot() == before


def test_mark_of_what_is_absent_when_that_is_meant(place: Place) -> None:
    done = place.run("mark", "--even-if-absent", f"{HOUR}/{segment_stem(999)}")
    assert place.tombstones() == {f"{HOUR}/{segment_stem(999)}.tombstone"}
    assert "hides nothing here yet" in done.out


def test_mark_twice_is_fine_and_changes_nothing(place: Place) -> None:
    place.run("mark", "--reason", "first", f"{HOUR}/{segment_stem(0)}")
    before = place.snapshot()
    (again,) = place.run("mark", "--reason", "second", "--json", f"{HOUR}/{segment_stem(0)}").json
    assert again["outcome"] == "already-marked"
    assert place.snapshot() == before


def test_mark_of_what_is_already_marked_needs_no_data(place: Place) -> None:
    (place.root / HOUR / f"{segment_stem(999)}.tombstone").touch()
    assert "already marked" in place.run("mark", f"{HOUR}/{segment_stem(999)}").out


def test_mark_dry_run_writes_nothing(place: Place) -> None:
    place.run("rescan")
    (place.root / HOUR / f"{segment_stem(2)}.tombstone").touch()
    before = place.snapshot()
    paths = [f"{HOUR}/{segment_stem(second)}.ts" for second in (0, 2, 999)]
    done = place.run("mark", "--dry-run", "--reason", "why", *paths, expect=3)
    assert [line.split(" ")[:2] for line in done.out.splitlines()] == [["would", "mark"], ["already", "marked"]]
    assert len(done.complaints) == 1
    assert place.snapshot() == before


# -- mark: what it writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        "shows a phone number",
        "he said \"no\" and 'no'\\ \\u0041 # = [x]",
        "two\nlines\r\n\tand\x7f\x01\x1b[31m",
        "🎬 ümläut \u202e \u0085",
        "x" * 10_000,
        "🎬" * 10_000,
        '"\n' * 5_000,
        "é" * 1_999 + "🎬" * 1_999,
    ],
    ids=["plain", "quotes", "controls", "unicode", "long", "long emoji", "long escapes", "odd lengths"],
)
def test_mark_writes_the_reason_as_toml_of_at_most_4_kib(place: Place, reason: str) -> None:
    place.run("mark", "--reason", reason, f"{HOUR}/{segment_stem(0)}")
    written = (place.root / HOUR / f"{segment_stem(0)}.tombstone").read_bytes()
    note = tomllib.loads(written.decode())
    assert len(written) <= 4096
    assert note["generation"] == 0
    assert note["node"] == "node-a"
    assert reason.startswith(note["reason"])
    assert note["reason"] == reason if len(reason) < 1_000 else len(written) > 4080


def test_mark_writes_a_reason_that_is_not_utf_8(place: Place) -> None:
    place.run("mark", "--reason", b"bad \xff byte", f"{HOUR}/{segment_stem(0)}")
    note = tomllib.loads((place.root / HOUR / f"{segment_stem(0)}.tombstone").read_text())
    assert note["reason"] == "bad ? byte"


def test_mark_makes_no_other_name_in_the_directory(place: Place) -> None:
    flags = inotify_simple.flags
    with inotify_simple.INotify() as watch:
        watch.add_watch(place.root / HOUR, flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE)
        place.run("mark", "--reason", "why", f"{HOUR}/{segment_stem(0)}", f"{HOUR}/{segment_stem(2)}")
        events = [(event.mask, event.name) for event in watch.read(timeout=0)]
    assert events == [(flags.CREATE, f"{segment_stem(second)}.tombstone") for second in (0, 2)]


def test_a_reader_that_goes_away_does_not_stop_the_marking(place: Place) -> None:
    read, write = os.pipe()
    os.close(read)
    paths = [f"{HOUR}/{segment_stem(second)}" for second in (0, 2, 4)]
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [*PROGRAM, "mark", "--config", place.config, *paths],
            stdout=gone, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=50, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert b"Broken pipe" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(place.tombstones()) == 3


# -- mark: a tree that must not be written -----------------------------------------------------------------------------


def test_mark_refuses_another_tree_at_the_root(place: Place) -> None:
    place.run("rescan")
    place.root.rename(place.base / "real")
    make_hour(place.root, HOUR)
    before = place.snapshot()
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", expect=1)
    assert "has no identity" in done.err
    assert "adopt-root" in done.err
    assert place.snapshot() == before
    place.run("adopt-root", "--yes")
    place.run("mark", f"{HOUR}/{segment_stem(0)}")


def test_mark_where_nothing_is_mounted(place: Place) -> None:
    shutil.rmtree(place.root)
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", expect=1)
    assert len(done.complaints) == 1
    assert "mount it" in done.err


def test_mark_without_the_right_to_write(place: Place) -> None:
    hour = place.root / HOUR
    hour.chmod(0o555)
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", prefix=restricted(), expect=1)
    (complaint,) = done.complaints
    assert complaint.endswith("cannot be created: Permission denied")
    assert "\n  hint: " in done.err
    assert place.tombstones() == set()


def test_mark_on_a_read_only_file_system(place: Place) -> None:
    unshare = [need("unshare"), "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = ["sh", "-ec", 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"', str(place.root)]
    if subprocess.run([*unshare, *mount, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace is to be had here")
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", prefix=[*unshare, *mount], expect=1)
    (complaint,) = done.complaints
    assert complaint.endswith("cannot be created: Read-only file system")


def test_mark_says_that_it_cannot_tell_whether_the_agent_runs(place: Place) -> None:
    place.state_dir.chmod(0)
    done = place.run("mark", f"{HOUR}/{segment_stem(0)}", prefix=restricted())
    assert "whether the agent runs cannot be told" in done.err
    assert len(place.tombstones()) == 1
    status = place.run("status", prefix=restricted(), expect=1)
    assert "may not read it" in status.err
    place.state_dir.chmod(0o700)


# -- mark, with the agent up -------------------------------------------------------------------------------------------


def test_mark_waits_until_the_running_agent_has_hidden_it(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root, HOUR)
    with agent:
        (result,) = json.loads(agent.run("mark", "--json", f"{HOUR}/{segment_stem(0)}").stdout)
        assert result["outcome"] == "marked"
        assert result["hidden_ms"] is not None
        assert agent.hidden(f"{HOUR}/{segment_stem(0)}")
        done = agent.run("mark", f"{HOUR}/{segment_stem(2)}.ts")
        assert "hidden in the index" in done.stdout
        assert done.stderr == ""
        # One that hangs is waited for once, not once for each path.
        agent.signal(signal.SIGSTOP)
        done = agent.run("mark", "--even-if-absent", *(f"{HOUR}/{segment_stem(second)}" for second in range(100, 130)))
        agent.signal(signal.SIGCONT)
        assert done.stderr.count("has not hidden it in time") == 1
        assert len(done.stdout.splitlines()) == 30
        wait_for(lambda: all(agent.hidden(f"{HOUR}/{segment_stem(second)}") for second in range(100, 130)))


# -- ls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("", ["desertbus", "other"]),
        ("desertbus", ["source"]),
        ("desertbus/", ["source"]),
        ("desertbus/source", ["2019-11-13T02", "2019-11-13T03"]),
        (HOUR, sorted(VISIBLE)),
        (f"{HOUR}/", sorted(VISIBLE)),
        ("desertbus/source/2019-11-13T03", []),
    ],
)
def test_ls_lists_what_is_there_and_visible(history: History, where: str, names: list[str]) -> None:
    assert history.run("ls", where).out.splitlines() == [printable(name) for name in names]
    assert history.run("ls", "--json", f"{history.agent.root}/{where}").json == names


def test_ls_lists_tombstones_when_asked(history: History) -> None:
    listed = history.run("ls", "--json", "--tombstones", HOUR).json
    assert listed == sorted([*VISIBLE, f"{HIDDEN}.tombstone", f"{ODD_HIDDEN}.tombstone"])


@pytest.mark.parametrize("where", ["nosuch", "desertbus/nosuch", "desertbus/source/2019-11-13T09"])
def test_ls_of_what_is_not_there(history: History, where: str) -> None:
    done = history.run("ls", where, expect=1)
    assert done.complaints == [f"tombsync: {where}: there is no such directory in the segment tree"]
    assert f"`tombsync ls{' ' if '/' in where else ''}{where.rpartition('/')[0]}` shows" in done.err


@pytest.mark.parametrize("where", ["desertbus/source/2019-11-31T02", "a/b/c/d", "..", "desertbus/..", "/etc"])
def test_ls_of_what_cannot_be(history: History, where: str) -> None:
    done = history.run("ls", where, expect=1)
    assert len(done.complaints) == 1
    assert "\n  hint: " in done.err


@pytest.mark.parametrize("where", ["linked", "linked/source", "linked/source/2019-11-13T02", "desertbus/loop"])
def test_ls_follows_no_link(place: Place, where: str) -> None:
    (place.root / "linked").symlink_to("desertbus")
    (place.root / "desertbus" / "loop").symlink_to("loop")
    done = place.run("ls", where, expect=1)
    assert done.out == ""
    assert done.complaints == [f"tombsync: {where}: is a link or no directory: links are not followed"]


def test_ls_of_another_tree_says_so(place: Place) -> None:
    place.run("rescan")
    assert "known tree" not in place.run("ls", HOUR).err
    shutil.rmtree(place.root / ".tombsync")
    done = place.run("ls", HOUR)
    assert "this is not the listing of the known tree" in done.err


def test_mark_follows_no_link(place: Place) -> None:
    (place.root / "linked").symlink_to("desertbus")
    done = place.run("mark", f"linked/source/2019-11-13T02/{segment_stem(0)}.ts", expect=1)
    assert "is a link or no directory, and links are not followed" in done.err
    assert "hint: name the segment by the directory that the link leads to" in done.err
    assert place.tombstones() == set()


def test_ls_of_an_empty_root_asks_whether_it_is_mounted(place: Place) -> None:
    shutil.rmtree(place.root / "desertbus")
    for words in (("ls",), ("ls", "--json"), ("adopt-root", "--dry-run")):
        assert "is it mounted?" in place.run(*words).err


@pytest.mark.parametrize("where", ["", "desertbus", "desertbus/source", HOUR])
def test_ls_of_what_may_not_be_read_is_no_empty_listing(place: Place, where: str) -> None:
    directory = place.root / where
    directory.chmod(0)
    done = place.run("ls", where, prefix=restricted(), expect=1)
    directory.chmod(0o755)
    (complaint,) = done.complaints
    assert str(directory) in complaint
    assert done.out == ""


def test_ls_reads_the_directory_where_there_is_no_index(place: Place) -> None:
    (place.root / HOUR / f"{segment_stem(2)}.tombstone").touch()
    assert place.run("ls", HOUR).out.splitlines() == [f"{segment_stem(0)}.ts", f"{segment_stem(4)}.ts"]


def test_ls_reads_the_directory_where_the_index_is_behind(place: Place) -> None:
    hour = place.root / HOUR
    (hour / f"{segment_stem(0)}.tombstone").touch()
    place.run("rescan")
    (hour / f"{segment_stem(0)}.tombstone").unlink()  # what was hidden stays hidden
    (hour / f"{segment_stem(2)}.tombstone").touch()
    (hour / f"{segment_stem(6)}.ts").touch()
    assert place.run("ls", "--json", HOUR).json == [f"{segment_stem(4)}.ts", f"{segment_stem(6)}.ts"]
    listed = place.run("ls", "--json", "--tombstones", HOUR).json
    assert listed[-2:] == [f"{segment_stem(4)}.ts", f"{segment_stem(6)}.ts"]
    assert listed[:-2] == [f"{segment_stem(second)}.tombstone" for second in (0, 2)]


# -- tombstones and status ---------------------------------------------------------------------------------------------


def test_tombstones_lists_the_newest_first_with_what_is_confirmed(history: History) -> None:
    rows = [line.split("\t") for line in history.run("tombstones").out.splitlines()]
    assert {(row[1], row[3]) for row in rows} == {
        ("1/1", f"{HOUR}/{HIDDEN}"),
        ("0/0", printable(f"{HOUR}/{ODD_HIDDEN}")),
    }
    documents = history.run("tombstones", "--json").json
    assert [document["segment"] for document in documents if document["sent_to_peers"]] == [f"{HOUR}/{HIDDEN}"]
    assert documents[0]["hidden_at"] >= documents[1]["hidden_at"]
    assert len(history.run("tombstones", "--limit", "1").out.splitlines()) == 1
    assert history.run("tombstones", "--channel", "other").out == ""
    assert history.run("tombstones", "--channel", "other", "--json").json == []


def test_status_shows_the_node_and_its_peers(history: History) -> None:
    facts = history.run("status", "--json").json
    assert facts["node"] == "node-a"
    assert facts["agent"]["running"] is history.up
    assert facts["root_believed"] is True
    assert facts["segments"] == {"visible": 4, "hidden": 2}
    assert facts["tombstones"] == 2
    (peer,) = facts["peers"]
    assert (peer["name"], peer["confirmed"], peer["pending"]) == ("node-b", 1, 0)
    assert peer["up"] is (True if history.up else None)
    shown = history.run("status").out
    assert "4 visible, 2 hidden" in shown
    assert ("not running" in shown) is not history.up
    assert re.search(r"^node-b\t(up|unknown)\t", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "named",
    [HIDDEN, f"{HIDDEN}.ts", f"{HIDDEN}.tombstone", f"{HIDDEN}.ts.tombstone", f"{HOUR}/{HIDDEN}.ts"],
)
def test_status_of_a_stem_or_path(history: History, named: str) -> None:
    shown = history.run("status", named).out
    assert shown.startswith(f"{HOUR}/{HIDDEN}\n")
    assert "data is still here" in shown
    assert re.search(r"^  node-b: confirmed \d{4}-", shown, re.MULTILINE)


def test_status_of_several(history: History) -> None:
    root = history.agent.root
    done = history.run("status", "--json", HIDDEN, f"{root}/{HOUR}/{os.fsdecode(b'gone')}", SHOWN, expect=3)
    assert [document["segment"] for document in done.json] == [f"{HOUR}/{HIDDEN}", None, None]
    done = history.run("status", HIDDEN, SHOWN, expect=3)
    assert done.complaints == [f"tombsync: {SHOWN}: no tombstone of this name is known here"]
    assert "\n  hint: " in done.err or done.err.startswith("  hint: ")


def test_status_of_an_unknown_stem_says_what_to_do(history: History) -> None:
    done = history.run("status", "nosuch", expect=1)
    assert "`tombsync tombstones` lists what is marked" in done.err
    assert done.out == ""


@pytest.mark.parametrize("words", [("status",), ("status", "x"), ("tombstones",)], ids=" ".join)
def test_without_an_index_the_first_step_is_told(place: Place, words: tuple[str, ...]) -> None:
    done = place.run(*words, expect=1)
    assert len(done.complaints) == 1
    assert "tombsync rescan" in done.err


# -- rescan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--full",)], ids=["interval", "full"])
def test_rescan_without_an_agent_does_it_itself(place: Place, more: tuple[str, ...]) -> None:
    (place.root / HOUR / f"{segment_stem(0)}.tombstone").touch()
    done = place.run("rescan", "--json", *more)
    assert done.json["by"] == "command"
    assert done.json["seconds"] > 0
    assert place.run("tombstones", "--json").json[0]["segment"] == f"{HOUR}/{segment_stem(0)}"
    assert "rescan completed in" in place.run("rescan", *more).out


def test_rescan_of_a_tree_with_links_that_lead_nowhere_ends(place: Place) -> None:
    (place.root / "loop").symlink_to("loop")
    (place.root / "desertbus" / "loop").symlink_to("loop")
    done = place.run("rescan", "--json")
    assert done.json["unreadable"] == 0
    assert "is a link and not followed" in done.err


def test_rescan_of_what_may_not_be_read_is_done_in_part(place: Place) -> None:
    (place.root / HOUR).chmod(0)
    (place.root / "other").mkdir(mode=0)
    place.state_dir.chmod(0o777)
    done = place.run("rescan", "--json", prefix=restricted(), expect=3)
    (place.root / HOUR).chmod(0o755)
    assert done.json["unreadable"] >= 1
    assert "directories could not be read" in done.err


def test_rescan_that_nobody_could_do_meanwhile(place: Place) -> None:
    done = place.run("rescan", "--no-wait", expect=1)
    assert done.complaints == [f"tombsync: no agent runs on the state directory {place.state_dir}"]
    assert "systemctl start" in done.err


def test_rescan_by_the_running_agent(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root, HOUR)
    with agent:
        wait_for(lambda: len(agent.records("rescan-completed")) == 2)  # of the start: interval and full
        for kind, more in (("interval", ()), ("full", ("--full",))):
            answer = json.loads(agent.run("rescan", "--json", *more).stdout)
            assert (answer["kind"], answer["by"]) == (kind, "agent")
            assert answer["seconds"] > 0
        wait_for(lambda: len(agent.records("rescan-completed")) == 4)
        assert json.loads(agent.run("rescan", "--no-wait", "--json").stdout)["seconds"] is None
        wait_for(lambda: len(agent.records("rescan-completed")) == 5)
        assert "asked the agent" in agent.run("rescan", "--no-wait").stdout


@contextlib.contextmanager
def waiting_rescan(agent: AgentProcess) -> Iterator[subprocess.Popen[str]]:
    """A `rescan` that waits for an agent which is stopped: it has asked, and gets no answer. Gone after the block."""
    agent.signal(signal.SIGSTOP)
    command: list[str | Path] = [*PROGRAM, "rescan", "--config", agent.config]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    asked = 1 << (signal.SIGUSR1 - 1)

    def is_pending() -> bool:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        return any(int(mask, 16) & asked for mask in re.findall(r"^S[hi]..?Pnd:\s*(\w+)", status, re.MULTILINE))

    with process:  # closes its pipes and waits for it
        try:
            wait_for(is_pending, "the agent to be asked")
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_the_wait_for_the_agent(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    with agent, waiting_rescan(agent) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        agent.signal(signal.SIGCONT)
        assert was_interrupted(process.returncode)
        assert (out, err.strip()) == ("", "tombsync: interrupted")
        wait_for(lambda: len(agent.records("rescan-completed")) == 3, "the agent to do it all the same")


def test_an_agent_that_ends_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    with agent, waiting_rescan(agent) as process:
        agent.kill()
        out, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert out == ""
        assert err.startswith("tombsync: no agent runs")


def test_ctrl_c_ends_a_rescan_of_its_own(place: Place) -> None:
    quality = place.root / "desertbus" / "source"
    for number in range(8_000):
        (quality / f"20{number // 672:02d}-01-{number // 24 % 28 + 1:02d}T{number % 24:02d}").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*PROGRAM, "rescan", "--full", "--config", place.config],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    # The rescan has begun when the index has its first row of it.
    wait_for((place.state_dir / "index.sqlite-wal").exists, "the rescan to begin")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert was_interrupted(process.returncode), err
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("tombsync: interrupted\n")
    place.run("rescan")


# -- adopt-root --------------------------------------------------------------------------------------------------------


def replaced(place: Place) -> Place:
    """The known tree is gone and another one stands in its place."""
    place.run("rescan")
    place.root.rename(place.base / "real")
    make_hour(place.root, HOUR)
    return place


def test_adopt_root_dry_run_writes_nothing(place: Place) -> None:
    for state in ("no index yet", "known", "replaced"):
        if state == "known":
            place.run("rescan")
        elif state == "replaced":
            replaced(place)
        before = place.snapshot()
        place.run("adopt-root", "--dry-run")
        assert place.run("adopt-root", "--dry-run", "--json").json["changed"] is False
        assert place.snapshot() == before


@pytest.mark.parametrize("answer", ["", "n\n"], ids=["nobody", "no"])
def test_adopt_root_without_a_yes_changes_nothing(place: Place, answer: str) -> None:
    replaced(place)
    before = place.snapshot()
    done = place.run("adopt-root", stdin=answer, expect=2)
    assert "nothing was changed" in done.err
    assert place.snapshot() == before


@pytest.mark.parametrize(("more", "answer"), [(["--yes"], ""), ([], "y\n")], ids=["--yes", "y"])
def test_adopt_root_takes_another_tree(place: Place, more: list[str], answer: str) -> None:
    replaced(place)
    assert "adopt-root" in place.run("rescan", expect=1).err
    adopted = place.run("adopt-root", "--json", *more, stdin=answer).json
    assert adopted["changed"] is True
    place.run("rescan")
    assert place.run("adopt-root", "--yes", "--json").json == {**adopted, "changed": False}


def test_adopt_root_wakes_an_agent_that_paused(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root, HOUR)
    with agent:
        agent.root.rename(tmp_path / "real")
        make_hour(agent.root, HOUR)
        wait_for(lambda: agent.records("root-lost"))
        shown = agent.run("status")
        assert "tree       not the known one" in shown.stdout
        assert "adopt-root" in shown.stderr
        assert json.loads(agent.run("status", "--json").stdout)["root_believed"] is False
        done = agent.run("rescan", expect=1)  # instead of a wait without end
        assert "adopt-root" in done.stderr
        assert "adopt-root" in agent.run("check", "--no-network", expect=1).stdout
        agent.run("adopt-root", "--yes")
        assert agent.wait() == 75


# -- peer test ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(place: Place) -> Iterator[Sshd]:
    """A server that is a peer of the place."""
    with Sshd() as server:
        place.write_settings(peer_table("node-b", server))
        yield server


def test_peer_test_of_a_peer_that_works(place: Place, peer: Sshd) -> None:
    before = sorted(peer.root.rglob("*"))
    assert "its segment tree is there" in place.run("peer", "test", "node-b").out
    report = place.run("peer", "test", "--json", "node-b").json
    assert report["ok"] is report["root_there"] is report["can_sync"] is True
    assert report["connect_ms"] > 0
    assert sorted(peer.root.rglob("*")) == before


def test_peer_test_of_an_unknown_peer(place: Place, peer: Sshd) -> None:
    done = place.run("peer", "test", "node-x", expect=1)
    assert done.complaints == ["tombsync: there is no peer named node-x"]
    assert "the settings have node-b" in done.err


def failing(place: Place, reason: str, *words: str) -> None:
    done = place.run("peer", "test", "node-b", expect=1)
    assert len(done.complaints) == 1
    assert all(word in done.err for word in ("node-b", "\n  hint: ", *words))
    report = place.run("peer", "test", "node-b", "--json", expect=1).json
    assert (report["ok"], report["reason"]) == (False, reason)
    assert report["hint"]
    warned = place.run("check", "--json").json  # a peer that is away is no reason not to start
    assert [finding["level"] for finding in warned if finding["what"] == "peer node-b"] == ["warning"]


def test_peer_test_of_a_changed_host_key(place: Place, peer: Sshd) -> None:
    peer.new_host_key()
    failing(place, "host-key-changed", "another host key", "known_hosts")


def test_peer_test_of_a_closed_port(place: Place, peer: Sshd) -> None:
    peer.stop()
    failing(place, "unreachable", "refused", "sshd")


def test_peer_test_of_a_refused_key(place: Place, peer: Sshd) -> None:
    peer.authorized_keys_path.write_text("")
    failing(place, "login-refused", "authorized keys")


def test_peer_test_of_a_peer_whose_tree_is_missing(place: Place, peer: Sshd) -> None:
    peer.root.rmdir()
    failing(place, "not-served", str(peer.root), "mount it there")


def test_peer_test_of_an_unknown_host_key(place: Place, peer: Sshd) -> None:
    peer.known_hosts_path.write_text("")
    done = place.run("peer", "test", "node-b", expect=1)
    assert "not in known_hosts" in done.err
    (found,) = [f for f in place.run("check", "--no-network", "--json", expect=1).json if f["level"] == "failed"]
    assert found["what"] == "peer node-b"


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_of_a_node_that_works(history: History) -> None:
    shown = history.run("check").out
    assert "failed" not in shown
    assert re.search(r"^ok +tree: .* is the known one$", shown, re.MULTILINE)
    assert re.search(r"^ok +peer node-b: reached in \d+ ms", shown, re.MULTILINE)
    before = history.server.log().count("Connection from")
    without = history.run("check", "--no-network", "--json").json
    assert {finding["level"] for finding in without} <= {"ok", "warning"}
    assert history.server.log().count("Connection from") == before > 0


def test_check_writes_nothing(place: Place) -> None:
    before = place.snapshot()
    place.run("check")
    assert place.snapshot() == before


@pytest.mark.parametrize("fault", ["no tree", "another tree", "state", "key"])
def test_check_of_a_node_that_would_not_work(place: Place, fault: str) -> None:
    if fault == "no tree":
        shutil.rmtree(place.root)
    elif fault == "another tree":
        replaced(place)
    elif fault == "state":
        place.state_dir.chmod(0o500)
    else:
        port = free_port()
        known = f"[peer.example]:{port} ssh-ed25519 {'A' * 43}=\n"
        (place.base / "known_hosts").write_text(known)
        place.write_settings(
            f'[[peer]]\nhost = "peer.example"\nport = {port}\nkey = "{place.base}/nosuch"\n'
            f'known_hosts = "{place.base}/known_hosts"\n'
        )
    done = place.run("check", "--no-network", prefix=restricted(), expect=1)
    failed = [line for line in done.out.splitlines() if line.startswith("failed")]
    assert len(failed) == 1
    assert "         hint: " in done.out
    (found,) = [
        finding
        for finding in place.run("check", "--no-network", "--json", prefix=restricted(), expect=1).json
        if finding["level"] == "failed"
    ]
    assert found["hint"]


@pytest.mark.parametrize("which", ["settings", "known_hosts"])
def test_check_tells_where_somebody_else_could_exchange_keys(place: Place, which: str) -> None:
    apart = place.base / "apart"
    apart.mkdir()
    (apart / "known_hosts").touch()
    if which == "known_hosts":
        place.write_settings(f'[[peer]]\nhost = "peer.example"\nknown_hosts = "{apart}/known_hosts"\n')
    open_to_others = apart if which == "known_hosts" else place.config.parent

    def told() -> list[dict[str, str]]:
        findings = place.run("check", "--no-network", "--json", expect=None).json
        return [finding for finding in findings if finding["what"] == "files"]

    assert told() == []
    open_to_others.chmod(0o777)
    (finding,) = told()
    assert finding["level"] == "warning"
    assert f"somebody else may change {open_to_others}" in finding["text"]
    assert "0777" in finding["text"]
    assert "chmod go-w" in finding["hint"]


# -- settings ----------------------------------------------------------------------------------------------------------

FAULTY = """\
nod = "a"
root = "segments"
[http]
listen = 80
[rescan]
interval_s = 0
[[peer]]
name = "b"
"""
SETTINGS_COMMANDS = [
    ("run",),
    ("check",),
    ("mark", "x"),
    ("ls",),
    ("tombstones",),
    ("status",),
    ("rescan",),
    ("adopt-root",),
    ("peer", "test", "b"),
    ("peer", "show"),
]


@pytest.mark.parametrize("words", SETTINGS_COMMANDS, ids=" ".join)
def test_every_problem_of_the_settings_is_told_at_once(place: Place, words: tuple[str, ...]) -> None:
    place.config.write_text(FAULTY)
    before = place.snapshot()
    done = place.run(*words, expect=1)
    keys = [complaint.removeprefix(f"tombsync: {place.config}: ").split(" ")[0] for complaint in done.complaints]
    assert sorted(key.rstrip(":") for key in keys) == ["http.listen", "nod", "peer", "rescan.interval_s", "root"]
    assert "tombsync check" in done.err.splitlines()[-1]
    assert done.out == ""
    assert place.snapshot() == before


@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable", "binary", "a device"])
def test_a_settings_file_that_cannot_be_read(place: Place, kind: str) -> None:
    if kind in ("missing", "directory"):
        place.config.unlink()
    if kind == "directory":
        place.config.mkdir()
    elif kind == "unreadable":
        place.config.chmod(0)
    elif kind == "binary":
        place.config.write_bytes(bytes(range(256)))
    elif kind == "a device":
        place.config = Path("/dev/full")
    words: tuple[str, ...] = ("status",)
    if kind == "a device":
        place.config = place.config / "x"
    done = place.run(*words, prefix=restricted(), expect=1)
    assert len(done.complaints) == 1
    assert str(place.config) in done.complaints[0]
    assert "\n  hint: " in done.err


@pytest.mark.parametrize("words", [("run",), ("rescan",)], ids=" ".join)
@pytest.mark.parametrize("kind", ["a file", "below a file", "may not be written"])
def test_a_state_directory_that_cannot_be_used(place: Place, words: tuple[str, ...], kind: str) -> None:
    state_dir = place.base / "elsewhere"
    if kind == "may not be written":
        state_dir.mkdir(mode=0o500)
    else:
        state_dir.touch()
    if kind == "below a file":
        state_dir /= "below"
    done = place.run(*words, "--state-dir", state_dir, prefix=restricted(), expect=1)
    assert len(done.complaints) == 1
    assert "state directory" in done.err


# -- whatever is typed -------------------------------------------------------------------------------------------------

NASTY: list[str | bytes] = [
    "",
    "\n",
    b"\xff\xfe\x80",
    "x" * 100_000,
    "/" * 5_000,
    "--",
    "-",
    "/",
    "..",
    "~",
    "desertbus/../../etc/passwd",
    "a/b/c/d/e",
    "\x1b[2J\x1b[31m",
    "--nosuch",
    "%s{0}$(id)`id`'\"",
    "💥\u202e",
    "." * 300,
    "0",
]


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "{}"),
        ("status", "{}"),
        ("mark", "{}"),
        ("mark", "--dry-run", "--from", "2019-11-13T02:00", "--to", "2019-11-13T02:01", "--channel", "{}"),
        ("mark", "--dry-run", "--channel", "desertbus", "--from", "{}", "--to", "2019-11-13T02:01"),
        ("mark", "--bad-versions", "--channel", "desertbus", "--quality", "{}"),
        ("tombstones", "--channel", "{}"),
        ("tombstones", "--limit", "{}"),
        ("peer", "test", "{}"),
        ("peer", "show", "{}"),
        ("check", "--no-network", "{}"),
        ("status", "--config", "{}"),
        ("ls", "--root", "{}"),
        ("status", "--state-dir", "{}"),
        ("{}",),
    ],
    ids=" ".join,
)
def test_nothing_that_is_typed_makes_a_traceback_or_changes_anything(place: Place, words: tuple[str, ...]) -> None:
    before = place.snapshot()
    for nasty in NASTY:
        typed = [nasty if word == "{}" else word for word in words]
        alone = "--config" in typed or words == ("{}",)
        done = command(*typed, expect=None) if alone else place.run(*typed, expect=None)
        assert done.code in (0, 1, 2, 3), nasty
        assert done.code == 0 or done.err.startswith(("tombsync: ", "Usage: tombsync")), nasty
    assert place.snapshot() == before


@pytest.mark.parametrize("option", ["--config", "--root", "--state-dir"])
def test_an_empty_path_is_not_where_one_happens_to_be(place: Place, option: str) -> None:
    """`--root "$UNSET"` must not mean the current directory."""
    before = place.snapshot()
    assert f"'{option}': empty" in place.run("rescan", option, "", cwd=place.base, expect=2).err
    assert place.snapshot() == before


# -- output ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--tombstones", HOUR),
        ("tombstones",),
        ("status",),
        ("status", HIDDEN, os.fsencode(ODD_HIDDEN)),
        ("check",),
        ("peer", "test", "node-b"),
        ("mark", "--dry-run", "--channel=desertbus", "--from=2019-11-13T02:00", "--to=2019-11-13T02:01"),
        ("mark", "--bad-versions", "--channel=desertbus"),
        ("mark", "--dry-run", f"{HOUR}/{SHOWN}", b"desertbus/source/2019-11-13T02/bad\xff\x1b"),
        ("adopt-root", "--dry-run"),
        ("rescan",),
    ],
    ids=lambda words: words[0],
)
def test_json_is_one_document(history: History, words: tuple[str | bytes, ...]) -> None:
    done = history.run(*words, "--json", expect=None)
    assert done.code in (0, 3)
    assert isinstance(done.json, dict | list)
    assert done.out.isascii()


def test_a_name_that_is_not_utf_8_keeps_its_bytes_in_json(history: History) -> None:
    names = history.run("ls", "--json", HOUR).json
    assert b"odd \x1b[31m\xff.ts" in [os.fsencode(name) for name in names]
    (facts,) = history.run("status", "--json", os.fsencode(ODD_HIDDEN)).json
    assert os.fsencode(facts["segment"]).endswith(b"gone\n\xfe")


def test_a_name_is_escaped_for_people(history: History) -> None:
    assert "odd \\x1b[31m\\xff.ts" in history.run("ls", HOUR).out.splitlines()
    assert history.run("tombstones").out.count("gone\\n\\xfe\n") == 1


@pytest.mark.parametrize("words", [("tombstones",), ("status",), ("ls", HOUR)], ids=" ".join)
def test_a_name_is_escaped_on_a_terminal_too(history: History, words: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *words, "--config", history.agent.config],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # Linux says EIO where the other end was closed
        pass
    os.close(ours)
    assert process.wait(20) == 0
    assert b"\x1b[31m" not in shown
    assert b"\xfe" not in shown
    assert b"\xff" not in shown
    assert b"Traceback" not in shown
    assert {"tombstones": b"gone\\n\\xfe", "status": b"CONFIRMED", "ls": b"\\x1b[31m\\xff"}[words[0]] in shown


def test_head_ends_a_listing_without_noise(history: History) -> None:
    read, write = os.pipe()
    os.close(read)
    for words in (("tombstones",), ("status",), ("ls", HOUR), ("tombstones", "--json")):
        done = subprocess.run(
            [*PROGRAM, *words, "--config", history.agent.config],
            stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=50, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(write)
    line = f"'{sys.executable}' -m tombsync tombstones --config '{history.agent.config}' | head -1"
    shell = subprocess.run(line, shell=True, capture_output=True, env=ENVIRONMENT, timeout=50, check=False)
    assert (shell.returncode, shell.stderr) == (0, b"")
    assert shell.stdout.count(b"\n") == 1


def test_a_full_disk_behind_the_output_is_told(history: History) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "tombstones", "--config", history.agent.config],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=50, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"tombsync: No space left on device\n")


def test_closed_standard_streams_are_no_error(history: History) -> None:
    for words in ("tombstones", "status", "ls"):
        line = f"'{sys.executable}' -m tombsync {words} --config '{history.agent.config}' <&- >&- 2>&-"
        assert subprocess.run(line, shell=True, env=ENVIRONMENT, timeout=50, check=False).returncode == 0

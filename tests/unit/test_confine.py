"""The confinement is tried in a child process on real files: every attempt once free and once confined.

The free run is the control: it shows that each attempt would work, so what the confined run refuses, Landlock refused.
This file is also the child's program (`python test_confine.py MODE BASE`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tombsync
from tombsync import confine
from tombsync.errors import ConfinementUnavailable, StateRefused

SEGMENT = "51:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
CONTENT = b"G" + bytes(187)


class Places:
    """The directories of one try; each attempt has an hour of its own in the tree and a folder of its own beside it."""

    def __init__(self, base: Path) -> None:
        self.root = base / "segments"
        self.state = base / "state"
        self.inbox = base / "inbox"
        self.runtime = base / "run"
        self.elsewhere = base / "elsewhere"
        self.hours = {name: self.root / "chan" / "source" / f"2019-11-13T{i:02d}" for i, name in enumerate(ATTEMPTS)}

    def make(self) -> None:
        for folder in (self.state, self.inbox, self.runtime, self.elsewhere):
            folder.mkdir(parents=True)
        for hour in self.hours.values():
            (hour / "empty").mkdir(parents=True)
            (hour / f"{SEGMENT}.ts").write_bytes(CONTENT)
            (hour / "other.ts").write_bytes(b"other")


def _open_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


def _rename_exchange(hour: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = bytes(hour / f"{SEGMENT}.ts"), bytes(hour / "other.ts")
    if libc.renameat2(-100, one, -100, two, ctypes.c_uint(2)) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _reopen_by_descriptor(hour: Path) -> None:
    held = os.open(hour / f"{SEGMENT}.ts", os.O_RDONLY)
    try:
        _open_close(Path(f"/proc/self/fd/{held}"), os.O_WRONLY)
    finally:
        os.close(held)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # a socket's path is short
        listener.bind(path.name)


def _exec_child(hour: Path) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"exec 2>/dev/null; : > '{hour / (SEGMENT + '.ts')}'"], check=False)
    if done.returncode:
        raise PermissionError(errno.EACCES, "the child was refused")


# Each is tried on an hour directory (the tree), and must be refused there.
REFUSED: dict[str, Callable[[Path], object]] = {
    "write": lambda hour: _open_close(hour / f"{SEGMENT}.ts", os.O_WRONLY),
    "read and write": lambda hour: _open_close(hour / f"{SEGMENT}.ts", os.O_RDWR),
    "append": lambda hour: _open_close(hour / f"{SEGMENT}.ts", os.O_WRONLY | os.O_APPEND),
    "truncate": lambda hour: os.truncate(hour / f"{SEGMENT}.ts", 0),
    "open to truncate": lambda hour: _open_close(hour / f"{SEGMENT}.ts", os.O_RDONLY | os.O_TRUNC),
    "reopen by descriptor": _reopen_by_descriptor,
    "unlink": lambda hour: os.unlink(hour / f"{SEGMENT}.ts"),
    "rename": lambda hour: os.rename(hour / f"{SEGMENT}.ts", hour / "renamed.ts"),
    "rename over": lambda hour: os.replace(hour / "other.ts", hour / f"{SEGMENT}.ts"),
    "rename exchange": _rename_exchange,
    "rename the hour": lambda hour: os.rename(hour, hour.with_name("moved")),
    "symlink": lambda hour: os.symlink("elsewhere", hour / "symlink"),
    "link across directories": lambda hour: os.link(hour / f"{SEGMENT}.ts", hour / "empty" / "linked.ts"),
    "fifo": lambda hour: os.mkfifo(hour / "fifo"),
    "socket": lambda hour: _bind(hour / "socket"),
    "rmdir": lambda hour: os.rmdir(hour / "empty"),
    "child process": _exec_child,
}


def _tombstone(hour: Path) -> None:
    made = os.open(hour / f"{SEGMENT}.tombstone", os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW, 0o644)
    os.fsync(made)
    os.close(made)
    folder = os.open(hour, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


def _read(hour: Path) -> None:
    assert f"{SEGMENT}.ts" in os.listdir(hour)
    assert (hour / f"{SEGMENT}.ts").read_bytes() == CONTENT


# Each is tried on an hour directory and must still work.
ALLOWED: dict[str, Callable[[Path], object]] = {
    "tombstone, synced": _tombstone,
    "list and read": _read,
    "mkdir": lambda hour: (hour / "made").mkdir(),
}
ATTEMPTS = {**REFUSED, **ALLOWED}


def _use_state(state: Path) -> None:
    """Everything that an index, its sorter and a careless administrator do."""
    index = sqlite3.connect(state / "index.sqlite")
    index.execute("PRAGMA journal_mode=WAL")
    index.execute("CREATE TABLE t (x)")
    index.commit()
    index.close()
    (state / "a" / "b").mkdir(parents=True)
    (state / "a" / "b" / "file").write_bytes(b"one")
    os.truncate(state / "a" / "b" / "file", 1)
    os.replace(state / "a" / "b" / "file", state / "a" / "file")
    os.link(state / "a" / "file", state / "linked")
    os.symlink("a", state / "symlink")
    os.mkfifo(state / "fifo")
    os.unlink(state / "a" / "file")
    os.rmdir(state / "a" / "b")


def _use_inbox(inbox: Path) -> None:
    os.unlink(inbox / "arrived.tombstone")


def _use_runtime(runtime: Path) -> None:
    _bind(runtime / "http.sock")
    os.unlink(runtime / "http.sock")


def _use_null() -> None:
    subprocess.run(["/bin/true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    Path("/dev/null").write_bytes(b"x")


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    except sqlite3.Error as error:
        return str(error)
    return "ok"


def _try_all(places: Places) -> dict[str, str]:
    """What each attempt came to: `ok` or the name of the errno."""
    outcomes = {name: _outcome(lambda: attempt(places.hours[name])) for name, attempt in ATTEMPTS.items()}
    outcomes["use of the state directory"] = _outcome(lambda: _use_state(places.state))
    outcomes["removing from the inbox"] = _outcome(lambda: _use_inbox(places.inbox))
    outcomes["creating in the inbox"] = _outcome(
        lambda: _open_close(places.inbox / "mine", os.O_CREAT | os.O_EXCL | os.O_RDONLY)
    )
    outcomes["a socket in the runtime directory"] = _outcome(lambda: _use_runtime(places.runtime))
    outcomes["use of /dev/null"] = _outcome(_use_null)
    outcomes["writing elsewhere"] = _outcome(lambda: (places.elsewhere / "file").write_bytes(b"x"))
    outcomes["removing elsewhere"] = _outcome(lambda: os.unlink(places.elsewhere / "kept"))
    outcomes["a link out of the tree"] = _outcome(
        lambda: os.link(places.hours["list and read"] / f"{SEGMENT}.ts", places.state / "stolen.ts")
    )
    outcomes["a link into the tree"] = _outcome(
        lambda: os.link(places.state / "index.sqlite", places.hours["list and read"] / "index.ts")
    )
    return outcomes


def _confine(places: Places) -> confine.Confinement:
    return confine.confine(
        root=str(places.root),
        state_dir=str(places.state),
        inbox_dirs=[str(places.inbox)],
        runtime_dir=str(places.runtime),
    )


def _without_landlock() -> None:
    """Make the kernel say ENOSYS to landlock_create_ruleset, as an old one does: a four-line seccomp filter."""

    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]

    load_number, jump_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    lines = (Filter * 4)(
        Filter(load_number, 0, 0, 0),
        Filter(jump_equal, 0, 1, 444),
        Filter(give, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
        Filter(give, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(Program(4, lines)), zero, zero) == 0  # PR_SET_SECCOMP


def _refusal(places: Places) -> dict[str, object]:
    """What `confine` raised, and whether the process is still as free as before."""
    refusal = ""
    try:
        _confine(places)
    except (ConfinementUnavailable, StateRefused, RuntimeError) as error:
        refusal = f"{type(error).__name__}: {error}"
    free = _outcome(lambda: (places.elsewhere / "still-free").write_bytes(b"x"))
    return {"refusal": refusal, "free": free, "abi": confine.abi_version()}


def _child(mode: str, places: Places) -> dict[str, object]:
    match mode:
        case "free":
            return {"outcomes": _try_all(places)}
        case "confined":
            before = set(os.listdir("/proc/self/fd"))
            confinement = _confine(places)
            leaked = sorted(set(os.listdir("/proc/self/fd")) - before)
            facts = {"abi": confinement.abi, "partial": confinement.partial, "without": confinement.without_rule}
            return {"outcomes": _try_all(places), "leaked": leaked, **facts}
        case "not mounted":
            places.root = places.root.with_name("not-there")
            places.inbox = places.inbox.with_name("no-inbox")
            confinement = _confine(places)
            outcomes = {"made": _outcome(places.root.mkdir), "state": _outcome(lambda: _use_state(places.state))}
            return {"without": confinement.without_rule, **outcomes}
        case "thread":
            ended = threading.Event()
            thread = threading.Thread(target=ended.wait)
            thread.start()
            answer = _refusal(places)
            ended.set()
            thread.join()
            return answer
        case "old kernel":
            _without_landlock()
        case "no state":
            places.state = places.state.with_name("no-state")
        case "tree in state":
            places.state = places.root.parent
        case "tree is inbox":
            places.inbox = places.root
        case _:
            raise AssertionError(mode)
    return _refusal(places)


def _run(mode: str, base: Path) -> dict[str, object]:
    places = Places(base)
    places.make()
    (places.inbox / "arrived.tombstone").touch()
    (places.elsewhere / "kept").touch()
    package = str(Path(tombsync.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, __file__, mode, str(base)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


Confined = tuple[dict[str, str], Places, dict[str, object]]  # outcomes, where, the whole answer


@pytest.fixture(scope="module")
def landlock() -> int:
    """The ABI of this kernel. Missing Landlock is a failure where it must not go unnoticed, else a skip."""
    abi = confine.abi_version()
    if abi < 3:
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"this kernel's Landlock has ABI {abi}, a complete confinement needs 3")
    return abi


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    outcomes = _run("free", tmp_path_factory.mktemp("free"))["outcomes"]
    assert isinstance(outcomes, dict)
    return outcomes


@pytest.fixture(scope="module")
def confined(landlock: int, tmp_path_factory: pytest.TempPathFactory) -> Confined:
    base = tmp_path_factory.mktemp("confined")
    answer = _run("confined", base)
    outcomes = answer["outcomes"]
    assert isinstance(outcomes, dict)
    return outcomes, Places(base), answer


@pytest.mark.parametrize("attempt", REFUSED)
def test_the_tree_refuses(attempt: str, free: dict[str, str], confined: Confined) -> None:
    outcomes, places, _ = confined
    assert free[attempt] == "ok"
    assert outcomes[attempt] in ("EACCES", "EXDEV")
    hour = places.hours[attempt]
    assert sorted(os.listdir(hour)) == [f"{SEGMENT}.ts", "empty", "other.ts"]
    assert (hour / f"{SEGMENT}.ts").read_bytes() == CONTENT
    assert (hour / "other.ts").read_bytes() == b"other"
    assert os.listdir(hour / "empty") == []


@pytest.mark.parametrize("attempt", ALLOWED)
def test_the_tree_allows(attempt: str, confined: Confined) -> None:
    outcomes, places, _ = confined
    assert outcomes[attempt] == "ok"
    assert (places.hours["tombstone, synced"] / f"{SEGMENT}.tombstone").stat().st_size == 0
    assert (places.hours["mkdir"] / "made").is_dir()


@pytest.mark.parametrize(
    "attempt",
    ["use of the state directory", "removing from the inbox", "a socket in the runtime directory", "use of /dev/null"],
)
def test_what_the_agent_needs_is_allowed(attempt: str, confined: Confined) -> None:
    assert confined[0][attempt] == "ok"


@pytest.mark.parametrize(
    "attempt",
    [
        "creating in the inbox",
        "writing elsewhere",
        "removing elsewhere",
        "a link out of the tree",
        "a link into the tree",
    ],
)
def test_everything_else_is_refused(attempt: str, free: dict[str, str], confined: Confined) -> None:
    assert free[attempt] == "ok"
    assert confined[0][attempt] in ("EACCES", "EXDEV")


def test_a_complete_confinement_says_so(landlock: int, confined: Confined) -> None:
    assert confined[2]["abi"] == landlock
    assert confined[2]["partial"] is False
    assert confined[2]["without"] == []


def test_no_descriptor_stays_open(confined: Confined) -> None:
    assert confined[2]["leaked"] == []


def test_what_is_not_mounted_has_no_rule(landlock: int, tmp_path: Path) -> None:
    answer = _run("not mounted", tmp_path)
    assert answer["without"] == [str(tmp_path / "not-there"), str(tmp_path / "no-inbox")]
    assert answer["made"] == "EACCES"
    assert answer["state"] == "ok"


def test_a_running_thread_is_a_programming_error(tmp_path: Path) -> None:
    answer = _run("thread", tmp_path)
    assert str(answer["refusal"]).startswith("RuntimeError: confine() must come before the first thread: 2 run")
    assert answer["free"] == "ok"


def test_a_kernel_without_landlock(tmp_path: Path) -> None:
    answer = _run("old kernel", tmp_path)
    assert answer["abi"] == 0
    assert str(answer["refusal"]).startswith("ConfinementUnavailable: cannot confine the agent: this kernel has no")
    assert answer["free"] == "ok"


def test_a_missing_state_directory(landlock: int, tmp_path: Path) -> None:
    answer = _run("no state", tmp_path)
    assert answer["refusal"] == f"StateRefused: {tmp_path / 'no-state'}: No such file or directory"
    assert answer["free"] == "ok"


@pytest.mark.parametrize("mode", ["tree in state", "tree is inbox"])
def test_a_tree_where_removing_is_allowed(mode: str, landlock: int, tmp_path: Path) -> None:
    """Landlock adds rules up along the path, so this confinement would be none."""
    answer = _run(mode, tmp_path)
    assert "where files may be removed" in str(answer["refusal"])
    assert answer["free"] == "ok"


def test_old_interfaces_are_partial() -> None:
    refer, truncate = 1 << 13, 1 << 14
    first, missing = confine.handled(1)
    assert missing == ("truncate",)
    assert first & (refer | truncate) == 0
    assert confine.handled(2) == (first | refer, ("truncate",))
    assert confine.handled(3) == (first | refer | truncate, ())
    assert confine.handled(7) == confine.handled(3)
    assert confine.Confinement(2, ("truncate",), ()).partial


def test_only_modifying_rights_are_handled() -> None:
    """Reading and executing stay as they are: handling them broke late imports and name resolution."""
    execute, read_file, read_dir = 1 << 0, 1 << 2, 1 << 3
    assert confine.handled(7)[0] & (execute | read_file | read_dir) == 0


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(sys.argv[1], Places(Path(sys.argv[2])))))

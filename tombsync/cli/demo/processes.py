"""Processes of the demo: in sessions of their own, so that a Ctrl-C reaches the demo alone, and ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

STOP_TIMEOUT_S = 3.0  # an agent ends within 4 s, nearly always within one; what is still there then is killed
_LOOK_S = 0.005


def start(command: Sequence[str], log: Path, *, output: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a program whose stderr is added to a log file, and its stdout too where there is no file for that."""
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("ab"))
        out = errors if output is None else stack.enter_context(output.open("wb"))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True)


def end(processes: Iterable[subprocess.Popen[bytes]], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """SIGTERM to all, and SIGKILL to those that are still there after `timeout_s`."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    ends_at = time.monotonic() + timeout_s
    for process in running:
        try:
            process.wait(max(0.0, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_family(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Kill a process with all its descendants, at once. A server's sessions would outlive it otherwise."""
    if process.poll() is not None:
        return
    family: list[int] = []
    # One that is stopped forks no more, so this ends; a child that was forked in between is found by the next round.
    while new := [pid for pid in _family(process.pid) if pid not in family]:
        _signal(new, signal.SIGSTOP)
        family += new
        ends_at = time.monotonic() + timeout_s
        while not _states(family) <= {"T", "t"} and time.monotonic() < ends_at:
            time.sleep(_LOOK_S)
    _signal(reversed(family), signal.SIGKILL)
    process.wait()
    ends_at = time.monotonic() + timeout_s
    while _states(family) and time.monotonic() < ends_at:
        time.sleep(_LOOK_S)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _states(pids: Iterable[int]) -> set[str]:
    """The states of those that still run (one letter each, see proc(5)); a zombie has ended."""
    wanted = set(pids)
    return {state for pid, _, state in _alive() if pid in wanted}


def _family(pid: int) -> list[int]:
    """A process and all its descendants, parents before children."""
    children: dict[int, list[int]] = {}
    for child, parent, _ in _alive():
        children.setdefault(parent, []).append(child)
    family = [pid]
    for member in family:  # grows while it is walked
        family += children.get(member, [])
    return family


def _alive() -> list[tuple[int, int, str]]:
    """(pid, parent, state) of every process that can be seen, but zombies."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it may end between the listing and the reading
                # The command's name, in parentheses, may hold spaces and parentheses of its own.
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found.append((int(name), int(fields[1]), fields[0]))
    return found

"""What has to be changed on this machine, as data: each step says what it does, whether it is done, and does it.

A plan is a list of steps in their order. A dry run prints those that are not done; running one again does only what is
still missing, so a command that was stopped half-way goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tombsync import errors
from tombsync.cli.common import exit_code, say, say_json, tell_error, warn

_PROGRAM_TIMEOUT_S = 120.0  # systemctl waits for a mount for 90 s (DefaultTimeoutStartSec), and then says why
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # sudo and su may leave out what only root has


@dataclass(frozen=True)
class Step:
    """One change. `done` is asked in the order of the plan, each after the steps before it; `detail`: lines to show."""

    description: str
    done: Callable[[], bool]
    apply: Callable[[], object]
    detail: Sequence[str] = ()


def require_root(command: str) -> None:
    """Raise NeedsRoot where this process is not root's."""
    if os.geteuid() != 0:
        raise errors.NeedsRoot(command)


def run_program(*words: str, stdin: int = subprocess.DEVNULL, timeout_s: float = _PROGRAM_TIMEOUT_S) -> str:
    """Run a program of the system and return what it printed. Raises ProgramFailed, also where it takes too long."""
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    program = shutil.which(words[0], path=path)
    if program is None:
        raise errors.ProgramFailed(words[0], "is not installed")
    try:
        done = subprocess.run(
            [program, *words[1:]],
            stdin=stdin, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": path}, timeout=timeout_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise errors.ProgramFailed(words[0], f"did not end within {timeout_s:.0f} s") from exc
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"ended with code {done.returncode}"
        raise errors.ProgramFailed(words[0], " / ".join(said.splitlines()))
    return done.stdout


def carry_out(
    name: str, steps: Sequence[Step], notes: Callable[[], Sequence[str]], *, dry_run: bool, as_json: bool
) -> int:
    """Do what is not done yet, or say what that is, and return the exit code.

    `notes`: what the person has to know or do afterwards, asked when everything is done and something was.
    """
    os.umask(0o022)  # what is made here is for other accounts to read, however careful root's shell is
    changed: list[Step] = []
    error: errors.TombsyncError | None = None
    for step in steps:
        try:
            if step.done():
                continue
            if not dry_run:
                step.apply()
        except errors.TombsyncError as exc:
            error = exc
            break
        changed.append(step)
        if not as_json:
            _say_step(step, dry_run=dry_run)
    told = notes() if changed and error is None else ()
    if as_json:
        say_json(
            {
                "peer": name,
                "dry_run": dry_run,
                "changes": [{"what": step.description, "detail": list(step.detail)} for step in changed],
                "notes": list(told),
                "error": str(error) if error else None,
            }
        )
    elif not changed and error is None:
        say(f"{name}: nothing to change")
    if error is not None:
        tell_error(error)
        return exit_code(len(changed), 1)
    if not as_json:
        for note in told:
            warn(note)
    return 0


def _say_step(step: Step, *, dry_run: bool) -> None:
    say(f"would {step.description}" if dry_run else step.description)
    for line in step.detail if dry_run else ():
        say(f"    {line}")

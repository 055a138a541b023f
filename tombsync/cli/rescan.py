"""`tombsync rescan`: compare the tree with the index now."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import click

from tombsync import errors
from tombsync.cli.common import (
    Place,
    exit_code,
    json_option,
    open_reader,
    place_options,
    require_readable,
    say,
    say_json,
    tree_doubt,
    warn,
)
from tombsync.cli.progress import Bar
from tombsync.config import Settings
from tombsync.index import Reader, agent_pid

if TYPE_CHECKING:
    from tombsync.rescan import Progress

_LOOK_S = 0.1
# A rescan that began so shortly before it was asked for counts as the one that was meant: the command itself had not
# begun by then, and nothing is older than the question by less.
_SLACK_NS = 100_000_000


@click.command()
@place_options
@click.option("--full", is_flag=True, help="List every hour directory, whatever its mtime says.")
@click.option("--no-wait", is_flag=True, help="Ask the running agent for it and return.")
@json_option
def rescan(place: Place, full: bool, no_wait: bool, as_json: bool) -> int:
    """Compare the segment tree with the index now, and repair what was missed.

    The running agent does it; without one, this command does it itself. Exit code 3: some directories could not be
    read, and the log says which.

    \b
    Example
      tombsync rescan --full
    """
    settings = place.settings()
    require_readable(settings)
    kind = "full" if full else "interval"
    pid = agent_pid(settings.state_dir)
    if not pid and no_wait:
        raise errors.AgentNotRunning(settings.state_dir)
    took_s, unreadable = _by_agent(settings, pid, kind, no_wait) if pid else _here(settings, kind)
    if as_json:
        say_json({"kind": kind, "by": "agent" if pid else "command", "seconds": took_s, "unreadable": unreadable})
    elif took_s is None:
        say(f"asked the agent (process {pid}) for a {kind} rescan; `tombsync status` shows how far it is")
    else:
        say(f"{kind} rescan completed in {took_s:.2f} s")
    if unreadable:
        warn(f"{unreadable} directories could not be read, and what is new in them is not known; the log names them")
    return exit_code(1, unreadable)


def _here(settings: Settings, kind: str) -> tuple[float, int]:
    from tombsync.daemon import rescan_once
    from tombsync.rescan import RescanKind

    def follow(progress: Progress | None) -> None:
        if progress is not None:
            bar.show(progress.done, progress.total)

    with Bar(f"{kind} rescan") as bar:
        return rescan_once(settings, RescanKind(kind), follow)


def _by_agent(settings: Settings, pid: int, kind: str, no_wait: bool) -> tuple[float | None, int]:
    reader = open_reader(settings)
    try:
        _require_tree(settings, reader)
        before = reader.fact(f"rescan_{kind}_ns")
        asked_ns = time.time_ns()
        try:
            os.kill(pid, signal.SIGUSR2 if kind == "full" else signal.SIGUSR1)
        except PermissionError as exc:
            raise errors.AgentRefused(pid) from exc
        except ProcessLookupError as exc:
            raise errors.AgentNotRunning(settings.state_dir) from exc
        return (None, 0) if no_wait else _await_completed(settings, reader, kind, before, asked_ns)
    finally:
        reader.close()


def _require_tree(settings: Settings, reader: Reader) -> None:
    """Raise what keeps the agent from it: while it takes the tree for another one it would not begin."""
    if doubt := tree_doubt(settings, reader):
        raise doubt


def _await_completed(
    settings: Settings, reader: Reader, kind: str, before: int | None, asked_ns: int
) -> tuple[float, int]:
    """Wait for a rescan that began after it was asked for: one that ran by then may have passed what was meant."""
    ends = {before}
    with Bar(f"{kind} rescan") as bar:
        while True:
            ended_ns = reader.fact(f"rescan_{kind}_ns")
            if ended_ns not in ends:
                ends.add(ended_ns)
                took_s = float(reader.fact(f"rescan_{kind}_s"))
                if len(ends) > 2 or ended_ns - took_s * 1e9 >= asked_ns - _SLACK_NS:
                    return took_s, int(reader.fact(f"rescan_{kind}_unreadable") or 0)
            if not agent_pid(settings.state_dir):
                raise errors.AgentNotRunning(settings.state_dir)
            _require_tree(settings, reader)
            if reader.fact("rescan_kind") == kind:
                bar.show(reader.fact("rescan_done") or 0, reader.fact("rescan_total") or 0)
            time.sleep(_LOOK_S)  # another process's commit is nothing that can be waited for

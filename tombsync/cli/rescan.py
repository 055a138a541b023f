"""`tombsync rescan`: compare the tree with the index now."""

from __future__ import annotations

import os
import signal
import sys
import time

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tombsync import errors
from tombsync.cli.common import Place, json_option, open_reader, place_options, say, say_json
from tombsync.config import Settings
from tombsync.daemon import rescan_once
from tombsync.index import Reader, agent_pid
from tombsync.rescan import Progress as RescanProgress
from tombsync.rescan import RescanKind

_LOOK_S = 0.1


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, kind: RescanKind) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task(f"{kind.value} rescan", total=None)
        self._progress.start()

    def show(self, done: int, total: int) -> None:
        """Hours compared, of how many."""
        self._progress.update(self._task, completed=done, total=total or None)

    def follow(self, progress: RescanProgress | None) -> None:
        """Show a rescan of this process."""
        if progress is not None:
            self.show(progress.done, progress.total)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


@click.command()
@place_options
@click.option("--full", is_flag=True, help="List every hour directory, whatever its mtime says.")
@click.option("--no-wait", is_flag=True, help="Ask the running agent for it and return.")
@json_option
def rescan(place: Place, full: bool, no_wait: bool, as_json: bool) -> None:
    """Compare the segment tree with the index now, and repair what was missed.

    The running agent does it; without one, this command does it itself.

    \b
    Example
      tombsync rescan --full
    """
    settings = place.settings()
    kind = RescanKind.FULL if full else RescanKind.INTERVAL
    pid = agent_pid(settings.state_dir)
    if not pid and no_wait:
        raise errors.AgentNotRunning(settings.state_dir)
    took_s = _by_agent(settings, pid, kind, no_wait) if pid else _here(settings, kind)
    if as_json:
        say_json({"kind": kind.value, "by": "agent" if pid else "command", "seconds": took_s})
    elif took_s is None:
        say(f"asked the agent (process {pid}) for a {kind.value} rescan")
    else:
        say(f"{kind.value} rescan completed in {took_s:.2f} s")


def _here(settings: Settings, kind: RescanKind) -> float:
    bar = _Bar(kind)
    try:
        return rescan_once(settings, kind, bar.follow)
    finally:
        bar.close()


def _by_agent(settings: Settings, pid: int, kind: RescanKind, no_wait: bool) -> float | None:
    reader = open_reader(settings)
    try:
        before = reader.fact(f"rescan_{kind.value}_ns")
        try:
            os.kill(pid, signal.SIGUSR2 if kind is RescanKind.FULL else signal.SIGUSR1)
        except PermissionError as exc:
            raise errors.AgentRefused(pid) from exc
        if no_wait:
            return None
        return _await_completed(settings, reader, kind, before)
    finally:
        reader.close()


def _await_completed(settings: Settings, reader: Reader, kind: RescanKind, before: int | None) -> float:
    bar = _Bar(kind)
    try:
        while reader.fact(f"rescan_{kind.value}_ns") == before:
            if not agent_pid(settings.state_dir):
                raise errors.AgentNotRunning(settings.state_dir)
            if reader.fact("rescan_kind") == kind.value:
                bar.show(reader.fact("rescan_done") or 0, reader.fact("rescan_total") or 0)
            time.sleep(_LOOK_S)  # another process's commit is nothing that can be waited for
        return float(reader.fact(f"rescan_{kind.value}_s"))
    finally:
        bar.close()

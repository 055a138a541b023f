"""`tombsync demo`."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from tombsync import errors
from tombsync.cli.common import json_option, say, say_json
from tombsync.cli.demo.patience import DidNotHold, Interrupted, Patience
from tombsync.cli.demo.report import Report
from tombsync.cli.demo.screen import Lines, Screen, Silent, Terminal, is_terminal
from tombsync.cli.demo.stage import NAMES, Stage
from tombsync.cli.demo.story import Story
from tombsync.names import printable

DEADLINE_S = 25.0  # and up to 4 s to clean up: less than half a minute, whatever happens
_SIGNAL_EXIT = 128  # as a shell reports a process that a signal ended


@click.command()
@click.option("--embedded", is_flag=True, help="Use tombsync's own small SFTP server, also where OpenSSH is installed.")
@click.option("--keep", is_flag=True, help="Keep the directory with trees, settings and logs, and print its path.")
@json_option
def demo(embedded: bool, keep: bool, as_json: bool) -> int:
    """Show three nodes on this machine that hide, deliver and confirm. Takes some ten seconds.

    Starts three agents in a temporary directory, as a chain a - b - c over SFTP on the loopback interface, touches some
    tombstones on node-a and measures until the index of each node hides the segment. Then node-c is stopped, misses a
    tombstone and catches up. Needs no root, no network and no settings; nothing is left behind but, where this machine
    has a journal, the agents' records in it (of the channel `demo`).

    Exit code 0 where all of it held, 1 where something did not: its logs are kept then.

    \b
    Example: the measured milliseconds, for a program
      tombsync demo --json
    """
    report = Report(NAMES)
    screen: Screen = Silent() if as_json else Terminal(report) if is_terminal() else Lines(report)
    patience = Patience(DEADLINE_S)
    with patience.signals_caught():
        try:
            _run(report, screen, patience, embedded=embedded, keep=keep)
        except Interrupted as exc:
            click.echo("tombsync: interrupted; the demo has cleaned up", err=True)
            if report.directory:
                click.echo(f"  kept: {printable(report.directory)}", err=True)
            return _SIGNAL_EXIT + exc.number
    if as_json:
        say_json(report.as_json())
    if report.failure:
        raise DidNotHold(f"the demo did not hold: {report.failure}{_where(report.directory)}")
    if not as_json:
        screen.end(f"All of it held, in {report.took_s:.1f} s.")
        if report.directory:
            say(f"Kept: {report.directory}")
    return 0


def _run(report: Report, screen: Screen, patience: Patience, *, embedded: bool, keep: bool) -> None:
    """Play the demo and clean up; a failure goes into the report. Raises Interrupted."""
    directory = None
    try:
        directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="tombsync-demo-")))
        stage = Stage(directory, patience)
        patience.glances.append(screen.tick)
        with screen, ExitStack() as stack:
            stack.callback(stage.close)
            stack.callback(screen.working, "cleaning up")
            Story(stage, report, screen, patience).play(embedded=embedded)
            patience.require_no_signal()
    except BrokenPipeError:  # nobody reads the lines any more, which is no failure
        raise
    except (errors.TombsyncError, OSError) as exc:
        if patience.signalled:  # a terminal that was closed, for example: what was written there since has failed
            raise Interrupted(patience.signalled) from exc
        report.failure = " ".join(str(exc).split())
    finally:
        report.took_s = patience.elapsed_s
        if directory is not None:
            if keep or report.failure:
                report.directory = str(directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)


def _where(directory: str) -> str:
    return f"; the logs are in {directory}" if directory else ""

"""The command line: words, tables and exit codes live in this package and nowhere else."""

from __future__ import annotations

import io
import logging
import os
import sys

import click

from tombsync import __version__, errors
from tombsync.cli import adopt_root, check, ls, mark, peer, rescan, run, status, tombstones
from tombsync.cli.common import tell_error, tell_usage
from tombsync.cli.demo import command as demo
from tombsync.names import printable

_INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tombsync")
def cli() -> None:
    """Hide segments of a replicated video archive at once, on every node, and prove it.

    \b
    Example: hide one segment, then see which nodes have confirmed it
      tombsync mark /segments/desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
      tombsync status 45:51.608000-2.0-full-…
    """


for _command in (
    run.run,
    check.check,
    mark.mark,
    ls.ls,
    tombstones.tombstones,
    status.status,
    rescan.rescan,
    adopt_root.adopt_root,
    peer.peer,
    demo.demo,
):
    cli.add_command(_command)


def main() -> None:
    """The entry point. Every error is told in one line with a hint; a traceback is a fault of ours."""
    logging.basicConfig(level=logging.WARNING, format="tombsync: %(levelname)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal does not know is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() != "utf-8":
        click.echo("tombsync: file names need UTF-8 here\n  hint: set PYTHONUTF8=1", err=True)
        sys.exit(errors.EXIT_FAILED)
    try:
        code = cli.main(prog_name="tombsync", standalone_mode=False)
    except click.Abort:
        click.echo("tombsync: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except click.ClickException as exc:
        tell_usage(exc)
        sys.exit(exc.exit_code)
    except errors.TombsyncError as exc:
        tell_error(exc)
        sys.exit(exc.exit_code)
    except OSError as exc:  # of no part of ours: the disk behind `> FILE` is full, for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python fails once more at its end
        where = f"{exc.filename}: " if exc.filename else ""
        click.echo(f"tombsync: {printable(f'{where}{exc.strerror or exc}')}", err=True)
        sys.exit(errors.EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)

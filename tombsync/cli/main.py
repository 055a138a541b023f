"""The command line: words, tables and exit codes live in this package and nowhere else."""

from __future__ import annotations

import io
import logging
import os
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from tombsync import __version__, errors
from tombsync.names import printable

_INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended


# Command -> module and function, imported when it is asked for: `mark` need not wait for an SSH library to load.
_COMMANDS = {
    "run": "run:run",
    "check": "check:check",
    "mark": "mark.command:mark",
    "ls": "ls:ls",
    "tombstones": "tombstones:tombstones",
    "status": "status:status",
    "coverage": "coverage:coverage",
    "release": "release:release",
    "unmark": "unmark:unmark",
    "takedown": "takedown:takedown",
    "purge": "purge:purge",
    "report": "report:report",
    "log": "log:log",
    "rescan": "rescan:rescan",
    "reload": "reload:reload",
    "adopt-root": "adopt_root:adopt_root",
    "peer": "peer:peer",
    "demo": "demo.command:demo",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            near = get_close_matches(cmd_name, _COMMANDS, 1)
            if near and not ctx.resilient_parsing:  # which completes a word
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near[0]!r}?")
            return None
        module, _, function = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"tombsync.cli.{module}"), function)
        return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="tombsync")
def cli() -> None:
    """Hide segments of a replicated video archive at once, on every node, and prove it.

    \b
    Example: hide one segment, then see which nodes have confirmed it
      tombsync mark /segments/desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
      tombsync status 45:51.608000-2.0-full-…
    """


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
        from tombsync.cli.common import tell_usage

        tell_usage(exc)
        sys.exit(exc.exit_code)
    except errors.TombsyncError as exc:
        from tombsync.cli.common import tell_error

        tell_error(exc)
        sys.exit(exc.exit_code)
    except OSError as exc:  # of no part of ours: the disk behind `> FILE` is full, for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python fails once more at its end
        where = f"{exc.filename}: " if exc.filename else ""
        click.echo(f"tombsync: {printable(f'{where}{exc.strerror or exc}')}", err=True)
        sys.exit(errors.EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)

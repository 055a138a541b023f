"""What every command shares: its options, its output, and how an error is told."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tombsync import errors
from tombsync.config import DEFAULT_PATH, Settings, load
from tombsync.index import Reader, agent_pid, index_path
from tombsync.names import printable

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """Which node a command speaks of: the settings file and what the command line puts over it."""

    config: str | None
    root: str | None
    state_dir: str | None

    def settings(self, **over: str | None) -> Settings:
        """Load the settings. Raises BadSettings."""
        return load(_absolute(self.config), root=_absolute(self.root), state_dir=_absolute(self.state_dir), **over)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def place_options(command: F) -> F:
    """`--config`, `--root` and `--state-dir`, handed over as `place`."""

    @click.option("--config", metavar="FILE", help=f"Settings file.  [default: {DEFAULT_PATH} where it exists]")
    @click.option("--root", metavar="DIR", help="The segment tree, over what the settings say.")
    @click.option("--state-dir", metavar="DIR", help="Where the index lives, over what the settings say.")
    @functools.wraps(command)
    def wrapped(config: str | None, root: str | None, state_dir: str | None, **rest: Any) -> Any:
        return command(place=Place(config, root, state_dir), **rest)

    return wrapped  # type: ignore[return-value] # click's decorators replace the function


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing.")


def open_reader(settings: Settings) -> Reader:
    """The index for reading, with the agent up or down. Raises IndexMissing, IndexDamaged, StateRefused."""
    return Reader(index_path(settings.state_dir))


def agent_runs(settings: Settings) -> bool:
    """Whether an agent works on this state directory."""
    return agent_pid(settings.state_dir) != 0


# -- output -----------------------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """One line for people, escaped."""
    click.echo(printable(text))


def warn(text: str) -> None:
    """One line of warning on stderr."""
    click.echo(f"tombsync: warning: {printable(text)}", err=True)


def say_json(value: object) -> None:
    """One JSON document. A name that is not UTF-8 keeps its bytes as lone surrogates (`\\udcXX`)."""
    click.echo(json.dumps(value, indent=2))


def say_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere one line of tab-separated values a row, for `cut` and `awk`."""
    shown = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in shown:
            click.echo("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in shown:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def when(at_ns: int | None) -> str:
    """A wall time as people read it, UTC; "-" for never."""
    if at_ns is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_ns / 1e9)) + "Z"


def iso(at_ns: int | None) -> str | None:
    """A wall time as programs read it; None for never."""
    if at_ns is None:
        return None
    seconds, rest_ns = divmod(at_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest_ns // 1000:06d}Z"


def age(seconds: float) -> str:
    """A duration in the largest unit that fits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


# -- errors -----------------------------------------------------------------------------------------------------------


def tell_error(exc: errors.TombsyncError) -> None:
    """What is wrong and what to do next, on stderr."""
    for line in str(exc).splitlines():
        click.echo(f"tombsync: {printable(line)}", err=True)
    if exc.hint:
        click.echo(f"  hint: {printable(exc.hint)}", err=True)


def exit_code(done: int, failed: int) -> int:
    """0 where everything was done, 1 where nothing was, 3 where only a part was."""
    if not failed:
        return 0
    return errors.EXIT_IN_PART if done else errors.EXIT_FAILED

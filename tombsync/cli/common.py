"""What every command shares: its options, its output, and how an error is told."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.config import DEFAULT_PATH, Settings, load
from tombsync.index import Reader, agent_pid, index_path
from tombsync.names import Marked, locate, printable
from tombsync.tree import Tree

F = TypeVar("F", bound=Callable[..., Any])

_LOOK_S = 0.05
_AGE_PATTERN = re.compile(r"([1-9][0-9]{0,8})(s|min|h|d)")
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Place:
    """Which node a command speaks of: the settings file and what the command line puts over it."""

    config: str | None
    root: str | None
    state_dir: str | None

    def settings(self, **over: str | None) -> Settings:
        """Load the settings. Raises BadSettings."""
        return load(self.config, root=self.root, state_dir=self.state_dir, **over)


def _absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A path from the command line. An empty one (`--root "$UNSET"`) is refused: it would mean where one is."""
    if value == "":
        raise click.BadParameter("empty; is a variable of the shell not set?", ctx, param)
    return None if value is None else os.path.normpath(value if value.startswith("/") else f"{here()}/{value}")


def seconds_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A time like 90s, 10min, 12h or 7d from the command line, in seconds."""
    if value is None:
        return None
    match = _AGE_PATTERN.fullmatch(value)
    if match is None:
        raise click.BadParameter("a time is a number and s, min, h or d, like 7d", ctx, param)
    return int(match[1]) * _UNITS_S[match[2]]


def here() -> str:
    """The directory one is in, resolved; `/` where it was removed meanwhile."""
    try:
        return os.path.realpath(os.getcwd())
    except OSError:
        return "/"


def place_options(command: F) -> F:
    """`--config`, `--root` and `--state-dir`, handed over as `place`."""

    @click.option(
        "--config",
        callback=_absolute,
        shell_complete=complete.files,
        metavar="FILE",
        help=f"Settings file.  [default: {DEFAULT_PATH}, if any]",
    )
    @click.option(
        "--root",
        callback=_absolute,
        shell_complete=complete.directories,
        metavar="DIR",
        help="The segment tree, over what the settings say.",
    )
    @click.option(
        "--state-dir",
        callback=_absolute,
        shell_complete=complete.directories,
        metavar="DIR",
        help="Where the index lives, over what the settings say.",
    )
    @functools.wraps(command)
    def wrapped(config: str | None, root: str | None, state_dir: str | None, **rest: Any) -> Any:
        return command(place=Place(config, root, state_dir), **rest)

    return wrapped  # type: ignore[return-value] # click's decorators replace the function


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done and change nothing.")


def open_reader(settings: Settings) -> Reader:
    """The index for reading, with the agent up or down. Raises IndexMissing, IndexDamaged, StateRefused."""
    require_readable(settings)
    return Reader(index_path(settings.state_dir))


def require_readable(settings: Settings) -> None:
    """Raise StateRefused where this account may not look into the state directory: it would seem to be empty."""
    if os.path.isdir(settings.state_dir) and not os.access(settings.state_dir, os.R_OK | os.X_OK):
        raise errors.StateRefused(
            settings.state_dir, "this account may not read it", "run this as root, or as the agent's account or group"
        )


def agent_runs(settings: Settings) -> bool:
    """Whether an agent works on this state directory."""
    return agent_pid(settings.state_dir) != 0


def known_root(settings: Settings, reader: Reader) -> str:
    """The identity that the tree must have. Raises RootNotBelieved where no agent has taken one up."""
    identity: str | None = reader.fact("root")
    if identity is None:
        raise errors.RootNotBelieved(settings.root, "one that an agent has taken up", "")
    return identity


def await_request(settings: Settings, path: str, what: str, within_s: float = 10.0) -> bool:
    """Wait until the agent has done what was asked by that file; False where none runs. Raises AgentSlow."""
    deadline = time.monotonic() + within_s
    while os.path.exists(path):
        if not agent_runs(settings):
            return False
        if time.monotonic() > deadline:
            raise errors.AgentSlow(settings.state_dir, what)
        time.sleep(_LOOK_S)  # another process removes it: nothing that can be waited for
    return True


def tree_doubt(settings: Settings, reader: Reader) -> errors.RootMissing | errors.RootNotBelieved | None:
    """Why the tree at ROOT is not taken for the known one now (an agent pauses then); None where it is."""
    identity = reader.fact("root")
    return None if identity is None else Tree(settings.root).doubt(identity)


def locate_segment(text: str, tree: Tree) -> Marked:
    """The segment that a person means: by an absolute path, one below ROOT, or one below where they are.

    Raises BadName and OutsideRoot, each with a next step.
    """
    try:
        if not text:
            raise errors.BadName(text, "a path cannot be empty")
        return locate(_through_link(text, tree), root=tree.root, cwd=here())
    except errors.BadName as exc:
        exc.hint = "name a segment as CHANNEL/QUALITY/HOUR/NAME or by its whole path; `tombsync ls` shows what is there"
        raise


def _through_link(path: str, tree: Tree) -> str:
    """An absolute path that reaches ROOT by a symlink, as one that names it directly; below, no link is followed."""
    if not path.startswith("/") or ".." in path.split("/"):
        return path
    root, *below = os.path.normpath(path).rsplit("/", 4)
    return "/".join([tree.root, *below]) if len(below) == 4 and os.path.realpath(root or "/") == tree.root else path


# -- output -----------------------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """One line for people, escaped."""
    _print(printable(text))


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:  # `tombsync tombstones | head`: whoever read has enough, what is done here goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def on_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at what is printed there; a closed stream is None."""
    return stream is not None and stream.isatty()


def warn(text: str) -> None:
    """One line of warning on stderr."""
    click.echo(f"tombsync: warning: {printable(text)}", err=True)


def say_json(value: object) -> None:
    """One JSON document. A name that is not UTF-8 keeps its bytes as lone surrogates (`\\udcXX`)."""
    _print(json.dumps(value, indent=2))


def say_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere one line of tab-separated values a row, for `cut` and `awk`."""
    shown = [[printable(str(cell)) for cell in row] for row in rows]
    if not on_terminal(sys.stdout):
        for row in shown:
            _print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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


def age(seconds: float) -> str:
    """A duration in the largest unit that fits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def owner(uid: int | None) -> str | None:
    """The account of a uid, or the number where it has none."""
    from tombsync.intake import owner_name  # not above: it brings the library of the metrics with it

    return owner_name(uid)


# -- errors -----------------------------------------------------------------------------------------------------------


def tell_error(exc: errors.TombsyncError) -> None:
    """What is wrong and what to do next, on stderr."""
    for line in str(exc).splitlines():
        click.echo(f"tombsync: {printable(line)}", err=True)
    if exc.hint:
        click.echo(f"  hint: {printable(exc.hint)}", err=True)


def tell_usage(exc: click.ClickException) -> None:
    """click's own errors. What was typed may have come from a glob, so it is escaped like every other name."""
    told = io.StringIO()
    exc.show(told)
    for line in told.getvalue().removesuffix("\n").split("\n"):
        click.echo(printable(line), err=True)


def exit_code(done: int, failed: int) -> int:
    """0 where everything was done, 1 where nothing was, 3 where only a part was."""
    if not failed:
        return 0
    return errors.EXIT_IN_PART if done else errors.EXIT_FAILED

"""tombsync(1) of the commands and tombsync.toml(5) of the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import cleandoc

import click
from pydantic_core import PydanticUndefined

from tombsync import __version__
from tombsync.cli.main import cli
from tombsync.cli.manual.meanings import MEANINGS
from tombsync.cli.manual.roff import example, item, literal, prose, title
from tombsync.config import DEFAULT_PATH, LISTS, TABLES

_COMMON = ("--config", "--root", "--state-dir", "--json", "--dry-run", "--help")
_EXIT_CODES = {
    "0": "Done.",
    "1": "Could not be done; the reason and the next step are on stderr.",
    "2": "Wrong usage; nothing was done.",
    "3": "Done in part.",
    "75": "Of `tombsync run`: the segment tree had gone and is back, and the agent wants to be started again.",
    "130": "Interrupted.",
}
_FILES = {
    DEFAULT_PATH: "The settings: see tombsync.toml(5).",
    "/var/lib/tombsync": "The index: a cache that can be deleted.",
    "ROOT/.tombsync": "The identity of the segment tree, what was purged of it, and its takedowns.",
}
_SETTINGS_EXAMPLE = """\
node = "node-a"
root = "/segments"

[[peer]]
name = "node-b"
host = "b.example"
delivery = "inbox"
"""


def command_page(date: str) -> str:
    """tombsync(1); `date` as YYYY-MM-DD."""
    lines = [
        *title("tombsync", 1, date, __version__, "Tombstones of a video archive"),
        ".SH NAME",
        r"tombsync \- hide, deliver and prove tombstones on the nodes of a replicated video archive",
        ".SH SYNOPSIS",
        r"\fBtombsync\fR \fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_body(cli),
        ".SH COMMANDS",
        prose("The options that most commands share are below, under COMMON OPTIONS."),
    ]
    shared: dict[str, str] = {}
    for context in _commands(cli, click.Context(cli, info_name="tombsync", **cli.context_settings)):
        command = context.command
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        lines += [f".SS {literal(usage)}", *_body(command)]
        common = []
        for param in command.get_params(context):
            record = param.get_help_record(context)
            if record is None or isinstance(param, click.Argument):  # the text speaks of those
                continue
            if param.opts[-1] in _COMMON:
                shared.setdefault(*record)
                common.append(param.opts[-1])
            else:
                lines += item(record[0], [record[1]])
        lines += [".PP", prose("Common: " + ", ".join(f"`{option}`" for option in common) + ".")]
    lines.append(".SH COMMON OPTIONS")
    for label, text in shared.items():
        lines += item(label, [text])
    for heading, table in (("EXIT STATUS", _EXIT_CODES), ("FILES", _FILES)):
        lines.append(f".SH {heading}")
        for label, text in table.items():
            lines += item(label, [text])
    lines += [".SH SEE ALSO", r"\fBtombsync.toml\fR(5), \fBjournalctl\fR(1), \fBsshd_config\fR(5)"]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """A context of each command, those of groups included."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise LookupError(f"{name} is listed and cannot be had")
        below = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, below)
        else:
            yield below


def _body(command: click.Command) -> list[str]:
    """The help text of a command: paragraphs, and examples as they are."""
    lines: list[str] = []
    for paragraph in cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):  # click's mark for lines as they are
            head, *rest = paragraph.removeprefix("\b\n").splitlines()
            lines += [".PP", prose(f"{head.rstrip(':')}:"), *example("\n".join(line.strip() for line in rest))]
        elif paragraph.strip():
            lines += [".PP", prose(paragraph)] if lines else [prose(paragraph)]
    return lines


def settings_page(date: str) -> str:
    """tombsync.toml(5); `date` as YYYY-MM-DD."""
    lines = [
        *title("tombsync.toml", 5, date, __version__, "Tombstones of a video archive"),
        ".SH NAME",
        r"tombsync.toml \- the settings of tombsync",
        ".SH DESCRIPTION",
        prose(
            f"A file in TOML, at `{DEFAULT_PATH}` unless a command is told another one with `--config`. Every key has a"
            " default but `host` of a peer. Unknown keys and all other problems are reported together, and nothing"
            " starts on a file that has any: `tombsync check` looks."
        ),
        ".SH EXAMPLE",
        prose("A node with one peer; everything else is as it is without being said:"),
        *example(_SETTINGS_EXAMPLE),
    ]
    for field, table in TABLES.items():
        purpose, meanings = MEANINGS[field]
        heading = f"[[{LISTS[field]}]]" if field in LISTS else f"[{field}]" if field else "TOP LEVEL"
        lines.append(f".SH {literal(heading)}")
        if purpose:
            lines.append(prose(purpose))
        for key, value in table.model_fields.items():
            if key in TABLES:  # a table, which has a section of its own
                continue
            texts = [meanings[key], f"Allowed: {value.description}."]
            if value.default is not PydanticUndefined and value.default != "":
                texts[1] += f" Default: `{json.dumps(value.default)}`."
            lines += item(key, texts)
    lines += [".SH SEE ALSO", r"\fBtombsync\fR(1)"]
    return "\n".join(lines) + "\n"

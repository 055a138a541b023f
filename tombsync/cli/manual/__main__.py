"""Writes the manual pages and completions: see `--help`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from tombsync.cli.manual import command_page, completion, settings_page

_COMPLETIONS = {
    "bash": "bash-completion/completions/tombsync",
    "zsh": "zsh/site-functions/_tombsync",
    "fish": "fish/vendor_completions.d/tombsync.fish",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def manual(directory: Path) -> None:
    """Write tombsync(1), tombsync.toml(5) and the completion for bash, zsh and fish below DIRECTORY.

    The date in the pages is that of SOURCE_DATE_EPOCH, where that is set.

    \b
    Example
      python -m tombsync.cli.manual /usr/local/share
    """
    at_s = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(at_s))
    files = {
        "man/man1/tombsync.1": command_page(date),
        "man/man5/tombsync.toml.5": settings_page(date),
        **{path: completion(shell) for shell, path in _COMPLETIONS.items()},
    }
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        click.echo(path)


if __name__ == "__main__":
    manual(prog_name="python -m tombsync.cli.manual")

"""The command line: words, tables and exit codes live here and below, nowhere else."""

from __future__ import annotations

import sys

import click

from tombsync import __version__
from tombsync.cli import run as run_module


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tombsync")
def cli() -> None:
    pass


cli.add_command(run_module.run)


def main() -> None:
    cli()

"""The group of the commands."""

from __future__ import annotations

import click

from tombsync.cli.peer.add import add
from tombsync.cli.peer.remove import remove
from tombsync.cli.peer.rotate import rotate
from tombsync.cli.peer.show import show
from tombsync.cli.peer.walk import test


@click.group()
def peer() -> None:
    """Look after the peers of this node.

    \b
    Example
      tombsync peer test node-b
    """


for command in (add, show, test, rotate, remove):
    peer.add_command(command)

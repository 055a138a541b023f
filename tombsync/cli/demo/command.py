"""`tombsync demo`."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Show three nodes on this machine."""
    raise click.ClickException("being written")

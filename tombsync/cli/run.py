"""`tombsync run`: the agent."""

from __future__ import annotations

import sys

import click

from tombsync.cli.common import Place, place_options
from tombsync.config import Settings


@click.command()
@place_options
@click.option("--listen", metavar="ADDRESS", help="HTTP address over what the settings say: HOST:PORT or unix:/PATH.")
@click.option("--node", metavar="NAME", help="This node's name, over what the settings say.")
@click.option("--require-confinement", is_flag=True, help="Do not start where the kernel cannot confine the agent.")
def run(place: Place, listen: str | None, node: str | None, require_confinement: bool) -> None:
    """Run the agent of this node in the foreground, until SIGTERM.

    It watches the segment tree, hides what is marked, delivers tombstones to the peers of the settings file and serves
    /metrics, /healthz and /readyz. SIGHUP has the settings read again, SIGUSR1 asks for a rescan, SIGUSR2 for a full
    one. Exit code 75 asks the service manager for a restart: the segment tree had gone and came back.

    \b
    Example: without any settings file, for a first look
      tombsync run --root /segments
    """
    # paramiko takes it for the commands in an ssh_config, which nobody reads here: 5 MB (benchmarks/idle.py). None is
    # how Python is told that an import is to fail (the types do not know of it), and paramiko goes on without.
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]
    from tombsync.daemon import Agent

    def load() -> Settings:
        return place.settings(listen=listen, node=node)

    Agent(load(), load=load, require_confinement=require_confinement).run()

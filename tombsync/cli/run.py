from __future__ import annotations

import click

from tombsync import config
from tombsync.daemon import Agent


@click.command()
@click.option("--config", "config_path")
@click.option("--root")
@click.option("--state-dir")
@click.option("--listen")
def run(config_path, root, state_dir, listen):
    Agent(config.load(config_path, root=root, state_dir=state_dir, listen=listen)).run()

"""Many runs of the model: `python -m tests.model --runs 10000`."""

from __future__ import annotations

import os
import random
import sys

import click

from tests.model.many import make_runs
from tests.model.search import STEPS


@click.command()
@click.option("--runs", default=2_000, show_default=True, help="How many runs.")
@click.option("--steps", default=STEPS, show_default=True, help="Steps of each run.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--seed", default=None, type=int, help="The same seed makes the same runs; at random without.")
def main(runs: int, steps: int, jobs: int, seed: int | None) -> None:
    """Make runs of the model and say how fast that was. Exit code 1 where one broke a rule, with its steps."""
    made = make_runs(runs, seed=random.randrange(1_000_000_000) if seed is None else seed, jobs=jobs, steps=steps)
    if made.failure:
        click.echo(made.failure)
        sys.exit(1)
    click.echo(str(made))


if __name__ == "__main__":
    main()

"""Many runs of the model: `python -m tests.model --runs 10000`."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import click

from tests.model.search import STEPS, report

_CHUNK_RUNS = 250  # Hypothesis remembers every run of a search, with some 0.2 MB


@click.command()
@click.option("--runs", default=2_000, show_default=True, help="How many runs.")
@click.option("--steps", default=STEPS, show_default=True, help="Steps of each run.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--seed", default=None, type=int, help="The same seed makes the same runs; at random without.")
def main(runs: int, steps: int, jobs: int, seed: int | None) -> None:
    """Make runs of the model and say how fast that was. Exit code 1 where one broke a rule, with its steps."""
    first = random.randrange(1_000_000_000) if seed is None else seed
    chunks = [min(_CHUNK_RUNS, runs - start) for start in range(0, runs, _CHUNK_RUNS)]
    begun, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        numbers = {pool.submit(report, count, first + n, steps): first + n for n, count in enumerate(chunks)}
        for ended in as_completed(numbers):
            held, failure = ended.result()
            done += held
            if failure:
                pool.shutdown(wait=False, cancel_futures=True)
                click.echo(f"{failure}\nagain: --seed {numbers[ended]} --runs {_CHUNK_RUNS} --steps {steps}")
                sys.exit(1)
    took_s = time.perf_counter() - begun
    rate = f"{done / took_s:.1f} runs/s in {jobs} processes"
    click.echo(f"{done} runs of {steps} steps held, in {took_s:.0f} s: {rate} (seed {first})")


if __name__ == "__main__":
    main()

"""Many runs of the model, in several processes at once."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from tests.model.search import STEPS, report

_CHUNK_RUNS = 250  # Hypothesis remembers every run of a search, with some 0.2 MB


@dataclass(frozen=True)
class Made:
    """What came of it: `held` of the runs ended well; `failure` is the first that did not, made small, as text."""

    held: int
    steps: int
    jobs: int
    seed: int
    took_s: float
    failure: str

    def __str__(self) -> str:
        rate = f"{self.held / self.took_s:.1f} runs/s in {self.jobs} processes"
        return f"{self.held} runs of {self.steps} steps held, in {self.took_s:.0f} s: {rate} (seed {self.seed})"


def make_runs(runs: int, *, seed: int, jobs: int, steps: int = STEPS) -> Made:
    """Make runs until one of them breaks a rule. The same seed makes the same runs."""
    chunks = [min(_CHUNK_RUNS, runs - start) for start in range(0, runs, _CHUNK_RUNS)]
    begun, done, failure = time.perf_counter(), 0, ""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        numbers = {pool.submit(report, count, seed + n, steps): seed + n for n, count in enumerate(chunks)}
        for ended in as_completed(numbers):
            held, found = ended.result()
            done += held
            if found:
                again = f"again: python -m tests.model --seed {numbers[ended]} --runs {_CHUNK_RUNS} --steps {steps}"
                failure = f"{found}\n{again}"
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return Made(done, steps, jobs, seed, time.perf_counter() - begun, failure)

"""A search for a run of the model that breaks a rule."""

from __future__ import annotations

import traceback
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Nodes

STEPS = 50


def search(machine: type[Nodes], runs: int, *, number: int, steps: int = STEPS) -> None:
    """Make `runs` runs, the same for the same `number`. Raises what a run that breaks a rule raises, shrunk."""
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            derandomize=False,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def report(runs: int, number: int, steps: int) -> tuple[int, str]:
    """How many runs held, and the smallest that did not, as text (for another process)."""
    machine: Any = type("Nodes", (Nodes,), {"runs": 0})
    try:
        search(machine, runs, number=number, steps=steps)
    except Exception:  # whatever it is, it is what is looked for
        return machine.runs, traceback.format_exc()
    return machine.runs, ""

"""A search for a run of the model in which something does not hold, and the smallest run that shows the same."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.checks import Violation
from tests.model.machine import Nodes, Step

STEPS = 50


@dataclass(frozen=True)
class Finding:
    """What does not hold, and the steps that lead there, the making of the nodes first."""

    failure: Exception
    steps: tuple[Step, ...]

    @property
    def kind(self) -> str:
        """What must stay the same while the run is made smaller."""
        return self.failure.invariant if isinstance(self.failure, Violation) else type(self.failure).__name__

    def __str__(self) -> str:
        lines = (f"state.{name}({', '.join(f'{k}={v!r}' for k, v in values.items())})" for name, values in self.steps)
        return "".join((*traceback.format_exception(self.failure), "\n".join(lines)))


def search(machine: type[Nodes], runs: int, *, number: int, steps: int = STEPS) -> Finding | None:
    """Make `runs` runs, the same ones for the same `number`; the first in which something does not hold, made small.

    Hypothesis finds it; it is made smaller here, step by step, as each try of Hypothesis costs a whole run.
    """
    wanted = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        derandomize=False,
        database=None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(machine), settings=wanted)
    except Exception as exc:  # whatever it is, it is what is looked for
        found = Finding(exc, machine.last)
    else:
        return None
    return smallest(machine, found)


def repeat(machine: type[Nodes], steps: Sequence[Step]) -> Finding | None:
    """Take these steps again."""
    random.seed(0)  # as Hypothesis does before each run
    state, held = machine(), False
    try:
        try:
            for name, values in steps:
                getattr(state, name)(**values)
                state.holds()
            held = True
        finally:
            state.end(held=held)
    except Exception as exc:  # see `search`
        return Finding(exc, state.last)
    return None


def smallest(machine: type[Nodes], found: Finding) -> Finding:
    """The same failure with as few steps, and values as plain, as leaving out and replacing them one by one gives."""
    progress = True
    while progress:
        progress = False
        for steps in _smaller(found.steps):
            again = repeat(machine, steps)
            if again is not None and again.kind == found.kind:
                found, progress = again, True
                break
    return found


def _smaller(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """First without many steps at once, then without single ones, then with plainer values."""
    size = len(steps) - 1
    while size:
        for end in range(len(steps), 1, -size):
            yield steps[: max(1, end - size)] + steps[end:]
        size //= 2
    for position, (name, values) in enumerate(steps):
        for key, value in values.items():
            for plain in _plainer(key, value):
                yield (*steps[:position], (name, {**values, key: plain}), *steps[position + 1 :])


def _plainer(key: str, value: object) -> Iterator[object]:
    if key == "nodes":
        yield from range(2, int(str(value)))
    elif key == "shape" and value != "mesh":
        yield "mesh"
    elif key == "then" and value != "nothing":
        yield "nothing"
    elif isinstance(value, bool) and key in ("can_sync", "chat_everywhere"):
        if not value:
            yield True
    elif isinstance(value, int) and value > 0:
        yield type(value)(0)


def report(runs: int, number: int, steps: int) -> tuple[int, str]:
    """For another process: how many runs held, and what was found, as text."""

    class Counted(Nodes):
        """With a count of its own."""

        runs = 0

    machine = Counted
    found = search(machine, runs, number=number, steps=steps)
    return machine.runs, str(found) if found else ""

"""Nothing that the machine finds to do to some nodes breaks a rule; `python -m tests.model` makes more runs of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import click
import pytest

from tests.model import memory
from tests.model.many import make_runs

EVERY_RUN = os.environ.get("CI") == "true"
RUNS = 2_000 if EVERY_RUN else 200
JOBS = 2


@pytest.mark.timeout(1200)
def test_every_rule_holds_in_many_runs(capsys: pytest.CaptureFixture[str]) -> None:
    # In CI always the same, as with all else that Hypothesis makes.
    made = make_runs(RUNS, seed=1 if EVERY_RUN else random.randrange(1_000_000_000), jobs=JOBS)
    if made.failure:
        pytest.fail(made.failure, pytrace=False)
    with capsys.disabled():
        click.echo(f"\n{made}")
    assert made.held >= RUNS


LEAVE = "from tests.model import memory; print(memory.new_directory(), flush=True)"


def left_by(ending: str) -> str:
    """A directory that a process made before it ended in some way."""
    ended = subprocess.run([sys.executable, "-c", f"{LEAVE}; {ending}"], capture_output=True, text=True)
    assert not ended.stderr
    return ended.stdout.strip()


def test_no_directory_is_left() -> None:
    usual = left_by("")
    assert memory.PREFIX in usual
    assert not os.path.exists(usual)
    killed = left_by("import os; os.kill(os.getpid(), 9)")
    assert os.path.isdir(killed)
    mine = memory.new_directory()
    assert not os.path.exists(left_by(""))
    assert not os.path.exists(os.path.dirname(killed))
    assert os.path.isdir(mine)
    os.rmdir(mine)

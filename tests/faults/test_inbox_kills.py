"""A few of the kills that `python -m tests.faults.inbox_kills` makes many of."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from tests.faults.inbox_kills import run

KILLS = 12
MARKS = 300


@pytest.mark.timeout(240)
def test_whatever_is_killed_all_arrive_and_none_is_told_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        result = run(stack, tmp_path, marks=MARKS, kills=KILLS, seed=10)
    with capsys.disabled():
        click.echo(f"\n{result}")
    assert result.hits.total() == KILLS
    # Or it was killed while it started each time; what exactly it did then is for the long run to hit.
    assert sum(count for what, count in result.hits.items() if "any moment" not in what) >= KILLS // 3

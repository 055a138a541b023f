"""A few of the kills that `python -m tests.faults.inbox_kills` makes many of."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.inbox_kills import run

KILLS = 12
MARKS = 300


@pytest.mark.timeout(240)
def test_whatever_is_killed_all_arrive_and_none_is_told_twice(tmp_path: Path) -> None:
    with ExitStack() as stack:
        run(stack, tmp_path, marks=MARKS, kills=KILLS, seed=1)

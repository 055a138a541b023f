"""Hostile names through a whole agent; `python -m tests.faults.hostile_names` does it with a million."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import click
import pytest

from tests.faults import hostile_names

NAMES = 20_000 if os.environ.get("CI") == "true" else 10_000


@pytest.mark.timeout(600)
def test_hostile_names_neither_escape_nor_crash_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    with capsys.disabled():
        click.echo(f"\nseed {seed}")
    begun = time.perf_counter()
    counts = hostile_names.run(tmp_path, count=NAMES, seed=seed)
    with capsys.disabled():
        click.echo(hostile_names.report(counts, time.perf_counter() - begun))
    assert counts["names"] == NAMES
    # Many of them came all the way.
    assert min(counts["files"], counts["hidden"], counts["marked by command"], counts["taken as paths"]) > 50

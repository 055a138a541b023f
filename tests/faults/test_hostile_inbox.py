"""Hostile names in an inbox; `python -m tests.faults.hostile_inbox` does it with a million."""

from __future__ import annotations

import os
import random
from pathlib import Path

import click
import pytest

from tests.faults import hostile_inbox

NAMES = 20_000 if os.environ.get("CI") == "true" else 10_000


@pytest.mark.timeout(300)
def test_hostile_names_in_an_inbox_neither_escape_nor_crash_the_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(1 << 32)
    base = tmp_path / "base"
    base.mkdir()
    with capsys.disabled():
        click.echo(f"\nseed {seed}")
    result = hostile_inbox.run(base, count=NAMES, seed=seed)
    with capsys.disabled():
        click.echo(str(result))
    assert result.counts["names"] == NAMES
    for came in ("placed", "canaries", "refused as name", "refused as not-served", "refused as generation"):
        assert result.counts[came] > 0, came

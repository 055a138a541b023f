"""Some seconds of what `python -m tests.faults.inbox_race` does for a minute, and that it finds what it is to find."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import inbox_race
from tests.support.careless import CARELESS, OpenBelow

SECONDS = 5.0
FOUND_WITHIN_S = 60.0


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@pytest.mark.timeout(120)
def test_nothing_escapes_and_nothing_is_lost_while_directories_turn_into_links(tmp_path: Path) -> None:
    result = inbox_race.run(tmp_path, until=after(SECONDS))
    assert result.escapes == []
    assert result.failures > 0  # or nothing was swapped at the right moment
    assert 0 < result.refused < result.count


@pytest.mark.timeout(120)
@pytest.mark.parametrize("open_below", CARELESS, ids=lambda planted: planted.__name__)
def test_it_finds_who_follows_a_link(open_below: OpenBelow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombsync.tree.tree.open_below", open_below)
    assert inbox_race.run(tmp_path, until=after(FOUND_WITHIN_S)).escapes

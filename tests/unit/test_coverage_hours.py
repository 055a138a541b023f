"""Hours of real media show what was worked out by hand, and covered, tombstoned and missing are the whole hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.planted import CHANNEL, HOURS, Planted, Shown, plant_hours
from tombsync.coverage import Coverage, Survey
from tombsync.coverage.rules import TYPES
from tombsync.timeline import HOUR_US
from tombsync.tree import Tree

LATER_US = 1 << 62


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("planted")
    plant_hours(base / "segments", base / "films")
    return base / "segments"


@pytest.fixture(scope="module")
def judged(root: Path) -> dict[tuple[str, int], Coverage]:
    tree = Tree(str(root))
    found: dict[tuple[str, int], Coverage] = {}
    with tree.open_root() as root_fd:
        survey = Survey(tree, root_fd, None, LATER_US)
        for quality in {one.quality for one in HOURS}:
            numbers = survey.numbers(CHANNEL, quality, None, None)
            found.update(((quality, number), one) for number, one in survey.hours(CHANNEL, quality, numbers))
    return found


def shown(one: Coverage) -> Shown:
    counts = dict(zip(TYPES, one.counts, strict=True))
    lengths = (one.covered_us, one.editable_us, one.partial_us, one.tombstoned_us, one.hole_us)
    seconds = [us / 1e6 for us in lengths]
    counted = [counts[name] for name in ("full", "suspect", "partial", "temp", "chat", "bad")]
    return Shown._make([*seconds, one.overlaps, one.overlap_us / 1e6, *counted, one.hidden])


def test_no_hour_is_left_out(judged: dict[tuple[str, int], Coverage]) -> None:
    assert len(HOURS) >= 12
    assert set(judged) == {(one.quality, one.place.number) for one in HOURS}


@pytest.mark.parametrize("planted", HOURS, ids=lambda one: one.why)
def test_an_hour_shows_what_was_worked_out_by_hand(planted: Planted, judged: dict[tuple[str, int], Coverage]) -> None:
    one = judged[planted.quality, planted.place.number]
    assert shown(one) == planted.shown
    assert planted.shown.covered + planted.shown.tombstoned + planted.shown.hole == pytest.approx(3600, abs=0.01)
    assert one.span_us == HOUR_US


def test_an_hour_alone_is_judged_as_among_others(root: Path, judged: dict[tuple[str, int], Coverage]) -> None:
    tree = Tree(str(root))
    with tree.open_root() as root_fd:
        for planted in HOURS:
            number = planted.place.number
            survey = Survey(tree, root_fd, None, LATER_US)
            ((_, alone),) = survey.hours(CHANNEL, planted.quality, [number])
            assert alone == judged[planted.quality, number], planted.why

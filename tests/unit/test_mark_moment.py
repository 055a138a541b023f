"""What arrives while a takedown is being made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.moments import CHANNEL, put, put_minute, tombstones
from tombsync.cli.mark.findings import Moment
from tombsync.cli.mark.hiding import Hiding, Result
from tombsync.cli.mark.moment import mark_all
from tombsync.config import load
from tombsync.names import Marked
from tombsync.takedown.find import Asked
from tombsync.timeline import parse_time

MINUTE = "2019-11-13T02:45"


class Arriving(Hiding):
    """Something arrives right after each of the first marks."""

    arrivals: list[str]

    def hide(self, marked: Marked, result: Result) -> None:
        super().hide(marked, result)
        if self.arrivals:
            put(Path(self.tree.root), self.arrivals.pop(), quality="480p")


@pytest.fixture
def hiding(tmp_path: Path) -> Arriving:
    root = tmp_path / "segments"
    put_minute(root, MINUTE)
    return Arriving(load(None, root=str(root), state_dir=str(tmp_path / "state")), reason="", dry_run=False)


def test_what_arrives_in_the_range_meanwhile_is_marked_too(
    hiding: Arriving, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(CHANNEL, parse_time(f"{MINUTE}:10"), parse_time(f"{MINUTE}:14"))
    hiding.arrivals = [f"{MINUTE}:20", f"{MINUTE}:12"]
    results: list[Result] = []
    with hiding:
        moment = Moment(hiding, asked)
        mark_all(hiding, moment, results)
    assert {result.outcome for result in results} == {"marked"}
    assert {result.segment for result in results} == tombstones(Path(hiding.tree.root))
    assert len(results) == 3
    assert capsys.readouterr().err.count("arrived meanwhile") == 1


def test_it_ends_where_something_always_arrives(hiding: Arriving) -> None:
    asked = Asked(CHANNEL, parse_time(f"{MINUTE}:10"), parse_time(f"{MINUTE}:14"))
    hiding.arrivals = [f"{MINUTE}:{10 + number / 100:06.3f}" for number in range(100)]
    results: list[Result] = []
    with hiding:
        mark_all(hiding, Moment(hiding, asked), results)
    assert len(hiding.arrivals) > 0
    assert {result.segment for result in results} == tombstones(Path(hiding.tree.root))

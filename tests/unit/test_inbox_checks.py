"""How many files a sender may deliver, and in which hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agent import make_hour
from tombsync.inbox.checks import Quota
from tombsync.inbox.served import AHEAD, HOURS_AHEAD, NOT_SERVED, Served
from tombsync.names import Hour, hour_number
from tombsync.tree import Tree

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
NOW_S = 1573610400.0 + 1800  # half past two of that hour


def test_a_quota_is_there_at_once_and_comes_back_evenly() -> None:
    quota = Quota(60)
    assert quota.take(100, 0.0) == 60
    assert quota.take(1, 59.0) == 0
    assert quota.until_next_s == pytest.approx(1.0)
    assert quota.take(5, 60.0) == 1
    assert quota.take(5, 240.0) == 3
    assert quota.take(2, 1440.0) == 2  # 20 came
    assert quota.until_next_s == 0.0
    assert quota.take(100, 1440.0) == 18


def test_a_quota_does_not_grow_beyond_an_hour() -> None:
    quota = Quota(10)
    assert quota.take(3, 0.0) == 3
    assert quota.take(100, 1e6) == 10
    assert quota.take(100, 1e6 + 360) == 1


@pytest.mark.parametrize(
    ("hour", "refused"),
    [
        (HOUR, None),
        (HOUR._replace(number=HOUR.number + HOURS_AHEAD), None),
        (HOUR._replace(number=HOUR.number + HOURS_AHEAD + 1), AHEAD),
        (HOUR._replace(number=HOUR.number + HOURS_AHEAD + 2), None),  # it is there
        (HOUR._replace(number=1), None),
        (HOUR._replace(channel="links"), NOT_SERVED),
        (HOUR._replace(quality="linked"), NOT_SERVED),
        (HOUR._replace(channel="maps"), NOT_SERVED),
        (HOUR._replace(channel="emptied"), None),
        (HOUR._replace(channel="gone"), NOT_SERVED),
        (HOUR._replace(channel=".tombsync"), NOT_SERVED),
    ],
)
def test_which_hours_are_served(tmp_path: Path, hour: Hour, refused: object) -> None:
    make_hour(tmp_path, HOUR.path)
    make_hour(tmp_path, HOUR._replace(number=HOUR.number + HOURS_AHEAD + 2).path)
    (tmp_path / "links").symlink_to("desertbus")
    (tmp_path / "desertbus/linked").symlink_to("source")
    for place in ("maps/source/no-hour", "emptied/source", ".tombsync/source"):
        (tmp_path / place).mkdir(parents=True)
    recorded = {("emptied", "source"), ("gone", "source")}
    tree = Tree(str(tmp_path))
    with tree.open_root() as root_fd:
        assert Served(tree, root_fd, recorded=lambda: recorded, now_s=NOW_S).refusal(hour) == refused

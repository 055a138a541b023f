"""When which rescan comes."""

from __future__ import annotations

from tests.support.index import HOUR, NEXT_HOUR
from tombsync.rescan.kinds import RescanKind
from tombsync.rescan.schedule import Schedule


def ran(schedule: Schedule, now: float) -> list[RescanKind]:
    """The rescans that are due then, each over at once."""
    kinds = []
    while kind := schedule.next_kind(now):
        kinds.append(kind)
        schedule.began(kind)
        schedule.ended(kind, now)
    return kinds


def test_everything_is_due_at_the_start_and_then_an_interval_after_its_end() -> None:
    schedule = Schedule(10.0, 100.0)
    assert ran(schedule, 5.0) == [RescanKind.INTERVAL, RescanKind.FULL]
    assert schedule.next_at() == 15.0
    assert ran(schedule, 14.9) == []
    assert ran(schedule, 15.0) == [RescanKind.INTERVAL]
    assert ran(schedule, 105.0) == [RescanKind.INTERVAL, RescanKind.FULL]


def test_what_is_asked_for_comes_at_once_and_once() -> None:
    schedule = Schedule(10.0, 100.0)
    ran(schedule, 0.0)
    schedule.request(RescanKind.FULL)
    schedule.request(RescanKind.FULL)
    assert schedule.next_at() == 0.0
    assert ran(schedule, 1.0) == [RescanKind.FULL]
    assert schedule.next_at() == 11.0  # a full one is an interval one, too


def test_what_is_unsettled_is_listed_once_more() -> None:
    schedule = Schedule(10.0, 100.0)
    ran(schedule, 0.0)
    schedule.settle_at(2.0)
    assert schedule.next_at() == 2.0
    assert ran(schedule, 1.9) == []
    assert ran(schedule, 2.0) == [RescanKind.SETTLE]
    assert schedule.next_at() == 10.0


def test_changed_intervals_count_from_the_last_end() -> None:
    schedule = Schedule(10.0, 100.0)
    ran(schedule, 0.0)
    schedule.change_intervals(4.0, 50.0)
    assert schedule.take_changed(1.0) == (4.0, 50.0)
    assert schedule.take_changed(1.0) is None
    assert schedule.next_at() == 4.0
    assert ran(schedule, 3.9) == []
    assert ran(schedule, 50.0) == [RescanKind.INTERVAL, RescanKind.FULL]


def test_an_hour_is_visited_at_the_earliest_time_that_was_said() -> None:
    schedule = Schedule(10.0, 100.0)
    ran(schedule, 0.0)
    schedule.visit_at(HOUR, 3.0)
    schedule.visit_at(HOUR, 2.0)
    schedule.visit_at(HOUR, 5.0)
    schedule.visit_at(NEXT_HOUR, 2.0)
    assert schedule.next_at() == 2.0
    assert schedule.take_hours(1.9, 10) == []
    assert schedule.take_hours(2.0, 1) == [HOUR]
    assert schedule.take_hours(2.0, 10) == [NEXT_HOUR]
    assert schedule.take_hours(9.0, 10) == []

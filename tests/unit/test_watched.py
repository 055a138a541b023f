"""Which directory a watch descriptor stands for, and which of them are sure."""

from __future__ import annotations

import pytest

from tombsync.names import Hour
from tombsync.watch.watched import Added, Watched

NUMBER = 17_690_000
HOUR = Hour("desertbus", "source", NUMBER)


@pytest.fixture
def watched() -> Watched:
    """ROOT, a channel, a quality, two hours of it, and an hour of another quality."""
    watched = Watched()
    watched.add_parent(1, ())
    watched.add_parent(2, ("desertbus",))
    watched.add_parent(3, ("desertbus", "source"))
    place, other = watched.place_number("desertbus", "source"), watched.place_number("desertbus", "480p")
    watched.add_hour(4, place, NUMBER)
    watched.add_hour(5, place, NUMBER + 1)
    watched.add_hour(9, other, NUMBER)
    return watched


def test_what_a_descriptor_stands_for(watched: Watched) -> None:
    assert watched.count == 6
    assert watched.hour(4) == HOUR
    assert watched.hour(9) == HOUR._replace(quality="480p")
    assert watched.parts(3) == ("desertbus", "source")
    assert watched.parts(1) == ()
    for unknown in (-1, 0, 6, 100):
        assert watched.hour(unknown) is None
        assert watched.parts(unknown) is None


def test_the_same_again_and_under_another_name(watched: Watched) -> None:
    place = watched.place_number("desertbus", "source")
    assert watched.add_hour(4, place, NUMBER) is Added.ALREADY
    assert watched.add_hour(4, place, NUMBER + 7) is Added.NEWLY
    assert watched.hour(4) == HOUR._replace(number=NUMBER + 7)
    assert watched.add_parent(2, ("desertbus",)) is Added.ALREADY
    assert watched.add_parent(2, ("other",)) is Added.NEWLY
    assert watched.count == 6


def test_forgetting_counts_once(watched: Watched) -> None:
    for wd in (4, 4, 2, 2, 77, -1):
        watched.forget(wd)
    assert watched.count == 4
    assert watched.hour(4) is None
    assert watched.parts(2) is None


def test_what_is_at_and_below_a_directory(watched: Watched) -> None:
    assert sorted(watched.below(())) == [1, 2, 3, 4, 5, 9]
    assert sorted(watched.below(("desertbus",))) == [2, 3, 4, 5, 9]
    assert sorted(watched.below(("desertbus", "source"))) == [3, 4, 5]
    assert watched.below(("desert",)) == []
    assert watched.has_places_below(("desertbus",))
    assert watched.has_places_below(("desertbus", "480p"))
    assert not watched.has_places_below(("desertbus", "720p"))


def test_the_oldest_hour(watched: Watched) -> None:
    assert watched.oldest() == (NUMBER, 4)
    watched.forget(4)
    assert watched.oldest() == (NUMBER, 9)
    assert Watched().oldest() is None


def test_without_doubt_everything_is_sure(watched: Watched) -> None:
    assert watched.is_sure(4)
    assert watched.unsure(but_below=()) == []


def test_in_doubt_only_what_was_confirmed_is_sure(watched: Watched) -> None:
    watched.doubt()
    for wd in (1, 2, 3, 5):
        watched.confirm(wd)
    assert [wd for wd in (1, 2, 3, 4, 5, 9) if watched.is_sure(wd)] == [1, 2, 3, 5]
    assert sorted(watched.unsure(but_below=())) == [4, 9]
    assert watched.unsure(but_below={("desertbus", "480p")}) == [4]
    assert watched.unsure(but_below={()}) == []
    watched.doubt()  # more was lost meanwhile
    assert sorted(watched.unsure(but_below=())) == [1, 2, 3, 4, 5, 9]
    watched.trust()
    assert watched.unsure(but_below=()) == []
    assert watched.is_sure(9)

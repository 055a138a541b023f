"""The reader's pages: every row once, in order, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.index import BAD_UTF8, HOUR, NEXT_HOUR, NOW_NS, STEM, add, hide, stem_of
from tombsync.index import DeliveryOutcomes, HourListed, HourRow, MarkersForgotten, Outcome, Reader, Writer
from tombsync.names import Hour, Marked
from tombsync.plan import State

PLACES = [("desertbus", "source"), ("desertbus", "chat"), (BAD_UTF8, "source")]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(str(tmp_path / "index.sqlite"))
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    reader = Reader(writer.path)
    yield reader
    reader.close()


def list_hours(writer: Writer, numbers: range, *, settled: bool = False) -> None:
    with writer.transaction():
        for place in PLACES:
            for number in numbers:
                HourListed(Hour(*place, number), number, b"digest", 1, settled=settled, edits=0).apply(writer)


def test_an_unknown_hour_has_nothing(writer: Writer, reader: Reader) -> None:
    add(writer, NEXT_HOUR, "one.ts")
    for hour in (HOUR, HOUR._replace(channel="other"), HOUR._replace(quality="other"), HOUR._replace(channel=BAD_UTF8)):
        assert reader.hour_row(hour) is None
        assert reader.segments(hour) == set()
        assert reader.markers(hour) == {}
        assert reader.listing(hour, tombstones=True) == []
        assert reader.marker(Marked(hour, "one")) is None
    assert reader.stems_like("one") == []
    assert reader.deliveries(1) == []
    assert reader.due(1, limit=10) == []
    assert reader.oldest_unconfirmed_ns(1) is None
    assert reader.peers() == []


def test_a_place_that_came_later_is_known(writer: Writer, reader: Reader) -> None:
    """A reader keeps the places that it has seen, so that an hour costs no query for its place."""
    for number, (channel, quality) in enumerate(PLACES):
        hour = Hour(channel, quality, HOUR.number)
        assert reader.listing(hour) == []
        add(writer, hour, f"{number}.ts")
        assert reader.listing(hour) == [f"{number}.ts"]
        hide(writer, hour, f"{number}")
        assert reader.marker_rows(limit=1)[0].marked == Marked(hour, f"{number}")
        assert reader.unsettled(below=None, limit=1)[0][1] == hour


def test_a_place_that_was_taken_back_is_not_mistaken(writer: Writer, reader: Reader) -> None:
    with pytest.raises(ZeroDivisionError), writer.transaction():
        assert writer.hour_id(HOUR)
        raise ZeroDivisionError
    add(writer, HOUR._replace(channel="other"), "other.ts")
    add(writer, HOUR, "one.ts")
    assert reader.listing(HOUR) == ["one.ts"]
    assert reader.listing(HOUR._replace(channel="other")) == ["other.ts"]


@pytest.mark.parametrize("number", [24, HOUR.number, 87_649_415])
def test_the_hours_of_a_place_are_its_own(number: int, writer: Writer, reader: Reader) -> None:
    """Also the first and the last that there can be."""
    for channel, quality in PLACES:
        add(writer, Hour(channel, quality, number), "one.ts")
    for place in PLACES:
        key, _ = reader.places()[place]
        assert [row.number for row in reader.hour_rows(key, below=None, least=0)] == [number]
        assert reader.hour_row(Hour(*place, number)) == reader.hour_rows(key, below=None, least=number)[0]


def test_hour_rows_by_range(writer: Writer, reader: Reader) -> None:
    list_hours(writer, range(1_000, 1_010), settled=True)
    for place in PLACES:
        key, _ = reader.places()[place]

        def numbers(below: int | None, least: int, key: int = key) -> list[int]:
            return [row.number for row in reader.hour_rows(key, below=below, least=least)]

        assert numbers(None, 0) == list(range(1_000, 1_010))
        assert numbers(1_005, 0) == list(range(1_000, 1_005))
        assert numbers(None, 1_005) == list(range(1_005, 1_010))
        assert numbers(1_007, 1_003) == list(range(1_003, 1_007))
        assert numbers(1_003, 1_003) == []
        assert numbers(0, 0) == []
        (row,) = reader.hour_rows(key, below=1_004, least=1_003)
        assert row == HourRow(1_003, mtime_ns=1_003, digest=b"digest", pass_number=1, settled=1, edits=0, files=0)


@pytest.mark.parametrize("limit", [1, 7, 30, 1_000])
def test_unsettled_hours_page_by_page(limit: int, writer: Writer, reader: Reader) -> None:
    list_hours(writer, range(1_000, 1_010))
    list_hours(writer, range(2_000, 2_010), settled=True)
    found: list[Hour] = []
    below: int | None = None
    while rows := reader.unsettled(below=below, limit=limit):
        assert len(rows) <= limit
        keys = [key for key, _, _ in rows]
        assert keys == sorted(keys, reverse=True)
        assert below is None or keys[0] < below
        below = keys[-1]
        assert all(row.number == hour.number for _, hour, row in rows)
        found += [hour for _, hour, _ in rows]
    assert len(found) == len(set(found)) == 30
    assert set(found) == {Hour(*place, number) for place in PLACES for number in range(1_000, 1_010)}


@pytest.fixture
def thousand(writer: Writer) -> list[int]:
    """The keys of 1,000 tombstones, oldest first, due for two peers."""
    writer.sync_peers({"node-b": "tree://b", "node-c": "tree://c"})
    keys: list[int] = []
    for start in range(0, 1_000, 200):
        stems = [stem_of(number) for number in range(start, start + 200)]
        keys += [hidden.marker for hidden in hide(writer, HOUR, *stems, now_ns=NOW_NS + start)]
    return keys


def answer(writer: Writer, peer: int, state: State, markers: list[int]) -> None:
    outcomes = [Outcome(marker, state, NOW_NS) for marker in markers]
    writer.apply([DeliveryOutcomes(peer, outcomes, lambda changed: None)])


@pytest.mark.parametrize("limit", [1, 7, 200, 1_000, 5_000])
def test_what_is_due_page_by_page(limit: int, thousand: list[int], writer: Writer, reader: Reader) -> None:
    peer, other = writer.peer_ids().values()
    answer(writer, peer, State.CONFIRMED, thousand[::2])
    answer(writer, other, State.CONFIRMED, thousand[1::2])
    pages: dict[str, list[int]] = {"due": [], "confirmed": [], "markers": []}
    below: int | None = None
    while rows := reader.due(peer, below=below, limit=limit):
        pages["due"] += [row.marker for row in rows]
        below = rows[-1].marker
        assert len(rows) <= limit
    below = None
    while rows := reader.confirmed(peer, below=below, limit=limit):
        pages["confirmed"] += [row.marker for row in rows]
        below = rows[-1].marker
        assert all(row.ever_confirmed for row in rows)
    below = None
    while markers := reader.marker_rows(below=below, limit=limit):
        pages["markers"] += [row.marker for row in markers]
        below = markers[-1].marker
    assert pages == {"due": thousand[1::2][::-1], "confirmed": thousand[::2][::-1], "markers": thousand[::-1]}


def test_what_is_due_between_two_keys(thousand: list[int], writer: Writer, reader: Reader) -> None:
    peer = writer.peer_ids()["node-b"]

    def due(above: int, below: int | None, limit: int = 1_000) -> list[int]:
        return [row.marker for row in reader.due(peer, above=above, below=below, limit=limit)]

    assert due(thousand[989], None) == thousand[990:][::-1]
    assert due(thousand[100], thousand[110]) == thousand[101:110][::-1]
    assert due(thousand[100], thousand[101]) == []
    assert due(thousand[-1], None) == []
    assert due(0, thousand[0]) == []
    assert due(0, None, limit=3) == thousand[-3:][::-1]


def test_a_delivery_names_its_tombstone(thousand: list[int], writer: Writer, reader: Reader) -> None:
    (due,) = reader.due(writer.peer_ids()["node-c"], below=thousand[201], above=thousand[199], limit=10)
    assert due.marker == thousand[200]
    assert due.marked == Marked(HOUR, stem_of(200))
    assert (due.ever_confirmed, due.state, due.hidden_at_ns) == (False, State.PENDING, NOW_NS + 200)


def test_the_oldest_that_a_peer_has_not_confirmed(thousand: list[int], writer: Writer, reader: Reader) -> None:
    peer, other = writer.peer_ids().values()
    assert reader.oldest_unconfirmed_ns(peer) == NOW_NS
    answer(writer, peer, State.CONFIRMED, thousand[:400])
    assert reader.oldest_unconfirmed_ns(peer) == NOW_NS + 400
    assert reader.oldest_unconfirmed_ns(other) == NOW_NS
    answer(writer, peer, State.CONFIRMED, thousand[401:])
    for state in State:
        answer(writer, peer, state, [thousand[400]])
        delays = state in (State.PENDING, State.REFUSED, State.RECEIVED, State.HELD)
        assert reader.oldest_unconfirmed_ns(peer) == (NOW_NS + 400 if delays else None)
    (row, _) = reader.peers()
    assert row.oldest_unconfirmed_ns is None
    assert row.counts == {State.CONFIRMED: 999, State.SUPERSEDED: 1}
    assert reader.oldest_unconfirmed_ns(99) is None


def test_peers_are_told_by_name_with_what_is_open(thousand: list[int], writer: Writer, reader: Reader) -> None:
    writer.sync_peers({"node-b": "tree://b", "node-c": "tree://c", "a-new-one": "tree://a"})
    answer(writer, writer.peer_ids()["node-c"], State.REFUSED, thousand[:3])
    assert [(row.name, row.target, row.counts, row.oldest_unconfirmed_ns) for row in reader.peers()] == [
        ("a-new-one", "tree://a", {State.PENDING: 1_000}, NOW_NS),
        ("node-b", "tree://b", {State.PENDING: 1_000}, NOW_NS),
        ("node-c", "tree://c", {State.PENDING: 997, State.REFUSED: 3}, NOW_NS),
    ]
    assert [row.peer for row in reader.peers()] == [writer.peer_ids()[row.name] for row in reader.peers()]


def test_a_stem_in_whatever_hour(writer: Writer, reader: Reader) -> None:
    hours = [HOUR, NEXT_HOUR, HOUR._replace(quality="480p")]
    for hour in hours:
        hide(writer, hour, STEM, "other")
    assert {row.marked for row in reader.stems_like(STEM)} == {Marked(hour, STEM) for hour in hours}
    assert len(reader.stems_like(STEM, limit=2)) == 2
    assert reader.stems_like(STEM[:-1]) == []
    assert reader.stems_like("%") == []


def test_totals(writer: Writer, reader: Reader) -> None:
    assert reader.totals() == (0, 0, 0, 0)
    add(writer, HOUR, "one.ts", "one.json", "two.ts")
    add(writer, NEXT_HOUR, "three.ts")
    hide(writer, HOUR, "one", "not here")
    assert reader.totals() == (2, 4, 2, 2)
    writer.apply([MarkersForgotten(HOUR, ["one"], lambda stems: None)])
    assert reader.totals() == (2, 4, 0, 1)

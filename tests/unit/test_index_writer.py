"""What the writer makes of sightings, listings, answers of peers and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.index import (
    BAD_UTF8,
    HOUR,
    NEXT_HOUR,
    NO_FILE,
    NOW_NS,
    ODD_NAMES,
    REGULAR,
    STEM,
    add,
    assert_counts_are_true,
    database,
    drop,
    hide,
    query,
    seen,
    stem_of,
)
from tombsync.errors import StateRefused
from tombsync.index import (
    DeliveriesHeld,
    DeliveryOutcomes,
    Facts,
    HourGone,
    HourListed,
    MarkersForgotten,
    Outcome,
    PeerAdded,
    PeerForgotten,
    PeerReport,
    PeerVerified,
    PlaceMount,
    Reader,
    SegmentRows,
    Writer,
)
from tombsync.names import Hour, Marked
from tombsync.plan import DUE_STATES, KEEP_STATES, State
from tombsync.work import Batch, Sight, Source

PEERS = {"node-b": "tree://b", "node-c": "tree://c"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


@pytest.fixture
def writer(path: str) -> Iterator[Writer]:
    """A writer; at the end its counts must be what counting gives."""
    writer = Writer(path)
    yield writer
    assert_counts_are_true(path, writer.tally)
    writer.close()


@pytest.fixture
def reader(path: str, writer: Writer) -> Iterator[Reader]:
    reader = Reader(path)
    yield reader
    reader.close()


@pytest.fixture
def peers(writer: Writer) -> dict[str, int]:
    writer.sync_peers(PEERS)
    return writer.peer_ids()


def states(reader: Reader, hour: Hour, stem: str) -> dict[str, State]:
    row = reader.marker(Marked(hour, stem))
    return {} if row is None else {d.peer: d.state for d in reader.deliveries(row.marker)}


def answer(writer: Writer, peer: int, *outcomes: Outcome) -> Sequence[tuple[Outcome, State]]:
    told: list[Sequence[tuple[Outcome, State]]] = []
    writer.apply([DeliveryOutcomes(peer, outcomes, told.append)])
    assert len(told) == 1
    return told[0]


def answer_all(writer: Writer, reader: Reader, hour: Hour, stem: str, state: State) -> None:
    row = reader.marker(Marked(hour, stem))
    assert row is not None
    for peer in writer.peer_ids().values():
        answer(writer, peer, Outcome(row.marker, state, NOW_NS))


def forget(writer: Writer, hour: Hour, *stems: str) -> list[str]:
    told: list[Sequence[str]] = []
    writer.apply([MarkersForgotten(hour, stems, told.append)])
    assert len(told) == 1
    return list(told[0])


# -- hiding ------------------------------------------------------------------------------------------------------------


def test_a_segment_is_visible_until_it_is_hidden(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts", "one.json", "two.ts")
    assert reader.listing(HOUR) == ["one.json", "one.ts", "two.ts"]
    (hidden,) = hide(writer, HOUR, "one")
    assert reader.listing(HOUR) == ["two.ts"]
    assert reader.listing(HOUR, tombstones=True) == ["one.tombstone", "two.ts"]
    row = reader.marker(Marked(HOUR, "one"))
    assert row is not None
    assert (row.marker, row.marked, row.source) == (hidden.marker, Marked(HOUR, "one"), "watch")
    assert (row.hidden_at_ns, row.ctime_ns, row.owner_uid) == (NOW_NS, REGULAR.ctime_ns, REGULAR.owner_uid)
    assert (row.in_tree, row.pushable) == (True, True)
    assert hidden.sighting.marked == row.marked
    assert hidden.sight is REGULAR


def test_only_the_first_sighting_counts(writer: Writer, reader: Reader) -> None:
    (first,) = hide(writer, HOUR, "one")
    assert hide(writer, HOUR, "one", now_ns=NOW_NS + 1) == []
    both = writer.hide([*seen(HOUR, "one", source=Source.RESCAN), *seen(HOUR, "two")], NOW_NS + 2)
    assert [hidden.sighting.marked.stem for hidden in both] == ["two"]
    row = reader.marker(Marked(HOUR, "one"))
    assert row is not None
    assert (row.marker, row.source, row.hidden_at_ns) == (first.marker, "watch", NOW_NS)
    assert writer.tally.markers == 2


def test_the_same_twice_in_one_transaction(writer: Writer) -> None:
    add(writer, HOUR, "one.ts")
    hidden = writer.hide([*seen(HOUR, "one"), *seen(HOUR, "two"), *seen(HOUR, "one", source=Source.RESCAN)], NOW_NS)
    assert [(h.sighting.marked.stem, h.sighting.source) for h in hidden] == [("one", "watch"), ("two", "watch")]


def test_the_order_of_first_sightings_is_that_of_their_keys(writer: Writer, reader: Reader) -> None:
    stems = [stem_of(number) for number in (5, 3, 9, 1)]
    hidden = hide(writer, HOUR, *stems)
    assert [h.sighting.marked.stem for h in hidden] == stems
    assert [h.marker for h in hidden] == sorted(h.marker for h in hidden)
    assert [row.marked.stem for row in reader.marker_rows(limit=10)] == stems[::-1]


def test_only_that_stem_in_that_hour_is_hidden(writer: Writer, reader: Reader) -> None:
    """I3."""
    others = ["one", "o", "One", "one ", "one.ts", "\u00f6ne", "one" + BAD_UTF8, "%", "on_"]
    other_hours = [NEXT_HOUR, HOUR._replace(quality="480p"), HOUR._replace(channel="other"), Hour("source", "other", 1)]
    for hour in (HOUR, *other_hours):
        add(writer, hour, *(f"{stem}.ts" for stem in others))
    hide(writer, HOUR, "one")
    assert reader.listing(HOUR) == sorted(f"{stem}.ts" for stem in others[1:])
    for hour in other_hours:
        assert reader.listing(hour) == sorted(f"{stem}.ts" for stem in others)
    hide(writer, HOUR, *others)
    assert reader.listing(HOUR) == []
    assert reader.listing(NEXT_HOUR) == sorted(f"{stem}.ts" for stem in others)


@pytest.mark.parametrize("channel", ["desertbus", *ODD_NAMES])
@pytest.mark.parametrize("quality", ["source", BAD_UTF8])
def test_names_of_whatever_bytes(channel: str, quality: str, writer: Writer, reader: Reader) -> None:
    hour = Hour(channel, quality, HOUR.number)
    names = [f"{stem}{ending}" for stem in ("plain", *ODD_NAMES) for ending in (".ts", ".json")]
    add(writer, hour, *names)
    assert reader.listing(hour) == sorted(names)
    assert reader.segments(hour) == set(names)
    for stem in ODD_NAMES:
        (hidden,) = hide(writer, hour, stem)
        assert hidden.sighting.marked == Marked(hour, stem)
    assert hide(writer, hour, *ODD_NAMES) == []
    assert reader.listing(hour) == ["plain.json", "plain.ts"]
    assert reader.markers(hour) == dict.fromkeys(ODD_NAMES, True)
    assert [row.marked for row in reader.marker_rows(limit=100)] == [Marked(hour, stem) for stem in ODD_NAMES[::-1]]
    assert [row.marked for row in reader.stems_like(BAD_UTF8)] == [Marked(hour, BAD_UTF8)]
    (reopened := Writer(writer.path)).close()
    assert reopened.places() == {1: (channel, quality)}
    drop(writer, hour, *names)
    assert reader.segments(hour) == set()


def test_a_name_and_its_bytes_are_two(writer: Writer, reader: Reader) -> None:
    """A name that is not UTF-8 is kept as bytes; text that looks like it is another one."""
    add(writer, HOUR, f"{BAD_UTF8}.ts", "\ufffd\ufffd\ufffd.ts", "\xff\xfe\x80.ts", "\\xff\\xfe\\x80.ts")
    hide(writer, HOUR, BAD_UTF8)
    assert reader.listing(HOUR) == sorted(["\ufffd\ufffd\ufffd.ts", "\xff\xfe\x80.ts", "\\xff\\xfe\\x80.ts"])


# -- what is made due --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_each_peer_is_due_for_each_tombstone(count: int, writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    stems = [stem_of(number) for number in range(count)]
    assert all(hidden.pushable for hidden in hide(writer, HOUR, *stems))
    for stem in stems:
        assert states(reader, HOUR, stem) == dict.fromkeys(PEERS, State.PENDING)
    for peer in peers.values():
        assert [due.marked.stem for due in reader.due(peer, limit=10)] == stems[::-1]
        assert writer.tally.deliveries[peer, State.PENDING] == count


@pytest.mark.parametrize(
    ("hour", "stem", "sight"),
    [
        (HOUR, STEM, NO_FILE),
        (HOUR, "a\nb", REGULAR),
        (HOUR, "a\x7fb", REGULAR),
        (HOUR, "a\u0085b", REGULAR),
        (HOUR._replace(channel="a\nb"), STEM, REGULAR),
        (HOUR._replace(quality="\x1b[1m"), STEM, REGULAR),
    ],
)
def test_what_no_peer_is_sent_hides_here_all_the_same(
    hour: Hour, stem: str, sight: Sight, writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    add(writer, hour, f"{stem}.ts")
    (hidden,) = hide(writer, hour, stem, sight=sight)
    assert not hidden.pushable
    assert reader.listing(hour) == []
    row = reader.marker(Marked(hour, stem))
    assert row is not None
    assert not row.pushable
    assert reader.deliveries(row.marker) == []
    assert all(reader.due(peer, limit=10) == [] for peer in peers.values())
    writer.sync_peers({**PEERS, "node-d": "tree://d"})
    assert reader.due(writer.peer_ids()["node-d"], limit=10) == []


def test_a_name_that_is_not_utf8_is_sent(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    hide(writer, HOUR._replace(channel=BAD_UTF8), BAD_UTF8)
    (due,) = reader.due(peers["node-b"], limit=10)
    assert due.marked == Marked(HOUR._replace(channel=BAD_UTF8), BAD_UTF8)


@pytest.mark.parametrize("together", [False, True])
def test_a_file_that_takes_the_place_of_a_directory_becomes_due(
    together: bool, writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    (before,) = hide(writer, HOUR, "one", sight=NO_FILE)
    hide(writer, HOUR, "newer")
    assert hide(writer, HOUR, "one", sight=NO_FILE) == []
    assert states(reader, HOUR, "one") == {}
    assert [row.marker for row in reader.unpushable(below=None, limit=10)] == [before.marker]
    more = ("two",) if together else ()
    news = hide(writer, HOUR, "one", *more)
    assert {(h.sighting.marked.stem, h.first) for h in news} == {("one", False), *((stem, True) for stem in more)}
    assert {row.marker for row in reader.marker_rows(limit=len(news))} == {h.marker for h in news}
    assert reader.unpushable(below=None, limit=10) == []
    assert states(reader, HOUR, "one") == dict.fromkeys(PEERS, State.PENDING)
    answer_all(writer, reader, HOUR, "one", State.CONFIRMED)
    assert hide(writer, HOUR, "one") == []
    assert hide(writer, HOUR, "one", sight=NO_FILE) == []  # and it stays what it became
    assert states(reader, HOUR, "one") == dict.fromkeys(PEERS, State.CONFIRMED)


def test_becoming_due_is_all_or_nothing(path: str, writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    """Else a crash in between would leave a tombstone that no peer is ever sent."""
    hide(writer, HOUR, "one", sight=NO_FILE)
    refuse = f"CREATE TRIGGER refuse BEFORE INSERT ON delivery WHEN NEW.peer = {peers['node-c']}"
    with database(path) as connection:
        connection.execute(f"{refuse} BEGIN SELECT RAISE(ABORT, 'refused'); END")
    with pytest.raises(StateRefused):
        hide(writer, HOUR, "one")
    assert states(reader, HOUR, "one") == {}
    assert_counts_are_true(path, writer.tally)
    with database(path) as connection:
        connection.execute("DROP TRIGGER refuse")
    assert [h.first for h in hide(writer, HOUR, "one")] == [False]
    assert states(reader, HOUR, "one") == dict.fromkeys(PEERS, State.PENDING)


# -- segments come and go ----------------------------------------------------------------------------------------------


def test_data_after_its_tombstone_is_never_visible(writer: Writer, reader: Reader) -> None:
    """I1."""
    hide(writer, HOUR, "one")
    add(writer, HOUR, "one.ts", "two.ts")
    assert reader.listing(HOUR) == ["two.ts"]
    add(writer, HOUR, "one.json", watched=True)
    drop(writer, HOUR, "one.ts")
    add(writer, HOUR, "one.ts", "one.ts")
    assert reader.listing(HOUR) == ["two.ts"]
    assert reader.segments(HOUR) == {"one.ts", "one.json", "two.ts"}


def test_rows_that_come_or_go_twice(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts", "two.ts")
    add(writer, HOUR, "one.ts", "one.ts", "three.ts")
    drop(writer, HOUR, "two.ts", "two.ts", "never.ts", "one.json")
    drop(writer, HOUR, "two.ts")
    assert reader.listing(HOUR) == ["one.ts", "three.ts"]
    writer.apply([SegmentRows(HOUR, add=["four.ts", "five.ts"], drop=["one.ts", "six.ts"])])
    assert reader.listing(HOUR) == ["five.ts", "four.ts", "three.ts"]
    assert reader.totals() == (1, 3, 0, 0)


@pytest.mark.parametrize("count", [1, 200])
def test_a_batch_of_names_of_every_kind(count: int, writer: Writer, reader: Reader) -> None:
    names = [f"{number}-{stem}{ending}" for number in range(count) for stem in ODD_NAMES for ending in (".ts", ".json")]
    add(writer, HOUR, *names)
    assert reader.listing(HOUR) == sorted(names)
    drop(writer, HOUR, *names[1:])
    assert reader.listing(HOUR) == names[:1]


# -- listings that count -----------------------------------------------------------------------------------------------


def listed(writer: Writer, *, edits: int, hour: Hour = HOUR, settled: bool = False, digest: bytes = b"d") -> None:
    writer.apply([HourListed(hour, 7, digest, 3, settled=settled, edits=edits)])


def test_a_listing_counts_when_nothing_came_between(writer: Writer, reader: Reader) -> None:
    assert reader.hour_row(HOUR) is None
    listed(writer, edits=0)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert (row.mtime_ns, row.digest, row.pass_number, row.settled, row.edits, row.files) == (7, b"d", 3, 0, 0, 0)
    listed(writer, edits=0, settled=True)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert row.settled
    assert reader.unsettled(below=None, limit=10) == []


@pytest.mark.parametrize("between", ["segment", "tombstone", "forgotten", "gone"])
def test_a_listing_does_not_count_when_something_came_between(between: str, writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts")
    hide(writer, HOUR, "one")
    before = reader.hour_row(HOUR)
    assert before is not None
    match between:
        case "segment":
            add(writer, HOUR, "two.ts", watched=True)
        case "tombstone":
            hide(writer, HOUR, "two")
        case "forgotten":
            assert forget(writer, HOUR, "one") == ["one"]
        case _:
            writer.apply([HourGone(HOUR)])
    listed(writer, edits=before.edits, settled=True)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert row.digest is None
    assert row.edits == before.edits + 1
    listed(writer, edits=row.edits, settled=True)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert (row.digest, row.settled) == (b"d", 1)


def test_the_rows_of_a_listing_itself_do_not_make_it_void(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts")
    drop(writer, HOUR, "one.ts", "two.ts")
    hide(writer, HOUR, "one")  # found by the listing, and one edit
    hide(writer, HOUR, "one")
    listed(writer, edits=1)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert row.digest == b"d"


@pytest.mark.parametrize("change", ["add", "drop", "hide", "forget"])
def test_rows_that_changed_are_those_of_no_earlier_listing(change: str, writer: Writer, reader: Reader) -> None:
    """Else an hour that comes back as it was would count as known with rows that are gone."""
    add(writer, HOUR, "one.ts")
    hide(writer, HOUR, "two")
    listed(writer, edits=1, settled=True)
    match change:
        case "add":
            add(writer, HOUR, "three.ts")
        case "drop":
            drop(writer, HOUR, "one.ts")
        case "hide":
            hide(writer, HOUR, "one")
        case _:
            forget(writer, HOUR, "two")
    row = reader.hour_row(HOUR)
    assert row is not None
    assert (row.digest, row.settled) == (None, 0)
    assert [hour for _, hour, _ in reader.unsettled(below=None, limit=10)] == [HOUR]


def test_a_listing_concerns_its_own_hour(writer: Writer, reader: Reader) -> None:
    listed(writer, edits=0)
    add(writer, NEXT_HOUR, "one.ts", watched=True)
    row = reader.hour_row(HOUR)
    assert row is not None
    assert row.digest == b"d"


# -- what is forgotten -------------------------------------------------------------------------------------------------


def test_an_hour_that_is_gone_leaves_no_row(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts")
    hide(writer, HOUR, "one")
    drop(writer, HOUR, "one.ts")
    assert forget(writer, HOUR, "one") == ["one"]
    writer.apply([HourGone(HOUR)])
    assert reader.hour_row(HOUR) is None
    assert reader.totals() == (0, 0, 0, 0)
    assert writer.tally.markers == 0
    writer.apply([HourGone(HOUR), HourGone(NEXT_HOUR)])
    assert reader.totals() == (0, 0, 0, 0)


@pytest.mark.parametrize("left", ["segment", "marker"])
def test_an_hour_that_is_gone_stays_while_something_refers_to_it(left: str, writer: Writer, reader: Reader) -> None:
    if left == "segment":
        add(writer, HOUR, "one.ts")
    else:
        hide(writer, HOUR, "one")
    edits = reader.hour_row(HOUR)
    assert edits is not None
    listed(writer, edits=edits.edits, settled=True)
    writer.apply([HourGone(HOUR)])
    row = reader.hour_row(HOUR)
    assert row is not None
    assert (row.mtime_ns, row.digest) == (None, None)
    assert reader.unsettled(below=None, limit=10) == []  # there is nothing to list


@pytest.mark.parametrize("state", list(State))
def test_a_tombstone_with_an_open_delivery_is_not_forgotten(
    state: State, writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    (hidden, _) = hide(writer, HOUR, "one", "two")
    answer_all(writer, reader, HOUR, "one", State.CONFIRMED)
    answer_all(writer, reader, HOUR, "two", State.CONFIRMED)
    answer(writer, peers["node-c"], Outcome(hidden.marker, state, NOW_NS))
    kept = state in KEEP_STATES
    assert forget(writer, HOUR, "one", "two", "three") == (["two"] if kept else ["one", "two"])
    writer.apply([HourGone(HOUR)])
    assert (reader.marker(Marked(HOUR, "one")) is not None) == kept
    assert (reader.hour_row(HOUR) is not None) == kept
    assert query(writer.path, "SELECT count(*) FROM delivery") == [(2 if kept else 0,)]
    add(writer, HOUR, "one.ts", "two.ts")
    assert reader.listing(HOUR) == (["two.ts"] if kept else ["one.ts", "two.ts"])


def test_forgetting_counts_what_is_visible_again(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts", "one.json", "two.ts")
    hide(writer, HOUR, "one", "two")
    assert forget(writer, HOUR, "one") == ["one"]
    assert reader.listing(HOUR) == ["one.json", "one.ts"]
    assert reader.totals() == (1, 3, 1, 1)


def test_the_key_of_a_forgotten_tombstone_is_never_used_again(writer: Writer, peers: dict[str, int]) -> None:
    """An answer that comes late must not be taken for another tombstone's."""
    (first,) = hide(writer, HOUR, "one")
    for peer in peers.values():
        answer(writer, peer, Outcome(first.marker, State.CONFIRMED, NOW_NS))
    assert forget(writer, HOUR, "one") == ["one"]
    (second,) = hide(writer, HOUR, "two")
    assert second.marker > first.marker
    assert answer(writer, peers["node-b"], Outcome(first.marker, State.REFUSED, NOW_NS)) == []


# -- what peers answered -----------------------------------------------------------------------------------------------


def delivery(reader: Reader, peer: str) -> tuple[State, int | None, int | None, str]:
    row = reader.marker(Marked(HOUR, STEM))
    assert row is not None
    (found,) = (d for d in reader.deliveries(row.marker) if d.peer == peer)
    return found.state, found.asked_at_ns, found.confirmed_at_ns, found.detail


def test_an_answer_is_recorded_for_its_peer(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    (hidden,) = hide(writer, HOUR, STEM)
    outcome = Outcome(hidden.marker, State.NOT_SERVED, 100, "no such channel")
    assert answer(writer, peers["node-b"], outcome) == [(outcome, State.PENDING)]
    assert delivery(reader, "node-b") == (State.NOT_SERVED, 100, None, "no such channel")
    assert delivery(reader, "node-c") == (State.PENDING, None, None, "")


def test_the_first_confirmation_of_a_state_counts(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    (hidden,) = hide(writer, HOUR, STEM)
    peer = peers["node-b"]
    steps = [
        (State.PENDING, 1, None),
        (State.CONFIRMED, 2, 2),
        (State.CONFIRMED, 3, 2),  # verified: asked again, and since when it is so stays
        (State.PENDING, 4, 2),  # lost there: it was confirmed once
        (State.REFUSED, 5, 2),
        (State.CONFIRMED, 6, 6),
        (State.HOUR_GONE, 7, 6),
        (State.HOUR_GONE, 8, 6),
        (State.CONFIRMED, 9, 9),
        (State.NOT_DURABLE, 10, 9),
    ]
    before = State.PENDING
    for state, at, confirmed_at in steps:
        outcome = Outcome(hidden.marker, state, at)
        changed = answer(writer, peer, outcome)
        assert changed == ([(outcome, before)] if state is not before else [])
        assert delivery(reader, "node-b") == (state, at, confirmed_at, "")
        before = state


def test_what_was_confirmed_once_is_known_when_it_is_due_again(
    writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    (one, _) = hide(writer, HOUR, "one", "two")
    peer = peers["node-b"]
    answer(writer, peer, Outcome(one.marker, State.CONFIRMED, 1))
    answer(writer, peer, Outcome(one.marker, State.PENDING, 2))
    due = reader.due(peer, limit=10)
    assert [(row.marked.stem, row.ever_confirmed) for row in due] == [("two", False), ("one", True)]


def test_answers_for_what_is_not_there_are_skipped(writer: Writer, peers: dict[str, int]) -> None:
    (hidden,) = hide(writer, HOUR, STEM)
    known = Outcome(hidden.marker, State.CONFIRMED, 1)
    unknown = Outcome(hidden.marker + 1, State.CONFIRMED, 1)
    assert answer(writer, peers["node-b"], unknown, known, unknown) == [(known, State.PENDING)]
    assert answer(writer, 99, known) == []


@pytest.mark.parametrize("state", [state for state in State if state is not State.HELD])
def test_what_is_held_while_it_is_on_its_way_stays_held_unless_it_arrives(
    state: State, writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    (hidden,) = hide(writer, HOUR, STEM)
    with writer.transaction():
        writer.hold_pending([hidden.marker])
    outcome = Outcome(hidden.marker, state, 1)
    arrives = state in (State.RECEIVED, State.NOT_DURABLE, State.CONFIRMED, State.HOUR_GONE)
    assert answer(writer, peers["node-b"], outcome) == ([(outcome, State.HELD)] if arrives else [])
    assert states(reader, HOUR, STEM) == {"node-b": state if arrives else State.HELD, "node-c": State.HELD}


@pytest.mark.parametrize("state", list(State))
def test_a_delivery_is_due_in_the_states_that_say_so(
    state: State, writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    (hidden,) = hide(writer, HOUR, STEM)
    peer = peers["node-b"]
    answer(writer, peer, Outcome(hidden.marker, state, 1))
    assert [due.state for due in reader.due(peer, limit=10)] == ([state] if state in DUE_STATES else [])
    answered = state in (State.CONFIRMED, State.HOUR_GONE, State.NOT_DURABLE)
    assert [due.state for due in reader.confirmed(peer, below=None, limit=10)] == ([state] if answered else [])
    assert [due.state for due in reader.due(peers["node-c"], limit=10)] == [State.PENDING]


# -- peers -------------------------------------------------------------------------------------------------------------


def test_a_new_peer_is_due_for_everything(writer: Writer, reader: Reader) -> None:
    stems = [stem_of(number) for number in range(1_000)]
    for start in range(0, 1_000, 200):
        hide(writer, HOUR, *stems[start : start + 200])
    hide(writer, HOUR, "never sent", sight=NO_FILE)
    assert writer.sync_peers({"node-b": "tree://b"}) == (["node-b"], [])
    peer = writer.peer_ids()["node-b"]
    assert [due.marked.stem for due in reader.due(peer, limit=2_000)] == stems[::-1]
    assert writer.tally.deliveries == {(peer, State.PENDING): 1_000}
    (row,) = reader.peers()
    assert (row.name, row.target, row.up, row.counts) == ("node-b", "tree://b", False, {State.PENDING: 1_000})
    assert writer.sync_peers({"node-b": "tree://b"}) == ([], [])
    assert writer.tally.deliveries == {(peer, State.PENDING): 1_000}


def test_a_peer_that_is_no_longer_wanted_is_forgotten(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    for start in range(0, 1_000, 200):
        hide(writer, HOUR, *(stem_of(number) for number in range(start, start + 200)))
    assert writer.sync_peers({"node-c": "tree://c"}) == ([], ["node-b"])
    assert writer.peer_ids() == {"node-c": peers["node-c"]}
    assert query(writer.path, "SELECT peer, count(*) FROM delivery GROUP BY 1") == [(peers["node-c"], 1_000)]
    assert len(hide(writer, HOUR, "after")) == 1
    assert states(reader, HOUR, "after") == {"node-c": State.PENDING}
    assert writer.sync_peers({}) == ([], ["node-c"])
    assert query(writer.path, "SELECT count(*) FROM delivery") == [(0,)]
    assert reader.totals()[3] == 1_001


def test_a_peer_with_another_target_is_another_peer(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    """What the old one confirmed says nothing of the new one."""
    hide(writer, HOUR, "one", "two")
    answer_all(writer, reader, HOUR, "one", State.CONFIRMED)
    assert writer.sync_peers({**PEERS, "node-b": "tree://elsewhere"}) == (["node-b"], ["node-b"])
    assert writer.peer_ids()["node-c"] == peers["node-c"]
    assert writer.peer_ids()["node-b"] not in peers.values()
    assert states(reader, HOUR, "one") == {"node-b": State.PENDING, "node-c": State.CONFIRMED}
    assert writer.sync_peers({**PEERS, "node-b": "tree://elsewhere"}) == ([], [])


def test_no_session_of_the_last_process_stands(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    writer.apply([PeerReport(peer, up=True, at_ns=1) for peer in peers.values()])
    assert [row.up for row in reader.peers()] == [True, True]
    writer.sync_peers(PEERS)
    assert [row.up for row in reader.peers()] == [False, False]


@pytest.mark.parametrize("at", [1, 500, 1_000])
@pytest.mark.parametrize("what", ["INSERT", "DELETE"])
def test_a_start_that_is_cut_short_leaves_no_peer_half_made(what: str, at: int, path: str, writer: Writer) -> None:
    """A kill in the middle of adding or forgetting a peer must not leave deliveries out for ever."""
    for start in range(0, 1_000, 200):
        hide(writer, HOUR, *(stem_of(number) for number in range(start, start + 200)))
    if what == "DELETE":
        writer.sync_peers(PEERS)
    row = "NEW" if what == "INSERT" else "OLD"
    with database(path) as connection:
        connection.execute(
            f"CREATE TRIGGER cut BEFORE {what} ON delivery WHEN {row}.marker = {at}"
            " BEGIN SELECT RAISE(ABORT, 'cut short'); END"
        )
    with pytest.raises(StateRefused):
        writer.sync_peers(PEERS if what == "INSERT" else {})
    with database(path) as connection:
        connection.execute("DROP TRIGGER cut")
    again = Writer(path)
    added, forgotten = again.sync_peers(PEERS)
    assert added
    assert set(added) <= set(PEERS)
    assert forgotten == []
    assert sorted(query(path, "SELECT name, target FROM peer")) == sorted(PEERS.items())
    counts = query(path, "SELECT name, count(*) FROM delivery JOIN peer ON id = peer GROUP BY 1")
    assert dict(counts) == dict.fromkeys(PEERS, 1_000)
    assert_counts_are_true(path, again.tally)
    assert again.sync_peers(PEERS) == ([], [])
    again.close()
    writer.sync_peers(PEERS)  # so that its counts are the present ones


def test_how_a_session_stands(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    peer = peers["node-b"]

    def report(at_ns: int, error: str = "", *, up: bool = False) -> tuple[bool, int | None, str, int | None]:
        writer.apply([PeerReport(peer, up=up, at_ns=at_ns, error=error)])
        row, other = reader.peers()
        assert (other.up, other.changed_at_ns, other.error) == (False, None, "")
        return row.up, row.changed_at_ns, row.error, row.error_at_ns

    assert report(1, "refused") == (False, 1, "refused", 1)
    assert report(2, "no route") == (False, 1, "no route", 2)  # down since the first failure
    assert report(3, up=True) == (True, 3, "", None)
    assert report(4, up=True) == (True, 3, "", None)
    assert report(5, "lost") == (False, 5, "lost", 5)


def test_a_verify_is_recorded_when_it_ended(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    writer.apply([PeerVerified(peers["node-b"], 7)])
    assert [row.verified_at_ns for row in reader.peers()] == [7, None]


# -- facts and places --------------------------------------------------------------------------------------------------


def test_facts(writer: Writer, reader: Reader) -> None:
    assert writer.fact("pass") is None
    assert reader.fact("pass") is None
    batch = Facts({"pass": 7, "seconds": 0.5, "kind": "full", "nothing": None})
    assert batch.rows == 4
    writer.apply([batch])
    for key, value in batch.values.items():
        assert writer.fact(key) == value
        assert reader.fact(key) == value
    writer.apply([Facts({"pass": 8, "kind": None})])
    assert (reader.fact("pass"), reader.fact("kind"), reader.fact("seconds")) == (8, None, 0.5)


def test_a_mount_is_of_a_place(writer: Writer, reader: Reader) -> None:
    writer.apply([PlaceMount(HOUR._replace(number=0), own_mount=True)])
    add(writer, HOUR, "one.ts")
    add(writer, HOUR._replace(quality=BAD_UTF8), "one.ts")
    writer.apply([PlaceMount(Hour("desertbus", BAD_UTF8, 0), own_mount=True)])
    add(writer, HOUR._replace(channel="other"), "one.ts")
    mounts = {place: own_mount for place, (_, own_mount) in reader.places().items()}
    assert mounts == {("desertbus", "source"): True, ("desertbus", BAD_UTF8): True, ("other", "source"): False}
    writer.apply([PlaceMount(HOUR, own_mount=False)])
    assert reader.places()["desertbus", "source"][1] is False
    assert set(writer.places().values()) == set(mounts)


# -- transactions ------------------------------------------------------------------------------------------------------


class Broken:
    """A batch that fails when it is applied."""

    rows = 1

    def apply(self, writer: Writer) -> None:
        raise ZeroDivisionError

    def committed(self) -> None:
        raise AssertionError("it was not")


def test_a_transaction_is_all_or_nothing(path: str, writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    (hidden,) = hide(writer, HOUR, "one")
    add(writer, HOUR, "one.ts")
    new = Hour("new", "place", 1)
    told: list[object] = []
    batches: list[Batch] = [
        SegmentRows(HOUR, add=["two.ts"], drop=["one.ts"]),
        SegmentRows(new, add=["three.ts"]),
        DeliveryOutcomes(peers["node-b"], [Outcome(hidden.marker, State.CONFIRMED, 1)], told.append),
        Facts({"pass": 1}),
        Broken(),
    ]
    with pytest.raises(ZeroDivisionError):
        writer.apply(batches)
    assert told == []
    assert reader.segments(HOUR) == {"one.ts"}
    assert reader.places().keys() == {(HOUR.channel, HOUR.quality)}
    assert states(reader, HOUR, "one") == dict.fromkeys(PEERS, State.PENDING)
    assert reader.fact("pass") is None
    assert_counts_are_true(path, writer.tally)
    writer.apply(batches[:-1])  # the same again, as it would be tried after a full disk
    assert len(told) == 1
    assert reader.listing(new) == ["three.ts"]
    assert reader.listing(HOUR) == ["two.ts"]


def test_what_was_committed_is_told_in_order(writer: Writer, reader: Reader) -> None:
    told: list[tuple[str, list[str]]] = []
    hide(writer, HOUR, "one", "two")
    batches = [
        MarkersForgotten(HOUR, [stem], lambda stems: told.append((stems[0], reader.listing(HOUR, tombstones=True))))
        for stem in ("one", "two")
    ]
    writer.apply(batches)
    assert told == [("one", []), ("two", [])]


# -- generations -------------------------------------------------------------------------------------------------------


def test_an_odd_newest_generation_is_visible(path: str, writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts", "one.json", "two.ts")
    hide(writer, HOUR, "one", "two")
    insert = "INSERT INTO marker (hour, stem, gen, source, hidden_at_ns) SELECT id, 'one', ?, 'command', 1 FROM hour"
    expected = {1: ["one.json", "one.ts"], 2: [], 3: ["one.json", "one.ts"]}
    for generation, listing in expected.items():
        with database(path) as connection:
            connection.execute(insert, (generation,))
        assert reader.listing(HOUR) == listing
        assert ("one" in reader.markers(HOUR)) == (generation % 2 == 0)
        assert ("one.tombstone" in reader.listing(HOUR, tombstones=True)) == (generation % 2 == 0)
        assert "two" in reader.markers(HOUR)
        again = Writer(path)
        again.apply([SegmentRows(HOUR, drop=["two.ts"]), SegmentRows(HOUR, add=["two.ts"])])
        assert_counts_are_true(path, again.tally)
        again.close()
    assert [row.marked.stem for row in reader.marker_rows(limit=10)] == ["one", "one", "one", "two", "one"]
    writer.sync_peers({})  # so that its counts are the present ones


# -- peers that come and go while the agent runs -----------------------------------------------------------------------


def test_what_is_hidden_while_a_peer_is_added_is_due_for_it_once(writer: Writer, reader: Reader) -> None:
    stems = [stem_of(number) for number in range(500)]
    for start in range(0, 500, 100):
        hide(writer, HOUR, *stems[start : start + 100])
    steps: list[Batch] = []
    added: list[int] = []
    steps.append(PeerAdded("node-b", "tree://b", steps.append, added.append))
    while steps:
        writer.apply([steps.pop()])
        hide(writer, NEXT_HOUR, f"meanwhile {len(stems)}")
        stems.append(f"meanwhile {len(stems)}")
    assert len(stems) > 502  # several steps
    assert added == [writer.peer_ids()["node-b"]]
    assert [due.marked.stem for due in reader.due(added[0], limit=2_000)] == stems[::-1]
    assert writer.sync_peers({"node-b": "tree://b"}) == ([], [])


def test_what_is_hidden_while_a_peer_is_forgotten_goes_with_it(
    writer: Writer, reader: Reader, peers: dict[str, int]
) -> None:
    for start in range(0, 500, 100):
        hide(writer, HOUR, *(stem_of(number) for number in range(start, start + 100)))
    steps: list[Batch] = []
    gone: list[bool] = []
    steps.append(PeerForgotten("node-b", steps.append, lambda: gone.append(True)))
    number = 0
    while steps:
        writer.apply([steps.pop()])
        hide(writer, NEXT_HOUR, f"meanwhile {number}")
        number += 1
    assert gone == [True]
    assert writer.peer_ids() == {"node-c": peers["node-c"]}
    assert query(writer.path, "SELECT DISTINCT peer FROM delivery") == [(peers["node-c"],)]
    assert len(reader.due(peers["node-c"], limit=1_000)) == 500 + number


def test_a_step_that_failed_is_made_again(path: str, writer: Writer) -> None:
    for start in range(0, 500, 100):
        hide(writer, HOUR, *(stem_of(number) for number in range(start, start + 100)))
    steps: list[Batch] = []
    added: list[int] = []
    steps.append(PeerAdded("node-b", "tree://b", steps.append, added.append))
    with database(path) as connection:
        connection.execute(
            "CREATE TRIGGER cut BEFORE INSERT ON delivery WHEN NEW.marker = 300"
            " BEGIN SELECT RAISE(ABORT, 'cut short'); END"
        )
    with pytest.raises(StateRefused):
        while steps:
            writer.apply([steps[0]])
            steps.pop(0)
    with database(path) as connection:
        connection.execute("DROP TRIGGER cut")
    while steps:
        writer.apply([steps.pop(0)])
    assert query(path, "SELECT peer, count(*) FROM delivery") == [(added[0], 500)]


def test_what_waits_for_a_person_waits_at_a_new_peer_too(writer: Writer, reader: Reader, peers: dict[str, int]) -> None:
    (one, _) = hide(writer, HOUR, "a mistake", "meant")
    writer.apply([DeliveriesHeld([one.marker], lambda: None)])
    writer.sync_peers({**PEERS, "node-d": "tree://d"})
    assert states(reader, HOUR, "a mistake")["node-d"] is State.HELD
    assert states(reader, HOUR, "meant")["node-d"] is State.PENDING

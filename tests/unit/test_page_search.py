"""What a person looks for on the status page: how it is read, and what of the index answers it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.index import BAD_UTF8, HASH, HOUR, NEXT_HOUR, add, hide, stem_of
from tombsync.errors import BadName, BadTime, OutsideRoot
from tombsync.index import Reader, Writer
from tombsync.names import Hour, Marked, hour_number
from tombsync.timeline import parse_time
from tombsync.web import search
from tombsync.web.search import Beginning, Moment, answer, read_question

ROOT = "/segments"
SEGMENT = Marked(HOUR, stem_of(2751))


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


def found(reader: Reader, question: str) -> list[Marked]:
    said = answer(question, ROOT, reader)
    assert not said.problem, said.problem
    return [one.marked for one in said.found]


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "question"),
    [
        (SEGMENT.path, SEGMENT),
        (f"  {SEGMENT.path}.ts\n", SEGMENT),
        (f"{ROOT}/{SEGMENT.path}.ts", SEGMENT),
        (SEGMENT.tombstone_path, SEGMENT),
        (f"https://a.example/x/y/{SEGMENT.path}.ts?token=1#t", SEGMENT),
        (f"http://a.example/{quote(SEGMENT.path)}.ts", SEGMENT),
        (f"http://a.example/{HOUR.path}/%FF%FE%80.ts", Marked(HOUR, BAD_UTF8)),
        (stem_of(5), Beginning(stem_of(5))),
        (stem_of(5) + ".ts", Beginning(stem_of(5))),
        ("45:51", Beginning("45:51")),
        ("45:51.6", Beginning("45:51.6")),
        ("2019-11-13T02:45:51", Moment(parse_time("2019-11-13T02:45:51"))),
        ("2019-11-13 04:45:51.608+02:00", Moment(parse_time("2019-11-13T02:45:51.608"))),
    ],
)
def test_what_is_asked(text: str, question: object) -> None:
    assert read_question(text, ROOT) == question


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x", BadTime),
        ("2019-11-13", BadTime),
        ("2019-11-13T25:00:00", BadTime),
        ("99:99", BadTime),
        ("a/b", OutsideRoot),
        ("/segments-2/" + SEGMENT.path, OutsideRoot),
        (f"{HOUR.path}/../x.ts", BadName),
        (f"{HOUR.path}/.hidden.ts", BadName),
        ("desertbus/source/2019-11-13/x.ts", BadName),
        ("https://a.example/x.ts", BadName),
        ("https://[", BadName),
        (f"https://a.example/{HOUR.path}/a%2Fb.ts", BadName),
        (f"https://a.example/{HOUR.path}/a%0Ab.ts", BadName),
        ("45:51" + "x" * search.MOST_CHARACTERS, BadName),
        ("45:51\udcff", BadName),
    ],
)
def test_what_is_not_asked(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_question(text, ROOT)


@given(st.text(max_size=200) | st.binary(max_size=200).map(os.fsdecode))
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    try:
        read_question(text, ROOT)
    except (BadName, BadTime, OutsideRoot) as exc:
        assert str(exc)


# -- answering --------------------------------------------------------------------------------------------------------


def test_a_path_is_answered_with_files_and_tombstone(writer: Writer, reader: Reader) -> None:
    add(writer, HOUR, "one.ts", "one.json", "two.ts")
    hide(writer, HOUR, "one", "gone")
    (one,) = answer(f"{HOUR.path}/one.ts", ROOT, reader).found
    assert (one.files, one.is_hidden) == (["one.ts", "one.json"], True)
    (two,) = answer(f"{HOUR.path}/two", ROOT, reader).found
    assert (two.files, two.is_hidden, two.marker) == (["two.ts"], False, None)
    (gone,) = answer(f"{HOUR.path}/gone", ROOT, reader).found
    assert (gone.files, gone.is_hidden) == ([], True)
    assert answer(f"{HOUR.path}/three", ROOT, reader).found == []
    assert answer("nowhere/source/2019-11-13T02/one", ROOT, reader).found == []


def test_a_moment_finds_what_plays_then_everywhere(writer: Writer, reader: Reader) -> None:
    chat, low = HOUR._replace(quality="chat"), HOUR._replace(quality="480p")
    add(writer, HOUR, *(f"{stem_of(second)}.ts" for second in range(0, 3600, 2)))
    add(writer, low, f"{stem_of(100)}.ts", "100.ts", f"{BAD_UTF8}.ts")
    add(writer, chat, f"01:00-{HASH}.json")
    assert found(reader, "2019-11-13T02:01:41") == [
        Marked(low, stem_of(100)),
        Marked(chat, f"01:00-{HASH}"),
        Marked(HOUR, stem_of(100)),
    ]
    # A second that two segments share, and the border of an hour.
    assert found(reader, "2019-11-13T02:01:40")[-2:] == [Marked(HOUR, stem_of(98)), Marked(HOUR, stem_of(100))]
    add(writer, NEXT_HOUR, f"{stem_of(0)}.ts")
    assert found(reader, "2019-11-13T03:00:00") == [Marked(HOUR, stem_of(3598)), Marked(NEXT_HOUR, stem_of(0))]
    assert found(reader, "2019-11-13T04:00:00") == []
    assert found(reader, "0001-01-01T00:00:00") == []
    assert found(reader, "9999-12-31T23:59:59") == []


def test_a_beginning_finds_hidden_ones_first_and_then_the_newest(writer: Writer, reader: Reader) -> None:
    for number in range(5):
        add(writer, HOUR._replace(number=HOUR.number + number), f"{stem_of(8)}.ts", f"{stem_of(70)}.ts", "other.ts")
    hide(writer, HOUR, stem_of(8))
    numbers = [marked.hour.number - HOUR.number for marked in found(reader, "00:08")]
    assert numbers == [0, 4, 3, 2, 1]
    assert {marked.stem for marked in found(reader, stem_of(8) + ".ts")} == {stem_of(8)}
    assert found(reader, "00:09") == []


def test_what_was_not_looked_at_is_told(writer: Writer, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hour_number("2019-01-01T00")
    for number in range(search.MOST_FOUND + 10):
        add(writer, Hour("desertbus", "source", first + number), f"{stem_of(8)}.ts")
    said = answer("00:08", ROOT, reader)
    assert len(said.found) == search.MOST_FOUND
    assert said.looked.startswith(f"These are the first {search.MOST_FOUND}.")
    assert "20,000 tombstones" in said.looked and "1,000 hours" in said.looked
    monkeypatch.setattr(search, "HOURS_LOOKED_INTO", 5)
    assert [marked.hour.number for marked in found(reader, "00:08")] == [first + 59 - number for number in range(5)]


def test_of_many_tombstones_only_the_last_are_looked_at(writer: Writer, reader: Reader) -> None:
    hide(writer, HOUR, "00:08-first")
    hide(writer, HOUR, "00:08-second", "x")
    assert reader.markers_beginning("00:08", among=2, limit=10) == [Marked(HOUR, "00:08-second")]
    assert len(reader.markers_beginning("00:08", among=3, limit=10)) == 2
    assert len(reader.markers_beginning("00:08", among=3, limit=1)) == 1

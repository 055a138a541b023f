from __future__ import annotations

import os
import string
from datetime import date
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tombsync import names
from tombsync.errors import BadName, OutsideRoot
from tombsync.names import Hour, Kind, Marked, Segment

STEM = "45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
CHAT_STEM = "45:00-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
TEMP_STEM = "00:00.000000-0.5-temp-01234567-89ab-4cde-8f01-23456789abcd"
HOUR_TEXT = "2019-11-13T02"
HOUR = Hour("desertbus", "source", names.hour_number(HOUR_TEXT))
PATH = f"desertbus/source/{HOUR_TEXT}"
ROOT = "/segments"

BASE64 = string.ascii_letters + string.digits + "-_"
hashes = st.builds(str.__add__, st.text(BASE64, min_size=42, max_size=42), st.sampled_from("AEIMQUYcgkosw048"))
hour_numbers = st.integers(date.min.toordinal() * 24, date.max.toordinal() * 24 + 23)
in_hour_us = st.integers(0, 3_600_000_000 - 1)
durations_s = st.integers(0, 99_999_999).map(lambda ms: ms / 1000)
videos = st.builds(Segment, in_hour_us, durations_s, st.sampled_from(["full", "suspect", "partial"]), hashes)
temps = st.builds(Segment, in_hour_us, durations_s, st.just("temp"), st.uuids().map(str))
chats = st.builds(Segment, st.integers(0, 3599).map(lambda s: s * 1_000_000), st.just(60.0), st.just("chat"), hashes)
# Names as a directory gives them: any bytes but NUL and slash.
file_names = (
    st.binary(min_size=1, max_size=255).map(lambda b: b.replace(b"\0", b"0").replace(b"/", b"-")).map(os.fsdecode)
)
extensions = st.sampled_from(["", ".ts", ".json", ".tombstone", ".ts.tombstone", ".tombstone.tombstone", ".ts.ts"])
# Text that is likely to hit what matters in a path, surrogates that stand for no byte included.
wild = st.one_of(
    st.text(), st.text("./\0\n\x7f\x85~a\ud800\udcff ", max_size=300), st.builds(str.__add__, file_names, extensions)
)
wild_paths = st.one_of(
    wild,
    st.lists(wild, min_size=1, max_size=6).map("/".join),
    st.builds(lambda a, b, name: f"{a}/{b}/{HOUR_TEXT}/{name}", wild, wild, wild),
    st.builds(lambda name: f"{PATH}/{name}", wild),
)


# -- hours -------------------------------------------------------------------------------------------------------------


@given(hour_numbers)
def test_an_hour_survives_the_way_there_and_back(number: int) -> None:
    text = names.hour_text(number)
    assert len(text) == 13
    assert names.hour_number(text) == number
    assert names.is_hour(text)


@given(hour_numbers.filter(lambda n: n > 24))
def test_hours_are_numbered_in_order_and_without_gaps(number: int) -> None:
    assert names.hour_text(number - 1) < names.hour_text(number)
    assert names.hour_number(names.hour_text(number - 1)) == number - 1


@given(st.text())
@example("2019-11-13T24")
@example("2019-11-13T2")
@example("2019-11-13t02")
@example("2019-11-13T02\n")
@example("2019-11-13T02:00")
@example("2019-02-29T00")
@example("0000-01-01T00")
@example("20191113T02")
@example("2019-W46-3T02")
@example("\u0662\u0660\u0661\u0669-11-13T02")
@example(".tombsync")
@example("")
def test_nothing_else_is_an_hour(text: str) -> None:
    assume(not names.is_hour(text) or names.hour_text(names.hour_number(text)) != text)
    assert not names.is_hour(text)
    with pytest.raises(BadName):
        names.hour_number(text)


def test_a_leap_day_is_an_hour_only_in_its_year() -> None:
    assert names.is_hour("2020-02-29T23")
    assert not names.is_hour("2100-02-29T23")


# -- segments ----------------------------------------------------------------------------------------------------------


def test_the_documented_name_parses() -> None:
    found = names.parse_stem(STEM)
    assert found == Segment(2_751_608_000, 2.0, "full", "7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM")
    assert names.segment_stem(found) == STEM


@given(st.one_of(videos, temps))
def test_a_segment_survives_the_way_there_and_back(segment: Segment) -> None:
    stem = names.segment_stem(segment)
    assert names.parse_stem(stem) == segment
    assert names.parse_chat_stem(stem) is None
    assert names.classify(f"{stem}.ts") == (Kind.TS, stem)


@given(chats)
def test_a_chat_batch_survives_the_way_there_and_back(segment: Segment) -> None:
    stem = names.segment_stem(segment)
    assert names.parse_chat_stem(stem) == segment
    assert names.parse_stem(stem) is None
    assert names.classify(f"{stem}.json") == (Kind.JSON, stem)


@given(wild)
def test_parsing_any_text_gives_a_segment_that_means_it_or_none(text: str) -> None:
    for parse in (names.parse_stem, names.parse_chat_stem):
        found = parse(text)
        assert found is None or parse(names.segment_stem(found)) == found


@pytest.mark.parametrize(
    "stem",
    [
        "",
        f"{STEM}.ts",
        f"{STEM}\n",
        f" {STEM}",
        STEM[:-1],
        STEM.replace("45:51", "60:51"),
        STEM.replace("45:51", "45:60"),
        STEM.replace("45:51", "4\u0665:51"),
        STEM.replace("608000", "608"),
        STEM.replace("-2.0-", "--2.0-"),
        STEM.replace("-2.0-", "-1e3-"),
        STEM.replace("-2.0-", "-nan-"),
        STEM.replace("-2.0-", "-.5-"),
        STEM.replace("-full-", "-whole-"),
        STEM.replace("-full-", "-temp-"),
        STEM[:-1] + "B",  # its last character would hold bits that no SHA-256 has
        TEMP_STEM.replace("-temp-", "-full-"),
        TEMP_STEM.replace("abcd", "ABCD"),
    ],
)
def test_what_is_no_segment(stem: str) -> None:
    assert names.parse_stem(stem) is None


@pytest.mark.parametrize("stem", ["", STEM, f"{CHAT_STEM}.json", CHAT_STEM[:-1], CHAT_STEM.replace("45:00", "45:60")])
def test_what_is_no_chat_batch(stem: str) -> None:
    assert names.parse_chat_stem(stem) is None


@pytest.mark.parametrize("change", [
    {"start_us": -1},
    {"start_us": 3_600_000_000},
    {"duration_s": -2.0},
    {"duration_s": 1e-5},
    {"duration_s": 0.1 + 0.2},
    {"duration_s": 100_000.0},
    {"duration_s": float("nan")},
    {"duration_s": float("inf")},
    {"type": "whole"},
    {"type": "temp"},
    {"type": "chat"},
    {"hash": ""},
    {"hash": "../../../etc/passwd"},
])  # fmt: skip
def test_what_cannot_be_written_as_a_name(change: dict[str, Any]) -> None:
    segment = names.parse_stem(STEM)
    assert segment is not None
    with pytest.raises(BadName):
        names.segment_stem(segment._replace(**change))


# -- directory entries -------------------------------------------------------------------------------------------------


@given(st.builds(str.__add__, file_names, extensions))
@example(".ts")
@example(".tombstone")
def test_any_name_is_classified_and_put_together_again(name: str) -> None:
    kind, stem = names.classify(name)
    extension = {Kind.MISTAKE: ".tombstone", Kind.OTHER: "", **names.EXTENSION}[kind]
    assert stem + extension == name
    assert os.fsdecode(os.fsencode(stem)) == stem
    if name.startswith("."):
        assert kind is Kind.OTHER
    if kind is Kind.TOMBSTONE:
        assert names.tombstone_name(stem) == name or len(os.fsencode(name)) > names.MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [
        ("a.ts", Kind.TS, "a"),
        ("a.json", Kind.JSON, "a"),
        ("a.tombstone", Kind.TOMBSTONE, "a"),
        ("a.ts.tombstone", Kind.MISTAKE, "a.ts"),
        ("a.json.tombstone", Kind.MISTAKE, "a.json"),
        ("a.tombstone.tombstone", Kind.MISTAKE, "a.tombstone"),
        ("a.TS", Kind.OTHER, "a.TS"),
        ("a.ts.temp", Kind.OTHER, "a.ts.temp"),
        ("a.tombstone~", Kind.OTHER, "a.tombstone~"),
        ("ts", Kind.OTHER, "ts"),
        (".a.ts", Kind.OTHER, ".a.ts"),
        (".a.json", Kind.OTHER, ".a.json"),
        (".a.tombstone", Kind.OTHER, ".a.tombstone"),
        ("", Kind.OTHER, ""),
    ],
)
def test_kinds(name: str, kind: Kind, stem: str) -> None:
    assert names.classify(name) == (kind, stem)


@pytest.mark.parametrize("name", ["a.ts.tombstone", "a.json.tombstone", "a.tombstone.tombstone"])
def test_a_mistake_is_told_with_the_right_name(name: str) -> None:
    message = names.mistake_message(HOUR, name)
    assert f"{PATH}/{name} hides nothing" in message
    assert message.endswith(" a.tombstone")


@pytest.mark.parametrize("stem", ["x" * 245, "é" * 122 + "x", "\udcff" * 245])
def test_the_longest_tombstone(stem: str) -> None:
    assert len(os.fsencode(names.tombstone_name(stem))) == names.MAX_NAME_BYTES
    with pytest.raises(BadName, match="longer than 255 bytes"):
        names.tombstone_name(f"{stem}x")


# -- names from outside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [STEM, f"{STEM}.ts", f"{STEM}.json", f"{STEM}.tombstone", f"{STEM}.ts.tombstone"])
def test_a_name_is_taken_with_any_extension_or_none(name: str) -> None:
    marked = names.strict_path(f"{PATH}/{name}")
    assert marked == Marked(HOUR, STEM)
    assert marked.hour.text == HOUR_TEXT
    assert marked.path == f"{PATH}/{STEM}"
    assert marked.tombstone_path == f"{PATH}/{STEM}.tombstone"


def assert_inside(marked: Marked, root: str) -> None:
    for path in (marked.path, marked.tombstone_path):
        parts = path.split("/")
        assert len(parts) == 4
        assert not any(part == "" or part.startswith(".") or names.unsafe(part) for part in parts)
        joined = os.path.join(root, path)
        assert os.path.normpath(joined) == joined
        assert joined.startswith(f"{root}/")
        os.fsencode(joined)
    name = marked.tombstone_path.split("/")[3]
    assert names.classify(name) == (Kind.TOMBSTONE, marked.stem)


@given(wild_paths)
@example(f"{PATH}/x.ts.ts")
@example(f"{PATH}/x.tombstone.tombstone.tombstone")
@example(f"{PATH}/\ud800")
def test_a_path_from_outside_never_escapes(path: str) -> None:
    try:
        marked = names.strict_path(path)
    except BadName:
        return
    assert_inside(marked, ROOT)


@given(
    wild_paths,
    st.sampled_from(["", f"{ROOT}/", f"{ROOT}/..{ROOT}/", "./", "//"]),
    st.sampled_from([ROOT, "/", f"{ROOT}/desertbus/source/{HOUR_TEXT}", f"{ROOT}-other"]),
)
@example(f"{PATH}/x.ts", f"{ROOT}/", "/")
def test_a_path_that_a_person_typed_never_escapes(path: str, prefix: str, cwd: str) -> None:
    try:
        marked = names.locate(prefix + path, root=ROOT, cwd=cwd)
    except (BadName, OutsideRoot):
        return
    assert_inside(marked, ROOT)


@pytest.mark.parametrize("part", [
    "", ".", "..", ".hidden", "a\0b", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "a\x85b", "x" * 256, "é" * 128, "\ud800",
])  # fmt: skip
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_part_that_is_refused(part: str, place: int) -> None:
    assert names.unsafe(part)
    parts = ["desertbus", "source", HOUR_TEXT, STEM]
    parts[place] = part
    with pytest.raises(BadName):
        names.strict_path("/".join(parts))
    if place < 3:
        with pytest.raises(BadName):
            names.strict_hour(parts[0], parts[1], HOUR_TEXT)
    else:
        with pytest.raises(BadName):
            names.strict_marked(HOUR, part)


@pytest.mark.parametrize("part", ["a/b", "/", "../a"])
def test_a_slash_inside_of_a_part_is_refused(part: str) -> None:
    assert names.unsafe(part)
    with pytest.raises(BadName):
        names.strict_hour(part, "source", HOUR_TEXT)
    with pytest.raises(BadName):
        names.strict_hour("desertbus", part, HOUR_TEXT)
    with pytest.raises(BadName):
        names.strict_marked(HOUR, part)


@pytest.mark.parametrize("part", ["a", "a.b", "a b", "~", "-", "é", "\udcff", "a..b", "x" * 255, "é" * 127])
def test_a_part_that_is_taken(part: str) -> None:
    assert names.unsafe(part) == ""


@pytest.mark.parametrize("name", ["x.ts.ts", "x.ts.json", "x.tombstone.ts", "x.tombstone.tombstone.tombstone"])
def test_a_name_whose_tombstone_would_hide_nothing_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="hide nothing"):
        names.strict_marked(HOUR, name)


@pytest.mark.parametrize("name", [".ts", "..ts", ".tombstone", "x" * 246, "x" * 246 + ".ts"])
def test_a_name_without_a_usable_stem_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        names.strict_marked(HOUR, name)


@pytest.mark.parametrize(
    "path", ["", "a", STEM, f"{PATH}", f"{PATH}/", f"/{PATH}/{STEM}", f"{PATH}/{STEM}/", f"a/{PATH}/{STEM}"]
)
def test_a_path_that_has_not_four_parts_is_refused(path: str) -> None:
    with pytest.raises(BadName):
        names.strict_path(path)


@pytest.mark.parametrize("hour", ["", "..", "2019-11-13", "2019-11-13T24", "2019-13-13T02", "coverage-maps"])
def test_an_hour_that_is_none_is_refused(hour: str) -> None:
    with pytest.raises(BadName):
        names.strict_hour("desertbus", "source", hour)


def test_marked_says_itself_whether_it_may_be_sent() -> None:
    assert Marked(HOUR, STEM).unsafe == ""
    for marked in (
        Marked(HOUR._replace(channel="a\nb"), STEM),
        Marked(HOUR._replace(quality=".b"), STEM),
        Marked(HOUR, "a\nb"),
        Marked(HOUR, "x" * 246),
    ):
        assert marked.unsafe


@pytest.mark.parametrize(
    ("path", "cwd"),
    [
        (f"{ROOT}/{PATH}/{STEM}.ts", "/"),
        (f"{ROOT}//desertbus/./source/{HOUR_TEXT}/{STEM}.ts", "/"),
        (f"{PATH}/{STEM}.ts", "/somewhere/else"),
        (f"{STEM}.ts", f"{ROOT}/{PATH}"),
        (f"./{STEM}.ts", f"{ROOT}/{PATH}"),
        (f"{HOUR_TEXT}/{STEM}.ts", f"{ROOT}/desertbus/source"),
        (f"source/{HOUR_TEXT}/{STEM}.ts", f"{ROOT}/desertbus"),
        (f"segments/{PATH}/{STEM}.ts", "/"),
    ],
)
def test_where_a_person_may_stand(path: str, cwd: str) -> None:
    assert names.locate(path, root=ROOT, cwd=cwd) == Marked(HOUR, STEM)
    assert names.locate(path, root=f"{ROOT}/", cwd=cwd) == Marked(HOUR, STEM)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (f"/other/{PATH}/{STEM}.ts", OutsideRoot),
        (f"{ROOT}-other/{PATH}/{STEM}.ts", OutsideRoot),
        (f"{STEM}.ts", OutsideRoot),
        (ROOT, OutsideRoot),
        (f"{ROOT}/{PATH}/../{HOUR_TEXT}/{STEM}.ts", BadName),
        (f"{ROOT}/../etc/a/b/{HOUR_TEXT}/c", BadName),
        (f"{ROOT}/{PATH}/{STEM}\0.ts", BadName),
        (f"{ROOT}/{PATH}/a\nb.ts", BadName),
        (f"{ROOT}/{PATH}", BadName),
        (f"{ROOT}/.tombsync/a/{HOUR_TEXT}/b.ts", BadName),
        ("", OutsideRoot),
    ],
)
def test_where_a_person_may_not_point(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        names.locate(path, root=ROOT, cwd="/home/somebody")


# -- for people --------------------------------------------------------------------------------------------------------


@given(st.one_of(wild, file_names))
def test_a_printable_name_is_one_harmless_line(text: str) -> None:
    shown = names.printable(text)
    assert shown.isprintable()
    shown.encode()
    assert names.printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_how_what_cannot_be_printed_is_shown() -> None:
    assert names.printable(os.fsdecode(b"a\nb\xff\x1b")) == "a\\nb\\xff\\x1b"

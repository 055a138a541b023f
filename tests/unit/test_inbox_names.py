"""The encoding of a tombstone as one file name in an inbox."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.agent import segment_stem
from tombsync.errors import BadName
from tombsync.names import Canary, Hour, Marked, Offer, canary_name, hour_number, offer_name, read_inbox_name

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
STEM = segment_stem(7)
OFFER = Offer(Marked(HOUR, STEM), "node-a")


def test_the_name_of_a_usual_segment() -> None:
    assert offer_name(OFFER) == f"1,0,node-a,desertbus,source,2019-11-13T02,{STEM}"
    assert read_inbox_name(offer_name(OFFER)) == OFFER


def test_what_is_not_plain_is_percent_encoded() -> None:
    odd = Offer(Marked(HOUR._replace(channel="a,b c%"), "é\udcff~"), "node-a")
    assert offer_name(odd) == "1,0,node-a,a%2Cb%20c%25,source,2019-11-13T02,%C3%A9%FF~"
    assert read_inbox_name(offer_name(odd)) == odd


def test_a_generation_that_is_not_understood_is_read_all_the_same() -> None:
    assert read_inbox_name(offer_name(OFFER).replace("1,0,", "1,3,")) == OFFER._replace(generation=3)


def test_the_name_of_a_canary() -> None:
    canary = Canary("node-a", "0123456789abcdef")
    assert canary_name(canary) == "1,canary,node-a,0123456789abcdef"
    assert read_inbox_name(canary_name(canary)) == canary


START = "1,0,node-a,desertbus,source,2019-11-13T02,"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1",
        STEM,
        f"{STEM}.tombstone",
        f"2,0,node-a,desertbus,source,2019-11-13T02,{STEM}",
        f"01,0,node-a,desertbus,source,2019-11-13T02,{STEM}",
        f"1,00,node-a,desertbus,source,2019-11-13T02,{STEM}",
        f"1,-1,node-a,desertbus,source,2019-11-13T02,{STEM}",
        f"1,\u0660,node-a,desertbus,source,2019-11-13T02,{STEM}",
        f"1,0,,desertbus,source,2019-11-13T02,{STEM}",
        f"1,0,.node,desertbus,source,2019-11-13T02,{STEM}",
        f"1,0,node-a,,source,2019-11-13T02,{STEM}",
        f"1,0,node-a,..,source,2019-11-13T02,{STEM}",
        f"1,0,node-a,%2E%2E,source,2019-11-13T02,{STEM}",
        f"1,0,node-a,a%2Fb,source,2019-11-13T02,{STEM}",
        f"1,0,node-a,desertbus,.tombsync,2019-11-13T02,{STEM}",
        f"1,0,node-a,desertbus,source,2019-02-30T02,{STEM}",
        f"1,0,node-a,desertbus,source,2019-11-13T02,x,{STEM}",
        START,
        START + ".hidden",
        START + "..",
        START + "a%2F..%2Fb",
        START + "a%00b",
        START + "a%0Ab",
        START + "a\nb",
        START + "%61",  # a plain character that is encoded
        START + "%c3%a9",  # small digits
        START + "%",
        START + "%zz",
        START + "é",
        START + "\udcff",
        START.replace("source", "\udcff") + "x",
        START + "a b",
        START + "x.ts",
        START + "x.json",
        START + "x.tombstone",
        "1,canary,node-a,0123456789abcdeF",
        "1,canary,node-a,123",
        "1,canary,,0123456789abcdef",
        "1,canary,node-a,0123456789abcdef,",
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadName):
        read_inbox_name(name)


def test_a_name_that_would_be_too_long_is_not_made() -> None:
    longest = 255 - len(START)
    assert len(offer_name(OFFER._replace(marked=Marked(HOUR, "x" * longest)))) == 255
    with pytest.raises(BadName, match="longer than 255"):
        offer_name(OFFER._replace(marked=Marked(HOUR, "x" * (longest + 1))))
    with pytest.raises(BadName, match="longer than 255"):
        offer_name(OFFER._replace(marked=Marked(HOUR, "é" * 60)))


@pytest.mark.parametrize("origin", ["", "a,b", "a/b", "-a", "a" * 65, "é"])
def test_a_node_of_another_grammar_is_not_named(origin: str) -> None:
    with pytest.raises(BadName):
        offer_name(OFFER._replace(origin=origin))


parts = st.one_of(
    st.text(max_size=8),
    st.binary(max_size=8).map(os.fsdecode),
    st.sampled_from(["..", ".", "a,b", "x.ts", "é", "%2e", "1,0"]),
)


@given(parts, parts, parts, st.sampled_from(["node-a", "x", "", "a,b"]))
def test_what_can_be_written_reads_as_the_same(channel: str, quality: str, stem: str, origin: str) -> None:
    offer = Offer(Marked(Hour(channel, quality, HOUR.number), stem), origin)
    try:
        name = offer_name(offer)
    except BadName:
        return
    assert name.isascii() and name.isprintable() and "/" not in name
    try:
        assert read_inbox_name(name) == offer
    except BadName:  # `X.ts` has the tombstone `X.ts.tombstone`, which hides nothing
        assert stem.endswith((".ts", ".json", ".tombstone"))


@given(
    st.one_of(
        st.text(),
        st.binary().map(lambda raw: START + os.fsdecode(raw)),
        st.text(alphabet="1,0canry.%2FEe:-~", max_size=60),
        st.binary().map(os.fsdecode),
    )
)
def test_any_name_is_read_or_refused(name: str) -> None:
    try:
        found = read_inbox_name(name)
    except BadName:
        return
    assert (canary_name(found) if isinstance(found, Canary) else offer_name(found)) == name

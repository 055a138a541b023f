"""Counts, ages, times and names as the status page says them."""

from __future__ import annotations

import pytest

from tombsync.web.words import age_text, count_text, duration_text, list_text, name_html, time_html

NOW_NS = 1_573_613_000_000_000_000  # 2019-11-13T02:43:20Z
HOUR_NS = 3_600 * 1_000_000_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1.0, "0 s"), (0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86400, "1 day")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0"),
        (0.04, "0"),
        (0.05, "0.1 s"),
        (6.0, "6.0 s"),
        (60.0, "1 min"),
        (126.4, "2 min 6 s"),
        (3600.0, "1 h"),
        (3659.0, "1 h"),
        (11_520.0, "3 h 12 min"),
        (86_400 * 1234 + 3600, "1,234 d 1 h"),
    ],
)
def test_lengths_of_video(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_counts_and_lists() -> None:
    assert [count_text(count, "peer") for count in (0, 1, 1234)] == ["0 peers", "1 peer", "1,234 peers"]
    assert [list_text(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert list_text(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert list_text(["a\nb"]) == "a\\nb"


def test_a_time_has_its_date_where_it_is_not_of_these_hours() -> None:
    assert time_html(NOW_NS, NOW_NS) == '<time datetime="2019-11-13T02:43:20Z">02:43:20</time>'
    assert ">14:43:20<" not in time_html(NOW_NS - 12 * HOUR_NS, NOW_NS)
    assert ">2019-11-12 14:43:20<" in time_html(NOW_NS - 12 * HOUR_NS, NOW_NS)
    assert ">2019-11-13 14:43:20<" in time_html(NOW_NS + 12 * HOUR_NS, NOW_NS)


def test_a_name_is_one_element_whatever_it_holds() -> None:
    assert name_html("source") == "<bdi>source</bdi>"
    assert name_html("</bdi><b>&\u202e\n\udcff") == "<bdi>&lt;/bdi&gt;&lt;b&gt;&amp;\\u202e\\n\\xff</bdi>"

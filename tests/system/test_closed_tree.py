"""What nginx serves of a nasty tree, however a URL is written: nothing but what the archive itself lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.agent import HASH, segment_stem
from tests.support.nginx import Nginx
from tests.support.trees import listed

HOURS = ["desertbus/source/2019-11-13T02", "desertbus/source/2019-11-13T03", "b|c/160p/0001-01-01T00"]
STEMS = [
    segment_stem(0), segment_stem(2), segment_stem(4, kind="partial"), f"45:00-{HASH}",
    "a", "A", "a.ts", "a.json", "a.ts.ts", ".a", "..a", "a.", "tombstone", "a.tombstone", "ts", "x" * 240,
    "%61", "a%2Ets", "a b", "a\nb", "a?b", "a#b", "a;b", "a|b", "a\\b", "$uri", "(a)+", "[a]", "é", "\udcff",
]  # fmt: skip
ELSEWHERE = ["coverage-maps/a.png", "emotes/1.json", "desertbus/a.ts", "desertbus/source/latest/a.json"]
# Part of a path -> ways to go through it and be where one was.
_DETOURS = ["", "/", "//", "/./", "/x/../", "/%2e/", "/x/%2E%2e/", "%2F", "/x%2f..%2f", "/y/x/../../"]
_ENDS = [
    "",
    "?",
    "?a=/b.ts",
    "#",
    "/",
    "/.",
    "/..",
    "%00",
    "%0A",
    "%20",
    ".",
    ";",
    "%",
    "\\",
    "/x/..",
    ".ts",
    ".json",
    "%2Ets",
]


def fill(root: Path) -> None:
    """Every stem with each ending in each hour, but for those with a tombstone where there is none in others."""
    for count, hour in enumerate(HOURS):
        directory = root / hour
        (directory / "below").mkdir(parents=True)
        for number, stem in enumerate(STEMS):
            for ending in (".ts", ".json", ".TS", ".ts~", ".ts\n", ".mp4", ""):
                write(root, f"{hour}/{stem}{ending}")
            write(root, f"{hour}/below/{stem}.ts")
            if (number + count) % 3 == 0:
                write(root, f"{hour}/{stem}.tombstone")
    for path in ELSEWHERE:
        write(root, path)
    write(root, ".tombsync/takedowns/a.json")


def write(root: Path, path: str) -> None:
    """A file whose content is its own path, so that an answer tells which file it is."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_dir():
        file.write_bytes(path.encode("utf-8", "surrogateescape"))


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Nginx]]:
    """One that merges slashes and one that does not; they serve the same."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(Nginx(f"merge_slashes {merged}; location / {{ root {{directory}}; }}"))
            for merged in ("on", "off")
        ]
        for server in made:
            fill(server.root)
        yield made


def allowed(root: Path) -> set[bytes]:
    """The paths of what may be served: what the archive lists, and what stands outside of the hour directories."""
    paths = {f"{hour}/{name}" for hour in HOURS for name in listed(root / hour)} | set(ELSEWHERE)
    return {path.encode("utf-8", "surrogateescape") for path in paths}


def existing(root: Path) -> list[str]:
    """Every file."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def spelled(draw: st.DrawFn, path: str) -> str:
    """One of the ways to write the path of a URL."""
    written = ""
    for number, part in enumerate(path.split("/")):
        detours = _DETOURS[1:] if number else [detour for detour in _DETOURS[1:] if detour.startswith("/")]
        written += draw(st.sampled_from(detours))  # the path in a request line begins with a slash
        # Bytes that cannot stand in a request line, and what would end the path there, are always encoded.
        for byte in part.encode("utf-8", "surrogateescape"):
            plain = 0x20 < byte != 0x7F and chr(byte) not in "%?#"
            form = draw(st.sampled_from(("{0}", "%{1:02x}", "%{1:02X}"))) if plain else "%{1:02X}"
            written += form.format(chr(byte), byte)
    return written


def test_the_tree_is_nasty_enough(servers: list[Nginx]) -> None:
    root = servers[0].root
    may, there = allowed(root), existing(root)
    assert 100 < len(may) < len(there) / 3
    assert {path.encode("utf-8", "surrogateescape") for path in there} > may


@given(data=st.data())
def test_only_what_is_listed_is_served_and_all_of_it(servers: list[Nginx], data: st.DataObject) -> None:
    root = servers[0].root
    may = allowed(root)
    path = data.draw(st.sampled_from(existing(root)))
    url = data.draw(st.composite(spelled)(f"segments/{path}"))
    end = data.draw(st.sampled_from(_ENDS))
    for server in servers:
        answer = server.ask(url + end)
        if answer.status == 200:
            assert answer.body in may, (url + end, answer.body)
        else:
            assert answer.body not in may
        if end in ("", "?", "#"):
            assert (answer.status == 200) == (path.encode("utf-8", "surrogateescape") in may), (url, answer.status)


def test_every_file_by_its_plainest_name(servers: list[Nginx]) -> None:
    for server in servers:
        may = allowed(server.root)
        for path in existing(server.root):
            raw = path.encode("utf-8", "surrogateescape")
            answer = server.ask("/segments/" + "".join(f"%{byte:02X}" if byte != 0x2F else "/" for byte in raw))
            assert (answer.status, answer.body in may) in ((200, True), (404, False), (410, False)), path
            assert (answer.status == 200) == (raw in may), path

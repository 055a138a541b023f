"""What is played of a hidden segment: nothing. A playlist of what is listed, served by nginx, decoded by frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.support.agent import AgentProcess, touch
from tests.support.hls import Played, play, playlist, probe
from tests.support.media import SEGMENT_S, cut
from tests.support.nginx import ALIAS, Nginx
from tests.support.trees import listed
from tests.support.waiting import wait_for
from tombsync.names import Hour, hour_number

HOUR = Hour("desertbus", "source", hour_number("2019-11-13T02"))
SECONDS = 24
FRAMES = 20  # of each segment: ten a second


class Channel(NamedTuple):
    """A tree of real video that nginx serves and an agent watches. `frames`: those of each segment, by its stem."""

    nginx: Nginx
    agent: AgentProcess
    stems: list[str]
    frames: dict[str, list[str]]

    def publish(self, names: list[str], name: str = "list") -> str:
        """Put a playlist in place; its URL."""
        text = playlist(HOUR, names, "segments")
        (self.nginx.directory / "lists" / f"{name}.m3u8").write_text(text)
        return f"{self.nginx.url}/{name}.m3u8"

    def listing(self) -> list[str]:
        """What this node lists, as a program asks for it."""
        names: list[str] = json.loads(self.agent.run("ls", HOUR.path, "--json").stdout)
        return names

    def hide(self, *numbers: int) -> None:
        """Mark segments by hand, and wait until the index has them."""
        for number in numbers:
            marked = touch(self.nginx.root / HOUR.path, self.stems[number])
            wait_for(partial(self.agent.hidden, marked.path))

    def expect(self, played: Played, hidden: set[int]) -> None:
        """That exactly the frames of the visible segments were played, in order."""
        gone = {frame for number in hidden for frame in self.frames[self.stems[number]]}
        assert gone.isdisjoint(played.frames)
        visible = [self.frames[stem] for number, stem in enumerate(self.stems) if number not in hidden]
        assert played.frames == [frame for frames in visible for frame in frames]


@pytest.fixture
def channel() -> Iterator[Channel]:
    with Nginx(ALIAS + "location / { root {directory}/lists; }") as nginx:
        (nginx.directory / "lists").mkdir()
        stems = cut(nginx.root, HOUR, seconds=SECONDS, scratch=nginx.directory / "scratch")
        frames = {stem: play(nginx.root / HOUR.path / f"{stem}.ts").frames for stem in stems}
        with AgentProcess(nginx.directory / "agent", root=nginx.root) as agent:
            yield Channel(nginx, agent, stems, frames)


def test_no_hidden_second_is_played(channel: Channel) -> None:
    # No frame is like one of another segment: so a frame that was played tells which segment it is of.
    every = [frame for frames in channel.frames.values() for frame in frames]
    assert (len(channel.stems), len(every), len(set(every))) == (SECONDS // SEGMENT_S, 12 * FRAMES, 12 * FRAMES)
    assert {len(frames) for frames in channel.frames.values()} == {FRAMES}
    url = channel.publish(channel.listing())
    played = play(url)
    assert played.errors == ""
    channel.expect(played, set())
    assert probe(url) == (12 * FRAMES, SECONDS)

    hidden = {0, 4, 5, 11}  # at the beginning, two in a row, and at the end
    channel.hide(*sorted(hidden))
    names = channel.listing()
    assert names == listed(channel.nginx.root / HOUR.path)
    url = channel.publish(names)
    text = (channel.nginx.directory / "lists" / "list.m3u8").read_text()
    assert text.count("#EXT-X-DISCONTINUITY\n") == 1
    played = play(url)
    assert played.errors == ""
    channel.expect(played, hidden)
    assert probe(url) == (8 * FRAMES, 8 * SEGMENT_S)


def test_a_playlist_from_before_the_mark_plays_nothing_that_is_hidden_since(channel: Channel) -> None:
    """A player keeps its list, and so does a cache: the URLs themselves are closed."""
    url = channel.publish(channel.listing())
    channel.hide(3, 7)
    channel.expect(play(url), {3, 7})
    asked = [channel.nginx.status(f"/segments/{HOUR.path}/{quote(stem)}.ts") for stem in channel.stems]
    assert [number for number, status in enumerate(asked) if status == 410] == [3, 7]


def test_a_playlist_of_everything_plays_everything_where_no_url_is_closed() -> None:
    """That the two tests before could fail: the same list, on an nginx without the snippet."""
    with Nginx(ALIAS + "location / { root {directory}/lists; }", include="") as nginx:
        (nginx.directory / "lists").mkdir()
        stems = cut(nginx.root, HOUR, seconds=3 * SEGMENT_S, scratch=nginx.directory / "scratch")
        touch(nginx.root / HOUR.path, stems[1])
        (nginx.directory / "lists" / "list.m3u8").write_text(
            playlist(HOUR, [f"{stem}.ts" for stem in stems], "segments")
        )
        assert len(play(f"{nginx.url}/list.m3u8").frames) == 3 * FRAMES

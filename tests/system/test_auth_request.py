"""nginx that asks a real agent before it serves a segment, by systemd/nginx/tombsync-auth.conf."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.nginx import Nginx
from tests.support.relay import free_port
from tests.support.waiting import wait_for

HOUR = "desertbus/source/2019-11-13T02"
STEMS = [segment_stem(2 * number) for number in range(3)]
URLS = [f"/segments/{HOUR}/{stem}.ts" for stem in STEMS]
TREE = Path(HOUR)

AGENT = """
set $tombsync_agent http://unix:{directory}/agent/run/http.sock:;
set $tombsync_without_agent closed;
include {snippets}/tombsync-auth.conf;
"""
LOCATION = """
location /segments/ {
    alias {root}/;
    auth_request /tombsync-auth;
    auth_request_set $tombsync_answer $upstream_status;
    error_page 403 = @tombsync_closed;
    error_page 500 = @tombsync_unknown;
}
"""


@contextmanager
def agent_of(nginx: Nginx) -> Iterator[AgentProcess]:
    """An agent on nginx's tree, for the time of a `with` block."""
    agent = AgentProcess(nginx.directory / "agent", root=nginx.root)
    with agent.ending():
        yield start(agent)


def start(agent: AgentProcess) -> AgentProcess:
    """Start it and let nginx ask at its socket; an operator puts nginx into the agent's group for that."""
    agent.start()
    agent.socket.chmod(0o666)
    return agent


@pytest.fixture
def nginx() -> Iterator[Nginx]:
    """One that refuses what the agent does not allow."""
    with Nginx(AGENT + LOCATION) as made:
        make_hour(made.root, HOUR)
        yield made


def statuses(nginx: Nginx) -> list[int]:
    return [nginx.status(url) for url in URLS]


def test_the_agent_and_the_files_decide_together(nginx: Nginx) -> None:
    with agent_of(nginx) as agent:
        assert statuses(nginx) == [200, 200, 200]
        touch(nginx.root / TREE, STEMS[0])  # by the files, however slow the agent is
        assert statuses(nginx) == [410, 200, 200]
        (nginx.root / TREE / f"{STEMS[1]}.tombstone").symlink_to("nowhere")  # by the agent alone
        answer = nginx.ask(URLS[1])
        assert (answer.status, answer.headers["Cache-Control"]) == (410, "no-store")
        wait_for(partial(agent.hidden, f"{HOUR}/{STEMS[0]}"))
        (nginx.root / TREE / f"{STEMS[0]}.tombstone").unlink()  # it vanished, and keeps hiding
        assert statuses(nginx) == [410, 410, 200]


def test_heads_ranges_conditions_and_other_files(nginx: Nginx) -> None:
    with agent_of(nginx):
        (nginx.root / TREE / f"{STEMS[1]}.tombstone").symlink_to("nowhere")
        etag = nginx.ask(URLS[0]).headers["ETag"]
        for method, headers, status in (
            ("HEAD", {}, 200),
            ("GET", {"Range": "bytes=0-2"}, 206),
            ("GET", {"If-None-Match": etag}, 304),
        ):
            assert nginx.status(URLS[0], method, headers) == status
            assert nginx.status(URLS[1], method, headers) == 410
        assert nginx.status(URLS[0].replace(":", "%3A")) == 200
        assert nginx.status(URLS[1].replace(":", "%3A")) == 410
        assert nginx.status(URLS[1].replace("/", "//")) == 410
        (nginx.root / "coverage-maps").mkdir()
        (nginx.root / "coverage-maps" / "a.png").touch()
        assert nginx.status("/segments/coverage-maps/a.png") == 200
        assert nginx.status(f"/segments/{HOUR}/{segment_stem(100)}.ts") == 404
        assert nginx.status(f"/segments/{HOUR}/") == 403  # nginx's own: it makes no listing
        (nginx.root / TREE / "unreadable.ts").touch(mode=0)
        assert nginx.status(f"/segments/{HOUR}/unreadable.ts") == 403
        assert nginx.status("/tombsync-auth") == 404


def test_without_the_agent_nothing_is_known(nginx: Nginx) -> None:
    with agent_of(nginx) as agent:
        touch(nginx.root / TREE, STEMS[0])
        wait_for(partial(agent.hidden, f"{HOUR}/{STEMS[0]}"))
        agent.stop()
        assert statuses(nginx) == [410, 503, 503]
        assert nginx.ask(URLS[1]).headers["Retry-After"] == "5"
        start(agent)
        assert statuses(nginx) == [410, 200, 200]


def test_an_agent_that_hangs_is_given_up(nginx: Nginx) -> None:
    with agent_of(nginx) as agent:
        touch(nginx.root / TREE, STEMS[0])
        agent.signal(signal.SIGSTOP)
        try:
            assert [nginx.status(url) for url in URLS[:2]] == [410, 503]
        finally:
            agent.signal(signal.SIGCONT)


def test_an_operator_may_let_the_files_decide_alone_meanwhile() -> None:
    with Nginx(AGENT.replace("closed;", "open;") + LOCATION) as nginx:
        make_hour(nginx.root, HOUR)
        assert statuses(nginx) == [200, 200, 200]
        with agent_of(nginx) as agent:
            (nginx.root / TREE / f"{STEMS[1]}.tombstone").symlink_to("nowhere")
            assert statuses(nginx) == [200, 410, 200]
            touch(nginx.root / TREE, STEMS[0])
            wait_for(partial(agent.hidden, f"{HOUR}/{STEMS[0]}"))
            agent.stop()
        assert statuses(nginx) == [410, 200, 200]


def test_an_agent_whose_tree_is_gone_cannot_tell() -> None:
    """It answers, so no operator's choice lets the files decide."""
    with Nginx(AGENT.replace("closed;", "open;") + LOCATION) as nginx:
        make_hour(nginx.root, HOUR)
        with agent_of(nginx):
            nginx.root.rename(nginx.directory / "away")
            (nginx.directory / "segments").symlink_to("away")  # nginx follows it, and the agent does not know this tree
            assert statuses(nginx) == [503, 503, 503]


def test_an_agent_at_a_port() -> None:
    port = free_port()
    with Nginx(
        AGENT.replace("http://unix:{directory}/agent/run/http.sock:", f"http://127.0.0.1:{port}") + LOCATION
    ) as nginx:
        make_hour(nginx.root, HOUR)
        agent = AgentProcess(nginx.directory / "agent", root=nginx.root)
        agent.config.write_text(agent.config.read_text().replace(f"unix:{agent.socket}", f"127.0.0.1:{port}"))
        with agent.ending():
            agent.start(ready=False)
            wait_for(lambda: statuses(nginx) == [200, 200, 200], "the agent to answer")
            (nginx.root / TREE / f"{STEMS[1]}.tombstone").symlink_to("nowhere")
            assert statuses(nginx) == [200, 410, 200]


def test_the_second_snippet_needs_the_first() -> None:
    made = Nginx(AGENT + LOCATION, include="")
    try:
        assert 'unknown "tombsync_prefix" variable' in made.refusal()
    finally:
        made.close()

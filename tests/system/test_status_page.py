"""The status page in a real browser: a real agent, a real index, two real peers of which one goes away."""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.agent import AgentProcess, make_hour, peer_table, segment_stem, touch
from tests.support.browser import PHONE, WIDE, Visit, artefacts, browser, in_front_of, visit
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync.timeline import parse_time
from tombsync.tree import Takedown, Tree, end_takedown, write_takedown

HOUR = "desertbus/source/2019-11-13T02"
OTHER_HOUR = "desertbus/480p/2019-11-13T02"
MOMENT = "2019-11-13T02:00:11"  # only the sixth segment of each plays in all of that second
TAKEDOWN = Takedown(
    id="k7mq3",
    channel="desertbus",
    start_us=parse_time("2019-11-13T05:00:00"),
    end_us=parse_time("2019-11-13T05:00:12"),
    qualities=(),
    chat=False,
    sticky=True,
    twins=True,
    hashes=(),
    reason="a <b>phone</b> number was shown",
    actor="ada",
    node="node-a",
    created_at="2026-01-02T03:04:05Z",
)
# What a name may be that somebody made by hand, or that an attacker brought. None may be read as something else.
LONG = "L" * 240
NASTY = {
    "markup": "<img src=x onerror=alert(1)>&lt;b&gt;",
    "quotes": "\"'><script>alert(1)<\\script>",
    "bidi controls": "harmless\u202egpj.st",
    "right to left": "\u05e9\u05dc\u05d5\u05dd 02",
    "controls": "two\nlines\x1b[31m",
    "zero width": "a\u200bb\u2066c",
    "combining": "z" + "\u0336\u0301\u0489" * 40,
    "not UTF-8": os.fsdecode(b"bytes \xff\xfe"),
    "long": LONG,
}
SHOWN = {
    "markup": "<img src=x onerror=alert(1)>&lt;b&gt;",
    "quotes": "\"'><script>alert(1)<\\script>",
    "bidi controls": "harmless\\u202egpj.st",
    "right to left": "\u05e9\u05dc\u05d5\u05dd 02",
    "controls": "two\\nlines\\x1b[31m",
    "zero width": "a\\u200bb\\u2066c",
    "combining": "z" + "\u0336\u0301\u0489" * 40,
    "not UTF-8": "bytes \\xff\\xfe",
    "long": LONG,
}
# Shown for what it is by an agent that this test stops.
EXPECTED_WHILE_DOWN = "net::ERR_"


class World:
    """The agent, its peers, and the way to its page. `node-c` can be stopped."""

    def __init__(self, base: Path, near: Sshd, far: Sshd) -> None:
        self.near, self.far = near, far
        for server in (near, far):
            for place in ("desertbus/source", "desertbus/480p"):
                (server.root / place).mkdir(parents=True)
        self.agent = AgentProcess(base, peers=[peer_table("node-b", near), peer_table("node-c", far)])
        self.hour = make_hour(self.agent.root, HOUR, 60)
        self.other_hour = make_hour(self.agent.root, OTHER_HOUR, 60)
        self.origin = ""

    def confirmed(self, peer: str) -> float:
        """Deliveries that a peer confirmed."""
        return self.agent.metric("deliveries", peer=peer, state="confirmed")

    def mark(self, stem: str, directory: Path | None = None) -> None:
        """Mark by hand, and wait until the peer that is there has it."""
        before = self.confirmed("node-b")
        touch(directory or self.hour, stem)
        wait_for(lambda: self.confirmed("node-b") > before, "the tombstone to be confirmed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Some tombstones that both peers have, and since node-c is down one that only node-b has."""
    base = tmp_path_factory.mktemp("page")
    with Sshd() as near, Sshd() as far:
        made = World(base, near, far)
        with made.agent, in_front_of(made.agent.socket) as made.origin:
            for second in (0, 2, 4):
                made.mark(segment_stem(second))
                made.mark(segment_stem(second), made.other_hour)
            wait_for(lambda: made.confirmed("node-c") == 6, "the tombstones to be with both")
            far.stop()
            wait_for(lambda: made.agent.metric("peer_up", peer="node-c") == 0, "node-c to be seen down")
            made.mark(segment_stem(6))
            yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all of this."""
    with browser() as started:
        yield started


@pytest.fixture
def visitor(world: World, chromium: Browser) -> Iterator[Visit]:
    """A visit of which nothing may be complained about, and which asks nobody else."""
    with visit(chromium) as made:
        yield made
        assert made.complaints == []
        assert [url for url in made.requests if not url.startswith(world.origin + "/")] == []


def row(page: Page, text: str) -> str:
    """All that one row of the matrix says, in one line."""
    return " ".join(page.locator("#tombstones tbody tr", has_text=text).first.inner_text().split())


# -- what it shows ----------------------------------------------------------------------------------------------------


def check_whole(page: Page) -> None:
    """Everything that an operator looks for stands there."""
    expect(page).to_have_title("node-a · tombsync")
    expect(page.get_by_role("heading", level=1)).to_have_text("node-a")
    expect(page.locator("#summary")).to_contain_text("ready")
    expect(page.locator("#summary")).to_contain_text("1 of 2 peers up")
    expect(page.locator("#summary")).to_contain_text("No session with node-c.")
    peers = page.get_by_role("region", name="Peers")
    up, down = peers.locator("tbody tr").all()
    expect(up).to_contain_text("up since")
    expect(down).to_contain_text("down")
    expect(down).to_contain_text("cannot be reached")
    assert [cell.inner_text() for cell in down.get_by_role("cell").all()][1] == "1"  # pending
    expect(page.locator("#node")).to_contain_text("the known one")
    expect(page.locator("#node")).to_contain_text("all at work")
    expect(page.locator("#node")).to_contain_text("113 visible, 7 hidden")
    expect(page.locator("#node")).to_contain_text("full")
    marks = page.locator("#tombstones tbody tr")
    expect(marks).to_have_count(7)
    newest = marks.first
    expect(newest).to_contain_text("2019-11-13 02:00:06.608")
    expect(newest.get_by_role("cell").nth(1)).to_contain_text("confirmed")
    expect(newest.get_by_role("cell").nth(2)).to_have_text("pending")
    expect(marks.last.get_by_role("cell").nth(2)).to_contain_text("confirmed")
    expect(page.locator("#segments tbody tr")).to_have_count(2)


def test_all_is_there_with_and_without_script(world: World, chromium: Browser, visitor: Visit) -> None:
    visitor.page.goto(world.origin)
    check_whole(visitor.page)
    with visit(chromium, java_script_enabled=False) as plain:
        plain.page.goto(world.origin)
        check_whole(plain.page)
        plain.page.get_by_role("searchbox").fill(MOMENT)
        plain.page.get_by_role("button", name="Find").click()
        expect(plain.page.locator(".found li")).to_have_count(2)
        assert plain.complaints == []


def test_states_are_told_by_word_and_shape(world: World, visitor: Visit) -> None:
    visitor.page.goto(world.origin)
    shapes: dict[str, str] = {}
    for badge in visitor.page.locator("#tombstones .badge, #peers .badge").all():
        shape = badge.locator("use").get_attribute("href")
        assert shape is not None and visitor.page.locator(f"symbol{shape}").count() == 1
        shapes[badge.inner_text().strip()] = shape
    assert set(shapes) == {"up", "down", "confirmed", "pending"}
    assert len(set(shapes.values())) == len(shapes)


def show_maps(page: Page) -> None:
    """Look at every map, as those below the screen are fetched only then."""
    maps = page.locator(".map img")
    expect(maps).to_have_count(2)
    for one in maps.all():
        one.scroll_into_view_if_needed()
        wait_for(lambda one=one: one.evaluate("it => it.complete && it.naturalHeight > 300"), "a map", pause_s=0.05)  # type: ignore[misc]
    page.evaluate("window.scrollTo(0, 0)")


def test_a_map_and_what_it_adds_up_to(world: World, visitor: Visit) -> None:
    visitor.page.goto(world.origin)
    show_maps(visitor.page)
    told = visitor.page.locator(".map img").first.get_attribute("alt") or ""
    cells = visitor.page.locator("#segments tbody tr").first.get_by_role("cell").all_inner_texts()
    assert told.startswith("The last known week of desertbus / 480p")
    assert f"covered {cells[3]}, tombstoned {cells[5]}, holes {cells[6]}." in told
    assert cells[5] == "6.0 s"


# -- what changes -----------------------------------------------------------------------------------------------------


def test_the_matrix_follows_without_reload_and_leaves_the_reader_where_she_is(world: World, visitor: Visit) -> None:
    page = visitor.page
    page.goto(world.origin)
    page.evaluate("window.stillTheSame = true")
    page.locator("#workers summary").click()
    link = page.locator("#tombstones a").nth(1)
    link.focus()
    focused = link.inner_text()
    stem = segment_stem(20)
    world.mark(stem)
    expect(page.locator("#tombstones tbody tr").first).to_contain_text("2019-11-13 02:00:20.608")
    expect(page.locator("#tombstones tbody tr").first).to_contain_text("confirmed")
    assert page.evaluate("window.stillTheSame") is True
    assert page.evaluate("document.activeElement.textContent") == focused
    assert page.locator("#workers").get_attribute("open") is not None
    expect(page.locator("#updated")).to_contain_text("Updates by itself")

    # The peer comes back: what was pending becomes confirmed, in the cells that were there.
    cell = page.locator("#tombstones tbody tr").first.get_by_role("cell").nth(2).element_handle()
    world.far.start()
    try:
        wait_for(lambda: world.confirmed("node-c") == world.confirmed("node-b"), "node-c to have all", 50.0)
        expect(page.locator("#summary")).to_contain_text("2 of 2 peers up")
        assert cell is not None
        assert "confirmed" in cell.inner_text()
    finally:
        world.far.stop()
        wait_for(lambda: world.agent.metric("peer_up", peer="node-c") == 0, "node-c to be seen down")
    expect(page.locator("#summary")).to_contain_text("1 of 2 peers up")


def test_a_takedown_is_there_until_it_ends(world: World, visitor: Visit) -> None:
    tree = Tree(str(world.agent.root))
    section = visitor.page.locator("#takedowns")
    visitor.page.goto(world.origin)
    expect(section).to_contain_text("None")
    with tree.open_root() as root_fd:
        write_takedown(root_fd, TAKEDOWN)
        write_takedown(root_fd, replace(TAKEDOWN, id="abcde", reason="another", sticky=False, qualities=("source",)))
    expect(section.locator("tbody tr")).to_have_count(2)
    told = section.locator("tbody tr", has_text="k7mq3")
    expect(told).to_contain_text("a <b>phone</b> number was shown")
    expect(told).to_contain_text("2019-11-13 05:00:12.000")
    expect(told).to_contain_text("all qualities")
    expect(told).to_contain_text("is marked at once")
    with tree.open_root() as root_fd:
        end_takedown(root_fd, "k7mq3", "ada")
    expect(section.locator("tbody tr")).to_have_count(1)
    with tree.open_root() as root_fd:
        end_takedown(root_fd, "abcde", "ada")
    expect(section).to_contain_text("None")


def test_a_hidden_page_asks_nothing_and_a_seen_one_at_once(world: World, visitor: Visit) -> None:
    page = visitor.page
    page.clock.install()
    page.goto(world.origin)

    def asked() -> int:
        return sum(url.endswith("/live") for url in visitor.requests)

    def show(state: str) -> None:
        page.evaluate(
            "state => { Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });"
            " Object.defineProperty(document, 'hidden', { value: state === 'hidden', configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            state,
        )

    with page.expect_response("**/live"):
        page.clock.run_for(5_000)
    expect(page.locator("#updated")).to_contain_text("Updates by itself")
    show("hidden")
    before = asked()
    page.clock.run_for(60_000)
    assert asked() == before
    with page.expect_response("**/live"):
        show("visible")


def test_it_says_when_the_node_does_not_answer_any_more(world: World, chromium: Browser) -> None:
    with visit(chromium) as made:
        made.page.goto(world.origin)
        lost = made.page.get_by_role("alert")
        expect(lost).to_be_empty()
        world.agent.stop()
        expect(lost).to_contain_text("This node does not answer")
        assert row(made.page, "02:00:06.608")  # what was known is still there
        world.agent.start()
        expect(lost).to_be_empty()
        assert [text for text in made.complaints if EXPECTED_WHILE_DOWN not in text] == []


# -- searching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "found", "state"),
    [
        (MOMENT, 2, "visible"),
        ("2019-11-13T04:00:11+02:00", 2, "visible"),
        ("2019-11-13T02:00:03", 2, "hidden"),
        ("00:10.608", 2, "visible"),
        (f"{HOUR}/{segment_stem(2)}.ts", 1, "hidden"),
        (f"{HOUR}/{segment_stem(2)}.tombstone", 1, "hidden"),
        (f"https://archive.example/segments/{quote(HOUR)}/{quote(segment_stem(10))}.ts?x=1", 1, "visible"),
    ],
)
def test_a_segment_is_found(world: World, visitor: Visit, question: str, found: int, state: str) -> None:
    visitor.page.goto(world.origin)
    visitor.page.get_by_role("searchbox", name="Find a segment").fill(question)
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator(".found li")).to_have_count(found)
    for one in visitor.page.locator(".found li").all():
        expect(one.locator(".badge").first).to_have_text(state)
    if state == "hidden":
        expect(visitor.page.locator(".found dl").first).to_contain_text("node-b")
        expect(visitor.page.locator(".found dl").first).to_contain_text("confirmed")


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("yesterday", "is no time that can be read"),
        ("2019-13-13T02:00:00", "is no time that can be read"),
        ("2018-01-01T00:00:00", "Nothing of that name or time"),
        ("/etc/passwd", "not inside the segment tree"),
        (f"{HOUR}/../../passwd", "begins with a dot"),
        ("http://[", "not a URL"),
        ("<script>alert(1)</script>", "not inside the segment tree"),
        ("<script>alert(1)", "is no time that can be read"),
        ("45:51" + "x" * 2000, "Nothing of that name"),
    ],
)
def test_what_cannot_be_found_is_told(world: World, visitor: Visit, question: str, told: str) -> None:
    visitor.page.goto(f"{world.origin}/?q={quote(question)}")
    expect(visitor.page.locator(".answer")).to_contain_text(told)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]


# -- names ------------------------------------------------------------------------------------------------------------


def test_no_name_breaks_or_deceives(world: World, chromium: Browser, visitor: Visit) -> None:
    hour = make_hour(world.agent.root, "desertbus/source/2019-11-14T02", 0)
    paths = [hour / f"{stem}.tombstone" for stem in NASTY.values()]
    hidden_before = world.agent.metric("tombstones")
    for path in paths:
        path.touch()
    wait_for(lambda: world.agent.metric("tombstones") == hidden_before + len(paths), "all of them to be hidden")
    page = visitor.page
    page.goto(world.origin)
    rows = page.locator("#tombstones tbody tr", has_text="2019-11-14")
    expect(rows).to_have_count(len(NASTY))
    shown = {line.strip() for line in rows.locator(".path").all_inner_texts()}
    assert shown == set(SHOWN.values())
    assert page.locator("#tombstones img, #tombstones script, #tombstones b").count() == 0
    # What stands beside a name keeps its place: nothing of the name is read as part of it.
    for one in rows.all():
        expect(one.locator(".moment")).to_have_text("2019-11-14 02h")
        assert one.locator("bdi").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]
    # Each that may be asked for is found by its link, also one whose bytes are no text.
    for kind in ("markup", "quotes", "right to left", "not UTF-8", "long"):
        page.goto(world.origin)
        page.locator("#tombstones").get_by_role("link", name=SHOWN[kind], exact=True).click()
        expect(page.locator(".found li")).to_have_count(1)
        expect(page.locator(".found .path")).to_have_text(f"desertbus/source/2019-11-14T02/{SHOWN[kind]}")
    page.goto(world.origin)
    assert page.locator("#tombstones").get_by_role("link", name=SHOWN["controls"], exact=True).count() == 0
    with visit(chromium, viewport=PHONE) as phone:
        phone.page.goto(world.origin)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shutil.rmtree(hour)


# -- everybody's ------------------------------------------------------------------------------------------------------


def test_the_keyboard_reaches_everything_in_order(world: World, visitor: Visit) -> None:
    page = visitor.page
    page.goto(world.origin)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const it = document.activeElement; const style = getComputedStyle(it);"
                " return [it.id || it.textContent.trim(), style.outlineStyle !== 'none' && style.outlineWidth]; }"
            )
        )
        if reached[-1][0] == "readiness":
            break
    names = [name for name, _ in reached]
    assert names[:3] == ["Skip to the content", "question", "Find"]
    assert names[3:8] == ["Peers", "Takedowns", "This node", "Tombstones", "Coverage"]
    links = page.locator("#tombstones a").all_inner_texts()
    assert names[-3:] == ["metrics", "health", "readiness"]
    assert [name for name in names if name in links] == links
    assert {outline for _, outline in reached} == {"3px"}  # where one is can always be seen
    page.goto(world.origin)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["wide", "phone"])
def test_no_rule_of_accessibility_is_broken(
    world: World, chromium: Browser, tmp_path: Path, scheme: str, width: str
) -> None:
    viewport = WIDE if width == "wide" else PHONE
    with visit(chromium, color_scheme=scheme, viewport=viewport) as made:
        for path, name in (("/", "page"), (f"/?q={quote('2019-11-13T02:00:03')}", "search")):
            made.page.goto(world.origin + path)
            show_maps(made.page)
            made.page.screenshot(path=artefacts(tmp_path) / f"status-{name}-{scheme}-{width}.png", full_page=True)
            found = Axe().run(made.page)
            assert found.violations_count == 0, found.generate_report()
            assert made.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert made.complaints == []


def test_nothing_moves_for_who_wants_that(world: World, chromium: Browser) -> None:
    animations = {}
    for motion, second in (("reduce", 30), ("no-preference", 32)):
        with visit(chromium, reduced_motion=motion) as made:
            made.page.goto(world.origin)
            made.page.evaluate(
                "() => { window.added = []; new MutationObserver((changes) => { for (const change of changes)"
                " for (const it of change.addedNodes) if (it.id) window.added.push(getComputedStyle(it).animationName);"
                " }).observe(document.querySelector('#tombstones tbody'), { childList: true }); }"
            )
            world.mark(segment_stem(second))
            wait_for(lambda page=made.page: page.evaluate("window.added.length"), "the row to be there", pause_s=0.1)  # type: ignore[misc]
            animations[motion] = made.page.evaluate("window.added")
    assert animations == {"reduce": ["none"], "no-preference": ["fresh"]}


# -- what it costs, and what it allows --------------------------------------------------------------------------------


def ask(world: World, method: str, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    host, port = world.origin.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/live", "/static/page.js", "/static/page.css"])
def test_only_files_of_this_server_may_be_used_by_it(world: World, path: str) -> None:
    answer = ask(world, "GET", path)
    policy = dict(
        part.strip().partition(" ")[::2] for part in (answer.getheader("Content-Security-Policy") or "").split(";")
    )
    assert answer.status == 200
    assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
    assert set(policy.values()) == {"'self'"}
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(world, method, path).status == 405


def test_what_has_not_changed_is_not_sent_again(world: World) -> None:
    tag = ask(world, "GET", "/static/page.js").getheader("ETag")
    assert tag is not None
    assert ask(world, "GET", "/static/page.js", {"If-None-Match": tag}).status == 304
    assert ask(world, "GET", "/live").getheader("ETag") is not None
    assert ask(world, "GET", "/static/../app.py").status == 404
    assert ask(world, "GET", "/static/%2e%2e/app.py").status == 404


def test_the_page_is_there_while_the_node_is_not_ready(tmp_path: Path, chromium: Browser) -> None:
    agent = AgentProcess(tmp_path)
    make_hour(agent.root)
    agent.start().stop()
    shutil.move(agent.root, tmp_path / "elsewhere")
    agent.root.mkdir()
    with agent.ending(), in_front_of(agent.socket) as origin, visit(chromium) as made:
        agent.start(ready=False)
        wait_for(lambda: agent.get("/readyz")[0] == 503, "it to answer")
        made.page.goto(origin)
        expect(made.page.locator("#summary")).to_contain_text("paused")
        expect(made.page.locator("#problems")).to_contain_text("until the known segment tree is back")
        expect(made.page.locator("#node")).to_contain_text("not believed")
        assert made.complaints == []
        assert agent.stop() == 0

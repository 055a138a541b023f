"""nginx with systemd/nginx/tombsync.conf: what is hidden is 410 whatever the URL looks like, and all else stays."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.agent import HASH, segment_stem
from tests.support.nginx import ALIAS, INCLUDE, Nginx, ask_on

HOUR = "desertbus/source/2019-11-13T02"
VISIBLE, HIDDEN = segment_stem(0), segment_stem(2)
CONTENT = b"0123456789"
_ENCODED_DOT, _ENCODED_COLON, _ENCODED_SLASH = "%2E", "%3A", "%2F"

# How an operator may serve the tree: where its URLs begin, what stands in the server block, and before it.
LAYOUTS = {
    "alias": ("/segments", ALIAS, ""),
    "alias with slashes forgotten": ("/segments", "location /segments { alias {root}/; }", ""),
    "root": ("/segments", "location /segments/ { root {directory}; }", ""),
    "root of the server": ("/segments", "root {directory};", ""),
    "prefix with a slash at its end": ("/segments/", ALIAS, ""),
    "another prefix": ("/video/archive", "location /video/archive/ { alias {root}/; }", ""),
    "prefix of odd characters": ("/a.b+(c)", "location '/a.b+(c)/' { alias {root}/; }", ""),
    "regular expression": ("/segments", r"location ~ ^/segments/(.+\.(?:ts|json))$ { alias {root}/$1; }", ""),
    "try_files": ("/segments", "location /segments/ { root {directory}; try_files $uri $uri.ts $uri/ =404; }", ""),
    "exact prefix": ("/segments", "location ^~ /segments/ { alias {root}/; } location ~ .ts$ { return 418; }", ""),
    "another program": (
        "/segments",
        "location / { proxy_pass http://unix:{directory}/other.sock; }",
        "server { listen unix:{directory}/other.sock; location /segments/ { alias {root}/; } }",
    ),
    "a cache of open files": (
        "/segments",
        ALIAS,
        "open_file_cache max=1000 inactive=60s; open_file_cache_valid 60s; open_file_cache_errors on;"
        " open_file_cache_min_uses 1;",
    ),
    "a cache of open files in the location": (
        "/segments",
        "location /segments/ { alias {root}/; open_file_cache max=1000; open_file_cache_errors on; }",
        "",
    ),
    "slashes are not merged": ("/segments", "merge_slashes off;" + ALIAS, ""),
    "slashes are not merged, root": ("/segments", "merge_slashes off; root {directory};", ""),
}


@pytest.fixture(params=LAYOUTS)
def served(request: pytest.FixtureRequest) -> Iterator[Nginx]:
    """nginx in each of the layouts, one segment of each kind in its tree hidden."""
    prefix, server, http = LAYOUTS[request.param]
    with Nginx(server, prefix=prefix, http=http) as nginx:
        fill(nginx.root)
        yield nginx


@pytest.fixture
def nginx() -> Iterator[Nginx]:
    """nginx in the first layout."""
    with Nginx() as nginx:
        fill(nginx.root)
        yield nginx


def fill(root: Path) -> Path:
    """Two hours of two segments and two chat batches, of which one each is hidden in the first hour."""
    for hour in (HOUR, HOUR.replace("source", "160p")):
        directory = root / hour
        directory.mkdir(parents=True)
        for name in (f"{VISIBLE}.ts", f"{HIDDEN}.ts", f"45:00-{HASH}.json", f"46:00-{HASH}.json"):
            (directory / name).write_bytes(CONTENT)
    (root / HOUR / f"{HIDDEN}.tombstone").touch()
    (root / HOUR / f"46:00-{HASH}.tombstone").touch()
    return root / HOUR


def prefix_of(nginx: Nginx) -> str:
    return nginx.prefix.rstrip("/")


def test_hidden_segments_are_gone_and_all_else_is_served(served: Nginx) -> None:
    hour = f"{prefix_of(served)}/{HOUR}"
    other = hour.replace("source", "160p")
    answer = served.ask(f"{hour}/{VISIBLE}.ts")
    assert (answer.status, answer.body) == (200, CONTENT)
    for path in (f"{hour}/45:00-{HASH}.json", f"{other}/{HIDDEN}.ts", f"{other}/46:00-{HASH}.json"):
        assert served.status(path) == 200
    for path in (f"{hour}/{HIDDEN}.ts", f"{hour}/46:00-{HASH}.json"):
        answer = served.ask(path)
        assert answer.status == 410 and CONTENT not in answer.body
        assert answer.headers["Cache-Control"] == "no-store"
    assert served.status(f"{hour}/{HIDDEN}.json") == 410  # it hides both, there or not
    assert served.status(f"{hour}/{segment_stem(4)}.ts") == 404


def test_from_the_touch_on(served: Nginx) -> None:
    hour = f"{prefix_of(served)}/{HOUR}"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        assert ask_on(connection, f"{hour}/{VISIBLE}.ts").status == 200  # and whatever is kept of it is kept
        (served.root / HOUR / f"{VISIBLE}.tombstone").touch()
        assert ask_on(connection, f"{hour}/{VISIBLE}.ts").status == 410
    assert served.status(f"{hour}/{VISIBLE}.ts") == 410
    assert served.status(f"{hour}/45:00-{HASH}.json") == 200
    (served.root / HOUR / f"{VISIBLE}.tombstone").unlink()
    assert served.status(f"{hour}/{VISIBLE}.ts") == 200


def test_tombstones_and_what_no_archive_lists_are_not_served(served: Nginx) -> None:
    prefix = prefix_of(served)
    hour, directory = f"{prefix}/{HOUR}", served.root / HOUR
    note = b'reason = "shows a face"'
    (directory / f"{HIDDEN}.tombstone").write_bytes(note)
    (directory / f"{VISIBLE}.ts.tombstone").write_bytes(note)  # a likely mistake, which hides nothing
    (directory / "directory.tombstone").mkdir()
    (served.root / "stray.tombstone").write_bytes(note)
    gone = [f"{HOUR}/{HIDDEN}.tombstone", f"{HOUR}/{VISIBLE}.ts.tombstone", f"{HOUR}/never-was.tombstone"]
    gone += [f"{HOUR}/directory.tombstone", f"{HOUR}/directory.tombstone/", "stray.tombstone"]
    for path in gone:
        answer = served.ask(f"{prefix}/{path}")
        assert answer.status == 410 and note not in answer.body, path
    assert served.status(f"{hour}/{VISIBLE}.ts") == 200

    copies = [
        f"{HIDDEN}.ts.bak",
        f"{HIDDEN}.TS",
        f"{HIDDEN}.mp4",
        f".{HIDDEN}.ts",
        HIDDEN,
        f"{HIDDEN}.ts.gz",
        ".a.json",
    ]
    copies += [f"below/{HIDDEN}.ts", ".below/a.ts", f"2019-11-13T02/{HIDDEN}.ts"]
    for copy in copies:
        (directory / copy).parent.mkdir(exist_ok=True)
        (directory / copy).write_bytes(CONTENT)
        assert served.status(f"{hour}/{copy}") == 404, copy


def test_the_agents_own_directory_is_never_served(served: Nginx) -> None:
    (served.root / ".tombsync" / "root-1").write_bytes(CONTENT)
    for path in (
        ".tombsync",
        ".tombsync/",
        ".tombsync/root-1",
        "%2Etombsync/root-1",
        f"{HOUR}/../../../.tombsync/root-1",
    ):
        assert served.status(f"{prefix_of(served)}/{path}") == 404, path


def test_other_files_of_the_tree_and_of_the_server_are_served_as_before() -> None:
    other = "location /other/ { alias {directory}/other/; }"
    with Nginx(ALIAS + other) as nginx:
        fill(nginx.root)
        (nginx.directory / "other" / HOUR).mkdir(parents=True)
        for name in (f"{HIDDEN}.tombstone", f"{HIDDEN}.ts", ".dotted", f"{HOUR}/{HIDDEN}.tombstone", f"{HOUR}/a.png"):
            (nginx.directory / "other" / name).write_bytes(CONTENT)
            assert nginx.status(f"/other/{name}") == 200, name
        for name in ("coverage-maps/a.png", "emotes/1.json", "desertbus/a.m3u8", f"{HOUR[:-3]}/a.png"):
            (nginx.root / name).parent.mkdir(parents=True, exist_ok=True)
            (nginx.root / name).write_bytes(CONTENT)
            assert nginx.status(f"/segments/{name}") == 200, name
        assert nginx.status(f"/segments/{HOUR}/") == 403  # nginx makes no listing unasked
        assert nginx.status(f"/segments/{HOUR}") == 301


# -- spellings ---------------------------------------------------------------------------------------------------------


def spellings(path: str) -> dict[str, str]:
    """Ways to write `/segments/…` that mean the same file to nginx, if slashes are merged."""
    start, name = path.rsplit("/", 1)
    return {
        "plain": path,
        "colons": path.replace(":", _ENCODED_COLON),
        "colons, lower case": path.replace(":", "%3a"),
        "dots": path.replace(".", _ENCODED_DOT),
        "everything": "".join(f"%{ord(char):02X}" if char != "/" else char for char in path),
        "slashes": "/" + path[1:].replace("/", _ENCODED_SLASH),
        "one letter": path.replace("t", "%74"),
        "doubled slashes": path.replace("/", "//"),
        "many slashes": f"{start}/////{name}",
        "doubled in front": f"/{path}",
        "dot segments": f"{start}/.//./{name}",
        "up and down": f"{start}/x/../{name}",
        "up and down, encoded": f"{start}/x/%2E%2e/{name}",
        "up to the root": f"/x/y/../../{path}",
        "up too far and back": f"{start}/../../../../segments/{path.removeprefix('/segments/')}",
        "an argument": f"{path}?x=/y.ts",
        "an absolute URL": f"http://archive.example{path}",
        "a fragment": f"{path}#x",
    }


@pytest.mark.parametrize("spelling", spellings("/"))
@pytest.mark.parametrize("merged", ["on", "off"])
def test_however_a_url_is_spelled(spelling: str, merged: str) -> None:
    with Nginx(f"merge_slashes {merged}; root {{directory}};") as nginx:
        fill(nginx.root)
        for stem, status in ((VISIBLE, 200), (HIDDEN, 410)):
            assert nginx.status(spellings(f"/segments/{HOUR}/{stem}.ts")[spelling]) == status
        tombstone = spellings(f"/segments/{HOUR}/{HIDDEN}.tombstone")[spelling]
        assert nginx.status(tombstone) == 410


@pytest.mark.parametrize("merged", ["on", "off"])
def test_slashes_within_the_prefix_and_behind_it(merged: str) -> None:
    """Where root or alias serve the same file under more names than the prefix says."""
    with Nginx(f"merge_slashes {merged}; location / {{ root {{directory}}/up; }}", prefix="/down/segments") as nginx:
        (nginx.directory / "up" / "down").mkdir(parents=True)
        (nginx.directory / "up" / "down" / "segments").symlink_to(nginx.root)
        fill(nginx.root)
        assert nginx.status(f"/down/segments/{HOUR}/{VISIBLE}.ts") == 200
        for prefix in ("/down/segments", "//down//segments", "/down///segments", "/down/x/..//segments"):
            assert nginx.status(f"{prefix}/{HOUR}/{HIDDEN}.ts") in (404, 410)
            assert nginx.status(f"{prefix}/{HOUR}/{VISIBLE}.ts") in (200, 404)
    with Nginx(f"merge_slashes {merged}; location /segments {{ alias {{root}}/; }}") as nginx:
        fill(nginx.root)
        (nginx.root / ".tombsync" / "root-1").touch()
        for path in (f"/segments{HOUR}/{HIDDEN}.ts", f"/segments{HOUR}/{HIDDEN}.tombstone"):
            assert nginx.status(path) == 410
        for path in (f"/segments../segments/{HOUR}/{HIDDEN}.ts", "/segments.tombsync/root-1"):
            assert nginx.status(path) == 404
        assert nginx.status(f"/segments{HOUR}/{VISIBLE}.ts") == 200


@pytest.mark.parametrize(
    "stem",
    [
        "a.b+(c)[d]{e}*?$^|\\",
        "$uri",
        "%41",
        "a b\tc",
        "line\nfeed",
        "q\"u'o;t`e#",
        "a|b|c",
        "…-é-☃",
        "caf\udce9",  # no UTF-8
        "x" * 245,  # its tombstone's name is as long as a name can be
        "a.ts",
        "a.json",
        "..a",
        "-",
    ],
)
def test_names_of_whatever_characters(nginx: Nginx, stem: str) -> None:
    directory = nginx.root / HOUR
    url = f"/segments/{HOUR}/" + "".join(f"%{byte:02x}" for byte in os.fsencode(stem))
    for extension in (".ts", ".json"):
        (directory / f"{stem}{extension}").write_bytes(CONTENT)
        assert nginx.status(f"{url}{extension}") == (404 if stem.startswith(".") else 200)
    (directory / f"{stem}.tombstone").touch()
    for extension in (".ts", ".json"):
        assert nginx.status(f"{url}{extension}") == (404 if stem.startswith(".") else 410)
    assert nginx.status(f"/segments/{HOUR}/{VISIBLE}.ts") == 200


def test_a_name_too_long_for_a_tombstone_is_visible(nginx: Nginx) -> None:
    name = "x" * 252 + ".ts"
    (nginx.root / HOUR / name).write_bytes(CONTENT)
    assert nginx.status(f"/segments/{HOUR}/{name}") == 200


def test_case_and_extensions_are_told_apart(nginx: Nginx) -> None:
    directory = nginx.root / HOUR
    for name in ("a.ts", "A.ts", "a.ts.ts", "b.ts", "b.ts.tombstone", "c.ts", "c.Tombstone", "d.ts", "D.tombstone"):
        (directory / name).write_bytes(CONTENT)
    (directory / "A.tombstone").touch()
    statuses = {name: nginx.status(f"/segments/{HOUR}/{name}.ts") for name in ("a", "A", "a.ts", "b", "c", "d")}
    assert statuses == {"a": 200, "A": 410, "a.ts": 200, "b": 200, "c": 200, "d": 200}
    (directory / "a.ts.tombstone").touch()  # hides a.ts.ts, as the archive's listing has it, and not a.ts
    assert (nginx.status(f"/segments/{HOUR}/a.ts.ts"), nginx.status(f"/segments/{HOUR}/a.ts")) == (410, 200)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_heads_ranges_and_conditions(nginx: Nginx) -> None:
    visible, hidden = (f"/segments/{HOUR}/{stem}.ts" for stem in (VISIBLE, HIDDEN))
    seen = nginx.ask(visible)
    etag, modified = seen.headers["ETag"], seen.headers["Last-Modified"]
    requests: list[tuple[str, dict[str, str], int]] = [
        ("HEAD", {}, 200),
        ("GET", {"Range": "bytes=2-4"}, 206),
        ("GET", {"Range": "bytes=0-0,3-4"}, 206),
        ("GET", {"Range": "bytes=99-"}, 416),
        ("GET", {"If-None-Match": etag}, 304),
        ("GET", {"If-Modified-Since": modified}, 304),
        ("GET", {"Range": "bytes=2-4", "If-Range": etag}, 206),
        ("POST", {"Content-Length": "0"}, 405),
    ]
    assert nginx.ask(visible, headers={"Range": "bytes=2-4"}).body == CONTENT[2:5]
    for method, headers, status in requests:
        assert nginx.status(visible, method, headers) == status, (method, headers)
        answer = nginx.ask(hidden, method, headers)
        assert answer.status == 410 and not set(answer.headers) & {"ETag", "Last-Modified", "Content-Range"}
    # What a client remembers of a segment that is hidden meanwhile.
    (nginx.root / HOUR / f"{VISIBLE}.tombstone").touch()
    now = formatdate(usegmt=True)
    for headers in ({"If-None-Match": etag}, {"If-Modified-Since": modified}, {"If-Modified-Since": now}):
        assert nginx.status(visible, headers=headers) == 410


def test_urls_that_are_none_are_refused(nginx: Nginx) -> None:
    for path in (f"/segments/{HOUR}/{HIDDEN}.ts%00", f"/segments/{HOUR}/{HIDDEN}%zz.ts", "/../../etc/passwd.ts"):
        assert nginx.status(path) == 400
    for path in (f"{HIDDEN}.ts/", f"{HIDDEN}.ts/.", f"{HIDDEN}.ts%0a", f"{HIDDEN}.ts;a", f"{HIDDEN}.ts%20"):
        assert nginx.status(f"/segments/{HOUR}/{path}") in (404, 410)
        assert nginx.status(f"/segments/{HOUR}/{path.replace(HIDDEN, VISIBLE)}") == 404


def test_redirects_within_nginx_lead_to_the_same_rules() -> None:
    """try_files and error_page with a URL as their last resort, and X-Accel-Redirect of another program."""
    http = (
        "server { listen unix:{directory}/other.sock;"
        f" location / {{ add_header X-Accel-Redirect /segments/{HOUR}/$arg_stem.ts; return 200; }} }}"
    )
    server = (
        f"location /by-try/ {{ try_files /none /segments/{HOUR}/$arg_stem.ts; }}"
        f" location /by-error/ {{ error_page 404 = /segments/{HOUR}/$arg_stem.ts; return 404; }}"
        " location /by-other/ { proxy_pass http://unix:{directory}/other.sock; }"
    )
    with Nginx(ALIAS + server, http=http) as nginx:
        fill(nginx.root)
        for way in ("by-try", "by-error", "by-other"):
            assert nginx.status(f"/{way}/?stem={VISIBLE}") == 200, way
            assert nginx.status(f"/{way}/?stem={HIDDEN}") == 410, way


def test_a_rewrite_of_the_server_block_is_followed() -> None:
    with Nginx(include="rewrite ^/live/(.*)$ /segments/$1;" + INCLUDE) as nginx:
        fill(nginx.root)
        assert nginx.status(f"/live/{HOUR}/{VISIBLE}.ts") == 200
        assert nginx.status(f"/live/{HOUR}/{HIDDEN}.ts") == 410


# -- the file system ---------------------------------------------------------------------------------------------------


def test_a_directory_or_link_at_the_tombstones_name_hides(nginx: Nginx) -> None:
    directory = nginx.root / HOUR
    for stem in ("directory", "link"):
        (directory / f"{stem}.ts").write_bytes(CONTENT)
        assert nginx.status(f"/segments/{HOUR}/{stem}.ts") == 200
    (directory / "directory.tombstone").mkdir()
    (directory / "link.tombstone").symlink_to(f"{HIDDEN}.tombstone")
    for stem in ("directory", "link"):
        assert nginx.status(f"/segments/{HOUR}/{stem}.ts") == 410


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")], ids=["fifo", "link to nothing"])
def test_what_is_no_file_to_nginx_is_the_one_tombstone_that_is_not_seen(
    nginx: Nginx, make: Callable[[Path], None]
) -> None:
    """As the snippet says; tests/system/test_auth_request.py has the way to see it."""
    make(nginx.root / HOUR / f"{VISIBLE}.tombstone")
    assert nginx.status(f"/segments/{HOUR}/{VISIBLE}.ts") == 200


def test_linked_directories_are_closed_by_the_tombstones_in_them(nginx: Nginx) -> None:
    (nginx.root / "desertbus/source/2019-11-13T03").symlink_to("2019-11-13T02")
    (nginx.root / "linked").symlink_to("desertbus")
    (nginx.root / HOUR / "linked.ts").symlink_to(f"{VISIBLE}.ts")
    for hour in (HOUR.replace("T02", "T03"), HOUR.replace("desertbus", "linked")):
        assert nginx.status(f"/segments/{hour}/{HIDDEN}.ts") == 410
        assert nginx.status(f"/segments/{hour}/{VISIBLE}.ts") == 200
    assert nginx.status(f"/segments/{HOUR}/linked.ts") == 200


@pytest.mark.parametrize("http", ["", "disable_symlinks on;", "disable_symlinks if_not_owner;"])
def test_a_tombstone_that_nginx_may_not_read_hides_all_the_same(http: str) -> None:
    with Nginx(http=http) as nginx:
        directory = fill(nginx.root)
        (directory / f"{VISIBLE}.tombstone").touch()
        (directory / f"{VISIBLE}.tombstone").chmod(0)
        assert nginx.status(f"/segments/{HOUR}/{VISIBLE}.ts") == 410


def test_a_location_may_refuse_links_for_itself() -> None:
    with Nginx("location /segments/ { alias {root}/; disable_symlinks on from={root}; }") as nginx:
        directory = fill(nginx.root)
        (directory / "linked.ts").symlink_to(f"{HIDDEN}.ts")
        statuses = [nginx.status(f"/segments/{HOUR}/{stem}.ts") for stem in (VISIBLE, HIDDEN, "linked")]
        assert statuses == [200, 410, 403]


def test_a_tree_that_is_not_there_is_not_taken_for_one_without_tombstones() -> None:
    """Mistyped, not mounted, or another directory."""
    include = INCLUDE.replace("{root}", "{directory}/tree")
    with Nginx(ALIAS + "location /page/ { return 418; }", include=include) as nginx:
        fill(nginx.root)
        (nginx.root / "desertbus" / "page.html").touch()
        for made in (None, nginx.directory / "tree"):
            if made is not None:
                made.mkdir()
            assert nginx.status(f"/segments/{HOUR}/{VISIBLE}.ts") == 503
            assert nginx.status(f"/segments/{HOUR}/{HIDDEN}.ts") == 503
            assert nginx.status(f"/segments/{HOUR}/{HIDDEN}.tombstone") == 410
            assert nginx.status("/segments/desertbus/page.html") == 200
            assert nginx.status("/page/") == 418
        (nginx.directory / "tree" / ".tombsync").mkdir()
        assert nginx.status(f"/segments/{HOUR}/{VISIBLE}.ts") == 200


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["tombsync_prefix", "tombsync_tree"])
def test_nginx_says_what_is_missing(variable: str) -> None:
    include = "\n".join(line for line in INCLUDE.splitlines() if f"set ${variable}" not in line)
    made = Nginx(include=include)
    try:
        assert f'unknown "{variable}" variable' in made.refusal()
    finally:
        made.close()


def test_a_prefix_that_the_rules_cannot_take_closes_everything() -> None:
    with Nginx("location '/a|b/' { alias {root}/; }", prefix="/a|b") as nginx:
        fill(nginx.root)
        assert [nginx.status(f"/a|b/{HOUR}/{stem}.ts") for stem in (VISIBLE, HIDDEN)] == [500, 500]


@pytest.mark.parametrize("setting", ["open_file_cache max=100;", "disable_symlinks on;"])
def test_nginx_says_what_would_work_against_it(setting: str) -> None:
    made = Nginx(setting + ALIAS)
    try:
        assert "directive is duplicate" in made.refusal()
    finally:
        made.close()


def test_nothing_is_logged_but_what_is_missing(served: Nginx) -> None:
    hour = f"{prefix_of(served)}/{HOUR}"
    for path in (f"{hour}/{VISIBLE}.ts", f"{hour}/{HIDDEN}.ts", f"{hour}/{HIDDEN}.tombstone", f"{hour}/.a"):
        served.ask(path)
    assert served.errors == []


def test_the_answer_has_no_url_of_its_own(nginx: Nginx) -> None:
    assert nginx.status("/tombsync-gone") == 404

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tombsync.config import (
    BreakerSettings,
    HttpSettings,
    InboxSettings,
    Listen,
    PeerSettings,
    RescanSettings,
    SenderSettings,
    Settings,
    document,
    load,
    split_listen,
)
from tombsync.errors import BadSettings, Problem

EVERY_KEY = """
node = "node-a"
root = "/segments"
state_dir = "/var/lib/tombsync"

[http]
listen = "unix:/run/tombsync/http.sock"

[rescan]
interval_s = 60
full_interval_s = 3600

[inbox]
jail = "/jail"
quota_per_hour = 5

[breaker]
most_per_minute = 7

[[sender]]
name = "node-b"
account = "ts-b"

[[sender]]
name = "C.example"

[[peer]]
name = "node-b"
host = "b.example"
port = 2222
user = "sync"
key = "/etc/tombsync/other_key"
known_hosts = "/etc/tombsync/other_hosts"
delivery = "inbox"
path = "/tree"
verify_interval_s = 600

[[peer]]
host = "c.example"
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's settings nor its name nor its user's directories are looked at."""
    monkeypatch.setattr(document, "DEFAULT_PATH", str(tmp_path / "default.toml"))
    monkeypatch.setattr(socket, "gethostname", lambda: "This-Host")
    monkeypatch.setenv("HOME", "/home/operator")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.toml"


def read(file: Path, text: str, **overrides: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return load(str(file), **overrides)


def refusals(file: Path, text: str | bytes, **overrides: str) -> tuple[Problem, ...]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadSettings) as caught:
        load(str(file), **overrides)
    return caught.value.problems


def refusal(file: Path, text: str | bytes, **overrides: str) -> Problem:
    problems = refusals(file, text, **overrides)
    assert len(problems) == 1, problems
    return problems[0]


# -- what is allowed ---------------------------------------------------------------------------------------------------


def test_every_key_is_read(file: Path) -> None:
    settings = read(file, EVERY_KEY)
    assert (settings.node, settings.root, settings.state_dir) == ("node-a", "/segments", "/var/lib/tombsync")
    assert settings.http.listen == "unix:/run/tombsync/http.sock"
    assert (settings.rescan.interval_s, settings.rescan.full_interval_s) == (60, 3600)
    assert settings.inbox == InboxSettings(jail="/jail", quota_per_hour=5)
    assert (settings.inbox.view, settings.inbox.directory("ts-b")) == ("/jail/segments", "/jail/inbox/ts-b")
    assert settings.breaker.most_per_minute == 7
    assert settings.senders == (
        SenderSettings(name="node-b", account="ts-b"),
        SenderSettings(name="C.example", account="tombsync-c-example"),
    )
    assert settings.peers[0] == PeerSettings(
        name="node-b",
        host="b.example",
        port=2222,
        user="sync",
        key="/etc/tombsync/other_key",
        known_hosts="/etc/tombsync/other_hosts",
        delivery="inbox",
        path="/tree",
        verify_interval_s=600,
    )


def test_every_key_but_host_has_its_default(file: Path) -> None:
    settings = read(file, '[[peer]]\nhost = "c.example"\n')
    assert settings == Settings(
        node="This-Host",
        root="/segments",
        state_dir="/var/lib/tombsync",
        http=HttpSettings(listen="127.0.0.1:9786"),
        rescan=RescanSettings(interval_s=300, full_interval_s=86400),
        inbox=InboxSettings(jail="/srv/tombsync", quota_per_hour=10_000),
        breaker=BreakerSettings(most_per_minute=500),
        senders=(),
        peers=(
            PeerSettings(
                name="c.example",
                host="c.example",
                port=22,
                user="tombsync",
                key="/etc/tombsync/id_ed25519",
                known_hosts="/etc/tombsync/known_hosts",
                delivery="tree",
                path="/segments",
                verify_interval_s=3600,
            ),
        ),
    )


def test_settings_cannot_be_changed(file: Path) -> None:
    settings = read(file, EVERY_KEY)
    with pytest.raises(pydantic.ValidationError):
        settings.root = "/other"
    assert isinstance(settings.peers, tuple)
    assert hash(settings) == hash(read(file, EVERY_KEY))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("/segments/", "/segments"), ("//segments//x/./y", "/segments/x/y"), ("/é ~", "/é ~")],
)
def test_a_path_is_read_in_one_form(file: Path, written: str, meant: str) -> None:
    assert read(file, f'root = "{written}"').root == meant


@pytest.mark.parametrize("host", ["b", "b.example", "B.example.", "node_1", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
def test_hosts_that_are_taken(file: Path, host: str) -> None:
    assert read(file, f'[[peer]]\nname = "b"\nhost = "{host}"').peers[0].host == host


def test_two_trees_on_one_host_are_two_peers(file: Path) -> None:
    text = "".join(f'[[peer]]\nname = "b{n}"\nhost = "b"\npath = "/segments{n}"\n' for n in range(3))
    assert len(read(file, text).peers) == 3


@pytest.mark.parametrize("change", ["port = 2222", 'user = "other"', 'path = "/other"'])
def test_what_tells_two_targets_apart(file: Path, change: str) -> None:
    peers = f'[[peer]]\nname = "b1"\nhost = "b"\n[[peer]]\nname = "b2"\nhost = "b"\n{change}\n'
    assert len(read(file, peers).peers) == 2


# -- where settings come from ------------------------------------------------------------------------------------------


def test_without_a_file_there_are_no_peers_and_the_state_is_the_users() -> None:
    settings = load(None, root="/tmp/tree")
    assert settings.root == "/tmp/tree"
    assert settings.peers == ()
    assert settings.state_dir == "/home/operator/.local/state/tombsync"
    assert settings.node == "This-Host"
    assert load(None).root == "/segments"


def test_the_users_state_directory_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert load(None).state_dir == "/elsewhere/tombsync"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert load(None).state_dir == "/home/operator/.local/state/tombsync"


def test_the_default_file_is_read_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text('node = "from-file"', encoding="utf-8")
    settings = load(None)
    assert (settings.node, settings.state_dir) == ("from-file", "/var/lib/tombsync")


def test_a_default_file_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "default.toml").mkdir()
    with pytest.raises(BadSettings, match="cannot be read: Is a directory"):
        load(None)


def test_an_empty_file_is_a_file(file: Path) -> None:
    assert read(file, "").state_dir == "/var/lib/tombsync"


def test_the_command_line_wins(file: Path) -> None:
    settings = read(file, EVERY_KEY, node="n", root="/r", state_dir="/s", listen="127.0.0.1:1")
    assert (settings.node, settings.root, settings.state_dir, settings.http.listen) == ("n", "/r", "/s", "127.0.0.1:1")
    assert read(file, "", listen="127.0.0.1:1").http.listen == "127.0.0.1:1"
    assert read(file, 'root = "relative"', root="/r").root == "/r"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ({"node": "a b"}, "node"),
        ({"root": "relative"}, "root"),
        ({"state_dir": ""}, "state_dir"),
        ({"listen": "9786"}, "http.listen"),
    ],
)
def test_the_command_line_is_checked_likewise(file: Path, override: dict[str, str], key: str) -> None:
    problem = refusal(file, EVERY_KEY, **override)
    assert (problem.file, problem.key) == ("command line", key)
    with pytest.raises(BadSettings) as caught:
        load(None, root=override.pop("root", "/r"), **override)
    assert [(p.file, p.key) for p in caught.value.problems] == [("command line", key)]


def test_problems_of_the_file_and_of_the_command_line_come_together(file: Path) -> None:
    problems = refusals(file, "http = 3\n[rescan]\ninterval_s = 0", root="relative", listen="127.0.0.1:1")
    assert {(p.file, p.key) for p in problems} == {
        ("command line", "root"),
        (str(file), "http"),
        (str(file), "rescan.interval_s"),
    }


def test_a_host_name_that_is_no_node_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "(none)")
    problem = refusal(file, "")
    assert (problem.file, problem.key, problem.value) == ("environment", "node", '"(none)"')
    assert str(file) in problem.allowed
    assert read(file, 'node = "a"').node == "a"


# -- files that are none -----------------------------------------------------------------------------------------------


def test_a_named_file_must_exist(file: Path) -> None:
    with pytest.raises(BadSettings) as caught:
        load(str(file))
    assert caught.value.problems == (
        Problem(str(file), "settings file", "", "cannot be read: No such file or directory"),
    )


def test_a_file_below_something_that_is_no_directory(file: Path) -> None:
    file.touch()
    with pytest.raises(BadSettings, match="cannot be read: Not a directory"):
        load(f"{file}/tombsync.toml")


@pytest.mark.parametrize(
    ("text", "place", "allowed"),
    [
        (b'node = "a"\n\nroot = "/\xff"\n', "line 3", "not UTF-8"),
        (b'node = "a"\nroot /segments\nfoo\n', "line 2", "not TOML: Expected '='"),
        (b"[http]\n[http]\n", "line 2", "not TOML: Cannot declare"),
        (b'["a (at line 9, column 9)"]\n["a (at line 9, column 9)"]\n', "line 2", "not TOML: Cannot declare"),
        (b"root", "end of document", "not TOML: Expected '='"),
        (b"a = " + b"[" * 100_000, "settings file", "nested too deeply"),
        (b"a = " + b"1" * 5_000, "settings file", "a number is too long"),
    ],
)
def test_a_file_that_is_not_toml_is_one_problem_with_its_line(
    file: Path, text: bytes, place: str, allowed: str
) -> None:
    problem = refusal(file, text, root="relative")
    assert (problem.file, problem.key, problem.value) == (str(file), place, "")
    assert allowed in problem.allowed


# -- single values -----------------------------------------------------------------------------------------------------

NAMES = ["", "a b", "a/b", "é", "a" * 65, "a\\n", "a\\u0000", ".", "..", ".a", "-a", "a:b"]
PATHS = ["", "segments", "./segments", "~/segments", "/a/../b", "/..", "/a\\n", "/a\\u0000", "/a\\u0085"]


@pytest.mark.parametrize("value", NAMES)
def test_a_node_that_is_no_name(file: Path, value: str) -> None:
    problem = refusal(file, f'node = "{value}"')
    assert (problem.file, problem.key) == (str(file), "node")
    assert "1 to 64 letters, digits" in problem.allowed
    assert "\n" not in str(problem)


@pytest.mark.parametrize("value", NAMES)
def test_a_peer_that_has_no_name(file: Path, value: str) -> None:
    problem = refusal(file, f'[[peer]]\nhost = "b"\nname = "{value}"')
    assert problem.key.startswith("peer 1 (")
    assert problem.key.endswith("): name")
    assert "1 to 64 letters, digits" in problem.allowed
    assert str(problem).isprintable()


@pytest.mark.parametrize("value", ["a", "A.b-c_d", "_", "0", "a" * 64])
def test_names_that_are_taken(file: Path, value: str) -> None:
    assert read(file, f'node = "{value}"').node == value
    assert read(file, f'[[peer]]\nhost = "b"\nname = "{value}"').peers[0].name == value


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize("key", ["root", "state_dir", "peer 1 (b): path", "peer 1 (b): key", "peer 1 (b): known_hosts"])
def test_a_path_that_is_not_absolute_or_not_plain(file: Path, key: str, value: str) -> None:
    above, _, name = key.rpartition(": ")
    table = '[[peer]]\nhost = "b"\n' if above else ""
    problem = refusal(file, f'{table}{name} = "{value}"')
    assert problem.key == key
    assert problem.allowed == "an absolute path, without .. and control characters"
    assert str(problem).isprintable()


@pytest.mark.parametrize(
    ("table", "line", "allowed"),
    [
        ("", "node = 1", "1 to 64 letters"),
        ("", "root = true", "an absolute path"),
        ("", "http = 1", "a table, written under [http]"),
        ("", "rescan = []", "a table, written under [rescan]"),
        ("http", 'listen = "9786"', '"127.0.0.1:9786"'),
        ("http", "listen = 9786", '"127.0.0.1:9786"'),
        ("rescan", "interval_s = 0", "a whole number of seconds from 1 to"),
        ("rescan", "interval_s = -1", "a whole number of seconds"),
        ("rescan", "interval_s = 1.5", "a whole number of seconds"),
        ("rescan", "interval_s = true", "a whole number of seconds"),
        ("rescan", 'interval_s = "300"', "a whole number of seconds"),
        ("rescan", "interval_s = nan", "a whole number of seconds"),
        ("rescan", "interval_s = 2026-01-01", "a whole number of seconds"),
        ("rescan", "full_interval_s = 99999999999", "a whole number of seconds"),
        ("peer", "port = 0", "a whole number from 1 to 65535"),
        ("peer", "port = 65536", "a whole number from 1 to 65535"),
        ("peer", 'port = "22"', "a whole number from 1 to 65535"),
        ("peer", 'user = ""', "an account's name"),
        ("peer", 'user = "a b"', "an account's name"),
        ("peer", 'user = "a\\u001b"', "an account's name"),
        ("peer", 'delivery = "pull"', '"tree" or "inbox"'),
        ("peer", "delivery = 1", '"tree" or "inbox"'),
        ("peer", "verify_interval_s = 0", "a whole number of seconds"),
        ("peer", "verify_interval_s = 0x" + "f" * 5_000, "a whole number of seconds"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_what_is(file: Path, table: str, line: str, allowed: str) -> None:
    head = '[[peer]]\nhost = "b"' if table == "peer" else f"[{table}]" if table else ""
    problem = refusal(file, f"{head}\n{line}\n")
    key, _, value = line.partition(" = ")
    assert problem.file == str(file)
    assert problem.key == {"peer": f"peer 1 (b): {key}", "": key}.get(table, f"{table}.{key}")
    assert allowed in problem.allowed
    if len(value) < 80 and value != "[]" and "\\" not in value:
        assert problem.value == value


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a/b", "user@b", "b:22", "[::1]", "::g", "-oProxyCommand=x", "a\\n", "fe80::1%\\u001b", "a" * 300],
)
def test_a_host_that_is_none_is_one_problem(file: Path, host: str) -> None:
    problem = refusal(file, f'[[peer]]\nhost = "{host}"')
    assert problem.key.startswith("peer 1")
    assert problem.key.endswith(": host")
    assert "a host name or IP address alone" in problem.allowed
    assert str(problem).isprintable()


@pytest.mark.parametrize("host", ["2001:db8::1", "x" * 65 + ".example", "b.example."])
def test_a_host_that_cannot_be_the_name(file: Path, host: str) -> None:
    text = f'[[peer]]\nhost = "{host}"\n'
    if host == "b.example.":
        assert read(file, text).peers[0].name == host
        return
    problem = refusal(file, text)
    assert problem.key.endswith(": name")
    assert problem.value == f'"{host}"'
    assert "give it one" in problem.allowed
    assert read(file, text + 'name = "b"').peers[0].name == "b"


def test_a_peer_without_a_host(file: Path) -> None:
    problem = refusal(file, '[[peer]]\nname = "b"')
    assert problem == Problem(
        str(file),
        "peer 1 (b): host",
        "",
        "must be given: a host name or IP address alone (user and port have keys of their own)",
    )


@pytest.mark.parametrize("text", ["peer = 1", '[peer]\nhost = "b"', 'peer = "b"'])
def test_peers_that_are_no_list_of_tables(file: Path, text: str) -> None:
    problem = refusal(file, text)
    assert problem.key == "peer"
    assert "[[peer]]" in problem.allowed


def test_a_peer_that_is_no_table(file: Path) -> None:
    problem = refusal(file, 'peer = [1, {host = "c"}]')
    assert (problem.key, problem.value) == ("peer 1", "1")
    assert "[[peer]]" in problem.allowed


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("127.0.0.1:9786", Listen("", "127.0.0.1", 9786)),
        ("0.0.0.0:0", Listen("", "0.0.0.0", 0)),
        ("localhost:65535", Listen("", "localhost", 65535)),
        ("[::1]:9786", Listen("", "::1", 9786)),
        ("[::]:9786", Listen("", "::", 9786)),
        ("unix:/run/tombsync/http.sock", Listen("/run/tombsync/http.sock", "", 0)),
        ("unix:/" + "x" * 106, Listen("/" + "x" * 106, "", 0)),
    ],
)
def test_addresses_to_listen_on(file: Path, text: str, listen: Listen) -> None:
    assert split_listen(text) == listen
    assert read(file, f'[http]\nlisten = "{text}"').http.address == listen


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":9786", "9786", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:+1", "127.0.0.1: 1", "127.0.0.1:\u0661", "::1:9786", "[::1]", "[::1:9786", "::1]:9786",
        "[127.0.0.1]:1",
        "[]:1", "*:9786", "http://127.0.0.1:9786", "a b:1", "unix:", "unix:run/x", "unix:/a/../b", "unix:/" + "x" * 107,
    ],
)  # fmt: skip
def test_no_addresses_to_listen_on(file: Path, text: str) -> None:
    with pytest.raises(ValueError):
        split_listen(text)
    assert refusal(file, f'[http]\nlisten = "{text}"').key == "http.listen"


# -- keys that do not exist --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ('rot = "/segments"', "rot", "no such key; did you mean root?"),
        ('state-dir = "/s"', "state-dir", "no such key; did you mean state_dir?"),
        ('[htpp]\nlisten = "127.0.0.1:1"', "htpp", "no such key; did you mean http?"),
        ('[[peers]]\nhost = "b"', "peers", "no such key; did you mean peer?"),
        ("interval_s = 5", "interval_s", "no such key; interval_s belongs under [rescan]"),
        ('[http]\nroot = "/r"', "http.root", "no such key; root belongs above the first table"),
        ("[rescan]\ninterval = 5", "rescan.interval", "no such key; did you mean interval_s?"),
        ("[http]\nzzz = 5", "http.zzz", "no such key; here may stand listen"),
        ('[[peer]]\nhost = "b"\nprot = 5', "peer 1 (b): prot", "no such key; did you mean port?"),
        (
            '"a\\nb" = 1',
            "a\\nb",
            "no such key; here may stand node, root, state_dir, journal, http, rescan, inbox, breaker, peer, sender",
        ),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(file: Path, text: str, key: str, allowed: str) -> None:
    assert refusal(file, text) == Problem(str(file), key, "", allowed)


def test_the_value_of_an_unknown_key_is_not_repeated(file: Path) -> None:
    assert "hunter2" not in str(refusal(file, '[[peer]]\nhost = "b"\npassword = "hunter2"'))


# -- values that contradict each other ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["interval_s = 100\nfull_interval_s = 99", "interval_s = 86401", "full_interval_s = 299"]
)
def test_the_full_interval_is_not_the_shorter_one(file: Path, text: str) -> None:
    problem = refusal(file, f"[rescan]\n{text}")
    assert (problem.key, problem.allowed) == ("rescan.full_interval_s", "at least rescan.interval_s")
    assert read(file, "[rescan]\ninterval_s = 7\nfull_interval_s = 7").rescan.interval_s == 7


@pytest.mark.parametrize(
    ("root", "state_dir"),
    [("/a", "/a"), ("/a", "/a/"), ("/a", "/a/b"), ("/a/b/c", "/a"), ("/", "/a"), ("/a", "/"), ("/a/./b", "//a//b/c")],
)
def test_tree_and_state_lie_apart(file: Path, root: str, state_dir: str) -> None:
    problem = refusal(file, f'root = "{root}"\nstate_dir = "{state_dir}"')
    assert (problem.file, problem.key) == (str(file), "state_dir")
    assert "must lie apart" in problem.allowed
    problem = refusal(file, f'state_dir = "{state_dir}"', root=root)
    assert (problem.file, problem.key) == ("command line", "root")
    with pytest.raises(BadSettings, match=r"command line: root = .*must lie apart"):
        load(None, root="/home/operator/.local")


@pytest.mark.parametrize(("root", "state_dir"), [("/a", "/ab"), ("/ab", "/a"), ("/a/b", "/a/c")])
def test_tree_and_state_may_be_neighbours(file: Path, root: str, state_dir: str) -> None:
    assert read(file, f'root = "{root}"\nstate_dir = "{state_dir}"').root == root


@pytest.mark.parametrize(
    ("first", "second"),
    [('name = "x"', 'name = "x"'), ('name = "x"', 'name = "X"'), ('name = "b2"', ""), ("", 'name = "b1"')],
)
def test_two_peers_with_one_name(file: Path, first: str, second: str) -> None:
    problem = refusal(file, f'[[peer]]\nhost = "b1"\n{first}\n[[peer]]\nhost = "b2"\n{second}\n')
    assert problem.key.startswith("peer 2 (")
    assert problem.key.endswith("): name")
    assert problem.allowed == "peer 1 has this name already"


@pytest.mark.parametrize("host", ["b.example", "B.Example", "b.example."])
def test_two_peers_with_one_target(file: Path, host: str) -> None:
    text = f'[[peer]]\nname = "b1"\nhost = "b.example"\n[[peer]]\nname = "b2"\nhost = "{host}"\npath = "/segments/"\n'
    problem = refusal(file, text)
    assert problem.key == "peer 2 (b2): host"
    assert problem.allowed == "peer 1 has the same host, port, user and path already"


def test_two_ways_to_write_one_address(file: Path) -> None:
    text = '[[peer]]\nname = "b1"\nhost = "2001:db8::1"\n[[peer]]\nname = "b2"\nhost = "2001:DB8:0::1"\n'
    assert refusal(file, text).key == "peer 2 (b2): host"


@pytest.mark.parametrize(
    "peer",
    ['host = "b"\nname = "node-a"', 'host = "node-a"', 'host = "NODE-A"', 'host = "b"\nport = 2222\nname = "Node-A"'],
)
def test_a_peer_with_the_name_of_this_node(file: Path, peer: str) -> None:
    problem = refusal(file, f'node = "node-a"\n[[peer]]\n{peer}')
    assert problem.key.endswith("): name")
    assert "this node itself" in problem.allowed


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "localhost.localdomain", "b.localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0",
     "this-host", "This-Host.", "node-a"],
)  # fmt: skip
def test_a_peer_that_is_this_nodes_own_tree(file: Path, host: str) -> None:
    node = 'node = "node-a"\nroot = "/tree"\n'
    peer = f'[[peer]]\nname = "b"\nhost = "{host}"\n'
    problem = refusal(file, f'{node}{peer}path = "/tree/"')
    assert problem.key == "peer 1 (b): host"
    assert "this node's own tree" in problem.allowed
    for another in ('path = "/other"', 'path = "/tree"\nport = 2222'):  # a second agent, a tunnel to elsewhere
        assert read(file, f"{node}{peer}{another}").peers[0].name == "b"


@pytest.mark.parametrize("host", ["node-b", "localhost-b", "128.0.0.1", "localhosts.example"])
def test_a_peer_elsewhere_is_not_this_node(file: Path, host: str) -> None:
    assert read(file, f'node = "node-a"\n[[peer]]\nhost = "{host}"').peers[0].host == host


# -- all of them together ----------------------------------------------------------------------------------------------


def test_all_problems_are_reported_together(file: Path) -> None:
    text = """
    node = "a b"
    root = "/a"
    state_dir = "/a/state"
    rooot = "/b"
    [http]
    listen = "here"
    lisen = "there"
    [rescan]
    interval_s = 100000
    intervals = 1
    [[peer]]
    port = 0
    [[peer]]
    host = "b.example"
    name = "twin"
    user = ""
    [[peer]]
    host = "c.example"
    name = "twin"
    path = "there"
    [[peer]]
    name = "d"
    host = "C.example"
    [[peer]]
    host = "c.example"
    name = "e"
    [[peer]]
    host = "2001:db8::1"
    """
    problems = refusals(file, text)
    assert {p.key for p in problems} == {
        "node",
        "state_dir",
        "rooot",
        "http.listen",
        "http.lisen",
        "rescan.full_interval_s",
        "rescan.intervals",
        "peer 1: host",
        "peer 1: port",
        "peer 2 (twin): user",
        "peer 3 (twin): path",
        "peer 3 (twin): name",
        "peer 5 (e): host",
        "peer 6 (2001:db8::1): name",
    }
    assert len(problems) == 14
    told = str(BadSettings(problems))
    assert len(told.splitlines()) == 14
    assert "pydantic" not in told
    assert "Input should" not in told


def test_a_faulty_value_causes_no_second_problem(file: Path) -> None:
    # With the defaults in place of what is faulty, each of these pairs would be in conflict.
    assert refusal(file, 'root = "x"\nstate_dir = "/segments/y"').key == "root"
    assert refusal(file, "[rescan]\ninterval_s = 100000\nfull_interval_s = 0").key == "rescan.full_interval_s"
    peers = '[[peer]]\nname = "b1"\nhost = "b"\n[[peer]]\nname = "b2"\nhost = "b"\npath = "x"'
    assert refusal(file, peers).key == "peer 2 (b2): path"
    assert refusal(file, '[[peer]]\nname = "b"\nhost = "localhost"\nport = 0').key == "peer 1 (b): port"
    assert refusal(file, 'node = ""\n[[peer]]\nhost = "This-Host"\npath = "/other"').key == "node"


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ('[[sender]]\nname = "b"\naccount = "Root"', "sender 1 (b): account", "small letters"),
        ("[[sender]]\naccount = 'b'", "sender 1: name", "must be given"),
        ("sender = [1]", "sender 1", ""),
        (
            '[[sender]]\nname = "b"\n[[sender]]\nname = "B"\naccount = "x"',
            "sender 2 (B): name",
            "sender 1 has this name",
        ),
        (
            '[[sender]]\nname = "b"\n[[sender]]\nname = "c"\naccount = "tombsync-b"',
            "sender 2 (c): account",
            "has this account",
        ),
        ('[inbox]\njail = "/segments/x"\n[[sender]]\nname = "b"', "inbox.jail", "must lie apart"),
        ('[inbox]\njail = "/var"\n[[sender]]\nname = "b"', "inbox.jail", "must lie apart"),
        ("[inbox]\nquota_hour = 1", "inbox.quota_hour", "did you mean quota_per_hour?"),
        ("[breaker]\nmost_per_minute = 0", "breaker.most_per_minute", "a whole number from 1"),
        ("account = 'b'", "account", "belongs under [[sender]]"),
        ("[[senders]]\nname = 'b'", "senders", "did you mean sender?"),
    ],
)
def test_what_is_wrong_with_the_receiving_side(file: Path, text: str, key: str, allowed: str) -> None:
    problem = refusal(file, text)
    assert problem.key == key
    assert allowed in problem.allowed


def test_a_jail_without_senders_is_in_nobodys_way(file: Path) -> None:
    assert read(file, 'root = "/srv/tombsync/segments"').senders == ()


def test_a_long_value_is_cut_and_a_large_number_described(file: Path) -> None:
    assert len(refusal(file, f'root = "{"x" * 10_000}"').value) < 100
    assert refusal(file, "[rescan]\ninterval_s = 0x" + "f" * 10_000).value == "a very large number"
    assert refusal(file, "node = {a = 1}").value == "a table"
    assert refusal(file, "node = [1]").value == "a list"


toml_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
known_keys = st.sampled_from(
    [
        *Settings.model_fields,
        *PeerSettings.model_fields,
        *SenderSettings.model_fields,
        "peer",
        "sender",
        "listen",
        "jail",
    ]
)
tables = st.dictionaries(st.one_of(known_keys, st.text()), toml_values, max_size=5)


@given(
    st.one_of(
        tables,
        st.builds(lambda table, peers: {**table, "peer": peers}, tables, st.lists(tables, max_size=4)),
        st.builds(lambda table, senders: {**table, "sender": senders}, tables, st.lists(tables, max_size=4)),
        st.builds(lambda table, http: {**table, "http": http, "rescan": http}, tables, tables),
    )
)
@example({"peer": [{"host": 1, "name": 1}, {"host": "b"}, {}]})
@example({"peers": 1, "peer": 1, "http": {"listen": {}}})
def test_any_table_gives_settings_or_problems_in_our_own_words(table: dict[str, Any]) -> None:
    try:
        document._Document("f", table).settings()
    except BadSettings as exc:
        assert exc.problems
        for problem in exc.problems:
            assert str(problem).isprintable()
            assert problem.allowed
            assert "nput should" not in problem.allowed


# -- models made by hand -----------------------------------------------------------------------------------------------


def test_models_can_be_made_in_code() -> None:
    settings = Settings(root="/r", peers=(PeerSettings(host="b"),))
    assert settings.peers[0].name == "b"
    with pytest.raises(pydantic.ValidationError):
        Settings(root="relative")
    with pytest.raises(pydantic.ValidationError):
        PeerSettings(host="b", port=0)

"""What `peer add` is made of: names of units, lines of fstab, entries of the settings, steps that are carried out."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tombsync
from tombsync import errors
from tombsync.cli.peer import entries, jail, mounts, sshd
from tombsync.cli.peer.files import replace_file
from tombsync.cli.peer.mounts import Mount, unit_name
from tombsync.cli.peer.remove import way_in
from tombsync.cli.peer.steps import Step, carry_out, run_program
from tombsync.config import InboxSettings, Settings, load

REPOSITORY = Path(tombsync.__file__).parents[1]


# -- mounts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("/srv/tombsync/segments", "srv-tombsync-segments.mount"),
        ("/srv/tombsync/inbox/tombsync-node-b", "srv-tombsync-inbox-tombsync\\x2dnode\\x2db.mount"),
        ("/srv/a b/100%", "srv-a\\x20b-100\\x25.mount"),
        ("/.hidden/.x", "\\x2ehidden-.x.mount"),
        ("/ä:_.", "\\xc3\\xa4:_..mount"),
    ],
)
def test_the_name_of_a_mount_unit(where: str, name: str) -> None:
    assert unit_name(where) == name
    if escape := shutil.which("systemd-escape"):  # it says the same, where there is one to ask
        said = subprocess.run([escape, "--path", "--suffix=mount", where], capture_output=True, text=True, check=True)
        assert said.stdout == f"{name}\n"


def test_odd_characters_of_a_path_are_written_as_each_file_wants_them() -> None:
    mount = Mount("/data/a b", "/srv/100%", "none", "bind,ro")
    assert mount.fstab_line == "/data/a\\040b /srv/100% none bind,ro 0 0"
    assert "What=/data/a b\nWhere=/srv/100%%\n" in mount.unit


@pytest.mark.parametrize("path", ["/a\nb", "/a\\040b", "/a\tb", "/a\x7f", "/a\udcff"])
def test_a_path_that_cannot_be_recorded(path: str) -> None:
    for what, where in ((path, "/b"), ("/b", path)):
        with pytest.raises(errors.NotMountable):
            Mount(what, where, "none", "bind")


def test_what_is_mounted_below_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    below = ["", "/c", "/c/q", "/c/q/2019-11-13T02", "/.x", "-else/c"]
    found = [mounts.Mounted(f"/data{path}", frozenset(), "ext4") for path in below]
    monkeypatch.setattr(mounts, "mounts", lambda: found)
    assert jail.mounts_below("/data") == ["/c", "/c/q"]
    assert jail.mounts_below("/other") == []


# -- the drop-in -------------------------------------------------------------------------------------------------------


def test_the_drop_in_that_is_shipped_is_the_one_that_is_put_in_place() -> None:
    shipped = (REPOSITORY / "systemd/sshd/60-tombsync-peers.conf").read_text()
    assert sshd.drop_in(InboxSettings().jail) == shipped
    assert shipped.rstrip().endswith("\nMatch all")
    lines = [line.strip() for line in shipped.splitlines()]
    assert f"AuthorizedKeysFile {sshd.KEYS}/%u" in lines


@pytest.mark.parametrize(
    ("path", "written"), [("/jail", "/jail"), ("/a b", '"/a b"'), ("/100%", "/100%%"), ("/ü", "/ü"), ("/a#", '"/a#"')]
)
def test_the_drop_in_names_the_jail(path: str, written: str) -> None:
    assert f"    ChrootDirectory {written}\n" in sshd.drop_in(path)


# -- entries of the settings -------------------------------------------------------------------------------------------

SENDER = entries.entry("sender", {"name": "node-b", "account": "tombsync-node-b"})
TWO = '[[sender]]\nname = "x"\n\n[[sender]]\nname = "y" # [[sender]]\n'
FILES = {
    "empty": "",
    "plain": 'node = "a"\n',
    "no newline at the end": 'node = "a"',
    "comment at the end": "[http]\n# listen\n# nothing more\n",
    "another": TWO + '# of y\n\n# of peer\n[[peer]]\nhost = "h"\n',
    "odd layout": ' [[ sender ]] # x\n  name="x"\n\n\n\n[rescan]\ninterval_s = 60\n',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_an_entry_comes_and_goes_and_leaves_the_rest(text: str) -> None:
    added = entries.with_entries("f", text, [SENDER])
    assert added.startswith(text)
    assert tomllib.loads(added)["sender"][-1] == {"name": "node-b", "account": "tombsync-node-b"}
    taken = entries.without_entries("f", added, "sender", lambda entry: entry.get("name") == "node-b")
    assert taken == (text if text.endswith("\n") or not text else f"{text}\n")


def test_the_entry_in_the_middle_goes_and_comments_stay() -> None:
    text = FILES["another"]
    taken = entries.without_entries("f", text, "sender", lambda entry: entry.get("name") == "y")
    assert taken == '[[sender]]\nname = "x"\n# of y\n\n# of peer\n[[peer]]\nhost = "h"\n'


@pytest.mark.parametrize(
    "text",
    [
        'sender = [{ name = "y" }]\n',
        '[[sender]]\nname = """y"""\naccount = """\n[[sender]]\n"""\n',
        '[[sender]]\n"na\\u006de" = "y"\naccount = """\n[http]\nx"""\n',
    ],
)
def test_what_cannot_be_taken_out_as_text_is_left_to_a_person(text: str) -> None:
    with pytest.raises((errors.SettingsNotEditable, errors.BadSettings)):
        entries.without_entries("f", text, "sender", lambda entry: entry.get("name") == "y")


@given(
    st.lists(st.sampled_from(["x", "y", "node-b", "z"]), unique=True), st.sampled_from(["", "\n", "# c\n", "\n# c\n\n"])
)
def test_only_the_wanted_entries_go(names: list[str], between: str) -> None:
    text = between.join(entries.entry("sender", {"name": name}) for name in names)
    taken = entries.without_entries("f", text, "sender", lambda entry: entry.get("name") in ("y", "z"))
    assert [entry["name"] for entry in tomllib.loads(taken).get("sender", [])] == [
        n for n in names if n not in ("y", "z")
    ]
    assert taken.count("# c") == text.count("# c")


def test_problems_name_the_file_that_would_be_written() -> None:
    with pytest.raises(errors.BadSettings) as caught:
        entries.with_entries("/etc/f.toml", 'nod = "a"\n', [SENDER])
    assert str(caught.value).startswith("/etc/f.toml: nod: no such key")


def test_an_entry_of_odd_values_reads_back(tmp_path: Path) -> None:
    values = {"name": "x", "host": "h", "user": 'ü"\\x', "path": "/a\u2028b/💥"}
    (tmp_path / "f").write_text(entries.entry("peer", {**values, "port": 2222}))
    (peer,) = load(str(tmp_path / "f")).peers
    assert {key: getattr(peer, key) for key in values} == values


# -- files and steps ---------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o604)
    link.symlink_to("file")
    replace_file(str(link), "new \udcff")
    assert (file.read_bytes(), file.stat().st_mode & 0o7777, link.is_symlink()) == (b"new \xff", 0o604, True)
    replace_file(str(tmp_path / "made"), "x", mode=0o640)
    assert (tmp_path / "made").stat().st_mode & 0o7777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "made"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(str(tmp_path / "directory"), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_steps_are_asked_in_their_order_and_stop_at_the_first_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def step(name: str, *, done: bool = False, fails: bool = False) -> Step:
        def apply() -> None:
            calls.append(f"apply {name}")
            if fails:
                raise errors.ProgramFailed(name, "did not")

        def is_done() -> bool:
            calls.append(f"ask {name}")
            return done

        return Step(name, is_done, apply)

    steps = [step("one", done=True), step("two"), step("three", fails=True), step("four")]
    assert carry_out("x", steps, lambda: ["a note"], dry_run=False, as_json=False) == errors.EXIT_IN_PART
    assert calls == ["ask one", "ask two", "apply two", "ask three", "apply three"]
    out, err = capsys.readouterr()
    assert out == "two\n"
    assert err.startswith("tombsync: three: did not\n  hint: ")
    assert "a note" not in err
    assert carry_out("x", steps[2:], list, dry_run=False, as_json=False) == errors.EXIT_FAILED
    calls.clear()
    assert carry_out("x", steps, list, dry_run=True, as_json=False) == 0
    assert calls == ["ask one", "ask two", "ask three", "ask four"]


def test_the_inbox_is_looked_into_when_nothing_can_come_any_more(tmp_path: Path) -> None:
    settings = Settings(inbox=InboxSettings(jail=str(tmp_path)))
    inbox = tmp_path / "inbox/tombsync-nobody"
    inbox.mkdir(parents=True)
    steps = list(way_in(settings, "tombsync-nobody", "node-b", force=False))
    words = [step.description.split(" ")[0] for step in steps]
    assert words[:4] == ["remove", "end", "see", "unmount"]
    assert steps[2].done()
    (inbox / "1,came-late").touch()
    assert not steps[2].done()
    with pytest.raises(errors.FilesWaiting, match="1 tombstones from node-b"):
        steps[2].apply()
    assert "see" not in [
        step.description.split(" ")[0] for step in way_in(settings, "tombsync-nobody", "node-b", force=True)
    ]


def test_a_file_where_somebody_else_can_write_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/../deep/none")
    replace_file(str(tmp_path / "link"), "new")
    assert (tmp_path / "deep/none").read_text() == "new"
    (tmp_path / "loop").symlink_to("loop")
    for path in ("loop", "there/below"):
        with pytest.raises((errors.NotRootsAlone, errors.FileRefused)):
            replace_file(str(tmp_path / path), "new")
    (tmp_path / "deep").chmod(0o777)
    for path in ("link", "deep/none", "deep/made"):
        with pytest.raises(errors.NotRootsAlone, match=f"{tmp_path}/deep: .* its mode is 0777"):
            replace_file(str(tmp_path / path), "newer")
    (tmp_path / "deep").chmod(0o1777)  # as /tmp: what is ours stays ours
    replace_file(str(tmp_path / "deep/none"), "newer")
    with pytest.raises(errors.NotRootsAlone, match="anybody may put something in its place"):
        replace_file(str(tmp_path / "deep/made"), "newer")


def test_a_program_that_takes_too_long() -> None:
    with pytest.raises(errors.ProgramFailed, match="sleep: did not end within 0 s"):
        run_program("sleep", "60", timeout_s=0.01)


def test_a_program_that_is_missing_or_fails() -> None:
    with pytest.raises(errors.ProgramFailed, match="no-such-program: is not installed"):
        run_program("no-such-program")
    with pytest.raises(errors.ProgramFailed, match="sh: one / two"):
        run_program("sh", "-c", "echo one >&2; echo two >&2; exit 3")
    with pytest.raises(errors.ProgramFailed, match="false: ended with code 1"):
        run_program("false")

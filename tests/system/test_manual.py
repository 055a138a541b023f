"""The manual pages and the completion: made by the program, read by the programs that are to read them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.index import HOUR, STEM, hide, stem_of
from tests.support.programs import need
from tests.support.terminal import Terminal
from tombsync.cli.main import cli
from tombsync.cli.manual.meanings import MEANINGS
from tombsync.config import LISTS, TABLES
from tombsync.index import Writer, index_path

BIN = Path(sys.executable).parent  # where the `tombsync` is that the shells ask


def commands(group: click.Group = cli, above: str = "tombsync") -> Iterator[tuple[str, click.Command]]:
    """Every command by what is typed for it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    command = [sys.executable, "-m", "tombsync.cli.manual", str(directory)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1573613151"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    written = [Path(line).relative_to(directory) for line in done.stdout.splitlines()]
    assert sorted(written) == sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return directory


def rendered(page: Path) -> str:
    """The page as a reader sees it, every run of spaces as one."""
    done = subprocess.run([need("mandoc"), "-Tutf8", str(page)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return " ".join(re.sub(".\b", "", done.stdout).split())


@pytest.fixture(scope="module")
def manual(share: Path) -> str:
    return rendered(share / "man/man1/tombsync.1")


@pytest.mark.parametrize("name", ["man1/tombsync.1", "man5/tombsync.toml.5"])
def test_a_page_is_clean(share: Path, name: str) -> None:
    page = str(share / "man" / name)
    done = subprocess.run([need("mandoc"), "-Tlint", "-Wwarning", page], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    env = {**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    command = [need("man"), "--warnings=all", "--local-file", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2019-11-13" in done.stdout


@pytest.mark.parametrize(("typed", "command"), [pytest.param(*each, id=each[0]) for each in commands()])
def test_a_command_is_in_the_page_with_all_that_its_help_says(typed: str, command: click.Command, manual: str) -> None:
    _, section = manual.split(f" {typed} [", 1)
    section = section.split(" Common: ")[0] + section.split(" Common: ")[1].split(". ")[0]
    common = manual.split(" COMMON OPTIONS ")[1]
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help
            assert all(re.search(rf"{option}\b", section) for option in param.opts)
            text = " ".join(param.help.replace("`", "").split())
            assert text in section or text in common
    assert command.help
    for paragraph in command.help.split("\n\n"):
        for line in paragraph.translate({ord("\b"): "", ord("`"): ""}).splitlines():
            assert " ".join(line.split()).rstrip(":") in section


@pytest.mark.parametrize("field", TABLES)
def test_every_key_of_the_settings_is_in_the_page(field: str, share: Path) -> None:
    keys = [key for key in TABLES[field].model_fields if key not in TABLES]
    assert list(MEANINGS[field][1]) == keys
    page = rendered(share / "man/man5/tombsync.toml.5")
    heading = f"[[{LISTS[field]}]]" if field in LISTS else f"[{field}]" if field else "TOP LEVEL"
    section = page.split(f" {heading} ", 1)[1]
    for key in keys:
        text = MEANINGS[field][1][key].replace("`", "")
        assert f"{key} {text} Allowed: {TABLES[field].model_fields[key].description}." in section


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "only-file.ts").touch()
    (tmp_path / "only-directory" / "desertbus" / "source").mkdir(parents=True)
    (tmp_path / "t.toml").write_text(
        f'state_dir = "{tmp_path}/state"\n[[peer]]\nhost = "b.example"\nname = "node-b"\n[[sender]]\nname = "other"\n'
    )
    (tmp_path / "state").mkdir()
    writer = Writer(index_path(str(tmp_path / "state")))
    hide(writer, HOUR, STEM, stem_of(7))
    writer.close()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}  # of the tree that is tested
    return {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8", **kept}


# What is typed before the key that completes -> what stands there then.
COMPLETED = {
    "tombsync tombst": "tombsync tombstones",
    "tombsync peer rot": "tombsync peer rotate",
    "tombsync log --fol": "tombsync log --follow",
    "tombsync mark only-f": "tombsync mark only-file.ts",
    "tombsync mark --root only-directory --channel dese": "tombsync mark --root only-directory --channel desertbus",
    "tombsync mark --root only-directory --channel desertbus --quality so": (
        "tombsync mark --root only-directory --channel desertbus --quality source"
    ),
    "tombsync check --root only-": "tombsync check --root only-directory/",
    "tombsync peer test --config t.toml no": "tombsync peer test --config t.toml node-b",
    "tombsync status --config t.toml 45": f"tombsync status --config t.toml {STEM}",
    "tombsync unmark --config t.toml 45:": f"tombsync unmark --config t.toml {STEM}",
    "tombsync purge --config t.toml x 45:51.6": f"tombsync purge --config t.toml x {STEM}",
    f"tombsync log --state-dir state {HOUR.path}/45:5": f"tombsync log --state-dir state {HOUR.path}/{STEM}",
    "tombsync tombstones --config t.toml --channel de": "tombsync tombstones --config t.toml --channel desertbus",
}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_on_a_terminal(shell: str, share: Path, place: Path) -> None:
    start = {
        "bash": [need("bash"), "--norc", "--noprofile", "-i"],
        "zsh": [need("zsh"), "-f", "-i"],
    }[shell]
    set_up = {
        "bash": f"source {share}/bash-completion/completions/tombsync",
        "zsh": f"fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -d {place}/.zcompdump",
    }[shell]
    with Terminal(start, cwd=place, env=environment(place)) as terminal:
        terminal.type(f"{set_up}; echo SET''UP\n")
        terminal.until("SETUP")
        for typed, completed in COMPLETED.items():
            terminal.type(f"{typed}\t\x01echo GOT=\n")  # \x01: the beginning of the line
            assert terminal.until(r"\nGOT=([^\r]*)\r")[1].rstrip(" /") == completed.rstrip("/")


@pytest.mark.parametrize("typed", COMPLETED)
def test_completion_in_fish(typed: str, share: Path, place: Path) -> None:
    script = f"source {share}/fish/vendor_completions.d/tombsync.fish; complete --do-complete '{typed}'"
    command = [need("fish"), "--no-config", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=place, env=environment(place))
    assert (done.returncode, done.stderr) == (0, "")
    words = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert words == [COMPLETED[typed].split()[-1]]

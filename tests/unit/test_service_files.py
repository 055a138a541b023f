"""The files for systemd say what the rest of the project says."""

from __future__ import annotations

import re
from pathlib import Path

from tombsync.cli.peer.mounts import Mount, unit_name
from tombsync.config import Settings, load

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = (SYSTEMD / "tombsync.service").read_text()


def test_the_example_of_the_settings_changes_nothing(tmp_path: Path) -> None:
    assert load(str(SYSTEMD / "tombsync.toml")) == Settings()


def test_what_the_example_shows_are_the_defaults(tmp_path: Path) -> None:
    text = (SYSTEMD / "tombsync.toml").read_text()
    every = tmp_path / "every.toml"
    every.write_text(re.sub(r"^#(?! )", "", text, flags=re.MULTILINE))
    settings = load(str(every))
    assert (settings.node, len(settings.peers), len(settings.senders)) == ("node-a", 1, 1)
    assert settings.model_copy(update={"peers": (), "senders": ()}) == Settings(node="node-a")


def test_the_view_is_the_mount_that_peer_add_makes() -> None:
    mount = Mount("/segments", "/srv/tombsync/segments", "none", "bind,ro,nosuid,nodev,noexec,private")
    assert (SYSTEMD / "mounts" / unit_name(mount.where)).read_text() == mount.unit


def test_every_line_that_hardens_says_why() -> None:
    """Each stands below a comment, or below a line of the same kind that does."""
    hardening = UNIT[UNIT.index("# -- what it may do to files") : UNIT.index("[Install]")]
    blocks = re.split(r"(?<=\n)(?=#)", hardening)
    settings = [re.findall(r"^\w+=.*$", block, re.MULTILINE) for block in blocks]
    assert sum(map(len, settings)) > 25
    assert all(block.startswith("#") for block in blocks)
    assert max(map(len, settings)) <= 6  # the account's rights; what the kernel's parts are called


def test_the_service_runs_on_the_settings_that_the_commands_take() -> None:
    commands = re.findall(r"^Exec\w+=/opt/tombsync/bin/tombsync (.*)$", UNIT, re.MULTILINE)
    assert len(commands) == 3
    assert all(command.endswith("--config /etc/tombsync/tombsync.toml") for command in commands)


def test_the_snippets_for_nginx_are_where_they_and_the_readme_say() -> None:
    files = (SYSTEMD / "files").read_text()
    snippets = sorted((SYSTEMD / "nginx").iterdir())
    placed = {
        f"{file} {directory.replace('SHARE', '/usr/share')}"
        for file, directory in re.findall(r"^(nginx/\S+) +(SHARE/\S+)$", files, re.MULTILINE)
    }
    assert placed == {f"nginx/{snippet.name} /usr/share/tombsync/nginx" for snippet in snippets}
    for text in [(SYSTEMD.parent / "README.md").read_text(), *(snippet.read_text() for snippet in snippets)]:
        included = re.findall(r"include (\S+);", text)
        assert included
        assert {f"nginx/{path.rpartition('/')[2]} {path.rpartition('/')[0]}" for path in included} <= placed


def test_the_readme_shows_what_each_location_needs_as_the_snippet_has_it() -> None:
    """An operator copies from either."""
    readme = (SYSTEMD.parent / "README.md").read_text()
    snippet = (SYSTEMD / "nginx" / "tombsync-auth.conf").read_text()
    needed = re.findall(r"^# +((?:auth_request|error_page)\w* .*;)$", snippet, re.MULTILINE)
    assert len(needed) == 4
    assert [line for line in needed if line not in readme] == []

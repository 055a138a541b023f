"""The service on three machines that a real systemd runs, installed by the installer and joined with `peer add`.

The machines are booted once for all tests of this file, and each test leaves them as it found them: joined, up, ready.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.agent import segment_stem
from tests.support.machines import Machine, Machines, copied
from tests.support.waiting import wait_for
from tests.systemd.operators import (
    DELIVERED_S,
    HOUR,
    SETTINGS,
    SOURCE,
    events,
    everywhere,
    is_active,
    join_all,
    make_wheels,
    new_stems,
    restarts,
    touch,
)
from tombsync.audit import Event

pytestmark = pytest.mark.timeout(600)

UNIT = "/usr/local/lib/systemd/system/tombsync.service"
CATALOG = "/usr/lib/systemd/catalog/tombsync.catalog"
MANUAL = "/usr/local/share/man/man1/tombsync.1"
SNIPPETS = "/usr/local/share/tombsync/nginx"
MOST_EXPOSURE = 1.5


@pytest.fixture(scope="module")
def media(wheelhouse: Path) -> Path:
    """What an operator brings: two releases of the project, and a wheelhouse for each."""
    base = wheelhouse.parent
    new = copied(SOURCE, base / "new", "0.1.1")
    make_wheels(new, base / "newer", "--no-deps")
    for wheel in wheelhouse.iterdir():
        if not wheel.name.startswith("tombsync-"):
            (base / "newer" / wheel.name).hardlink_to(wheel)
    return base


@pytest.fixture(scope="module")
def nodes(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Three joined nodes whose agents are ready."""

    def prepare(machine: Machine) -> None:
        hour = machine.root / "segments" / HOUR
        hour.mkdir(parents=True)
        for number in range(20):
            (hour / f"{segment_stem(2 * number)}.ts").write_bytes(b"segment")

    machines = Machines(
        tmp_path_factory.mktemp("machines"), ["n1", "n2", "n3"], binds=[f"--bind-ro={media}:/mnt"], prepare=prepare
    )
    with machines as nodes:
        with ThreadPoolExecutor() as pool:
            list(pool.map(install, nodes))
        join_all(nodes)
        for node in nodes:
            node.run("systemctl", "enable", "--now", "--quiet", "tombsync")
        yield nodes


def install(node: Machine) -> None:
    node.run("/mnt/old/systemd/install", "--wheelhouse", "/mnt/wheels")
    # All tests together are no mass of marks.
    node.shell('grep -q "^.breaker" "$1" || printf "[breaker]\\nmost_per_minute = 100000\\n" >> "$1"', SETTINGS)


# -- the unit ----------------------------------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_and_little_exposed(nodes: list[Machine]) -> None:
    done = nodes[0].run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", UNIT)
    assert (done.stdout, done.stderr) == ("", "")
    said = nodes[0].says("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert exposure
    assert float(exposure[1]) <= MOST_EXPOSURE


def test_a_start_returns_when_the_first_scan_is_done_and_not_before(nodes: list[Machine]) -> None:
    node = nodes[0]
    node.run("systemctl", "stop", "tombsync")
    (stem,) = new_stems()
    touch(node, stem)
    node.run("systemctl", "start", "tombsync")
    assert stem in node.says("tombsync", "tombstones", "--json")  # no wait: it is ready
    stamps = {
        event: max(int(record["__MONOTONIC_TIMESTAMP"]) for record in events(node, event))
        for event in ("started", "rescan-completed", "ready")
    }
    active = int(node.property("ActiveEnterTimestampMonotonic"))
    assert stamps["started"] < stamps["ready"]
    assert stamps["started"] < active
    assert node.property("StatusText").startswith("ready")
    everywhere(nodes, stem)


def test_it_is_refused_what_landlock_does_not_cover(nodes: list[Machine]) -> None:
    """chmod, utimes, setxattr and link on a data file of the tree, by a process in the place of the agent."""
    node = nodes[0]
    script = (
        "import os, sys\n"
        "path = sys.argv[1]\n"
        "for call in (lambda: os.chmod(path, 0o600), lambda: os.utime(path), lambda: os.link(path, path + '2'),\n"
        "             lambda: os.setxattr(path, 'user.x', b'x'), lambda: os.symlink(path, path + '3'),\n"
        "             lambda: os.chown(path, os.getuid(), -1)):\n"
        "    try:\n"
        "        call()\n"
        "    except PermissionError as error:\n"
        "        print(error.errno)\n"
    )
    node.write("/opt/probe.py", script)
    path = f"/segments/{HOUR}/own.ts"
    node.shell('touch "$1"; chown tombsync: "$1"', path)  # so that nothing but the filter refuses
    kept = ("SystemCallFilter", "SystemCallErrorNumber", "SystemCallArchitectures", "User", "Group")
    lines = node.says("cat", UNIT).splitlines()
    properties = [f"--property={line}" for line in lines if line.partition("=")[0] in kept]
    said = node.says(
        "systemd-run", "--quiet", "--pipe", "--wait", *properties, "/usr/bin/python3", "/opt/probe.py", path
    )
    assert said.split() == ["1"] * 6
    node.run("rm", path)


# -- marks -------------------------------------------------------------------------------------------------------------


def test_a_touch_is_hidden_and_told_on_every_node(nodes: list[Machine]) -> None:
    (stem,) = new_stems()
    touch(nodes[0], stem)
    everywhere(nodes, stem)
    for node in nodes[1:]:
        match = f"TOMBSYNC_SEGMENT={HOUR}/{stem}"

        def told(node: Machine = node, match: str = match) -> list[dict[str, str]]:
            return node.journal("TOMBSYNC_EVENT=hidden", match)

        (record,) = wait_for(told, "the record", pause_s=0.2)
        assert record["SYSLOG_IDENTIFIER"] == "tombsync"
        assert record["_SYSTEMD_UNIT"] == "tombsync.service"
        assert record["TOMBSYNC_NODE"] == node.name
        assert record["TOMBSYNC_CHANNEL"] == "desertbus"
        assert record["TOMBSYNC_QUALITY"] == "source"
        assert record["TOMBSYNC_HOUR"] == "2019-11-13T02"
        assert record["TOMBSYNC_SOURCE"] == "inbox"
        assert record["TOMBSYNC_PEER"] in {"n1", "n2", "n3"} - {node.name}
        assert float(record["TOMBSYNC_ELAPSED_MS"]) > 0
        assert len(record["MESSAGE_ID"]) == 32


# -- ends that nobody asked for ----------------------------------------------------------------------------------------


def test_a_killed_agent_comes_back_and_nothing_is_lost(nodes: list[Machine]) -> None:
    node = nodes[0]
    before = restarts(node)
    node.run("systemctl", "kill", "--signal=KILL", "tombsync")
    stems = new_stems(20)
    touch(node, *stems)
    wait_for(lambda: restarts(node) > before and is_active(node), "the restart", 60, pause_s=0.2)
    everywhere(nodes, *stems)


def test_an_agent_that_stands_still_is_ended_by_the_watchdog(nodes: list[Machine]) -> None:
    node = nodes[0]
    node.write("/run/systemd/system/tombsync.service.d/soon.conf", "[Service]\nWatchdogSec=5\n")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", "tombsync")
    before = restarts(node)
    node.run("systemctl", "kill", f"--signal={signal.SIGSTOP.name}", "tombsync")
    stems = new_stems(20)
    touch(node, *stems)
    wait_for(lambda: restarts(node) > before and is_active(node), "the restart", 90, pause_s=0.2)
    assert node.journal("UNIT=tombsync.service", "UNIT_RESULT=watchdog")
    everywhere(nodes, *stems)
    node.run("rm", "-r", "/run/systemd/system/tombsync.service.d")
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", "tombsync")


def test_a_power_cut_in_a_burst_loses_nothing(nodes: list[Machine]) -> None:
    node = nodes[0]
    stems = new_stems(500)
    touch(node, *stems[:250])
    marking = subprocess.Popen(
        node.command("sh", "-c", f'cd "/segments/{HOUR}"; for s; do touch "$s.tombstone"; done', "sh", *stems[250:]),
        stdin=subprocess.DEVNULL,
    )
    wait_for(lambda: f"{stems[300]}.tombstone" in node.says("ls", f"/segments/{HOUR}"), "the burst", pause_s=0.0)
    node.cut_power()
    marking.wait(30)
    node.start()
    there = {name.removesuffix(".tombstone") for name in node.says("ls", f"/segments/{HOUR}").splitlines()}
    marked = [stem for stem in stems if stem in there]
    assert len(marked) > 250
    wait_for(lambda: is_active(node), "the agent to be ready", 60, pause_s=0.2)
    everywhere(nodes, *marked)


def test_a_restarted_journald_loses_no_record(nodes: list[Machine]) -> None:
    node = nodes[0]
    stems = new_stems(100)
    touch(node, *stems[:50])
    node.run("systemctl", "restart", "systemd-journald")
    touch(node, *stems[50:])
    everywhere(nodes, *stems)
    wanted = {f"{HOUR}/{stem}" for stem in stems}
    wait_for(
        lambda: wanted <= {record["TOMBSYNC_SEGMENT"] for record in events(node, "hidden")}, "every record", pause_s=0.2
    )


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_reload_takes_a_peer_out_and_in_again(nodes: list[Machine]) -> None:
    node = nodes[0]
    settings = node.says("cat", SETTINGS) + "\n"
    sessions = len(node.journal("TOMBSYNC_EVENT=peer-up", "TOMBSYNC_PEER=n2"))
    pid = node.property("MainPID")
    start, *tables = re.split(r"(?=^\[\[)", settings, flags=re.MULTILINE)
    others = [table for table in tables if not (table.startswith("[[peer]]") and '"n3"' in table)]
    assert len(others) == len(tables) - 1
    before = len(events(node, "reloaded"))

    def reload(text: str, event: str, more: int) -> None:
        node.write(SETTINGS, text)
        node.run("systemctl", "reload", "tombsync")
        wait_for(lambda: len(events(node, event)) == more, event, pause_s=0.2)

    reload(start + "".join(others), "reloaded", before + 1)
    (stem, later) = new_stems(2)
    touch(node, stem)
    everywhere(nodes, stem)  # n3 has it of n2
    reload(settings, "reloaded", before + 2)
    touch(node, later)
    everywhere(nodes, later)
    wait_for(
        lambda: node.journal("TOMBSYNC_EVENT=delivered", "TOMBSYNC_PEER=n3", f"TOMBSYNC_SEGMENT={HOUR}/{stem}"),
        "the peer that came back to have what was marked meanwhile",
        DELIVERED_S,
        pause_s=0.2,
    )
    assert node.property("MainPID") == pid
    assert len(node.journal("TOMBSYNC_EVENT=peer-up", "TOMBSYNC_PEER=n2")) == sessions


def test_a_bad_reload_is_refused(nodes: list[Machine]) -> None:
    node = nodes[0]
    settings = node.says("cat", SETTINGS) + "\n"
    pid = node.property("MainPID")
    node.write(SETTINGS, "nonsense = 1\n" + settings)
    assert node.run("systemctl", "reload", "tombsync", check=False).returncode != 0
    node.write(SETTINGS, 'journal = "stderr"\n' + settings)
    assert node.run("systemctl", "reload", "tombsync", check=False).returncode != 0
    assert "a change of journal takes a restart" in node.says("journalctl", "--no-pager", "-u", "tombsync", "-n", "20")
    assert events(node, "reload-refused")[-1]["TOMBSYNC_KEYS"] == "journal"
    node.write(SETTINGS, settings)
    node.run("systemctl", "reload", "tombsync")
    (stem,) = new_stems()
    touch(node, stem)
    everywhere(nodes, stem)
    assert (node.property("MainPID"), node.property("ActiveState")) == (pid, "active")


# -- upgrade and end ---------------------------------------------------------------------------------------------------


def test_an_upgrade_while_marks_go_on_misses_none(nodes: list[Machine]) -> None:
    node = nodes[0]
    stems = new_stems(120)
    done = threading.Event()

    def mark_all() -> None:
        for number in range(0, len(stems), 4):
            touch(node, *stems[number : number + 4])
            done.wait(0.5)

    marking = threading.Thread(target=mark_all)
    marking.start()
    node.run("/mnt/new/systemd/install", "--wheelhouse", "/mnt/newer")
    done.set()
    marking.join()
    assert "0.1.1" in node.says("tombsync", "--version")
    assert events(node, "started")[-1]["TOMBSYNC_VERSION"] == "0.1.1"
    assert is_active(node)
    assert len(node.says("ls", "/opt/tombsync/releases").splitlines()) == 1
    everywhere(nodes, *stems)


def test_a_dry_run_changes_nothing(nodes: list[Machine]) -> None:
    node = nodes[1]
    look = "find /opt/tombsync /usr/local /etc /var/lib/tombsync -type f -newer /root/before | grep -v sqlite || true"
    node.write("/root/before", "")
    said = node.says("/mnt/new/systemd/install", "--wheelhouse", "/mnt/newer", "--dry-run")
    said += node.says("/mnt/new/systemd/install", "--uninstall", "--purge-state", "--dry-run")
    assert "would install" in said
    assert "would remove /var/lib/tombsync" in said
    assert node.shell(look) == ""
    assert is_active(node)


def test_the_catalog_and_the_manual_are_installed(nodes: list[Machine]) -> None:
    node = nodes[1]
    assert "tombsync" in node.says("journalctl", "--list-catalog", Event.HIDDEN.message_id)
    assert "tombsync" in node.says("cat", MANUAL)
    for shell in ("bash-completion/completions/tombsync", "zsh/site-functions/_tombsync"):
        node.run("test", "-s", f"/usr/local/share/{shell}")


def test_the_snippets_for_nginx_are_installed_and_none_is_enabled(nodes: list[Machine]) -> None:
    node = nodes[1]
    for snippet in sorted((SOURCE / "systemd" / "nginx").iterdir()):
        assert node.says("cat", f"{SNIPPETS}/{snippet.name}") == snippet.read_text().strip()
    assert node.run("test", "-e", "/etc/nginx", check=False).returncode == 1


def test_an_uninstall_leaves_the_tree_as_it_is(nodes: list[Machine]) -> None:
    """The last of all tests: it takes a node away."""
    node = nodes[2]
    node.run("systemctl", "stop", "tombsync")
    look = 'find /segments -printf "%p %i %m %U %G %s %T@ %C@\\n" | sort'
    before = node.shell(look)
    node.shell(f"mkdir /etc/nginx && echo 'include {SNIPPETS}/tombsync.conf;' >/etc/nginx/site")
    assert f"nginx includes files of {SNIPPETS}" in node.says("/mnt/old/systemd/install", "--uninstall")
    assert node.shell(look) == before
    gone = (
        "/opt/tombsync", UNIT, "/usr/local/bin/tombsync", "/usr/local/lib/sysctl.d/60-tombsync.conf", CATALOG, MANUAL,
        SNIPPETS,
    )  # fmt: skip
    assert [path for path in gone if node.run("test", "-e", path, check=False).returncode == 0] == []
    assert node.run("systemctl", "status", "tombsync", check=False).returncode == 4  # no such unit
    node.run("test", "-e", "/var/lib/tombsync/index.sqlite")
    node.run("test", "-e", SETTINGS)
    install(node)  # what was left counts again
    node.run("systemctl", "start", "tombsync")
    (stem,) = new_stems()
    touch(nodes[0], stem)
    everywhere(nodes, stem)
    node.run("/mnt/old/systemd/install", "--uninstall", "--purge-state")
    assert node.run("test", "-e", "/var/lib/tombsync", check=False).returncode == 1
    assert f"{stem}.tombstone" in node.says("ls", f"/segments/{HOUR}")

"""The Debian package on one machine, the installer with another tree and account on another, joined.

The machines are booted once for all tests of this file; they run in the order in which they stand here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import Machine, Machines, run
from tests.support.programs import need
from tests.support.trees import Disk, make_large_tree
from tests.support.waiting import wait_for
from tests.systemd.operators import (
    HOUR,
    SETTINGS,
    events,
    everywhere,
    hides,
    is_active,
    join_all,
    new_stems,
    restarts,
    touch,
)

pytestmark = pytest.mark.timeout(600)

PACKAGED = "n1"  # its state is on a disk of its own
INSTALLED = "n2"
STATE = "/var/lib/tombsync"
UNIT = "/lib/systemd/system/tombsync.service"
SEGMENTS = 200_000
HOURS = 112
# Everything of a tree but what reading it changes.
LOOK = 'find "$1" -printf "%p %i %m %U %G %s %T@ %C@\\n" | sort | sha256sum'


@pytest.fixture(scope="module")
def package(wheelhouse: Path) -> Path:
    """The package, as its one command makes it."""
    need("dh")
    out = wheelhouse.parent / "deb"
    run(
        wheelhouse.parent / "old/systemd/deb/build", "--wheelhouse", wheelhouse, out,
        env={**os.environ, "DEBFULLNAME": "An Operator", "DEBEMAIL": "operator@example.org"}, timeout_s=600,
    )  # fmt: skip
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def nodes(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Two nodes on which nothing is installed yet."""
    disks: list[Disk] = []

    def prepare(machine: Machine) -> None:
        if machine.name == PACKAGED:
            make_large_tree(machine.root / "segments", files=SEGMENTS, hours=HOURS)
            disk = Disk(machine.root.parent / "state.img", megabytes=256)
            (machine.root / STATE[1:]).mkdir()
            disks.append(disk)
            disk.mount(machine.root / STATE[1:])
        else:
            machine.tree = "/archive"
            (machine.root / "archive" / HOUR).mkdir(parents=True)

    binds = [f"--bind-ro={package.parents[1]}:/mnt"]
    machines = Machines(tmp_path_factory.mktemp("machines"), [PACKAGED, INSTALLED], binds=binds, prepare=prepare)
    try:
        with machines as nodes:
            yield nodes
    finally:
        for disk in disks:
            disk.clean_up()


def deb(package: Path) -> str:
    """Where the nodes see it."""
    return f"/mnt/deb/{package.name}"


def is_there(node: Machine, path: str) -> bool:
    return node.run("test", "-e", path, check=False).returncode == 0


# -- the package, and its installation ---------------------------------------------------------------------------------


def test_lintian_has_nothing_against_the_package(package: Path) -> None:
    done = run(need("lintian"), "--allow-root", "--fail-on", "error,warning", package)
    assert done.stdout == ""


def test_an_installation_enables_and_starts_nothing(nodes: list[Machine], package: Path) -> None:
    node = nodes[0]
    node.run("dpkg", "--install", deb(package))
    assert node.says("systemctl", "show", "--property=UnitFileState,ActiveState", "tombsync").split() == [
        "ActiveState=inactive",
        "UnitFileState=disabled",
    ]
    done = node.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", UNIT)
    assert (done.stdout, done.stderr) == ("", "")
    assert node.says("tombsync", "--version").endswith("0.1.0")
    node.run("id", "tombsync")
    assert node.says("journalctl", "--list-catalog").count("tombsync") > 10
    for path in (SETTINGS, "/usr/share/man/man5/tombsync.toml.5.gz", "/usr/share/zsh/vendor-completions/_tombsync"):
        assert is_there(node, path)
    for snippet in ("tombsync.conf", "tombsync-auth.conf"):
        assert is_there(node, f"/usr/share/tombsync/nginx/{snippet}")
    assert not is_there(node, "/etc/nginx")
    assert node.shell("find /usr/lib/tombsync -name 'main.cpython-*.pyc' | wc -l") != "0"


def test_the_package_and_the_installer_refuse_each_other(nodes: list[Machine], package: Path) -> None:
    packaged, installed = nodes
    done = packaged.run("/mnt/old/systemd/install", "--wheelhouse", "/mnt/wheels", check=False)
    assert (done.returncode, "apt-get remove tombsync" in done.stderr) == (1, True)
    installed.run("/mnt/old/systemd/install", "--wheelhouse", "/mnt/wheels", "--root", "/archive", "--no-acl")
    done = installed.run("dpkg", "--install", deb(package), check=False)
    assert (done.returncode, "systemd/install --uninstall" in done.stderr) == (1, True)
    assert not is_there(installed, "/usr/lib/tombsync")


# -- the installer's options -------------------------------------------------------------------------------------------


def test_the_rights_in_another_tree_can_be_left_to_somebody_else(nodes: list[Machine]) -> None:
    node = nodes[1]
    assert 'root = "/archive"' in node.says("cat", SETTINGS)
    assert "/archive" in node.property("ReadWritePaths")
    assert "user:tombsync:" not in node.says("getfacl", "--recursive", "--absolute-names", "/archive")
    done = node.run("runuser", "-u", "tombsync", "--", "tombsync", "check", "--no-network", check=False)
    assert (done.returncode, "/archive" in done.stdout) == (1, True)
    assert node.property("User") == "tombsync"


def test_a_tree_that_the_settings_do_not_name_is_refused(nodes: list[Machine]) -> None:
    install = ["/mnt/old/systemd/install", "--wheelhouse", "/mnt/wheels", "--dry-run"]
    done = nodes[1].run(*install, "--root", "/segments", check=False)
    assert (done.returncode, "change root there" in done.stderr) == (1, True)
    assert nodes[1].run(*install, "--root", "/with space", check=False).returncode == 2
    done = nodes[1].run(*install, "--as-user", "nobody-of-that-name", check=False)
    assert (done.returncode, "no account" in done.stderr) == (1, True)


def test_the_owner_of_the_tree_can_run_the_agent(nodes: list[Machine]) -> None:
    node = nodes[1]
    node.run("useradd", "archive")
    node.run("chown", "--recursive", "archive:", "/archive")
    install = ["/mnt/old/systemd/install", "--wheelhouse", "/mnt/wheels"]
    node.run(*install, "--as-user", "archive")
    node.run("/mnt/old/systemd/access")  # says the same again
    assert (node.property("User"), node.property("Group")) == ("archive", "archive")
    node.run("systemctl", "start", "tombsync")
    assert node.says("ps", "-o", "user=", "-p", node.property("MainPID")) == "archive"
    (stem,) = new_stems()
    touch(node, stem)
    wait_for(lambda: hides(node, stem), "the mark to be seen", pause_s=0.2)
    assert "user:tombsync:" not in node.says("getfacl", "--recursive", "--absolute-names", "/archive")


# -- the service of the package ----------------------------------------------------------------------------------------


def test_a_start_waits_for_a_long_first_scan_and_says_how_far_it_is(nodes: list[Machine]) -> None:
    node = nodes[0]
    node.run("/usr/share/tombsync/access", "--root", "/segments")
    node.shell('printf "[breaker]\\nmost_per_minute = 100000\\n" >> "$1"', SETTINGS)
    starting = subprocess.Popen(node.command("systemctl", "start", "tombsync"), stdin=subprocess.DEVNULL)
    seen = set()
    while starting.poll() is None:
        said = node.says("systemctl", "show", "--property=ActiveState,StatusText", "tombsync")
        if starting.poll() is None:
            seen.add(said)
    assert starting.returncode == 0
    assert any("ActiveState=activating" in said and "StatusText=first scan " in said and " %" in said for said in seen)
    assert not [said for said in seen if "first scan" in said and "ActiveState=activating" not in said]
    assert node.property("StatusText").startswith("ready")
    listed = node.says("sh", "-c", f"tombsync ls {HOUR} --json | grep -o '\\.ts\"' | wc -l")
    assert listed == f"{SEGMENTS // HOURS}"


def test_joined_nodes_deliver_to_each_other(nodes: list[Machine]) -> None:
    join_all(nodes)  # n2 finds out by itself as whom its agent runs
    for node in nodes:
        node.run("systemctl", "enable", "--quiet", "tombsync")
        node.run("systemctl", "restart", "tombsync")
    stems = new_stems(2)
    for node, stem in zip(nodes, stems, strict=True):
        touch(node, stem)
    everywhere(nodes, *stems)
    assert nodes[1].says("stat", "-c", "%U", f"/archive/{HOUR}/{stems[0]}.tombstone") == "archive"


def test_an_agent_whose_disk_hangs_ends_and_nothing_is_lost(nodes: list[Machine]) -> None:
    """The state's disk is frozen: whatever writes the index stands in the kernel, where no signal reaches it."""
    node = nodes[0]
    before, ended = restarts(node), len(events(node, "worker-died"))
    disk = node.root / STATE[1:]
    stems = new_stems(20)
    run(need("fsfreeze"), "--freeze", disk)
    try:
        touch(node, *stems)
        wait_for(lambda: len(events(node, "worker-died")) > ended, "a worker to be missed", 90, pause_s=0.5)
    finally:
        run(need("fsfreeze"), "--unfreeze", disk)
    assert events(node, "worker-died")[-1]["TOMBSYNC_WORKER"] == "intake"
    wait_for(lambda: restarts(node) > before and is_active(node), "the restart", 90, pause_s=0.2)
    everywhere(nodes, *stems)


# -- upgrade and end ---------------------------------------------------------------------------------------------------


def test_an_upgrade_restarts_the_agent_and_misses_nothing(nodes: list[Machine], package: Path) -> None:
    node = nodes[0]
    content = package.parents[1] / "content"
    run("dpkg-deb", "--raw-extract", package, content)
    control = content / "DEBIAN/control"
    control.write_text(control.read_text().replace("Version: 0.1.0-1\n", "Version: 0.1.0-2\n"))
    run("dpkg-deb", "-Znone", "--root-owner-group", "--build", content, package.with_name("newer.deb"))
    shutil.rmtree(content)
    settings, pid = node.says("cat", SETTINGS), node.property("MainPID")
    stems = new_stems(20)
    upgrading = subprocess.Popen(node.command("dpkg", "--install", "/mnt/deb/newer.deb"), stdin=subprocess.DEVNULL)
    for stem in stems:
        touch(node, stem)
    assert upgrading.wait(300) == 0
    assert node.says("dpkg-query", "--show", "--showformat=${Version}", "tombsync") == "0.1.0-2"
    assert is_active(node)
    assert node.property("MainPID") != pid
    assert node.says("cat", SETTINGS) == settings
    everywhere(nodes, *stems)


def test_a_removal_keeps_what_is_the_operators(nodes: list[Machine]) -> None:
    node = nodes[0]
    node.run("systemctl", "stop", "tombsync")
    before = node.shell(LOOK, "/segments")
    node.run("systemctl", "start", "tombsync")
    node.run("dpkg", "--remove", "tombsync")
    assert node.shell(LOOK, "/segments") == before
    gone = (UNIT, "/usr/bin/tombsync", "/usr/lib/tombsync", "/usr/share/tombsync")
    assert [path for path in gone if is_there(node, path)] == []
    assert not is_active(node)
    assert node.says("systemctl", "list-units", "--failed", "--plain", "--no-legend", "tombsync*") == ""
    for path in (SETTINGS, "/etc/tombsync/id_ed25519", f"{STATE}/index.sqlite"):
        assert is_there(node, path)


def test_a_purge_leaves_the_tree_as_it_is(nodes: list[Machine]) -> None:
    node = nodes[0]
    before = node.shell(LOOK, "/segments")
    node.run("dpkg", "--purge", "tombsync")
    assert node.shell(LOOK, "/segments") == before
    assert node.says("ls", "-A", STATE) == ""  # itself it is a mount, and stays
    assert [path for path in (SETTINGS, "/etc/tombsync") if is_there(node, path)] == []
    assert node.shell("find /etc/systemd -name '*tombsync.service*'") == ""
    node.run("dpkg", "--audit")

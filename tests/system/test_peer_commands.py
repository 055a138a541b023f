"""`tombsync peer add`, `show`, `rotate` and `remove` as root runs them, on a machine of their own."""

from __future__ import annotations

import base64
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest

from tests.support.machine import CONFIG, Machine
from tests.support.programs import need
from tombsync.config import load

JAIL = "/srv/tombsync"
ACCOUNT = "tombsync-node-b"
INBOX = f"{JAIL}/inbox/{ACCOUNT}"
KEYS = f"/etc/ssh/tombsync-peers/{ACCOUNT}"
DROP_IN = "/etc/ssh/sshd_config.d/60-tombsync-peers.conf"
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
HOUR = "desertbus/source/2019-11-13T02"
SETTINGS = """\
# ours
[rescan]
interval_s = 60   # often

[[peer]]
name = "node-x"
host = "x.example" # at the office

# the end"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "machine") as machine:
        machine.path(machine.root / HOUR).mkdir(parents=True)
        yield machine


@pytest.fixture
def key(machine: Machine) -> Path:
    """The public key of node-b."""
    return machine.make_key("b")[1]


def add(machine: Machine, key: Path, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return machine.tombsync("peer", "add", "node-b", "--key", key, *more, expect=expect)


def logs_in(machine: Machine, private: Path, account: str = ACCOUNT) -> bool:
    """Whether a key opens an account; then a name can be created in its inbox."""
    transport = paramiko.Transport(("127.0.0.1", machine.port))
    try:
        transport.connect(username=account, pkey=paramiko.Ed25519Key.from_private_key_file(str(private)))
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp is not None
        sftp.open("1,login", "x").close()
    except paramiko.AuthenticationException:
        return False
    finally:
        transport.close()
    machine.path(f"{JAIL}/inbox/{account}/1,login").unlink()
    return True


def refused(machine: Machine, *words: str | Path, expect: int = 1) -> str:
    """Run a command that must change nothing, and return what it says is wrong."""
    before = machine.snapshot()
    done = machine.tombsync(*words, expect=expect)
    assert machine.snapshot() == before
    assert expect == 2 or "\n  hint: " in done.stderr
    return done.stderr


# -- add ---------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_everything_and_changes_nothing(machine: Machine, key: Path) -> None:
    before = machine.snapshot()
    told = add(machine, key, "--host", "b.example", "--dry-run").stdout
    document = machine.json("peer", "add", "node-b", "--key", key, "--host", "b.example", "--dry-run")
    assert machine.snapshot() == before
    words = ["group tombsync-peers", f"account {ACCOUNT}", f"mount the inbox at {INBOX}", f"{JAIL}/segments", DROP_IN]
    words += ["ChrootDirectory /srv/tombsync", "SHA256:", "[[sender]]", 'host = "b.example"', "id_ed25519"]
    for word in words:
        assert word in told
    assert all(line.startswith(("would ", "    ")) for line in told.splitlines())
    assert document["dry_run"] is True
    done = machine.json("peer", "add", "node-b", "--key", key, "--host", "b.example")
    assert [change["what"] for change in done["changes"]] == [change["what"] for change in document["changes"]]


def test_a_second_time_changes_nothing(machine: Machine, key: Path) -> None:
    add(machine, key, "--host", "b.example")
    before = machine.snapshot()
    for more in ((), ("--host", "b.example"), ("--dry-run",)):
        assert "nothing to change" in add(machine, key, *more).stdout
    assert machine.json("peer", "add", "node-b", "--key", key)["changes"] == []
    assert machine.snapshot() == before


def test_what_is_missing_is_put_back(machine: Machine, key: Path) -> None:
    add(machine, key)
    wanted = machine.mount_points()
    for harm in (
        ["umount", INBOX],
        ["umount", "-R", f"{JAIL}/segments"],
        ["usermod", "--shell", "/bin/sh", "--password", "x", ACCOUNT],
        ["chmod", "666", KEYS],
        ["chown", ACCOUNT, JAIL],
        ["rm", DROP_IN],
        ["sed", "-i", "/tombsync/d", "/etc/fstab"],
        ["chmod", "777", INBOX],
    ):
        machine.run(*harm)
        if harm[0] == "chown":
            assert "root's alone" in refused(machine, "peer", "add", "node-b", "--key", key)
            machine.run("chown", "root", JAIL)
            continue
        assert add(machine, key).stdout
        assert "nothing to change" in add(machine, key).stdout
    assert machine.mount_points() == wanted


def test_mounts_come_back_at_boot(machine: Machine, key: Path) -> None:
    machine.path(machine.root / "desertbus/a b").mkdir()
    machine.run("mount", "-t", "tmpfs", "tmpfs", machine.root / "desertbus/a b")
    add(machine, key)
    options = [line.split()[5] for line in machine.mounts() if f" {JAIL}/segments" in line]
    assert len(options) == 2
    assert all({"ro", "nosuid", "nodev", "noexec"} <= set(option.split(",")) for option in options)
    before = machine.mount_points()
    machine.run("umount", "-R", f"{JAIL}/segments")
    machine.run("umount", INBOX)
    machine.run("mount", "--all")
    assert machine.mount_points() == before
    assert "nothing to change" in add(machine, key).stdout


def test_a_view_of_the_old_disk_is_made_anew(machine: Machine, key: Path) -> None:
    add(machine, key)
    machine.run("mount", "-t", "tmpfs", "tmpfs", machine.root)
    machine.run("mkdir", machine.root / "other")
    assert not machine.path(f"{JAIL}/segments/other").exists()
    assert "view" in add(machine, key).stdout
    assert machine.path(f"{JAIL}/segments/other").exists()
    assert "nothing to change" in add(machine, key).stdout


def test_a_disk_that_comes_later_is_not_in_the_view_until_asked_for(machine: Machine, key: Path) -> None:
    machine.run("mount", "--make-rshared", machine.base)
    add(machine, key)
    later = machine.root / "desertbus/160p"
    machine.path(later).mkdir()
    machine.run("mount", "-t", "tmpfs", "tmpfs", later)
    machine.run("mkdir", later / "2019-11-13T02")
    assert not machine.path(f"{JAIL}/segments/desertbus/160p/2019-11-13T02").exists()
    add(machine, key)
    assert machine.path(f"{JAIL}/segments/desertbus/160p/2019-11-13T02").exists()
    machine.run("touch", f"{JAIL}/segments/desertbus/160p/x", expect=1)


def test_a_root_that_is_a_link_is_resolved(machine: Machine, key: Path) -> None:
    real = machine.root.with_name("real")
    machine.path(machine.root).rename(machine.path(real))
    machine.run("ln", "-s", "real", machine.root)
    add(machine, key)
    assert machine.path(f"{JAIL}/segments/{HOUR}").is_dir()
    assert "nothing to change" in add(machine, key).stdout


def test_the_settings_keep_everything_else(machine: Machine, key: Path) -> None:
    machine.write_settings(SETTINGS)
    before = machine.path(CONFIG).read_text()
    machine.run("chown", "0:54321", CONFIG)
    machine.run("chmod", "640", CONFIG)
    add(machine, key, "--host", "b.example", "--port", "2222", "--user", "us")
    status = machine.path(CONFIG).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 54321, 0o640)
    assert machine.path(CONFIG).read_text().startswith(before + "\n")
    settings = load(str(machine.path(CONFIG)))
    assert [(sender.name, sender.account) for sender in settings.senders] == [("node-b", ACCOUNT)]
    assert [peer.name for peer in settings.peers] == ["node-x", "node-b"]
    peer = settings.peers[1]
    found = (peer.host, peer.port, peer.user, peer.delivery, peer.path)
    assert found == ("b.example", 2222, "us", "inbox", "/segments")
    machine.tombsync("peer", "remove", "node-b")
    assert machine.path(CONFIG).read_text() == before + "\n"
    status = machine.path(CONFIG).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 54321, 0o640)


def test_without_a_settings_file_one_is_made(machine: Machine) -> None:
    machine.path(CONFIG).unlink()
    machine.tombsync("peer", "add", "node-b", "--host", "b.example")
    assert [peer.name for peer in load(str(machine.path(CONFIG))).peers] == ["node-b"]


def test_a_peer_can_be_delivered_to_before_its_key_is_known(machine: Machine, key: Path) -> None:
    machine.tombsync("peer", "add", "node-b", "--host", "b.example", "--delivery", "tree", "--path", "/data")
    private = machine.path("/etc/tombsync/id_ed25519")
    assert private.stat().st_mode & 0o7777 == 0o600
    own = private.read_bytes()
    assert not machine.path(JAIL).exists()
    add(machine, key)
    assert private.read_bytes() == own
    settings = load(str(machine.path(CONFIG)))
    assert (len(settings.peers), len(settings.senders), settings.peers[0].delivery) == (1, 1, "tree")


def test_the_inbox_belongs_to_the_agent(machine: Machine, key: Path) -> None:
    assert "no account tombsync" in add(machine, key).stderr
    assert machine.path(INBOX).stat().st_uid == 0
    machine.run("useradd", "--system", "tombsync")
    machine.run("touch", f"{INBOX}/waiting")
    add(machine, key)
    status = machine.path(INBOX).stat()
    assert status.st_uid == int(machine.run("id", "-u", "tombsync").stdout)
    assert status.st_gid == int(machine.run("id", "-g", ACCOUNT).stdout)
    assert machine.path(f"{INBOX}/waiting").exists()  # it was not mounted anew
    add(machine, key, "--agent-user", "daemon")
    assert machine.path(INBOX).stat().st_uid == int(machine.run("id", "-u", "daemon").stdout)
    agent = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "--bounding-set=-all"]
    machine.run(*agent, "rm", f"{INBOX}/waiting")
    assert "nobody-here" in refused(machine, "peer", "add", "node-b", "--key", key, "--agent-user", "nobody-here")


def test_the_agent_is_who_owns_its_state(machine: Machine, key: Path) -> None:
    """As where the archive does not run as root, and the agent runs as the archive."""
    machine.run("useradd", "--system", "tombsync")
    machine.run("useradd", "--system", "archive")
    state = machine.base / "state"
    machine.run("install", "-d", "-o", "archive", state)
    machine.write_settings(f'state_dir = "{state}"\n')
    assert "the inbox is archive's, as whom the agent runs here" in add(machine, key).stderr
    assert machine.path(INBOX).stat().st_uid == int(machine.run("id", "-u", "archive").stdout)
    said = add(machine, key, "--agent-user", "tombsync").stderr
    assert "the inbox is tombsync's, and the agent here runs as archive" in said
    assert machine.path(INBOX).stat().st_uid == int(machine.run("id", "-u", "tombsync").stdout)


def test_a_tree_that_peers_cannot_enter_is_told(machine: Machine, key: Path) -> None:
    machine.path(machine.root / "desertbus").chmod(0o750)
    assert f"{machine.root}/desertbus may not be entered" in add(machine, key).stderr


@pytest.mark.parametrize("jail", ["/srv/a b", "/srv/deep/er/100%"])
def test_the_jail_can_be_elsewhere(machine: Machine, key: Path, jail: str) -> None:
    machine.write_settings(f'[inbox]\njail = "{jail}"\n')
    words = [sys.executable, "-m", "tombsync", "peer", "add", "node-b", "--key", str(key)]
    machine.run("sh", "-c", 'umask 077; exec "$@"', "sh", *words)
    for made in (jail, f"{jail}/..", f"{jail}/segments", "/etc/ssh/tombsync-peers"):
        assert machine.path(made).stat().st_mode & 0o005 == 0o005  # for the agent to pass through
    machine.start_sshd()
    private = key.with_suffix("")
    transport = paramiko.Transport(("127.0.0.1", machine.port))
    try:
        transport.connect(username=ACCOUNT, pkey=paramiko.Ed25519Key.from_private_key_file(str(private)))
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp is not None
        sftp.lstat(f"/segments/{HOUR}")
        sftp.open("1,here", "x").close()
    finally:
        transport.close()
    assert machine.path(f"{jail}/inbox/{ACCOUNT}/1,here").exists()
    assert "nothing to change" in add(machine, key).stdout
    machine.tombsync("peer", "remove", "node-b", "--force")
    assert ACCOUNT not in machine.path("/etc/fstab").read_text()


# -- add: what is refused ----------------------------------------------------------------------------------------------


def bad_keys(machine: Machine, directory: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no single public key, each with a word of what is said of it."""
    private, public = machine.make_key("good")
    line = public.read_text()
    kind, blob, _ = line.split()

    def generated(*options: str) -> Path:
        path = directory / "-".join(options).replace("/", "_")
        subprocess.run([need("ssh-keygen"), "-q", "-N", "", "-f", str(path), *options], check=True)
        return path.with_suffix(".pub")

    texts = {
        "two": (line * 2, "2 lines"),
        "empty": ("\n\n", "0 lines"),
        "options": (f'command="id" {line}', "options"),
        "more options": (f'no-pty,environment="A=ssh-ed25519 x" {line}', "options"),
        "comment": (f"# {line}", "options"),
        "cut off": (f"{kind} {blob[:-8]}\n", "agree"),
        "no base64": (f"{kind} {'!' * 68}\n", "damaged"),
        "trailing": (f"{kind} {base64.b64encode(base64.b64decode(blob) + b'x').decode()}\n", "public key"),
        "no blob": (f"{kind}\n", "damaged"),
        "another type": (f"ssh-rsa {blob}\n", "public key"),
        "security key": (f"sk-ssh-ed25519@openssh.com {blob}\n", "type"),
        "certificate": (f"ssh-ed25519-cert-v01@openssh.com {blob}\n", "type"),
        "words": ("this is no key\n", "type"),
        "long": (line.rstrip() + "x" * 20_000, "too long"),
    }
    found = {}
    for name, (text, word) in texts.items():
        (directory / name).write_text(text)
        found[name] = (directory / name, word)
    (directory / "binary").write_bytes(bytes(range(256)))
    os.mkfifo(directory / "fifo")
    return {
        **found,
        "private": (private, "private key"),
        "binary": (directory / "binary", "lines"),
        "missing": (directory / "no-such", "No such file"),
        "directory": (directory, "cannot be read"),
        "fifo": (directory / "fifo", "regular file"),
        "short RSA": (generated("-t", "rsa", "-b", "1024"), "2048"),
    }


def test_files_that_are_no_public_key(machine: Machine, tmp_path: Path) -> None:
    before = machine.snapshot()
    for name, (path, word) in bad_keys(machine, tmp_path).items():
        for words in (("peer", "add", "node-b", "--key", path), ("peer", "add", "node-b", "--dry-run", "--key", path)):
            said = machine.tombsync(*words, expect=1).stderr
            assert said.startswith(f"tombsync: {path}: "), name
            assert word in said, name
            assert "hint" in said, name
    assert machine.snapshot() == before


@pytest.mark.parametrize("options", [("-t", "ecdsa"), ("-t", "rsa", "-b", "2048")], ids=" ".join)
def test_other_types_of_keys(machine: Machine, tmp_path: Path, options: tuple[str, ...]) -> None:
    subprocess.run([need("ssh-keygen"), "-q", "-N", "", "-f", str(tmp_path / "k"), *options], check=True)
    add(machine, tmp_path / "k.pub")
    assert "nothing to change" in add(machine, tmp_path / "k.pub").stdout


def test_only_root_can(machine: Machine, key: Path) -> None:
    somebody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    before = machine.snapshot()
    for words in (
        ("add", "node-b", "--key", str(key)),
        ("add", "node-b", "--key", str(key), "--dry-run"),
        ("rotate", "node-b", "--finish"),
        ("remove", "node-b"),
    ):
        done = machine.run(*somebody, sys.executable, "-m", "tombsync", "peer", *words, expect=1)
        assert done.stderr.startswith(f"tombsync: `tombsync peer {words[0]}` needs root\n  hint: ")
    assert machine.snapshot() == before


def test_bad_settings_change_nothing(machine: Machine, key: Path) -> None:
    machine.write_settings("nonsense = 1\n")
    assert "nonsense" in refused(machine, "peer", "add", "node-b", "--key", key)
    machine.write_settings('peer = [{ host = "x.example" }]\n')
    assert "cannot be added to" in refused(machine, "peer", "add", "node-b", "--host", "b.example")
    assert "cannot be told" in refused(machine, "peer", "remove", "x.example")
    machine.write_settings()
    said = refused(machine, "peer", "add", "node-b", "--host", "not a host", "--port", "99999")
    assert f"{CONFIG}: peer 1 (node-b): host" in said
    assert f"{CONFIG}: peer 1 (node-b): port" in said
    assert "/proc/self/fd" not in said


def test_what_does_not_agree_with_the_settings(machine: Machine, key: Path) -> None:
    add(machine, key, "--host", "b.example")
    for option, value in (("--host", "c.example"), ("--port", "23"), ("--user", "else"), ("--delivery", "tree")):
        host = () if option == "--host" else ("--host", "b.example")
        assert "already, with" in refused(machine, "peer", "add", "node-b", "--key", key, *host, option, value)
    assert "already, with" in refused(machine, "peer", "add", "node-b", "--key", key, "--account", "else")
    other = machine.make_key("other")[1]
    assert "another key here already" in refused(machine, "peer", "add", "node-b", "--key", other)
    assert "is that of the account" in refused(machine, "peer", "add", "node-c", "--key", key)
    assert "account already" in refused(machine, "peer", "add", "node.b", "--key", other)


@pytest.mark.parametrize("name", ["node-a", "NODE-A", "", "-x", "a/b", "../x", "a b", b"\xff", "x" * 65])
def test_names_that_are_none(machine: Machine, key: Path, name: str | bytes) -> None:
    refused(machine, "peer", "add", "--key", key, "--", os.fsdecode(name), expect=2)


def test_an_account_of_somebody_else_is_left_alone(machine: Machine, key: Path) -> None:
    machine.run("useradd", "--no-create-home", ACCOUNT)
    assert "somebody else's" in refused(machine, "peer", "add", "node-b", "--key", key)
    add(machine, key, "--account", "other-name")
    machine.write_settings(f'[[sender]]\nname = "node-b"\naccount = "{ACCOUNT}"\n')
    assert "somebody else's" in refused(machine, "peer", "remove", "node-b")


@pytest.mark.parametrize("harm", [["chmod", "777", "/srv"], ["chown", "daemon", "/srv"], ["ln", "-s", "/tmp", JAIL]])
def test_a_jail_that_sshd_would_refuse(machine: Machine, key: Path, harm: list[str]) -> None:
    machine.run(*harm)
    assert harm[-1] in refused(machine, "peer", "add", "node-b", "--key", key)


def test_a_tree_that_is_not_there(machine: Machine, key: Path) -> None:
    machine.run("mv", machine.root, f"{machine.root}-away")
    assert "segment tree" in refused(machine, "peer", "add", "node-b", "--key", key)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("Subsystem sftp internal-sftp\n", "chrootdirectory is none"),
        (INCLUDE, "no Subsystem sftp"),
        ("Match Group tombsync-peers\n PermitTTY yes\nMatch all\n" + INCLUDE, "permittty is yes"),
    ],
    ids=["no include", "no subsystem", "another block"],
)  # fmt: skip
def test_without_its_jail_no_key_is_let_in(machine: Machine, key: Path, config: str, said: str) -> None:
    good = machine.path("/etc/ssh/sshd_config").read_text()
    machine.path("/etc/ssh/sshd_config").write_text(config)
    told = add(machine, key, expect=3).stderr  # in part
    assert said in told
    assert "hint" in told
    assert not machine.path(KEYS).exists()
    assert "sender" not in machine.path(CONFIG).read_text()
    machine.path("/etc/ssh/sshd_config").write_text(good)
    add(machine, key)  # goes on where it stopped
    assert machine.path(KEYS).exists()


def test_a_configuration_that_sshd_refuses_is_put_back(machine: Machine, key: Path) -> None:
    machine.path("/etc/ssh/sshd_config.d/99-broken.conf").write_text("NoSuchKeyword yes\n")
    for before in (None, "# an older version\n"):
        if before is not None:
            machine.path(DROP_IN).write_text(before)
        told = add(machine, key, expect=3 if before is None else 1)
        assert "NoSuchKeyword" in told.stderr
        assert machine.path(DROP_IN).exists() == (before is not None)
        assert before is None or machine.path(DROP_IN).read_text() == before
        assert not machine.path(KEYS).exists()


# -- the host keys of peers --------------------------------------------------------------------------------------------


KNOWN_HOSTS = "/etc/tombsync/known_hosts"


def host_key(directory: Path, name: str, *options: str) -> str:
    """A host key, as type and base64."""
    path = directory / name
    subprocess.run([need("ssh-keygen"), "-q", "-N", "", "-f", str(path), *(options or ("-t", "ed25519"))], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def pin(machine: Machine, *given: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    words = [word for one in given for word in ([str(one)] if one == "--dry-run" else ["--host-key", str(one)])]
    return machine.tombsync("peer", "add", "node-b", "--host", "b.example", "--port", "2222", *words, expect=expect)


def test_host_keys_are_pinned_once_and_a_dry_run_shows_them(machine: Machine, tmp_path: Path) -> None:
    first, second = host_key(tmp_path, "one"), host_key(tmp_path, "two", "-t", "ecdsa")
    told = pin(machine, first, "--dry-run").stdout
    assert f"    {KNOWN_HOSTS}:\n      [b.example]:2222 {first}\n" in told
    assert not machine.path(KNOWN_HOSTS).exists()
    assert "pin the host key of b.example" in pin(machine).stderr
    machine.path(KNOWN_HOSTS).write_text("# ours\nother.example ssh-ed25519 AAAA")
    machine.run("chown", "12345:54321", KNOWN_HOSTS)
    lines = tmp_path / "node-b.hosts"
    lines.write_text(f"#   SHA256:x (ssh-ed25519)\nwhat-it-calls-itself {first}\n\nx.example ssh-dss AAAA\n")
    done = pin(machine, lines)
    assert "pin the host key of b.example" not in done.stderr
    assert f"pin the host key of b.example in {KNOWN_HOSTS}: SHA256:" in done.stdout
    wanted = f"# ours\nother.example ssh-ed25519 AAAA\n[b.example]:2222 {first}\n"
    assert machine.path(KNOWN_HOSTS).read_text() == wanted
    assert machine.path(KNOWN_HOSTS).stat().st_uid == 12345
    for again in (lines, first, f"b.example {first}", f"[b.example]:2222 {first} comment"):
        assert "nothing to change" in pin(machine, again).stdout
    pin(machine, first, second)  # another kind of the same machine
    assert machine.path(KNOWN_HOSTS).read_text() == f"{wanted}[b.example]:2222 {second}\n"
    assert "nothing to change" in machine.tombsync("peer", "add", "node-b", "--host-key", second).stdout


def test_a_host_key_that_is_pinned_is_never_exchanged(machine: Machine, tmp_path: Path) -> None:
    first, other = host_key(tmp_path, "one"), host_key(tmp_path, "other")
    kind = host_key(tmp_path, "ecdsa", "-t", "ecdsa")
    pin(machine, first)
    command = ("peer", "add", "node-b", "--host-key")
    for given in (other, kind):
        said = refused(machine, *command, given)
        assert f"{KNOWN_HOSTS} has another key for [b.example]:2222" in said
        assert f"ssh-keygen -f {KNOWN_HOSTS} -R '[b.example]:2222'" in said
    assert "has another key" in refused(machine, *command, first, "--host-key", other)
    machine.run("ssh-keygen", "-f", KNOWN_HOSTS, "-R", "[b.example]:2222")
    machine.tombsync(*command, other)
    assert machine.path(KNOWN_HOSTS).read_text() == f"[b.example]:2222 {other}\n"
    machine.path(KNOWN_HOSTS).write_text(f"@revoked * {first}\n")
    assert "has this key as revoked" in refused(machine, *command, first)


def test_what_is_no_host_key(machine: Machine, tmp_path: Path) -> None:
    pin(machine)
    good = host_key(tmp_path, "good")
    texts = {
        "@cert-authority *.example " + good: "@cert-authority",
        f"b.example {good[:-8]}": "--host-key",
        "b.example ssh-dss AAAA": "cannot be read",  # it is taken for a file
        str(tmp_path / "none"): "No such file",
        str(tmp_path): "cannot be read",
    }
    (tmp_path / "empty").write_text("# nothing\n")
    texts[str(tmp_path / "empty")] = "holds no host key"
    for given, word in texts.items():
        assert word in refused(machine, "peer", "add", "node-b", "--host-key", given), given
    said = refused(machine, "peer", "add", "node-c", "--host-key", good, expect=2)
    assert "say --host" in said


# -- two at once -------------------------------------------------------------------------------------------------------


def test_commands_at_the_same_time_lose_nothing(machine: Machine) -> None:
    names = [f"node-{letter}" for letter in "bcdef"]
    with ThreadPoolExecutor(len(names)) as pool:
        told = list(pool.map(lambda name: machine.tombsync("peer", "add", name, "--host", f"{name}.example"), names))
    assert {peer.name for peer in load(str(machine.path(CONFIG))).peers} == set(names)
    assert sum("nothing to change" in done.stdout for done in told) == 0


def test_one_that_goes_on_for_long_is_waited_for_and_a_dry_run_waits_for_nobody(machine: Machine) -> None:
    words = ("peer", "add", "node-b", "--host", "b.example")
    descriptor = os.open(machine.path("/run/tombsync-peer.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    machine.tombsync(*words, "--dry-run")
    with machine.start(*words) as waiting:
        assert waiting.stderr is not None
        assert "another `tombsync peer` command is at work" in waiting.stderr.readline()
        assert not load(str(machine.path(CONFIG))).peers
        os.close(descriptor)
        waiting.communicate(timeout=50)
    assert waiting.returncode == 0
    assert [peer.name for peer in load(str(machine.path(CONFIG))).peers] == ["node-b"]


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_is_what_the_other_operator_needs(tmp_path: Path) -> None:
    """Two machines, and nothing carried between them but what `peer show` prints."""
    with Machine(tmp_path / "a") as a, Machine(tmp_path / "b", node="node-b") as b:
        a.tombsync("peer", "add", "node-b", "--host", "127.0.0.1")
        join(a, b)
        join(b, a)
        b.start_sshd()
        # The ports of the test cannot be known before.
        for machine in (a, b):
            text = machine.path(CONFIG).read_text()
            machine.path(CONFIG).write_text(
                text.replace('host = "127.0.0.1"\n', f'host = "127.0.0.1"\nport = {b.port}\n')
            )
        shown = b.tombsync("peer", "show", "node-a", "--host", "127.0.0.1", "--port", str(b.port)).stdout
        text = shown[shown.index("# The host keys") :]
        a.path("/etc/tombsync/node-b.hosts").write_text(text)
        a.tombsync("peer", "add", "node-b", "--host-key", "/etc/tombsync/node-b.hosts")
        found = {finding["what"]: finding for finding in a.json("check", expect=None)}
        assert (found["peer node-b"]["level"], found["peer node-b"]["hint"]) == ("ok", None)


def join(here: Machine, there: Machine) -> None:
    """Do at the second what the first one prints for it."""
    shown = here.json("peer", "show", there.node, "--host", "127.0.0.1")
    (card,) = shown["peers"]
    pub = there.base.with_name(f"{here.node}-at-{there.node}.pub")
    pub.write_text(card["public_key"] + "\n")
    words = card["command"].split()
    words[words.index(f"{here.node}.pub")] = str(pub)
    hosts = pub.with_suffix(".hosts")
    hosts.write_text("".join(f"{line['known_hosts']}\n" for line in shown["host_keys"]))
    if card["account"] is None:  # nothing is delivered to us before the other side is there: say where we are
        words += ["--host", "127.0.0.1", "--host-key", str(hosts)]
    else:
        words[words.index(f"{here.node}.hosts")] = str(hosts)
    assert words[:4] == ["tombsync", "peer", "add", here.node]
    there.tombsync(*words[1:])


def test_show_for_people(machine: Machine, key: Path) -> None:
    add(machine, key, "--host", "b.example")
    before = machine.snapshot()
    told = machine.tombsync("peer", "show", "node-b", "--host", "a.example", "--port", "2222").stdout.splitlines()
    assert machine.snapshot() == before
    public = machine.run("ssh-keygen", "-y", "-f", "/etc/tombsync/id_ed25519").stdout.split()[1]
    assert f"ssh-ed25519 {public} node-a" in told
    assert (
        "tombsync peer add node-a --key node-a.pub --host a.example --port 2222 --host-key node-a.hosts"
        f" --user {ACCOUNT} --account tombsync-node-a"
    ) in told
    fingerprint = machine.run("ssh-keygen", "-l", "-f", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
    assert f"#   {fingerprint} (ssh-ed25519)" in told
    host_key = machine.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    assert f"[a.example]:2222 {' '.join(host_key)}" in told
    assert told == machine.tombsync("peer", "show", "--host", "a.example", "--port", "2222").stdout.splitlines()
    assert "there is no peer" in refused(machine, "peer", "show", "node-x")


def test_show_without_a_key(machine: Machine) -> None:
    assert "no key yet" in refused(machine, "peer", "show")


# -- rotate ------------------------------------------------------------------------------------------------------------


def test_a_key_is_exchanged_without_a_failed_login(machine: Machine) -> None:
    old, old_public = machine.make_key("b")
    new, new_public = machine.make_key("new")
    add(machine, old_public)
    machine.start_sshd()
    assert (logs_in(machine, old), logs_in(machine, new)) == (True, False)
    before = machine.snapshot()
    machine.tombsync("peer", "rotate", "node-b", "--key", new_public, "--dry-run")
    assert machine.snapshot() == before
    machine.tombsync("peer", "rotate", "node-b", "--key", new_public)
    assert (logs_in(machine, old), logs_in(machine, new)) == (True, True)
    before = machine.snapshot(INBOX)
    machine.tombsync("peer", "rotate", "node-b", "--key", new_public)
    add(machine, new_public)  # either counts as the one that it has
    add(machine, old_public)
    machine.tombsync("peer", "rotate", "node-b", "--finish", "--dry-run")
    assert machine.snapshot(INBOX) == before
    machine.tombsync("peer", "rotate", "node-b", "--finish")
    assert (logs_in(machine, old), logs_in(machine, new)) == (False, True)
    before = machine.snapshot(INBOX)
    assert "nothing to change" in machine.tombsync("peer", "rotate", "node-b", "--finish").stdout
    assert machine.snapshot(INBOX) == before


def test_what_cannot_be_rotated(machine: Machine, key: Path, tmp_path: Path) -> None:
    assert "no peer named" in refused(machine, "peer", "rotate", "node-b", "--finish")
    machine.tombsync("peer", "add", "node-b", "--host", "b.example")
    assert "no peer named" in refused(machine, "peer", "rotate", "node-b", "--key", key)
    add(machine, key)
    refused(machine, "peer", "rotate", "node-b", expect=2)
    refused(machine, "peer", "rotate", "node-b", "--finish", "--key", key, expect=2)
    (tmp_path / "bad").write_text("x")
    assert "type of a key" in refused(machine, "peer", "rotate", "node-b", "--key", tmp_path / "bad")
    machine.run("rm", KEYS)
    assert "no key of node-b" in refused(machine, "peer", "rotate", "node-b", "--finish")


# -- remove ------------------------------------------------------------------------------------------------------------


def texts(machine: Machine) -> dict[str, str]:
    """The files that `peer add` adds lines to, without the lines that all peers share."""
    names = ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/fstab", str(CONFIG)]
    shared = ("tombsync-peers:", f"{machine.root} ")
    found = {}
    for name in names:
        lines = machine.path(name).read_text().splitlines()
        found[name] = "\n".join(line for line in lines if not line.startswith(shared))
    return found


def test_remove_undoes_what_add_did(machine: Machine, key: Path) -> None:
    before = texts(machine)
    other = machine.make_key("c")[1]
    add(machine, key, "--host", "b.example")
    alone = machine.snapshot()
    machine.tombsync("peer", "add", "node-c", "--key", other)
    machine.tombsync("peer", "remove", "node-c")
    assert changed(alone, machine.snapshot()) <= {"/etc/subuid-", "/etc/subgid-"}
    unchanged = machine.snapshot()
    told = machine.tombsync("peer", "remove", "node-b", "--dry-run").stdout
    assert machine.snapshot() == unchanged
    assert all(word in told for word in (INBOX, ACCOUNT, str(CONFIG)))
    machine.tombsync("peer", "remove", "node-b")
    assert texts(machine) == before
    assert not machine.path(KEYS).exists()
    assert not machine.path(INBOX).exists()
    assert INBOX not in machine.mount_points()
    assert "no peer named" in refused(machine, "peer", "remove", "node-b")


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The files whose content, owner or mode differ, and mounts that do; backups of the account files do not count."""
    names = set(before) | set(after)
    whole = {name for name in names if name not in before or name not in after}
    other = {name for name in names - whole if name != "mounts" and _kept(before[name]) != _kept(after[name])}
    lines = [{line.split()[4] for line in side["mounts"]} for side in (before, after)]
    return {name for name in whole | other if not name.endswith("-")} | (lines[0] ^ lines[1])


def _kept(facts: tuple[Any, ...]) -> tuple[Any, ...]:
    mode, uid, gid, *_, content = facts
    return mode, uid, gid, content


def test_files_that_wait_are_not_thrown_away(machine: Machine, key: Path) -> None:
    add(machine, key)
    machine.run("touch", f"{INBOX}/1,waiting")
    for more in ((), ("--dry-run",)):
        assert "1 tombstones from node-b wait" in refused(machine, "peer", "remove", "node-b", *more)
    machine.tombsync("peer", "remove", "node-b", "--force")
    assert not machine.path(INBOX).exists()


def test_a_session_that_stands_is_ended(machine: Machine, key: Path) -> None:
    add(machine, key)
    machine.start_sshd()
    transport = paramiko.Transport(("127.0.0.1", machine.port))
    try:
        transport.connect(username=ACCOUNT, pkey=paramiko.Ed25519Key.from_private_key_file(str(key.with_suffix(""))))
        sftp = paramiko.SFTPClient.from_transport(transport)
        assert sftp is not None
        sftp.get_channel().settimeout(20)  # type: ignore[union-attr]
        machine.tombsync("peer", "remove", "node-b")
        with pytest.raises((EOFError, OSError, paramiko.SSHException)):
            sftp.lstat("/segments")
    finally:
        transport.close()


def test_remove_goes_on_where_it_stopped(machine: Machine, key: Path) -> None:
    add(machine, key)
    machine.run("rm", KEYS)
    machine.run("umount", INBOX)
    machine.run("userdel", ACCOUNT)
    machine.tombsync("peer", "remove", "node-b")
    assert not machine.path(INBOX).exists()
    assert "sender" not in machine.path(CONFIG).read_text()


# -- where systemd runs ------------------------------------------------------------------------------------------------

# It does of the real one what is asked of it here, by the units that it is given.
SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/systemctl
units=/etc/systemd/system
case $1 in
enable) mkdir -p $units/local-fs.target.wants && ln -s "../$2" "$units/local-fs.target.wants/$2" ;;
disable) rm "$units/local-fs.target.wants/$2" ;;
restart)
    value() { sed -n "s/^$1=//p" "$units/$2" | sed 's/%%/%/g'; }
    mount -t "$(value Type "$2")" -o "$(value Options "$2")" "$(value What "$2")" "$(value Where "$2")" ;;
show) case $2$4 in --property=User*) echo ;; *ssh.service) echo loaded ;; *) echo not-found ;; esac ;;
esac
"""


def test_where_systemd_runs_the_mounts_are_its_units(machine: Machine, key: Path) -> None:
    machine.path("/run/systemd/system").mkdir(parents=True)
    machine.run(
        "sh", "-c", "mkdir /run/bin && cat >/run/bin/systemctl && chmod 755 /run/bin/systemctl", stdin=SYSTEMCTL
    )
    machine.run("mount", "--bind", "/run/bin/systemctl", need("systemctl"))
    units = machine.path("/etc/systemd/system")
    before = {path.name for path in units.iterdir()}
    fstab = machine.path("/etc/fstab").read_text()
    told = add(machine, key)
    assert "reload sshd" not in told.stderr
    inbox = "srv-tombsync-inbox-tombsync\\x2dnode\\x2db.mount"
    made = {path.name for path in units.iterdir()} - before
    assert made - {"local-fs.target.wants"} == {"srv-tombsync-segments.mount", inbox}
    view = (units / "srv-tombsync-segments.mount").read_text()
    assert (
        f"What={machine.root}\nWhere={JAIL}/segments\nType=none\nOptions=bind,ro,nosuid,nodev,noexec,private\n" in view
    )
    assert "size=64k,nr_inodes=12000,nosuid,nodev,noexec,uid=0,gid=" in (units / inbox).read_text()
    assert machine.path("/etc/fstab").read_text() == fstab
    asked = machine.path("/run/systemctl").read_text().splitlines()
    assert asked.count("try-reload-or-restart ssh.service") == 1
    assert "nothing to change" in add(machine, key).stdout
    machine.run("umount", INBOX)
    assert "mount the inbox" in add(machine, key).stdout
    machine.tombsync("peer", "remove", "node-b")
    assert {path.name for path in units.iterdir()} - before - {"local-fs.target.wants"} == {
        "srv-tombsync-segments.mount"
    }

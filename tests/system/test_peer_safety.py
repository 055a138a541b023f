"""`tombsync peer …` as root, where the agent's account, a peer, or sshd's configuration is not what it should be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.support.machine import CONFIG, Machine
from tests.support.waiting import wait_for

ACCOUNT = "tombsync-node-b"
OWN = "/etc/tombsync"
SECRET = "/etc/secret"
ADD = ("peer", "add", "node-b", "--host", "b.example")
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMPi0KaCPTGfUgAHLE1gzuvm44t0OaBpCzFM+NMS5lhL"
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
SUBSYSTEM = "Subsystem sftp internal-sftp\n"

# Whoever owns a directory: as soon as root has made a key in one below it, takes that one away, and puts another in its
# place that leads to a file of root's.
EXCHANGE = f"""
import os, pwd
os.setgid(pwd.getpwnam("tombsync").pw_gid)
os.setuid(pwd.getpwnam("tombsync").pw_uid)
os.chdir("{OWN}")

def makes_a_key():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{{pid}}/cmdline") as file:  # which is empty from its end on, before that is told
                if file.read().partition("\\0")[0].endswith("ssh-keygen"):
                    return True
        except OSError:
            pass

def may_go_on():
    return os.stat(".").st_uid == os.getuid()

print("ready", flush=True)
while may_go_on():
    while may_go_on() and not makes_a_key():
        pass
    while makes_a_key():
        pass
    for name in os.listdir():
        if name.startswith(".key-"):
            try:
                os.rename(name, "away" + name)
                os.mkdir(name)
                os.symlink("{SECRET}", name + "/key")
            except OSError:
                pass
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path / "machine") as machine:
        machine.path(machine.root / "desertbus/source/2019-11-13T02").mkdir(parents=True)
        machine.run("useradd", "--system", "tombsync")
        machine.path(SECRET).write_text("root's\n")
        machine.path(SECRET).chmod(0o440)
        yield machine


def facts(machine: Machine, path: str) -> tuple[int, int, str]:
    status = machine.path(path).stat()
    return status.st_uid, status.st_mode & 0o7777, machine.path(path).read_text()


# -- what the agent's account could put in root's way ------------------------------------------------------------------


def test_whoever_owns_the_directory_is_given_no_file_of_roots(machine: Machine) -> None:
    before = facts(machine, SECRET)
    machine.run("chown", "tombsync:", OWN)
    with machine.start_program(sys.executable, "-I", "-c", EXCHANGE) as attack:
        try:
            assert attack.stdout is not None
            assert attack.stdout.readline() == "ready\n"
            for _ in range(5):
                said = machine.tombsync(*ADD, expect=None).stderr
                assert facts(machine, SECRET) == before
                machine.run("rm", "-f", f"{OWN}/id_ed25519")
        finally:
            machine.run("chown", "root:tombsync", OWN)  # as it is said, and the end of the attack
    assert f"{OWN}: what root writes there must be root's alone" in said
    assert f"  hint: look for links in it, then `chown root {OWN}` and `chmod go-w {OWN}`" in said
    assert not any(machine.path(OWN).glob("id_*"))
    machine.run("chmod", "0750", OWN)
    machine.tombsync(*ADD)
    key = machine.path(f"{OWN}/id_ed25519")
    assert (key.stat().st_uid, key.stat().st_mode & 0o7777) == (int(machine.run("id", "-u", "tombsync").stdout), 0o600)
    machine.run("setpriv", "--reuid=tombsync", "--regid=tombsync", "--clear-groups", "test", "-r", f"{OWN}/id_ed25519")


@pytest.mark.parametrize("name", ["known_hosts", "tombsync.toml"])
def test_a_link_of_the_agents_is_not_followed(machine: Machine, name: str) -> None:
    machine.tombsync(*ADD)  # it has its key
    machine.run("rm", "-f", f"{OWN}/{name}")
    if name == "tombsync.toml":
        machine.path(SECRET).write_text(f'node = "node-a"\nroot = "{machine.root}"\n')
    machine.run("chown", "tombsync:", OWN)
    machine.run("setpriv", "--reuid=tombsync", "--clear-groups", "ln", "-s", SECRET, f"{OWN}/{name}")
    before = facts(machine, SECRET)
    for more in ((), ("--dry-run",)):
        said = machine.tombsync(*ADD, "--host-key", HOST_KEY, *more, expect=1).stderr
        assert "must be root's alone" in said
    assert facts(machine, SECRET) == before


def test_settings_that_somebody_else_can_write_are_not_taken(machine: Machine) -> None:
    machine.run("chmod", "0666", CONFIG)
    key = machine.make_key("b")[1]
    for words in (("add", "node-b", "--key", key), ("remove", "node-b"), ("rotate", "node-b", "--finish")):
        assert f"{CONFIG}: what root writes there" in machine.tombsync("peer", *words, expect=1).stderr


def test_a_link_of_roots_own_is_followed(machine: Machine) -> None:
    machine.run("mv", CONFIG, "/etc/elsewhere.toml")
    machine.run("ln", "-s", "../elsewhere.toml", CONFIG)
    machine.tombsync(*ADD)
    assert machine.path(CONFIG).is_symlink()
    assert "b.example" in machine.path("/etc/elsewhere.toml").read_text()


def test_nothing_waits_at_a_fifo(machine: Machine, tmp_path: Path) -> None:
    machine.tombsync(*ADD)
    os.mkfifo(tmp_path / "fifo")
    said = machine.tombsync(*ADD, "--host-key", tmp_path / "fifo", expect=1).stderr
    assert f"{tmp_path}/fifo: cannot be read: is not a regular file" in said
    machine.run("rm", f"{OWN}/id_ed25519")
    machine.run("mkfifo", f"{OWN}/id_ed25519")
    said = machine.tombsync("peer", "show", "node-b", expect=1).stderr
    assert f"{OWN}/id_ed25519: cannot be read: is not a regular file" in said


# -- what sshd says of the jail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("Match Address 10.1.0.0/16,fd00::/8\n PermitTTY yes\nMatch all\n", "permittty is yes for connections from 10"),
        ("Match User * Address *,!127.0.0.1\n PermitTTY yes\nMatch all\n", "permittty is yes for connections from 192"),
        ("Match Group tombsync-peers\n TrustedUserCAKeys /etc/ca\nMatch all\n", "trustedusercakeys is /etc/ca"),
        (
            "Match all\n AuthorizedKeysCommand /bin/echo\n AuthorizedKeysCommandUser nobody\nMatch all\n",
            "authorizedkeyscommand is /bin/echo",
        ),
    ],
    ids=["an address", "all but this machine", "an authority", "a command"],
)  # fmt: skip
def test_a_looser_line_for_some_is_found(machine: Machine, before: str, said: str) -> None:
    config = machine.path("/etc/ssh/sshd_config")
    config.write_text(before + INCLUDE + SUBSYSTEM)
    key = machine.make_key("b")[1]
    assert said in machine.tombsync("peer", "add", "node-b", "--key", key, expect=3).stderr
    assert not machine.path(f"/etc/ssh/tombsync-peers/{ACCOUNT}").exists()
    config.write_text(INCLUDE + SUBSYSTEM + before)  # behind it they count no more
    machine.tombsync("peer", "add", "node-b", "--key", key)


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ("Address 10.1.0.0/16", "permittty is yes for connections from 10.1.0.0"),
        ("Host *.trusted.example", "permittty is yes for connections from 127.0.0.1 (1.trusted.example)"),
        ("Host trusted.example Address 10.2.*.*", "permittty is yes for connections from 10.2.1.1 (trusted.example)"),
    ],
    ids=["address", "host", "both"],
)
def test_a_looser_line_in_a_file_that_sshd_includes_is_found(machine: Machine, match: str, said: str) -> None:
    """Whatever includes it: the configuration, or another file of it."""
    machine.path("/etc/ssh/site").mkdir()
    machine.path("/etc/ssh/site/outer.conf").write_text("# Match Address 10.9.9.9\nInclude site/inner/*.conf\n")
    machine.path("/etc/ssh/site/inner").mkdir()
    machine.path("/etc/ssh/site/inner/a.conf").write_text(f"Match {match}\n PermitTTY yes\nMatch all\n")
    machine.path("/etc/ssh/sshd_config").write_text('Include "/etc/ssh/site/outer.conf"\n' + INCLUDE + SUBSYSTEM)
    key = machine.make_key("b")[1]
    assert said in machine.tombsync("peer", "add", "node-b", "--key", key, expect=3).stderr
    assert not machine.path(f"/etc/ssh/tombsync-peers/{ACCOUNT}").exists()
    machine.path("/etc/ssh/site/inner/a.conf").unlink()
    machine.tombsync("peer", "add", "node-b", "--key", key)


# -- logins and sessions -----------------------------------------------------------------------------------------------


def test_a_login_that_has_begun_ends_with_the_peer(machine: Machine) -> None:
    private, public = machine.make_key("b")
    machine.tombsync("peer", "add", "node-b", "--key", public)
    machine.start_sshd()
    transport, other = (paramiko.Transport(("127.0.0.1", machine.port)) for _ in range(2))
    try:
        for one, account in ((transport, ACCOUNT), (other, "root")):
            one.start_client(timeout=20)
            with pytest.raises(paramiko.BadAuthenticationType):
                one.auth_none(account)
        machine.tombsync("peer", "remove", "node-b")
        with pytest.raises(paramiko.SSHException):
            transport.auth_publickey(ACCOUNT, paramiko.Ed25519Key.from_private_key_file(str(private)))
        wait_for(lambda: not transport.is_active(), "the login to be ended, as nobody looks at its key any more")
        assert other.is_active()
    finally:
        transport.close()
        other.close()

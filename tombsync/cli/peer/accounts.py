"""The accounts: one for each sender, which can log in by key alone and do nothing; and the one of the agent."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import time
from collections.abc import Iterator

from tombsync import errors
from tombsync.cli.peer.files import read_text
from tombsync.cli.peer.mounts import runs_systemd
from tombsync.cli.peer.steps import Step, run_program

GROUP = "tombsync-peers"  # what sshd jails: see the drop-in
AGENT = "tombsync"
UNIT = "tombsync.service"
_SHADOW = "/etc/shadow"
_NOLOGIN = "/usr/sbin/nologin"
# No hash has it, so that no password fits; unlike "!", sshd without PAM does not take such an account for a locked one.
_UNMATCHABLE = "*"
_END_WITHIN_S = 5.0


def find_account(account: str) -> pwd.struct_passwd | None:
    """An account of this system by its name."""
    try:
        return pwd.getpwnam(account)
    except KeyError:
        return None


def agent_account(named: str | None) -> pwd.struct_passwd:
    """The account that the agent runs as: the one named, else `tombsync`, else root. Raises UnknownAccount."""
    found = find_account(named or AGENT)
    if found is None and named:
        raise errors.UnknownAccount(named)
    return found or pwd.getpwuid(0)


def agent_here(state_dir: str) -> str | None:
    """The account that the agent runs as by its unit, else by the owner of its state; None where that is not known.

    State of root's says nothing: a command of root's may have made it.
    """
    return _user_of_unit() or _owner_but_root(state_dir)


def _user_of_unit() -> str | None:
    """The `User=` of the service, drop-ins included; None where systemd does not run, or has no such service."""
    if not runs_systemd():
        return None
    try:
        said = run_program("systemctl", "show", "--property=User", UNIT)
    except errors.ProgramFailed:
        return None
    users = [line.removeprefix("User=") for line in said.splitlines() if line.startswith("User=")]
    return next(filter(None, users), None)


def _owner_but_root(path: str) -> str | None:
    try:
        uid = os.stat(path).st_uid
        return pwd.getpwuid(uid).pw_name if uid else None
    except (OSError, KeyError):
        return None


def account_steps(account: str) -> Iterator[Step]:
    """Group and account of a sender. Raises AccountTaken where the account is somebody else's."""
    if find_account(account) and not _is_peer(account):
        raise errors.AccountTaken(account, GROUP)
    yield Step(
        f"create the group {GROUP}", lambda: _group_stands(GROUP), lambda: run_program("groupadd", "--system", GROUP)
    )
    yield Step(
        f"create the account {account}: no shell, no password, no home",
        lambda: find_account(account) is not None,
        lambda: run_program(
            "useradd", "--system", "--user-group", "--groups", GROUP, "--no-create-home", "--home-dir", "/nonexistent",
            "--shell", _NOLOGIN, "--password", _UNMATCHABLE, "--comment", "delivers tombstones", account,
        ),
    )  # fmt: skip
    yield Step(
        f"take shell and password away from the account {account}",
        lambda: find_account(account) is None or _can_do_nothing(account),
        lambda: run_program("usermod", "--shell", _NOLOGIN, "--password", _UNMATCHABLE, account),
    )


def end_step(account: str) -> Step:
    """End a sender's sessions, and logins that sshd has begun; without its key it gets no new ones.

    Raises AccountTaken where the account is somebody else's.
    """
    if find_account(account) and not _is_peer(account):
        raise errors.AccountTaken(account, GROUP)
    return Step(
        f"end the sessions of {account}",
        lambda: not _processes(account),
        lambda: _end_processes(account),
    )


def deletion_step(account: str) -> Step:
    """Delete an account and the group of its name, after nothing is left that belongs to it."""
    return Step(
        f"delete the account {account}",
        lambda: find_account(account) is None and not _group_stands(account),
        lambda: _delete(account),
    )


def _delete(account: str) -> None:
    if find_account(account):
        run_program("userdel", account)
    if _group_stands(account):  # where login.defs does not have it go with its account
        run_program("groupdel", account)


def _group_stands(name: str) -> bool:
    return any(group.gr_name == name for group in grp.getgrall())


def _is_peer(account: str) -> bool:
    return any(group.gr_name == GROUP and account in group.gr_mem for group in grp.getgrall())


def _can_do_nothing(account: str) -> bool:
    found = find_account(account)
    lines = (line.split(":") for line in read_text(_SHADOW).splitlines())
    password = next((fields[1] for fields in lines if fields[0] == account and len(fields) > 1), "")
    return found is not None and found.pw_shell == _NOLOGIN and password == _UNMATCHABLE


def _processes(account: str) -> list[int]:
    """The processes that run as an account, and those of sshd that let somebody in as it: its SFTP sessions."""
    found = find_account(account)
    if found is None:
        return []
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_session(name, found)]


def _is_session(pid: str, account: pwd.struct_passwd) -> bool:
    # Not by the owner of what is in /proc: of a process that changed its account, as those of sshd, that is root.
    facts = dict(line.split(":\t", 1) for line in read_text(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    if facts.get("State", "Z")[0] in "ZX":
        return False
    uids = facts.get("Uid", "").split()
    return str(account.pw_uid) in uids or ("0" in uids and _lets_in(pid, account.pw_name))


def _lets_in(pid: str, account: str) -> bool:
    """Whether it is the process of root's that sshd has for a login, from before it looks at the key (its title)."""
    title = read_text(f"/proc/{pid}/cmdline").replace("\0", " ").split()
    return title[:1] in (["sshd:"], ["sshd-session:"]) and title[1:3] == [account, "[priv]"]


def _end_processes(account: str) -> None:
    deadline = time.monotonic() + _END_WITHIN_S
    while pids := _processes(account):
        if time.monotonic() > deadline:
            raise errors.ProgramFailed("kill", f"process {pids[0]} of {account} does not end")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)

"""The jail that all senders share: an inbox for each, and a read-only view of the segment tree.

    JAIL                    root 0755       sshd refuses a chroot that anybody else may change
    JAIL/inbox              root 0711       nobody may list who else delivers here
    JAIL/inbox/ACCOUNT      agent:ACCOUNT 0730, a small tmpfs: the sender creates, the agent takes away
    JAIL/segments           the view: a read-only bind mount of ROOT

Below each mount is a directory of root's that nobody may write, so that nothing is taken where a mount is missing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pwd import struct_passwd

from tombsync import errors
from tombsync.cli.files import sync_directory
from tombsync.cli.peer import mounts
from tombsync.cli.peer.accounts import find_account
from tombsync.cli.peer.mounts import Mount, mounted_at
from tombsync.cli.peer.steps import Step
from tombsync.config import Settings

# 64 KiB of pages and 12,000 names: above what a sender keeps in it at once, and a flood fills nothing but itself.
INBOX_OPTIONS = "size=64k,nr_inodes=12000,nosuid,nodev,noexec"
_INBOX_MODE = 0o730
# Private: a disk that is mounted below ROOT later would show in it writable. The agent says what is missing instead.
_VIEW_OPTIONS = "bind,ro,nosuid,nodev,noexec,private"
_VIEW_NEEDS = frozenset({"ro", "nosuid", "nodev", "noexec"})
_PLACE_DEPTH = 2  # CHANNEL and QUALITY


def jail_steps(settings: Settings, account: str, agent: struct_passwd) -> Iterator[Step]:
    """Directories, view and inbox. Raises RootMissing, JailUnsafe, NotMountable."""
    root = os.path.realpath(settings.root)
    if not os.path.isdir(root):
        raise errors.RootMissing(settings.root)
    jail = settings.inbox
    require_safe(jail.jail)
    yield _directory(jail.jail, 0o755)
    yield _directory(jail.directories, 0o711)
    yield _directory(jail.view, 0o755)
    for below in ["", *mounts_below(root)]:
        yield from _view_steps(root + below, jail.view + below)
    inbox = jail.directory(account)
    yield _directory(inbox, 0o700)
    yield from mounts.steps(
        partial(_inbox_mount, inbox, account, agent), inbox, "the inbox", partial(_inbox_stands, inbox)
    )
    yield Step(
        f"give {inbox} to {agent.pw_name}, group {account}, mode {_INBOX_MODE:04o}",
        partial(_inbox_is_theirs, inbox, account, agent),
        partial(_give_inbox, inbox, account, agent),
    )


def removal_steps(settings: Settings, account: str) -> Iterator[Step]:
    """Take an inbox away with what is in it; the jail and the view stay, for the other senders."""
    inbox = settings.inbox.directory(account)
    yield from mounts.removal_steps(inbox, "the inbox")
    yield Step(f"remove {inbox}", lambda: not os.path.lexists(inbox), lambda: os.rmdir(inbox))


def nothing_waits_step(settings: Settings, account: str, name: str) -> Step:
    """See that an inbox is empty, where its sender can put nothing more into it. It raises FilesWaiting."""
    return Step(
        f"see that nothing waits in the inbox of {name}",
        lambda: waiting(settings, account) == 0,
        lambda: require_nothing_waits(settings, account, name),
    )


def require_nothing_waits(settings: Settings, account: str, name: str) -> None:
    """Raise FilesWaiting where the agent has not taken all from an inbox."""
    if count := waiting(settings, account):
        raise errors.FilesWaiting(name, count)


def waiting(settings: Settings, account: str) -> int:
    """How many files are in an inbox."""
    try:
        return len(os.listdir(settings.inbox.directory(account)))
    except FileNotFoundError:
        return 0


def require_safe(jail: str) -> None:
    """Raise JailUnsafe where sshd would refuse the jail: each directory down to it must be root's alone."""
    parts = jail.split("/")
    for number in range(1, len(parts) + 1):
        path = "/".join(parts[:number]) or "/"
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return  # it and what is below it are made, as they should be
        if not stat.S_ISDIR(found.st_mode):
            raise errors.JailUnsafe(path, "is not a directory")
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise errors.JailUnsafe(path, f"sshd wants it to be root's alone, and it is {_owner_and_mode(found)}")


def mounts_below(root: str) -> list[str]:
    """The channels and qualities that are mounts of their own, as paths below ROOT that begin with a slash."""
    start = root.rstrip("/") + "/"
    found = {mount.where.removeprefix(start) for mount in mounts.mounts() if mount.where.startswith(start)}
    return sorted(f"/{below}" for below in found if below.count("/") < _PLACE_DEPTH and below[0] != ".")


def _owner_and_mode(found: os.stat_result) -> str:
    return f"uid {found.st_uid} {stat.filemode(found.st_mode)}"


def _directory(path: str, mode: int) -> Step:
    return Step(
        f"make the directory {path}, root's, mode {mode:04o}", partial(_stands, path, mode), partial(_make, path, mode)
    )


def _stands(path: str, mode: int) -> bool:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if mounted_at(path) is not None:
        return True  # what is below it cannot be seen
    return stat.S_ISDIR(found.st_mode) and (found.st_uid, found.st_mode & 0o7777) == (0, mode)


def _make(path: str, mode: int) -> None:
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.mkdir(path, 0o700)
    os.chown(path, 0, 0)
    os.chmod(path, mode)
    sync_directory(os.path.dirname(path))


def _view_steps(what: str, where: str) -> Iterator[Step]:
    mount = Mount(what, where, "none", _VIEW_OPTIONS)
    yield from mounts.steps(lambda: mount, where, "the read-only view", partial(_view_stands, what, where))


def _view_stands(what: str, where: str) -> bool:
    found = mounted_at(where)
    return found is not None and found.options >= _VIEW_NEEDS and os.path.samefile(what, where)


def _inbox_mount(inbox: str, account: str, agent: struct_passwd) -> Mount:
    """Raises KeyError where the account is not there yet."""
    owner = f"uid={agent.pw_uid},gid={_group_of(account)},mode={_INBOX_MODE:04o}"
    return Mount("tmpfs", inbox, "tmpfs", f"{INBOX_OPTIONS},{owner}")


def _inbox_stands(inbox: str) -> bool:
    found = mounted_at(inbox)
    return found is not None and found.kind == "tmpfs"


def _inbox_is_theirs(inbox: str, account: str, agent: struct_passwd) -> bool:
    if not _inbox_stands(inbox):
        return True  # it is mounted as theirs
    try:
        found = os.stat(inbox)
        return (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (agent.pw_uid, _group_of(account), _INBOX_MODE)
    except (OSError, KeyError):
        return False


def _give_inbox(inbox: str, account: str, agent: struct_passwd) -> None:
    os.chown(inbox, agent.pw_uid, _group_of(account))
    os.chmod(inbox, _INBOX_MODE)


def _group_of(account: str) -> int:
    found = find_account(account)
    if found is None:
        raise KeyError(account)
    return found.pw_gid

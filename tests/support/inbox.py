"""A node that receives by inboxes, without a chroot: real accounts, a real sshd, a real read-only view of its tree.

The jail as it is shipped has tests of its own; here the accounts have the same start directory, umask and requests.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.support.agent import AgentProcess, peer_table
from tests.support.programs import need
from tests.support.sshd import Sshd
from tests.support.trees import need_root
from tombsync.cli.peer.jail import INBOX_OPTIONS

REQUESTS = "open,close,lstat"


def account_of(sender: str) -> str:
    """The account of a sender in the tests of this process: others may run beside it, and end before."""
    return f"ts{os.getpid()}-{sender}"


def make_account(stack: ExitStack, name: str) -> int:
    """An account for the time of the stack, which can log in with a key; its uid."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        pass
    command = [need("useradd"), "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    run(*command, "--password", "*", name)
    # By force: userdel looks for processes by number, and those of a container beside us may have the same.
    stack.callback(run, need("userdel"), "--force", name)
    return pwd.getpwnam(name).pw_uid


def run(*command: str) -> None:
    """Run a program that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class ReceivingNode:
    """The tree, the jail, the sshd and the agent of one node. Needs root; everything is gone when the stack ends.

    `kept_below`: make its directories there and leave them, as for `Sshd`; then each inbox is also the small file
    system of its own that `tombsync peer add` makes of it, where creating and removing costs the disk nothing.
    """

    def __init__(
        self,
        stack: ExitStack,
        name: str,
        senders: Sequence[str],
        *,
        settings: str = "",
        kept_below: Path | None = None,
    ) -> None:
        need_root()
        self.name = name
        self.senders = list(senders)
        self.base = Path(tempfile.mkdtemp(prefix="tombsync-jail-", dir=kept_below))
        if kept_below is None:
            stack.callback(shutil.rmtree, self.base, ignore_errors=True)
        else:
            kept_below.chmod(0o711)
        self.base.chmod(0o711)  # the accounts pass through
        self.root = self.base / "tree"
        self.root.mkdir()
        self.jail = self.base / "jail"
        self.view = self.jail / "segments"
        self.view.mkdir(parents=True)
        (self.jail / "inbox").mkdir(mode=0o711)
        for sender in senders:
            uid = make_account(stack, account_of(sender))
            box = self.inbox(sender)
            box.mkdir()
            if kept_below is not None:
                run(need("mount"), "-t", "tmpfs", "-o", INBOX_OPTIONS, "tmpfs", str(box))
                stack.callback(run, need("umount"), "--lazy", str(box))
            os.chown(box, os.getuid(), pwd.getpwuid(uid).pw_gid)
            box.chmod(0o730)
        self._shown = False
        stack.callback(self.unmount)
        self.mount()
        sftp_args = f"-d {self.jail}/inbox/%u -u 0077 -p {REQUESTS}"
        self.server = stack.enter_context(Sshd(sftp_args=sftp_args, kept_below=kept_below))
        self.server.directory.chmod(0o711)  # sshd reads the authorized keys as the account that logs in
        self.server.authorized_keys_path.chmod(0o644)
        self.agent = AgentProcess(self.base, node=name, root=self.root)
        self.settings = settings
        self.peers: list[str] = []
        self.write_settings()
        stack.push(self.agent)

    def inbox(self, sender: str) -> Path:
        """The inbox of one sender."""
        return self.jail / "inbox" / account_of(sender)

    def mount(self, root: Path | None = None) -> None:
        """Show the tree, or another one in its place, read-only; nothing where one is shown already."""
        if not self._shown:
            run(need("mount"), "--bind", str(root or self.root), str(self.view))
            self._shown = True
            run(need("mount"), "-o", "remount,bind,ro,nosuid,nodev,noexec", str(self.view))

    def unmount(self) -> None:
        """Show nothing any more."""
        if self._shown:
            run(need("umount"), "--lazy", str(self.view))
            self._shown = False

    def write_settings(self) -> None:
        """Write the settings file; counts from the next start."""
        senders = [f'[[sender]]\nname = "{sender}"\naccount = "{account_of(sender)}"\n' for sender in self.senders]
        tables = [f'[inbox]\njail = "{self.jail}"\n{self.settings}\n', *senders, *self.peers]
        self.agent.write_settings(tables)

    def table_for(self, sender: str, **more: object) -> str:
        """This node as a `[[peer]]` of a sender."""
        return peer_table(
            self.name, self.server, self.view, **{"user": account_of(sender), "delivery": "inbox", **more}
        )

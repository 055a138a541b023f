"""What this node's tree, index or process cannot do."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import EXIT_RESTART, TombsyncError


@dataclass(eq=False)
class RootMissing(TombsyncError):
    """The segment tree is not there, is no directory, or cannot be read."""

    root: str
    reason: str = "is not a directory that can be opened"
    hint: str = "mount it, or name another with --root"

    def __str__(self) -> str:
        return f"the segment tree {self.root} {self.reason}"


@dataclass(eq=False)
class RootNotBelieved(TombsyncError):
    """The tree at ROOT is not the one that the index was made of."""

    root: str
    expected: str
    found: str
    hint: str = "mount the right tree; if a new disk is meant, run `tombsync adopt-root`"

    def __str__(self) -> str:
        found = f"the identity {self.found}" if self.found else "no identity"
        return f"the segment tree {self.root} has {found}, expected {self.expected}"


@dataclass(eq=False)
class DirectoryUnreadable(TombsyncError):
    """A directory of the segment tree is there and cannot be listed."""

    path: str
    reason: str
    hint: str = "check the owner and the mode of that directory, and its disk"

    def __str__(self) -> str:
        return f"{self.path}: cannot be listed: {self.reason}"


@dataclass(eq=False)
class TreeRefused(TombsyncError):
    """The tree did not allow a tombstone, or the agent's own root marker, to be created."""

    path: str
    reason: str
    errno: int = 0
    hint: str = "check the owner, the mode and the free space and inodes of that directory"

    def __str__(self) -> str:
        return f"{self.path}: cannot be created: {self.reason}"


@dataclass(eq=False)
class IndexBusy(TombsyncError):
    """Another agent runs on the same state directory."""

    state_dir: str
    pid: int
    hint: str = "stop the other agent first, or give this one a state directory of its own"

    def __str__(self) -> str:
        owner = f" (process {self.pid})" if self.pid else ""
        return f"another agent{owner} already uses the state directory {self.state_dir}"


@dataclass(eq=False)
class IndexTooNew(TombsyncError):
    """The index was written by a newer tombsync."""

    path: str
    version: int
    known: int
    hint: str = "install the newer tombsync again, or move the file away (it is rebuilt from the tree)"

    def __str__(self) -> str:
        return f"{self.path} has schema {self.version}, this tombsync knows up to {self.known}"


@dataclass(eq=False)
class IndexDamaged(TombsyncError):
    """SQLite found the index file to be damaged, or it is no index of ours."""

    path: str
    reason: str
    hint: str = "the next start sets it aside and rebuilds it from the tree"

    def __str__(self) -> str:
        return f"{self.path} cannot be used: {self.reason}"


@dataclass(eq=False)
class IndexMissing(TombsyncError):
    """There is no index to read."""

    path: str
    hint: str = "start the agent (`tombsync run`), or run `tombsync rescan` once"

    def __str__(self) -> str:
        return f"there is no index at {self.path} yet"


@dataclass(eq=False)
class IndexTooOld(IndexMissing):
    """The index was written by an older tombsync, and no agent of this one has brought it up to date yet."""

    hint: str = "restart the agent (`systemctl restart tombsync`), or run `tombsync rescan` once where none runs"

    def __str__(self) -> str:
        return f"{self.path} is that of an older tombsync"


@dataclass(eq=False)
class StateRefused(TombsyncError):
    """The state directory, or the index in it, cannot be written: full, read-only or not ours."""

    path: str
    reason: str
    hint: str = "check the free space, the owner and the mode of the state directory"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class ConfinementUnavailable(TombsyncError):
    """The kernel has no Landlock, and --require-confinement was given."""

    reason: str
    hint: str = "use a kernel with Landlock (5.13 or later), or run without --require-confinement"

    def __str__(self) -> str:
        return f"cannot confine the agent: {self.reason}"


@dataclass(eq=False)
class WatchRefused(TombsyncError):
    """inotify itself is not to be had (instances used up, for example)."""

    reason: str
    hint: str = "raise fs.inotify.max_user_instances"

    def __str__(self) -> str:
        return f"cannot watch the tree: {self.reason}"


@dataclass(eq=False)
class ListenRefused(TombsyncError):
    """The HTTP address cannot be listened on."""

    listen: str
    reason: str
    hint: str = "another program may use it; change [http] listen"

    def __str__(self) -> str:
        return f"cannot listen on {self.listen}: {self.reason}"


@dataclass(eq=False)
class WorkerDied(TombsyncError):
    """A worker raised, or stopped beating: the process ends so that the service manager starts a whole one."""

    worker: str
    reason: str
    hint: str = "see the journal; the agent ends so that it can be started again whole"

    def __str__(self) -> str:
        return f"the worker {self.worker} {self.reason}"


@dataclass(eq=False)
class RootReturned(TombsyncError):
    """The tree is back; a new process must take it up (the confinement is bound to the old mount)."""

    root: str
    exit_code = EXIT_RESTART

    def __str__(self) -> str:
        return f"the segment tree {self.root} is back: restarting"


@dataclass(eq=False)
class AgentNotRunning(TombsyncError):
    """A command needs the running agent."""

    state_dir: str
    hint: str = "start it: `systemctl start tombsync` or `tombsync run`"

    def __str__(self) -> str:
        return f"no agent runs on the state directory {self.state_dir}"


@dataclass(eq=False)
class AgentSlow(TombsyncError):
    """The running agent has not done in time what it was asked for; it will."""

    state_dir: str
    what: str
    hint: str = "it does so as soon as it can; `tombsync status` and the journal say what holds it up"

    def __str__(self) -> str:
        return f"the agent on {self.state_dir} takes long {self.what}"


@dataclass(eq=False)
class AgentRefused(TombsyncError):
    """The running agent belongs to another account."""

    pid: int
    hint: str = "run this as root or as the agent's account"

    def __str__(self) -> str:
        return f"the agent (process {self.pid}) cannot be asked: permission denied"

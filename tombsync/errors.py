"""One class per situation, with its data and a hint.

An error's `str()` is one line that says what is wrong; `hint` is the next step for the person who reads it. Only the
command line prints either. Names inside may hold any byte: whoever prints escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_IN_PART = 3
EXIT_RESTART = 75  # sysexits.h EX_TEMPFAIL: the service manager is asked to start us again


class TombsyncError(Exception):
    """The base of every error that this package raises on purpose."""

    hint: str = ""
    exit_code: int = EXIT_FAILED


# -- names ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BadName(TombsyncError):
    """A name or path from outside that must not become a path inside."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name!r}: {self.reason}"


@dataclass(eq=False)
class OutsideRoot(TombsyncError):
    """A path that does not lie in the segment tree."""

    path: str
    root: str
    hint: str = "name a file as ROOT/CHANNEL/QUALITY/HOUR/NAME, or another tree with --root"

    def __str__(self) -> str:
        return f"{self.path} is not inside the segment tree {self.root}"


@dataclass(eq=False)
class HidesNothing(TombsyncError):
    """A tombstone that was asked for although no segment here has its stem."""

    path: str
    hint: str = (
        "check the name (`tombsync ls` shows what is there), or add --even-if-absent to mark it before it arrives"
    )

    def __str__(self) -> str:
        return f"{self.path}: no .ts or .json of this name is here, so a tombstone would hide nothing"


@dataclass(eq=False)
class NotMarkable(TombsyncError):
    """A name that must not get a tombstone."""

    path: str
    reason: str
    hint: str = "mark the segment that it becomes"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class NotMarked(TombsyncError):
    """A stem without a known tombstone."""

    stem: str
    hint: str = "`tombsync tombstones` lists what is marked"

    def __str__(self) -> str:
        return f"{self.stem}: no tombstone of this name is known here"


# -- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a settings file: the file, the key, what stands there and what is allowed."""

    file: str
    key: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}{f' = {self.value}' if self.value else ''}: {self.allowed}"


@dataclass(eq=False)
class BadSettings(TombsyncError):
    """Every problem of a settings file, reported together."""

    problems: tuple[Problem, ...]
    hint: str = "correct the file and run `tombsync check`; nothing was started"

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


# -- the segment tree -------------------------------------------------------------------------------------------------


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
class TreeRefused(TombsyncError):
    """The tree did not allow a tombstone, or the agent's own root marker, to be created."""

    path: str
    reason: str
    errno: int = 0
    hint: str = "check the owner, the mode and the free space and inodes of that directory"

    def __str__(self) -> str:
        return f"{self.path}: cannot be created: {self.reason}"


# -- the index --------------------------------------------------------------------------------------------------------


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
class StateRefused(TombsyncError):
    """The state directory, or the index in it, cannot be written: full, read-only or not ours."""

    path: str
    reason: str
    hint: str = "check the free space, the owner and the mode of the state directory"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


# -- peers ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PeerError(TombsyncError):
    """A peer could not be used; `reason` is the short word of the metric `push_failures_total`."""

    peer: str
    detail: str = ""

    reason = "error"
    what = "failed"

    def __str__(self) -> str:
        return f"{self.peer}: {self.what}" + (f": {self.detail}" if self.detail else "")


class PeerUnreachable(PeerError):
    """No connection: refused, no route, no such host."""

    reason = "unreachable"
    what = "cannot be reached"
    hint = "check host, port and network; is sshd running there?"


class PeerTimeout(PeerError):
    """The peer took the connection and then went silent."""

    reason = "timeout"
    what = "did not answer in time"
    hint = "the server or the network between is frozen or overloaded"


class PeerLost(PeerError):
    """An established session ended under us."""

    reason = "lost"
    what = "closed the connection"
    hint = "see the peer's sshd log"


class PeerProtocol(PeerError):
    """What the peer sent is not SSH or not SFTP version 3."""

    reason = "protocol"
    what = "does not speak SFTP as it should"
    hint = "is the port an OpenSSH server with `Subsystem sftp internal-sftp`?"


class HostKeyUnknown(PeerError):
    """known_hosts has no key for this peer."""

    reason = "host-key-unknown"
    what = "its host key is not in known_hosts"
    hint = "compare the fingerprint with the peer's operator, then add the line to known_hosts"


class HostKeyChanged(PeerError):
    """The peer shows another host key than the pinned one."""

    reason = "host-key-changed"
    what = "shows another host key than the pinned one"
    hint = "nothing is sent until known_hosts is corrected; ask the peer's operator before you do"


class KeyUnusable(PeerError):
    """Our own key file cannot serve: missing, unreadable, with a passphrase, of a kind that is not supported."""

    reason = "key-unusable"
    what = "our key cannot be used"
    hint = "use an ed25519, ecdsa or rsa key file without a passphrase that only the agent's account can read"


class LoginRefused(PeerError):
    """The peer refused our key."""

    reason = "login-refused"
    what = "refused our key"
    hint = "add our public key (`ssh-keygen -y -f KEY`) to that account's authorized keys"


class SftpRefused(PeerError):
    """The login worked but the SFTP subsystem was refused."""

    reason = "sftp-refused"
    what = "has no SFTP for this account"
    hint = "the peer's sshd_config needs a global `Subsystem sftp internal-sftp` line"


@dataclass(eq=False)
class UnknownPeer(TombsyncError):
    """A peer was named that the settings do not have."""

    name: str
    known: tuple[str, ...]

    @property
    def hint(self) -> str:  # type: ignore[override] # made of the data
        return f"the settings have {', '.join(self.known)}" if self.known else "the settings have no [[peer]]"

    def __str__(self) -> str:
        return f"there is no peer named {self.name}"


# -- the process ------------------------------------------------------------------------------------------------------


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
class AgentRefused(TombsyncError):
    """The running agent belongs to another account."""

    pid: int
    hint: str = "run this as root or as the agent's account"

    def __str__(self) -> str:
        return f"the agent (process {self.pid}) cannot be asked: permission denied"

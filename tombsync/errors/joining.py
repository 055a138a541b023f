"""What stands in the way of letting another node deliver here: accounts, keys, mounts, sshd, the settings file."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import TombsyncError


@dataclass(eq=False)
class NeedsRoot(TombsyncError):
    """A command that changes accounts, mounts and sshd was run by somebody else than root."""

    command: str
    hint: str = "run it with sudo"

    def __str__(self) -> str:
        return f"`tombsync {self.command}` needs root"


@dataclass(eq=False)
class ProgramFailed(TombsyncError):
    """A program of the system ended with an error, or is not there."""

    program: str
    said: str
    hint: str = "correct that and run this command again: it goes on where it stopped"

    def __str__(self) -> str:
        return f"{self.program}: {self.said}"


@dataclass(eq=False)
class UnknownAccount(TombsyncError):
    """An account was named that this system does not have."""

    account: str
    hint: str = "create it first, or name the account that the agent runs as with --agent-user"

    def __str__(self) -> str:
        return f"there is no account {self.account} here"


@dataclass(eq=False)
class AccountTaken(TombsyncError):
    """The account that a peer would get is there already and is no peer's."""

    account: str
    group: str
    hint: str = "choose another one with --account"

    def __str__(self) -> str:
        return f"the account {self.account} exists and is not in the group {self.group}: it is somebody else's"


@dataclass(eq=False)
class BadPublicKey(TombsyncError):
    """A file that should hold exactly one public key holds something else."""

    path: str
    reason: str
    hint: str = "give the one line that the other operator's `tombsync peer show` printed, in a file of its own"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class KeyTaken(TombsyncError):
    """A key that would let one peer log in as another."""

    fingerprint: str
    account: str
    hint: str = "each node has a key of its own; ask the other operator for the right one"

    def __str__(self) -> str:
        return f"the key {self.fingerprint} is that of the account {self.account} already"


@dataclass(eq=False)
class OtherKeyAuthorized(TombsyncError):
    """A peer has a key here already, and it is another one."""

    name: str
    hint: str = "`tombsync peer rotate` adds a second key, and later drops the first"

    def __str__(self) -> str:
        return f"{self.name} has another key here already"


@dataclass(eq=False)
class NoKeyAuthorized(TombsyncError):
    """A peer's key was to be exchanged that has none here."""

    name: str
    hint: str = "`tombsync peer add NAME --key FILE` lets it in"

    def __str__(self) -> str:
        return f"no key of {self.name} is let in here"


@dataclass(eq=False)
class NoOwnKey(TombsyncError):
    """The key that this node logs in with elsewhere is missing or cannot be read."""

    path: str
    reason: str
    hint: str = "`tombsync peer add NAME --host HOST` makes it; to read it, be root or the agent's account"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class OtherHostKeyPinned(TombsyncError):
    """A host key was to be pinned for a peer that has another one already, or one that was revoked."""

    name: str
    host: str
    path: str
    reason: str

    @property
    def hint(self) -> str:  # type: ignore[override] # made of the data
        return (
            "ask its operator by another way which one is right; only then take the old one out"
            f" (`ssh-keygen -f {self.path} -R '{self.host}'`) and run this command again"
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.path} {self.reason} for {self.host}"


@dataclass(eq=False)
class OtherCommandRuns(TombsyncError):
    """Another command that changes peers is at work, and goes on for long."""

    path: str
    waited_s: float
    hint: str = "let it end (it may be waiting for an answer on its terminal), then run this command again"

    def __str__(self) -> str:
        return f"another `tombsync peer` command is at work and holds {self.path}: waited {self.waited_s:.0f} s for it"


@dataclass(eq=False)
class JailUnsafe(TombsyncError):
    """sshd refuses a chroot that somebody else than root could change."""

    path: str
    reason: str
    hint: str = "a jail and all directories above it belong to root and nobody else may write there; see [inbox] jail"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class NotRootsAlone(TombsyncError):
    """Root would write a file where somebody else could put something in its place, or a link to another file."""

    path: str
    reason: str

    @property
    def hint(self) -> str:  # type: ignore[override] # made of the data
        return (
            f"look for links in it, then `chown root {self.path}` and `chmod go-w {self.path}`"
            " (of all that is there only the private key belongs to the agent's account);"
            " or name another place in the settings"
        )

    def __str__(self) -> str:
        return f"{self.path}: what root writes there must be root's alone to change, and {self.reason}"


@dataclass(eq=False)
class NotMountable(TombsyncError):
    """A path that cannot be written down for a mount at boot."""

    path: str
    hint: str = "rename it: no backslashes, control characters, or bytes that are not UTF-8"

    def __str__(self) -> str:
        return f"{self.path}: this name cannot be recorded as a mount"


@dataclass(eq=False)
class SshdRefused(TombsyncError):
    """sshd does not accept its configuration with the jail in it; it was put back as it was."""

    said: str
    hint: str = "see `sshd -t`; nothing was left changed in sshd's configuration"

    def __str__(self) -> str:
        return f"sshd refuses its configuration: {self.said}"


@dataclass(eq=False)
class SshdNotJailing(TombsyncError):
    """sshd would let a peer's account do more than the jail allows, so its key is not let in."""

    account: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"sshd would not jail {self.account}: {self.reason}"


@dataclass(eq=False)
class SettingsNotEditable(TombsyncError):
    """A settings file that cannot be changed without touching anything else in it."""

    path: str
    reason: str
    hint: str = "edit it by hand, then run this command again"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class PeerDiffers(TombsyncError):
    """The settings have a peer of this name with other values than those given."""

    name: str
    key: str
    value: object
    hint: str = "edit the settings file, or `tombsync peer remove` it first"

    def __str__(self) -> str:
        return f"the settings have {self.name} already, with {self.key} = {self.value}"


@dataclass(eq=False)
class FilesWaiting(TombsyncError):
    """An inbox that would be removed holds what the agent has not taken yet."""

    name: str
    count: int
    hint: str = "let the agent take them (is it running?), or give --force to throw them away"

    def __str__(self) -> str:
        return f"{self.count} tombstones from {self.name} wait in its inbox"

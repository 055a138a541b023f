"""What a peer, or the way to it, cannot do."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import TombsyncError


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


class PeerTreeMissing(PeerError):
    """A peer was reached, and its segment tree is not there."""

    reason = "not-served"
    what = "its segment tree is missing there"
    hint = "mount it there, or correct this peer's `path`; nothing is delivered until it is there"


class PeerWayBroken(PeerError):
    """A peer was reached, and a canary did not come back: what is delivered would not arrive."""

    reason = "canary"
    what = "what is delivered there would not arrive"
    hint = "see the peer's `tombsync status` and its journal: is its agent running, and is its view mounted?"


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

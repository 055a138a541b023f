"""What keeps a proof or a purge from being given or done."""

from __future__ import annotations

from dataclasses import dataclass

from tombsync.errors.base import EXIT_IN_PART, TombsyncError


@dataclass(eq=False)
class PurgeBlocked(TombsyncError):
    """Not every peer answered now that it has every tombstone durably; one reason for each peer."""

    reasons: tuple[str, ...]
    hint: str = (
        "`tombsync status STEM --live` asks again; a node that is retired for good is left out with --except-peer NAME"
    )

    def __str__(self) -> str:
        return "\n".join(["nothing was deleted, as not every node has said now that it is safe:", *self.reasons])


@dataclass(eq=False)
class NotAllConfirmed(TombsyncError):
    """What was marked is not confirmed by every peer in the time that was given; one line for each that lacks some."""

    peers: tuple[str, ...]
    hint: str = ""
    exit_code = EXIT_IN_PART

    def __str__(self) -> str:
        return "\n".join(f"not confirmed by {peer}" for peer in self.peers)


@dataclass(eq=False)
class NotPurgeable(TombsyncError):
    """A segment whose data must not be deleted here."""

    path: str
    reason: str
    hint: str = "its data stays; `tombsync status STEM` shows how it stands"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(eq=False)
class NotDeleted(TombsyncError):
    """A data file that was listed and could not be deleted, or is another one now."""

    path: str
    reason: str
    hint: str = "what was not deleted is still hidden; run the purge again"

    def __str__(self) -> str:
        return f"{self.path}: not deleted: {self.reason}"


@dataclass(eq=False)
class UnmarkRefused(TombsyncError):
    """Marks that cannot be taken back: another node has one, or may have; one reason for each peer or segment."""

    reasons: tuple[str, ...]
    hint: str = "a mark can be taken back only while no other node has it; `tombsync status STEM --live` shows who does"

    def __str__(self) -> str:
        return "\n".join(["no mark was taken back:", *self.reasons])


@dataclass(eq=False)
class NotTakenBack(TombsyncError):
    """A mark that could not be taken back here."""

    path: str
    reason: str
    hint: str = "it goes on hiding; mend that and run the command again"

    def __str__(self) -> str:
        return f"{self.path}: not taken back: {self.reason}"


@dataclass(eq=False)
class SigningFailed(TombsyncError):
    """ssh-keygen did not sign."""

    key: str
    reason: str
    hint: str = "give the path of a private key of ours (or of a public key whose private half the ssh-agent has)"

    def __str__(self) -> str:
        return f"cannot sign with {self.key}: {self.reason}"


@dataclass(eq=False)
class SignatureBad(TombsyncError):
    """A file is not the one that was signed, or was signed by nobody who is allowed to."""

    path: str
    reason: str
    hint: str = "do not rely on it: ask for the report again, or make one with `tombsync report STEM --live`"

    def __str__(self) -> str:
        return f"{self.path}: the signature does not hold: {self.reason}"


@dataclass(eq=False)
class FileRefused(TombsyncError):
    """A file that a person named cannot be read or written."""

    path: str
    reason: str
    hint: str = "check the path and its permissions"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

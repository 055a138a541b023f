"""Parts of the start that the agent and the commands share."""

from __future__ import annotations

import os
from collections.abc import Callable

from tombsync import config, errors
from tombsync.audit import Audit, Event
from tombsync.inbox import Box, Inbox
from tombsync.index import SIDE_FILES, Writer, damage_noted, set_aside
from tombsync.metrics import Metrics
from tombsync.peers import Target
from tombsync.tree import Tree
from tombsync.work import Mailbox

_FILESYSTEM_FULL_INTERVAL_S = 3600  # where writes from elsewhere raise no events


def open_index(path: str, audit: Audit) -> Writer:
    """The index's writer; a damaged or foreign file is set aside first. Raises IndexTooNew, StateRefused."""
    reason = "an earlier run met damage in it"
    if not damage_noted(path):
        try:
            return Writer(path)
        except errors.IndexDamaged as exc:
            reason = exc.reason
    aside = set_aside(path)
    audit.record(Event.INDEX_SET_ASIDE, f"the index was moved to {aside} and is rebuilt from the tree: {reason}")
    return Writer(path)


def index_files(path: str) -> list[tuple[int, int]]:
    """The device and inode of the index and of the two files beside it that an open one has; (0, 0) where none is."""
    return [_file_id(path + suffix) for suffix in SIDE_FILES]


def _file_id(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def believe_root(tree: Tree, writer: Writer, audit: Audit) -> str:
    """The identity that the tree must have: the index's, or for a new index the tree's.

    Raises RootMissing, TreeRefused.
    """
    identity: str | None = writer.fact("root")
    if identity is None:
        identity = tree.adopt()
        with writer.transaction():
            writer.set_fact("root", identity)
        audit.record(Event.ROOT_ADOPTED, f"{tree.root} is the segment tree of this node: {identity}")
    return identity


def make_inbox(
    settings: config.Settings,
    *,
    tree: Tree,
    identity: str,
    index_path: str,
    mailbox: Mailbox,
    audit: Audit,
    metrics: Metrics,
    believed: Callable[[], bool],
) -> Inbox | None:
    """The worker of the inboxes; None where nobody delivers into one."""
    if not settings.senders:
        return None
    return Inbox(
        tree=tree,
        identity=identity,
        boxes=boxes(settings),
        view=settings.inbox.view,
        index_path=index_path,
        mailbox=mailbox,
        audit=audit,
        metrics=metrics,
        believed=believed,
    )


def boxes(settings: config.Settings) -> list[Box]:
    """The inbox of each sender."""
    inbox = settings.inbox
    return [
        Box(sender.name, sender.account, inbox.directory(sender.account), inbox.quota_per_hour)
        for sender in settings.senders
    ]


def full_interval_s(settings: config.Settings, tree: Tree, audit: Audit) -> float:
    """How often every directory is listed: more often where writes from elsewhere raise no events."""
    silent = tree.silent_filesystem() if os.path.isdir(tree.root) else ""
    if not silent:
        return settings.rescan.full_interval_s
    interval_s = min(settings.rescan.full_interval_s, _FILESYSTEM_FULL_INTERVAL_S)
    audit.record(
        Event.NETWORK_FILESYSTEM,
        f"{tree.root} is on {silent}: what other machines write there raises no events here;"
        f" a full rescan every {interval_s:.0f} s finds it",
    )
    return interval_s


def target_text(peer: config.PeerSettings) -> str:
    """What makes a peer the same peer over time: where it is and how it is delivered to."""
    return f"{peer.delivery}://{peer.user}@{peer.host}:{peer.port}{peer.path}"


def target_of(peer: config.PeerSettings, node: str) -> Target:
    """A peer's settings as its connector takes them; `node` is the name of this node."""
    return Target(
        peer.name, peer.host, peer.port, peer.user, peer.key, peer.known_hosts, peer.path, peer.delivery, node
    )


def request_adoption(state_dir: str) -> None:
    """Let the agent know that what looks unmounted is meant to be gone."""
    os.close(os.open(os.path.join(state_dir, "adopt-root"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))


def take_adoption(state_dir: str) -> bool:
    """Whether such a request was left; it counts for one rescan."""
    try:
        os.unlink(os.path.join(state_dir, "adopt-root"))
    except OSError:  # none was left, or it cannot be taken away: it would count for ever then
        return False
    return True

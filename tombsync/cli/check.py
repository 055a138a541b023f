"""`tombsync check`: would the agent work here?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import click

from tombsync import confine, errors
from tombsync.cli.common import Place, json_option, open_reader, place_options, say, say_json
from tombsync.cli.peer import walk
from tombsync.cli.peer.files import require_roots
from tombsync.cli.peer.names import settings_path
from tombsync.config import PeerSettings, Settings
from tombsync.tree import Tree, directory_names, identities

_INOTIFY = "/proc/sys/fs/inotify"
_QUEUED_EVENTS = 65_536  # a burst of 20,000 touches with a paused reader overflows the stock 16,384
_PARALLEL = 8


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: level `ok`, `warning` or `failed`."""

    level: str
    what: str
    text: str
    hint: str = ""


@click.command()
@place_options
@click.option("--no-network", is_flag=True, help="Leave the peers alone: only look at this machine.")
@json_option
def check(place: Place, no_network: bool, as_json: bool) -> int:
    """Check the settings, the segment tree, the state directory, the kernel's limits and every peer.

    Changes nothing, here and there. Exit code 0 where the agent would work (warnings included), 1 where it would not.

    \b
    Example: before a start, without asking the peers
      tombsync check --no-network
    """
    settings = place.settings()
    findings = [Finding("ok", "settings", f"{len(settings.peers)} peers, node {settings.node}")]
    findings += [*check_tree(settings), *check_state(settings), *check_kernel(settings), *_check_keys(settings)]
    findings += _check_files(settings, settings_path(place))
    if not no_network:
        findings += _check_peers(settings)
    if as_json:
        say_json([{"level": f.level, "what": f.what, "text": f.text, "hint": f.hint or None} for f in findings])
    else:
        for finding in findings:
            say(f"{finding.level:8} {finding.what}: {finding.text}")
            if finding.hint:
                say(f"         hint: {finding.hint}")
    return errors.EXIT_FAILED if any(finding.level == "failed" for finding in findings) else 0


def check_tree(settings: Settings) -> Iterator[Finding]:
    """The segment tree: there, known, writable for a tombstone, on a file system that tells of changes."""
    tree = Tree(settings.root)
    try:
        with tree.open_root() as root_fd:
            yield _identity(settings, tree, root_fd)
            yield from _writable(tree, root_fd)
    except errors.TombsyncError as exc:
        yield Finding("failed", "tree", str(exc), exc.hint)
        return
    if silent := tree.silent_filesystem():
        yield Finding(
            "warning", "tree", f"{tree.root} is on {silent}: what other machines write there raises no events here"
        )


def _identity(settings: Settings, tree: Tree, root_fd: int) -> Finding:
    try:
        reader = open_reader(settings)
    except errors.IndexMissing:
        found = identities(root_fd)
        return Finding(
            "ok", "tree", f"{tree.root} ({f'identity {found[0]}' if found else 'to be taken up by the first start'})"
        )
    try:
        tree.require(root_fd, reader.fact("root") or "")
    except (errors.RootMissing, errors.RootNotBelieved) as exc:
        return Finding("failed", "tree", str(exc), exc.hint)
    finally:
        reader.close()
    return Finding("ok", "tree", f"{tree.root} is the known one")


def _writable(tree: Tree, root_fd: int) -> Iterator[Finding]:
    if not identities(root_fd) and not os.access(tree.root, os.W_OK | os.X_OK):
        yield Finding(
            "failed",
            "tree",
            f"{tree.root} may not be written, and its identity has to be made once",
            "give this account write access",
        )
    locked = []
    for channel in directory_names(root_fd):
        for quality in directory_names(root_fd, channel):
            hours = tree.hours(root_fd, channel, quality)
            newest = f"{tree.root}/{channel}/{quality}" + (f"/{max(hours)}" if hours else "")
            if hours and not os.access(newest, os.W_OK | os.X_OK):
                locked.append(newest)
    if locked:
        yield Finding(
            "warning",
            "tree",
            f"tombstones cannot be put back into {len(locked)} places, {locked[0]} among them: they may not be written",
            "give this account write access to the hour directories, by a default ACL for example",
        )


def check_state(settings: Settings) -> Iterator[Finding]:
    """The state directory and the index in it."""
    path = settings.state_dir
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "failed", "state", f"{there} may not be written", "run as the agent's account, or correct its owner"
        )
        return
    free_bytes = os.statvfs(there).f_bavail * os.statvfs(there).f_frsize
    yield Finding("ok" if free_bytes > 1 << 30 else "warning", "state", f"{path}, {free_bytes / 2**30:.1f} GiB free")
    try:
        open_reader(settings).close()
    except errors.IndexMissing:
        yield Finding("ok", "index", "none yet; the first start builds it")
    except errors.IndexDamaged as exc:
        yield Finding("warning", "index", str(exc), exc.hint)
    except errors.TombsyncError as exc:
        yield Finding("failed", "index", str(exc), exc.hint)
    else:
        yield Finding("ok", "index", "can be read")


def check_kernel(settings: Settings) -> Iterator[Finding]:
    """inotify's limits against the tree, and Landlock."""
    wanted = count_directories(Tree(settings.root))
    watches, queue = _limit("max_user_watches"), _limit("max_queued_events")
    if watches and wanted > watches * 0.9:
        yield Finding(
            "warning",
            "watches",
            f"{wanted} directories, {watches} may be watched: the oldest hours are left to the rescan",
            f"sysctl fs.inotify.max_user_watches={max(2 * wanted, 524_288)}",
        )
    else:
        yield Finding("ok", "watches", f"{wanted} directories to watch, {watches} allowed")
    if queue and queue < _QUEUED_EVENTS:
        yield Finding(
            "warning", "queue", f"{queue} queued events allowed: a larger burst is repaired by a rescan only",
            f"sysctl fs.inotify.max_queued_events={_QUEUED_EVENTS}",
        )  # fmt: skip
    abi = confine.abi_version()
    if abi:
        yield Finding("ok", "confinement", f"Landlock, ABI {abi}")
    else:
        yield Finding("warning", "confinement", "this kernel has no Landlock: the agent relies on its own care alone")


def _limit(name: str) -> int:
    try:
        with open(f"{_INOTIFY}/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def count_directories(tree: Tree) -> int:
    """How many watches the tree takes."""
    try:
        with tree.open_root() as root_fd:
            channels = directory_names(root_fd)
            pairs = [(channel, quality) for channel in channels for quality in directory_names(root_fd, channel)]
            return 1 + len(channels) + len(pairs) + sum(len(tree.hours(root_fd, *pair)) for pair in pairs)
    except errors.RootMissing:
        return 0


def _check_keys(settings: Settings) -> Iterator[Finding]:
    from tombsync.daemon import target_of
    from tombsync.peers import require_usable

    for peer in settings.peers:
        try:
            require_usable(target_of(peer, settings.node))
        except errors.PeerError as exc:
            yield _of_peer("failed", exc)


def _check_files(settings: Settings, path: str) -> Iterator[Finding]:
    """Whether somebody else could change what decides whom the agent delivers to, and whom it takes for that."""
    places: dict[str, errors.NotRootsAlone] = {}
    for name in [path, *(name for peer in settings.peers for name in (peer.known_hosts, peer.key))]:
        with suppress(errors.FileRefused):  # what cannot be looked at cannot be used either, and that is told
            try:
                require_roots(os.path.abspath(name))
            except errors.NotRootsAlone as exc:
                places.setdefault(exc.path, exc)
    for place, error in places.items():
        text = f"somebody else may change {place}, and so whom the agent delivers to: {error.reason}"
        yield Finding("warning", "files", text, error.hint)


def _of_peer(level: str, exc: errors.PeerError) -> Finding:
    return Finding(level, f"peer {exc.peer}", str(exc).removeprefix(f"{exc.peer}: "), exc.hint)


def _check_peers(settings: Settings) -> list[Finding]:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        checked = pool.map(lambda peer: _check_peer(peer, settings.node), settings.peers)
        return [finding for findings in checked for finding in findings]


def _check_peer(peer: PeerSettings, node: str) -> list[Finding]:
    report = walk(peer, node)
    what = f"peer {peer.name}"
    if report.error is not None:
        # A peer that is down is no reason not to start: that is what deliveries are kept for.
        return [_of_peer("warning", report.error)]
    findings = [Finding("ok", what, f"reached in {report.connect_ms:.0f} ms, its tree is there")]
    if peer.delivery == "tree" and not report.can_sync:
        findings.append(Finding("warning", what, "its server has no fsync@openssh.com: deliveries stay not-durable"))
    return findings

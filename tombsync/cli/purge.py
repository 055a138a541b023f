"""`tombsync purge`: delete this node's data of segments that every node has marked. The one command that deletes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import click

from tombsync import errors
from tombsync.audit import Event
from tombsync.cli import complete
from tombsync.cli.common import (
    Place,
    dry_run_option,
    exit_code,
    json_option,
    known_root,
    on_terminal,
    open_reader,
    place_options,
    say,
    say_json,
    say_table,
    seconds_of,
    tell_error,
    warn,
)
from tombsync.cli.mark import claimed_actor
from tombsync.cli.progress import Bar
from tombsync.cli.records import Records
from tombsync.cli.segments import ask_peers, kept_the_place, named_markers
from tombsync.config import PeerSettings, Settings
from tombsync.index import MarkerRow, Reader
from tombsync.names import Hour, Marked, printable
from tombsync.tree import DataFile, Tree, delete_data, list_data, remember_purge

_PAGE = 500
_SHOWN = 50


@click.command()
@click.argument("stems", nargs=-1, metavar="[STEM...]", shell_complete=complete.marks)
@place_options
@click.option(
    "--older-than", callback=seconds_of, metavar="AGE", help="All that was hidden so long ago, like 7d or 12h."
)
@click.option(
    "--leftovers", is_flag=True, help="Only list hidden data in hours where nothing is visible; delete nothing."
)
@click.option(
    "--except-peer",
    "excepted",
    multiple=True,
    metavar="NAME",
    shell_complete=complete.nodes,
    help="Leave out a retired peer; journalled.",
)
@click.option("--no-peers", is_flag=True, help="Delete although no peer is configured that could be asked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
def purge(
    stems: tuple[str, ...],
    place: Place,
    older_than: int | None,
    leftovers: bool,
    excepted: tuple[str, ...],
    no_peers: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Delete this node's data files of marked segments; the tombstones stay.

    Only where every configured peer answers now that it has the tombstone durably, or does not keep that hour or
    channel: else a peer without the tombstone would give the data back. One peer that is silent, or cannot say so, and
    nothing at all is deleted. That it does not keep them counts only where another tombstone, or for a channel its root
    marker, is seen there: what is not mounted is missing too. Nodes that are not configured are not asked.

    --leftovers lists what retention leaves behind: it passes over data that is hidden when it clears an hour. An hour
    of which everything was marked looks the same.

    STEM is a stem, or a path as `tombsync mark` takes it. Each file that is deleted is journalled. Exit code 0: all is
    deleted, 1: nothing, 3: a part.

    \b
    Example
      tombsync purge --older-than 7d --dry-run
      tombsync purge desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
    """
    if bool(stems) + (older_than is not None) + leftovers != 1:
        raise click.UsageError("name segments, or say --older-than AGE or --leftovers")
    settings = place.settings()
    if leftovers:
        _tell_leftovers(settings, as_json=as_json)
        return 0
    peers = _to_ask(settings, excepted, no_peers=no_peers)
    reader = open_reader(settings)
    try:
        tree, identity = Tree(settings.root), known_root(settings, reader)
        rows = named_markers(settings, reader, stems) if stems else _older(reader, older_than or 0)
        files = _data(reader, tree, identity, rows, strict=bool(stems))
        if not as_json:
            _show(files)
        if files:
            if not (dry_run or yes):
                _confirm(files, ask=not as_json)
            _require_everywhere(settings, reader, peers, files)
    finally:
        reader.close()
    results = [] if dry_run else _delete(settings, tree, identity, files, excepted)
    failed = sum(error is not None for _, error in results)
    if as_json:
        kept = {file.path: str(error) for file, error in results if error is not None}
        say_json([_facts(file, kept, done=not dry_run) for _, file in files])
    elif results:
        size = sum(file.size_bytes for file, error in results if error is None)
        say(f"deleted {len(results) - failed} files, {size} bytes; their tombstones stay")
    return exit_code(len(results) - failed, failed)


# -- what to delete ---------------------------------------------------------------------------------------------------


def _older(reader: Reader, age_s: int) -> Iterator[MarkerRow]:
    limit_ns = time.time_ns() - age_s * 1_000_000_000
    below = None
    while page := reader.marker_rows(below=below, limit=_PAGE):
        yield from (row for row in page if row.hidden_at_ns <= limit_ns)
        below = page[-1].marker


def _data(
    reader: Reader, tree: Tree, identity: str, rows: Sequence[MarkerRow] | Iterator[MarkerRow], *, strict: bool
) -> list[tuple[MarkerRow, DataFile]]:
    """The data files of these markers. What must not be purged is an error if it was named, and else passed over."""
    files: list[tuple[MarkerRow, DataFile]] = []
    with tree.open_believed(identity) as root_fd:
        for row in rows:
            newest = reader.marker(row.marked)
            if newest is None or newest.marker != row.marker:  # an older generation decides nothing
                continue
            try:
                if not row.hides:
                    raise errors.NotPurgeable(row.marked.path, "its mark was taken back: it is not hidden")
                if not row.pushable:
                    raise errors.NotPurgeable(
                        row.marked.path, "its tombstone is not sent to peers, so none can have it"
                    )
                files += [(row, file) for file in list_data(root_fd, row.marked)]
            except errors.NotPurgeable as exc:
                if strict:
                    raise
                warn(str(exc))
    return files


def _tell_leftovers(settings: Settings, *, as_json: bool) -> None:
    """Print the hidden data of hours of which nothing is visible."""
    reader = open_reader(settings)
    try:
        tree = Tree(settings.root)
        with tree.open_believed(known_root(settings, reader)) as root_fd:
            files = [file for hour in reader.leftover_hours(limit=_PAGE) for file in _of_hour(reader, root_fd, hour)]
    finally:
        reader.close()
    if as_json:
        say_json([{"file": file.path, "bytes": file.size_bytes} for file in files])
    elif not files:
        say("no hour holds hidden data alone")
    else:
        say_table(("FILE", "BYTES"), ((file.path, file.size_bytes) for file in files))
        say(f"{len(files)} files, {sum(file.size_bytes for file in files)} bytes, in hours where nothing is visible")


def _of_hour(reader: Reader, root_fd: int, hour: Hour) -> Iterator[DataFile]:
    for stem in sorted(reader.markers(hour)):
        try:
            yield from list_data(root_fd, Marked(hour, stem))
        except errors.NotPurgeable as exc:
            warn(str(exc))


def _show(files: Sequence[tuple[MarkerRow, DataFile]]) -> None:
    if not files:
        say("nothing to delete: no data of what is marked is here")
        return
    say_table(("FILE", "BYTES"), ((file.path, file.size_bytes) for _, file in files[:_SHOWN]))
    if len(files) > _SHOWN:
        say(f"… and {len(files) - _SHOWN} more (--json lists them all)")
    say(f"{len(files)} files, {sum(file.size_bytes for _, file in files)} bytes")


def _facts(file: DataFile, kept: dict[str, str], *, done: bool) -> dict[str, object]:
    return {
        "file": file.path,
        "bytes": file.size_bytes,
        "deleted": done and file.path not in kept,
        "error": kept.get(file.path),
    }


def _confirm(files: Sequence[tuple[MarkerRow, DataFile]], *, ask: bool) -> None:
    if not ask or not on_terminal(sys.stdin):
        raise errors.NotConfirmed(f"{len(files)} files would be deleted for good")
    click.confirm(f"Delete these {len(files)} files of this node for good?", abort=True, err=True)


# -- whether every node has it ----------------------------------------------------------------------------------------


def _to_ask(settings: Settings, excepted: Sequence[str], *, no_peers: bool) -> list[PeerSettings]:
    """The peers that have to answer. Raises UnknownPeer, PurgeBlocked where there would be none."""
    names = tuple(peer.name for peer in settings.peers)
    for name in excepted:
        if name not in names:
            raise errors.UnknownPeer(name, names)
    peers = [peer for peer in settings.peers if peer.name not in excepted]
    if not peers and not no_peers:
        reason = "no peer is left that could be asked; --no-peers says that this node is the only one"
        raise errors.PurgeBlocked((reason,))
    return peers


def _require_everywhere(
    settings: Settings, reader: Reader, peers: Sequence[PeerSettings], files: Sequence[tuple[MarkerRow, DataFile]]
) -> None:
    """Ask each peer now about each tombstone. Raises PurgeBlocked with a reason for each peer that is in the way."""
    from tombsync.proof import blocked_by

    rows = {row.marker: row for row, _ in files}
    heard, kept = ask_peers(settings, reader, peers, rows.values(), with_witnesses=True), kept_the_place(reader)
    reasons = [reason for each, asked in heard if (reason := blocked_by(each, asked, kept_the_place=kept))]
    if reasons:
        raise errors.PurgeBlocked(tuple(reasons))


# -- deleting ---------------------------------------------------------------------------------------------------------


def _delete(
    settings: Settings,
    tree: Tree,
    identity: str,
    files: Sequence[tuple[MarkerRow, DataFile]],
    excepted: Sequence[str],
) -> list[tuple[DataFile, errors.NotDeleted | None]]:
    """Delete hour by hour; each file with what kept it, and one record for each that is gone."""
    hours: dict[Hour, list[DataFile]] = {}
    for _, file in files:
        hours.setdefault(file.marked.hour, []).append(file)
    actor, at_ns = claimed_actor(), time.time_ns()
    results: list[tuple[DataFile, errors.NotDeleted | None]] = []
    records = Records(settings)
    try:
        for name in excepted if files else ():
            records.add(Event.PURGE_EXCEPTED, f"{actor} purges without asking {name}", peer=name, actor=actor)
        with Bar("deleting") as bar:
            for hour, group in hours.items():
                try:
                    for file, error in delete_data(
                        tree,
                        identity,
                        hour,
                        group,
                        lambda fd, where, what: remember_purge(fd, where, what, at_ns=at_ns, actor=actor),
                    ):
                        results.append((file, error))
                        if error is not None:
                            tell_error(error)
                        else:
                            _record(records, file, actor)
                except (errors.NotDeleted, errors.RootMissing, errors.RootNotBelieved) as exc:
                    tell_error(exc)
                    told = {file.path for file, _ in results}
                    results += [
                        (file, errors.NotDeleted(file.path, str(exc))) for file in group if file.path not in told
                    ]
                bar.show(len(results), len(files))
    finally:
        records.close()
    return results


def _record(records: Records, file: DataFile, actor: str) -> None:
    records.add(
        Event.PURGED,
        f"{actor} purged {printable(file.path)}",
        marked=file.marked,
        actor=actor,
        bytes=file.size_bytes,
        file=file.name,
    )

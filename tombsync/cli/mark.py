"""`tombsync mark`: create tombstones."""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass

import click

from tombsync import errors
from tombsync.audit import JOURNAL_SOCKET, Audit, Event, open_audit
from tombsync.cli.common import (
    Place,
    agent_runs,
    dry_run_option,
    exit_code,
    json_option,
    open_reader,
    place_options,
    say,
    say_json,
    tell_error,
    warn,
)
from tombsync.config import Settings
from tombsync.index import Reader
from tombsync.names import Kind, Marked, classify, locate, mistake_message, parse_stem, printable
from tombsync.tree import Tree, identities, open_below

_HIDDEN_WITHIN_S = 2.0  # how long to wait for a running agent to say so; it takes about a millisecond
_LOOK_S = 0.002


@dataclass
class Result:
    """What became of one path."""

    path: str
    segment: str = ""
    outcome: str = ""  # marked, already-marked, would-mark, failed
    hides: tuple[str, ...] = ()
    hidden_ms: float | None = None
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "path": self.path,
            "segment": self.segment or None,
            "outcome": self.outcome,
            "hides": list(self.hides),
            "hidden_ms": None if self.hidden_ms is None else round(self.hidden_ms, 3),
            "error": self.error or None,
        }


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@place_options
@click.option("--reason", default="", help="Why; goes into the tombstone and the journal.")
@click.option("--even-if-absent", is_flag=True, help="Mark a segment that is not here (yet), so that it arrives hidden.")
@dry_run_option
@json_option
def mark(
    paths: tuple[str, ...], place: Place, reason: str, even_if_absent: bool, dry_run: bool, as_json: bool
) -> int:
    """Hide segments: create a tombstone beside each, durably.

    PATH is absolute, relative to the segment tree, or relative to where you are; it ends in .ts, .json, .tombstone or in
    nothing of these. The segment's data is not touched. Works with the agent down: its next start finds the tombstone.

    Exit code 0: all are marked, 1: none, 3: some.

    \b
    Example
      tombsync mark --reason "shows a phone number" desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
    """
    settings = place.settings()
    tree = Tree(settings.root)
    reader = _reader(settings)
    audit = open_audit(settings.node) if os.path.exists(JOURNAL_SOCKET) and not dry_run else None
    results = []
    try:
        with tree.open_root() as root_fd:
            _require_known_root(tree, root_fd, reader)
            for path in paths:
                result = Result(path)
                try:
                    _mark(result, tree, root_fd, settings, audit, reason, even_if_absent=even_if_absent, dry_run=dry_run)
                except errors.TombsyncError as exc:
                    result.outcome, result.error = "failed", str(exc)
                    if not as_json:
                        tell_error(exc)
                else:
                    if not dry_run:
                        _await_hidden(result, settings, reader, tree)
                    if not as_json:
                        _say(result)
                results.append(result)
    finally:
        if audit is not None:
            audit.close()
        if reader is not None:
            reader.close()
    failed = sum(result.outcome == "failed" for result in results)
    if as_json:
        say_json([result.as_json() for result in results])
    elif not dry_run and len(results) > failed and not agent_runs(settings):
        warn("no agent runs here: the tombstones stand, its next start delivers them to the peers")
    return exit_code(len(results) - failed, failed)


def _reader(settings: Settings) -> Reader | None:
    try:
        return open_reader(settings)
    except errors.TombsyncError:  # marking must work without an index
        return None


def _require_known_root(tree: Tree, root_fd: int, reader: Reader | None) -> None:
    """An empty mount point must not swallow a tombstone: where the index names the tree, it has to be that one."""
    identity = reader.fact("root") if reader is not None else None
    if identity is not None:
        tree.require(root_fd, identity)
    elif not identities(root_fd):
        warn(f"{tree.root} was never taken up by an agent; is it the right segment tree?")


def _mark(
    result: Result,
    tree: Tree,
    root_fd: int,
    settings: Settings,
    audit: Audit | None,
    reason: str,
    *,
    even_if_absent: bool,
    dry_run: bool,
) -> None:
    marked = locate(_inside(result.path, tree), root=tree.root, cwd=os.path.realpath(os.getcwd()))
    result.segment = marked.path
    name = os.path.basename(result.path)
    if classify(name)[0] is Kind.MISTAKE:
        warn(mistake_message(marked.hour, name))
    segment = parse_stem(marked.stem)
    if segment is not None and segment.type == "temp":
        raise errors.NotMarkable(result.path, "a temp segment is still being written and gets another name")
    result.hides = _hides(root_fd, marked)
    if not result.hides and not even_if_absent and not _stands(tree, marked):
        raise errors.HidesNothing(marked.path)
    if dry_run:
        result.outcome = "already-marked" if _stands(tree, marked) else "would-mark"
        return
    made = tree.place(root_fd, marked, note(settings.node, reason))
    result.outcome = "marked" if made else "already-marked"
    if made and audit is not None:
        audit.record(
            Event.MARKED,
            f"{claimed_actor()} marked {printable(marked.path)}" + (f": {reason}" if reason else ""),
            marked=marked,
            source="command",
            actor=claimed_actor(),
            reason=reason,
        )


def _inside(path: str, tree: Tree) -> str:
    """An absolute path that reaches the tree through a symlinked ROOT, as one that names it directly."""
    if not path.startswith("/") or path.startswith(tree.root + "/"):
        return path
    head, _, name = path.rpartition("/")
    directory = os.path.realpath(head) if os.path.isdir(head) else head
    return f"{directory}/{name}" if directory.startswith(tree.root + "/") else path


def _hides(root_fd: int, marked: Marked) -> tuple[str, ...]:
    try:
        fd = open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text)
    except OSError as exc:
        raise errors.TreeRefused(marked.hour.path, os.strerror(exc.errno or 0), exc.errno or 0) from exc
    try:
        found = []
        for extension in (".ts", ".json"):
            try:
                os.stat(marked.stem + extension, dir_fd=fd, follow_symlinks=False)
            except OSError:
                continue
            found.append(marked.stem + extension)
        return tuple(found)
    finally:
        os.close(fd)


def _stands(tree: Tree, marked: Marked) -> bool:
    return os.path.lexists(f"{tree.root}/{marked.tombstone_path}")


def note(node: str, reason: str) -> bytes:
    """What goes into a tombstone: TOML, optional to every reader. Empty texts are left out."""
    facts = {
        "actor": claimed_actor(),
        "node": node,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "reason": reason,
    }
    lines = ["generation = 0"] + [f"{key} = {_toml_string(value)}" for key, value in facts.items() if value]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _toml_string(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else "\\" + c if c in '"\\' else c for c in text[:2000]
    )
    return f'"{escaped}"'


def claimed_actor() -> str:
    """Who says they do this: recorded, and never decided by."""
    for variable in ("SUDO_USER", "DOAS_USER"):
        if name := os.environ.get(variable):
            return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _await_hidden(result: Result, settings: Settings, reader: Reader | None, tree: Tree) -> None:
    """See the running agent hide it, so that a person under stress can go on."""
    if reader is None or not agent_runs(settings):
        return
    marked = locate(result.segment, root=tree.root, cwd="/")
    begun = time.monotonic()
    while time.monotonic() - begun < _HIDDEN_WITHIN_S:
        if reader.marker(marked) is not None:
            result.hidden_ms = (time.monotonic() - begun) * 1e3
            return
        time.sleep(_LOOK_S)  # another process's commit is nothing that can be waited for


def _say(result: Result) -> None:
    words = {"marked": "marked", "already-marked": "already marked", "would-mark": "would mark"}
    hides = f"  hides {', '.join(result.hides)}" if result.hides else "  hides nothing here yet"
    hidden = "  (hidden in the index)" if result.hidden_ms is not None else ""
    say(f"{words[result.outcome]} {result.segment}{hides}{hidden}")

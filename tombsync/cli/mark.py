"""`tombsync mark`: create tombstones."""

from __future__ import annotations

import errno
import os
import pwd
import sys
import time
from dataclasses import dataclass

import click

from tombsync import errors
from tombsync.audit import Audit, Event, journald_is_there, open_audit
from tombsync.cli import complete
from tombsync.cli.common import (
    Place,
    agent_runs,
    dry_run_option,
    exit_code,
    json_option,
    locate_segment,
    on_terminal,
    open_reader,
    place_options,
    require_readable,
    say,
    say_json,
    tell_error,
    warn,
)
from tombsync.config import Settings
from tombsync.index import Reader
from tombsync.names import Kind, Marked, classify, mistake_message, parse_chat_stem, parse_stem, printable, strict_path
from tombsync.plan import State
from tombsync.tree import Tree, identities, open_below

_HIDDEN_WITHIN_S = 2.0  # how long to wait for a running agent to say so; it takes about a millisecond
_LOOK_S = 0.002
_NOTE_BYTES = 4096  # readers take no more
_ACTOR_CHARACTERS = 64
_ABOUT_CHAT = (
    "the archive merges chat batches, so the same messages can come back under another name: look again later;"
    " and its chat reader can fail on an empty tombstone, as the peers get it"
)


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
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=complete.files)
@place_options
@click.option("--reason", default="", help="Why; goes into the tombstone and the journal.")
@click.option("--even-if-absent", is_flag=True, help="Mark what is not here (yet), so that it arrives hidden.")
@click.option("--yes", is_flag=True, help="Do not ask, however many there are.")
@dry_run_option
@json_option
def mark(
    paths: tuple[str, ...],
    place: Place,
    reason: str,
    even_if_absent: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Hide segments: create a tombstone beside each, durably.

    PATH is absolute, relative to the segment tree, or relative to where you are; it ends in .ts, .json, .tombstone or
    in nothing of these. The segment's data is not touched. Works with the agent down: its next start finds the
    tombstone. More than `breaker.most_per_minute` at once are asked about first, and then not held.

    Exit code 0: all are marked, 1: none, 3: some.

    \b
    Example
      tombsync mark --reason "shows a phone number" desertbus/source/2019-11-13T02/45:51.608000-2.0-full-….ts
    """
    settings = place.settings()
    if len(paths) > settings.breaker.most_per_minute and not (yes or dry_run):
        _confirm(len(paths), ask=not as_json)
    tree = Tree(settings.root)
    reader, identity = _index(settings)
    # Not to stderr: there it would only repeat what the command says, and the agent records the hiding itself.
    to_journald = settings.journal == "auto" and journald_is_there()
    audit = open_audit(settings.node) if to_journald and not dry_run else None
    results = []
    agent = reader if reader is not None and agent_runs(settings) else None
    patient = True
    try:
        with tree.open_root() as root_fd:
            _require_known_root(tree, root_fd, identity)
            for path in paths:
                result = Result(path)
                try:
                    _mark(
                        result, tree, root_fd, settings, audit, reason, even_if_absent=even_if_absent, dry_run=dry_run
                    )
                except errors.TombsyncError as exc:
                    result.outcome, result.error = "failed", str(exc)
                    tell_error(exc)
                else:
                    if agent is not None and patient and not dry_run and not _await_hidden(result, agent):
                        patient = False  # one wait is enough
                        warn("the agent has not hidden it in time; `tombsync status` says how it is")
                    if not as_json:
                        _say(result)
                results.append(result)
        if agent is not None and not dry_run:
            _let_go(settings, agent, results)
    finally:
        if audit is not None:
            audit.close()
        if reader is not None:
            reader.close()
    failed = sum(result.outcome == "failed" for result in results)
    if as_json:
        say_json([result.as_json() for result in results])
    if not dry_run and len(results) > failed:
        _warn_without_agent(settings)
    return exit_code(len(results) - failed, failed)


def _confirm(count: int, *, ask: bool) -> None:
    """So many may be a mistake, and what a peer has cannot be taken back."""
    if not ask or not on_terminal(sys.stdin):
        raise errors.NotConfirmed(f"{count} segments would be hidden on every node")
    click.confirm(f"Hide {count} segments on every node?", abort=True, err=True)


def _index(settings: Settings) -> tuple[Reader | None, str | None]:
    """The index, and the identity of the tree that it knows. Marking must work without one, and with a damaged one."""
    try:
        reader = open_reader(settings)
    except errors.TombsyncError:
        return None, None
    try:
        return reader, reader.fact("root")
    except errors.TombsyncError:
        reader.close()
        return None, None


def _require_known_root(tree: Tree, root_fd: int, identity: str | None) -> None:
    """An empty mount point must not swallow a tombstone: where the index names the tree, it has to be that one."""
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
    marked = locate_segment(result.path, tree)
    result.segment = marked.path
    name = os.path.basename(result.path)
    if classify(name)[0] is Kind.MISTAKE:
        warn(mistake_message(marked.hour, name))
    segment = parse_stem(marked.stem)
    if segment is not None and segment.type == "temp":
        raise errors.NotMarkable(result.path, "a temp segment is still being written and gets another name")
    result.hides = _hides(root_fd, marked)
    if parse_chat_stem(marked.stem) is not None:
        warn(_ABOUT_CHAT)
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


def _hides(root_fd: int, marked: Marked) -> tuple[str, ...]:
    try:
        fd = open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text)
    except FileNotFoundError as exc:
        raise errors.NotMarkable(
            marked.path,
            "its hour directory is not here, so there is no place for a tombstone",
            f"check the name: `tombsync ls {marked.hour.channel}/{marked.hour.quality}` shows the hours that are here",
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise errors.NotMarkable(
                marked.path,
                "its channel, quality or hour is a link or no directory, and links are not followed",
                "name the segment by the directory that the link leads to",
            ) from exc
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
    """What goes into a tombstone: TOML of at most 4 KiB, optional to every reader. Empty texts are left out."""
    facts = {
        "actor": claimed_actor()[:_ACTOR_CHARACTERS],
        "node": node,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "reason": reason,
    }
    text = b"generation = 0\n"
    for key, value in facts.items():
        if value:
            room_bytes = _NOTE_BYTES - len(text) - len(f'{key} = ""\n')
            text += f'{key} = "{_toml_text(value, room_bytes)}"\n'.encode()
    return text


def _toml_text(text: str, room_bytes: int) -> str:
    """The inside of a basic string (https://toml.io/en/v1.0.0#string), cut before the character that has no room."""
    kept = []
    for character in text.encode("utf-8", "replace").decode():  # TOML has no place for bytes that are not UTF-8
        code = ord(character)
        if code < 0x20 or code == 0x7F:
            character = f"\\u{code:04x}"
        elif character in '"\\':
            character = "\\" + character
        room_bytes -= len(character.encode())
        if room_bytes < 0:
            break
        kept.append(character)
    return "".join(kept)


def claimed_actor() -> str:
    """Who says they do this: recorded, and never decided by."""
    for variable in ("SUDO_USER", "DOAS_USER"):
        if name := os.environ.get(variable):
            return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _let_go(settings: Settings, reader: Reader, results: list[Result]) -> None:
    """What was marked by command is meant: the agent holds one only where it saw the tombstone before its note."""
    marked = [strict_path(result.segment) for result in results if result.outcome == "marked"]
    rows = [row for one in marked if (row := reader.marker(one)) is not None]
    held = [row.marker for row in rows if any(d.state is State.HELD for d in reader.deliveries(row.marker))]
    if held:
        from tombsync.daemon import request_resume

        request_resume(settings.state_dir, held)


def _await_hidden(result: Result, reader: Reader) -> bool:
    """See the running agent hide it, so that a person under stress can go on; False where it takes too long."""
    marked = strict_path(result.segment)
    begun = time.monotonic()
    while time.monotonic() - begun < _HIDDEN_WITHIN_S:
        try:
            hidden = reader.marker(marked) is not None
        except errors.TombsyncError as exc:  # the tombstone stands all the same
            tell_error(exc)
            return False
        if hidden:
            result.hidden_ms = (time.monotonic() - begun) * 1e3
            return True
        time.sleep(_LOOK_S)  # another process's commit is nothing that can be waited for
    return False


def _warn_without_agent(settings: Settings) -> None:
    try:
        require_readable(settings)
    except errors.StateRefused as exc:
        warn(f"whether the agent runs cannot be told: {exc}")
        return
    if not agent_runs(settings):
        warn("no agent runs here: the tombstones stand, its next start hides them and delivers them to the peers")


def _say(result: Result) -> None:
    words = {"marked": "marked", "already-marked": "already marked", "would-mark": "would mark"}
    hides = f"  hides {', '.join(result.hides)}" if result.hides else "  hides nothing here yet"
    hidden = "  (hidden in the index)" if result.hidden_ms is not None else ""
    say(f"{words[result.outcome]} {result.segment}{hides}{hidden}")

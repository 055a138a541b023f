"""Reads the records back: from the journal by `journalctl`, or from the JSON lines that went to stderr instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from glob import escape
from typing import IO, cast

from tombsync.audit.events import Event
from tombsync.audit.journal import IDENTIFIER
from tombsync.errors import JournalUnreadable
from tombsync.names import Marked, printable

STDIN = "-"
_MAGIC = b"LPKSHHRH"  # how a journal file begins: https://systemd.io/JOURNAL_FILE_FORMAT/
_NONE_FOUND = "No journal files were found"  # said with exit code 0
_SEEN_IN_PART = "not seeing messages from other users"  # said to an account that sees only its own records


@dataclass(frozen=True)
class Story:
    """Which records are wanted: those of one segment, by its place or by its stem alone, or all where both are None.

    `since_s` is Unix time; `newest` is how many at most, the newest of them (not where it is followed).
    """

    marked: Marked | None = None
    stem: str | None = None
    since_s: float | None = None
    newest: int | None = None

    def has(self, fields: dict[str, str]) -> bool:
        """Whether a record belongs to it. The end of an hour is the end of each segment in it."""
        if "TOMBSYNC_EVENT" not in fields:
            return False
        segment = fields.get("TOMBSYNC_SEGMENT", "")
        if self.marked is not None:
            return segment == printable(self.marked.path) or _end_of(self.marked).items() <= fields.items()
        return self.stem is None or segment.rpartition("/")[2] == printable(self.stem)

    def matches(self, segments: Iterable[str]) -> list[str]:
        """The same for journalctl's index; `segments` are those whose stem it is."""
        if self.marked is not None:
            end = [f"{key}={value}" for key, value in _end_of(self.marked).items()]
            return [f"TOMBSYNC_SEGMENT={printable(self.marked.path)}", "+", *end]
        # The last one, because what an agent's libraries say on stderr has the identifier too.
        ours = [f"SYSLOG_IDENTIFIER={IDENTIFIER}", "_TRANSPORT=journal"]
        return ours + [f"TOMBSYNC_SEGMENT={segment}" for segment in segments]


def _end_of(marked: Marked) -> dict[str, str]:
    """The fields by which the record of the end of its hour is found."""
    return {
        "TOMBSYNC_EVENT": Event.HOUR_GONE.word,
        "TOMBSYNC_CHANNEL": printable(marked.hour.channel),
        "TOMBSYNC_QUALITY": printable(marked.hour.quality),
        "TOMBSYNC_HOUR": marked.hour.text,
    }


def read_story(
    story: Story, journal: str | None, *, follow: bool = False, on_part: Callable[[], None] = lambda: None
) -> Iterator[dict[str, str]]:
    """The records of a story in the order in which they were written, field -> value; with `follow` it never ends.

    `journal`: a journal file, a directory of them, a file of JSON lines, `-` for such lines on stdin, or None for the
    journal of this machine and what it collected of others. `on_part` is called where this account cannot see all of
    it. Raises JournalUnreadable.
    """
    if journal is None:
        return _of_journal(story, "the journal", ["--merge"], follow=follow, on_part=on_part)
    if os.path.isdir(journal):
        return _of_journal(story, journal, [f"--directory={journal}"], follow=follow, on_part=on_part)
    if journal != STDIN and _begins_as_journal(journal):
        return _of_journal(story, journal, [f"--file={escape(journal)}"], follow=follow, on_part=on_part)
    records = _of_lines(story, journal)
    return records if follow or story.newest is None else iter(deque(records, story.newest))


def _begins_as_journal(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError as exc:
        raise JournalUnreadable(path, exc.strerror or str(exc)) from exc


def _of_lines(story: Story, path: str) -> Iterator[dict[str, str]]:
    with nullcontext(sys.stdin.buffer) if path == STDIN else open(path, "rb") as stream:
        for line in stream:
            fields = _parsed(line)  # between the records are lines of others
            if "time" in fields:  # as StderrSink writes it, else it is what journalctl printed
                fields["TOMBSYNC_TIME"] = fields.pop("time")
            if story.has(fields) and (story.since_s is None or written_s(fields) >= story.since_s):
                yield fields


def _of_journal(
    story: Story, where: str, place: Sequence[str], *, follow: bool, on_part: Callable[[], None]
) -> Iterator[dict[str, str]]:
    _look(where, place, on_part)
    segments: list[str] = []
    if story.stem is not None and not follow:  # what is followed may not be there yet
        end = f"/{printable(story.stem)}"
        with _journalctl(where, [*place, "--field=TOMBSYNC_SEGMENT"]) as lines:
            segments = [text for line in lines if (text := line.decode(errors="replace").rstrip("\n")).endswith(end)]
        if not segments:
            return
    words = [*place, "--output=json", "--all"]  # --all: without it a value of 4 kB is null
    if story.since_s is not None:
        words.append(f"--since=@{story.since_s:.6f}")
    if follow:
        words += ["--follow", "--no-tail"]
    elif story.newest is not None:
        words.append(f"--lines={story.newest}")
    with _journalctl(where, [*words, *story.matches(segments)]) as lines:
        for line in lines:
            fields = _parsed(line)
            if story.has(fields):
                yield fields


def _look(where: str, place: Sequence[str], on_part: Callable[[], None]) -> None:
    """Find out whether there is a journal, and all of it: where journalctl prints JSON it does not say so."""
    process = _start(where, [*place, "--lines=0"], subprocess.PIPE)
    said = process.communicate()[1].decode(errors="replace").strip()
    if process.returncode or _NONE_FOUND in said:
        raise JournalUnreadable(where, _last_line(said, process.returncode))
    if _SEEN_IN_PART in said:
        on_part()


@contextmanager
def _journalctl(where: str, words: Sequence[str]) -> Iterator[IO[bytes]]:
    """A running journalctl, as the lines that it prints. Raises JournalUnreadable, at the latest at its end."""
    with tempfile.TemporaryFile() as told:  # not a pipe, which would have to be read at the same time
        process = _start(where, words, told)
        lines = cast(IO[bytes], process.stdout)
        try:
            yield lines
        except BaseException:  # nobody wants the rest: it would notice only with its next line
            process.kill()
            raise
        finally:
            lines.close()
            code = process.wait()
        told.seek(0)
        said = told.read().decode(errors="replace").strip()
    if code:
        raise JournalUnreadable(where, _last_line(said, code))


def _start(where: str, words: Sequence[str], stderr: IO[bytes] | int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["journalctl", "--no-pager", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except OSError as exc:
        reason = "this machine has no journalctl" if isinstance(exc, FileNotFoundError) else str(exc)
        raise JournalUnreadable(where, reason) from exc


def _last_line(said: str, code: int) -> str:
    return said.splitlines()[-1] if said else f"journalctl ended with {code}"


def _parsed(line: bytes) -> dict[str, str]:
    """The fields of one JSON object a line; {} for another line. A value that is no text comes as a list of bytes."""
    try:
        found = json.loads(line) if line.startswith(b"{") else {}
    except ValueError:
        return {}
    return {key: text for key, value in found.items() if (text := _text(value)) is not None}


def _text(value: object) -> str | None:
    if isinstance(value, list) and value and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return printable(os.fsdecode(bytes(value)))
    if isinstance(value, list) and value:  # a field that came more than once
        return _text(value[0])
    return value if isinstance(value, str) else None


def written_s(fields: dict[str, str]) -> float:
    """When a record was made, in Unix time: its own word for it, as it may have waited; else journald's; else 0."""
    try:
        return datetime.fromisoformat(fields["TOMBSYNC_TIME"]).timestamp()
    except (KeyError, ValueError):
        micro = fields.get("__REALTIME_TIMESTAMP", "")
        return int(micro) / 1e6 if micro.isascii() and micro.isdecimal() else 0.0

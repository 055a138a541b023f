"""The journal: one record per change, so that an auditor can ask who hid what, when, and when each node had it.

Records go to journald by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) or, where no journal socket
is, to stderr as one JSON line each. A worker only puts its record into a bounded queue; one thread of our own writes,
so a slow or restarting journald delays nobody. Every value is escaped: a name with a newline is one record, one line.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple, Protocol

from logging_journald import JournaldTransport

from tombsync.audit.events import Event
from tombsync.names import Hour, Marked, printable

IDENTIFIER = "tombsync"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
QUEUE_RECORDS = 20_000  # 12 MB when full (0.6 kB each): a takedown of three hours in three qualities at once
CLOSE_TIMEOUT_S = 2.0
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 5.0  # journald restarts within a second or two; its queue then takes everything at once
_AT_ONCE = 64  # records written between two looks at the queue
LINGER_S = 0.005  # after the first record of a burst: delivering goes before putting into words (benchmarks/push.py)
SEND_TIMEOUT_S = 0.25  # how long one send waits in the kernel for room in journald's queue

_FIELD_FORBIDDEN = re.compile("[^A-Z0-9_]")
_FIELD_CHARACTERS = 64  # journald drops a longer field name, and with it the value


class Record(NamedTuple):
    """One record, ready to be written. `time` is ISO 8601 in UTC, to the microsecond; every value is one line."""

    time: str
    fields: dict[str, str]


class Sink(Protocol):
    """Where records go. Used by one thread at a time."""

    def send(self, record: Record) -> None:
        """Write one record whole, or raise OSError: the same record is then sent again later."""

    def close(self) -> None:
        """Give up what is held open."""


class JournalSink:
    """journald's socket. The path is looked up by each send, so a replaced socket is simply found.

    A record over the socket's limit is handed over as a sealed memfd, by the transport.
    """

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._transport = JournaldTransport(path, connected=False)
        # Not settimeout(): the kernel calls an unconnected datagram socket writable even when the receiver is full,
        # and Python would spin until the timeout. This wait is the kernel's own, and ends as soon as there is room.
        micro = int(SEND_TIMEOUT_S * 1_000_000)
        self._transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, micro))

    def send(self, record: Record) -> None:
        """Send one record with its own time, as it may have waited. Raises OSError."""
        self._transport.send([*record.fields.items(), ("TOMBSYNC_TIME", record.time)])

    def close(self) -> None:
        """Close our end."""
        self._transport.socket.close()


class StderrSink:
    """One JSON line each, with the journal's field names and, like `journalctl -o json`, text for every value."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._rest = b""  # of a line that was written in part; the same record is sent again, so it is that one's

    def send(self, record: Record) -> None:
        """Write one line; not through sys.stderr, whose lock a stuck write would hold. Raises OSError."""
        if not self._rest:
            self._rest = json.dumps({"time": record.time, **record.fields}).encode() + b"\n"
        while self._rest:
            self._rest = self._rest[os.write(self._descriptor, self._rest) :]

    def close(self) -> None:
        """Nothing: stderr is not ours."""


class _Entry(NamedTuple):
    """One call of `record`, as it came; it is put into words by the audit thread."""

    at: float
    event: Event
    message: str
    extra: Mapping[str, str | int]
    marked: Marked | None = None
    hour: Hour | None = None
    segment: str | None = None
    peer: str | None = None
    source: str | None = None
    actor: str | None = None
    elapsed_ms: float | None = None


class Audit:
    """The bounded queue and its one thread, which owns the sink.

    Records may come before `start`, from any thread. The order of acceptance is the order of writing.
    """

    def __init__(
        self, node: str, sink: Sink, *, capacity: int = QUEUE_RECORDS, wall: Callable[[], float] = time.time
    ) -> None:
        self._node = node
        self._sink = sink
        self._capacity = capacity
        self._wall = wall
        self._condition = threading.Condition()  # its lock is re-entrant: a signal handler may record, too
        self._queue: deque[_Entry] = deque()  # under the condition, like all below
        self._finished = 0  # of the oldest in the queue, those that are done with; written by the audit thread
        self._accepted = self._left = 0  # records ever taken into the queue, and those that left it
        self._dropped = 0
        self._unreported = 0  # of the dropped, those that no record tells of yet
        self._closing_at: float | None = None  # monotonic: when the thread gives up
        self._ended = False
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """How many records were lost so far: the queue was full, journald was gone at the end."""
        return self._dropped

    @property
    def written(self) -> int:
        """How many of the accepted records are done with: what `record` returned is counted like this."""
        return self._left

    @property
    def has_room(self) -> bool:
        """Whether less than half of the queue is taken: what can wait need not be lost."""
        return self._accepted - self._left < self._capacity // 2

    def start(self) -> None:
        """Start writing, in a thread of our own. Once is enough, a second call does nothing."""
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
                self._thread.start()

    def record(
        self,
        event: Event,
        message: str,
        *,
        marked: Marked | None = None,
        hour: Hour | None = None,
        segment: str | None = None,
        peer: str | None = None,
        source: str | None = None,
        actor: str | None = None,
        elapsed_ms: float | None = None,
        **fields: str | int,
    ) -> int:
        """Put one record into the queue, with the time of this call. Never waits for the journal and never raises.

        Returns how many were accepted by now: when as many are `written`, this one is in the journal.

        `marked` gives segment, channel, quality and hour; `hour` the last three; `segment` is for a path that did not
        parse. Further `fields` become TOMBSYNC_<NAME>. Where the queue is full the record is dropped and counted.
        """
        at = self._wall()
        entry = _Entry(at, event, message, fields, marked, hour, segment, peer, source, actor, elapsed_ms)
        with self._condition:
            if self._ended or len(self._queue) >= self._capacity:
                self._dropped += 1
                self._unreported += 1
            else:
                if not self._queue:  # else it is awake, or lingers, and would be woken for nothing
                    self._condition.notify()
                self._queue.append(entry)
                self._accepted += 1
            return self._accepted

    def wait_written(self, accepted: int, timeout_s: float) -> bool:
        """Wait until so many records are written; whether they are."""
        with self._condition:
            return self._condition.wait_for(lambda: self._left >= accepted, timeout_s)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> int:
        """Write what waits, for at most `timeout_s`, and stop; returns how many accepted records were lost by that."""
        self.start()
        with self._condition:
            if self._closing_at is None:
                self._closing_at = time.monotonic() + timeout_s
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s + SEND_TIMEOUT_S + RETRY_FIRST_S)
            if not thread.is_alive():  # else it is stuck in a write, and the descriptor is still in use
                self._sink.close()
        with self._condition:
            self._ended = True
            lost = max(0, len(self._queue) - self._finished)  # an earlier close may have emptied it
            self._queue.clear()
            self._dropped += lost
        return lost

    def _write_all(self) -> None:
        wait_s = RETRY_FIRST_S
        while entries := self._next():
            done = lost = 0
            refused = False
            for entry in entries:
                if self._is_late():
                    break
                try:
                    self._sink.send(_in_words(self._node, entry))
                except OSError as error:
                    # A record too large even for the transport's memfd is no fault of journald's.
                    if error.errno != errno.EMSGSIZE:
                        refused = True
                        break
                    lost += 1
                except Exception:  # what cannot be put into words must not stop the records behind it
                    lost += 1
                done += 1
                self._finished = done
            self._done(entries[:done], lost)
            if refused:
                self._pause(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)
            else:
                wait_s = RETRY_FIRST_S

    def _next(self) -> list[_Entry]:
        """The oldest entries, which stay queued until they are written; waits for one. [] when the thread is to end."""
        with self._condition:
            if not self._queue:
                self._condition.wait_for(lambda: self._queue or self._closing_at is not None)
                self._condition.wait_for(lambda: self._closing_at is not None, LINGER_S)
            return [] if self._is_late() else list(islice(self._queue, _AT_ONCE))

    def _is_late(self) -> bool:
        # Also without the condition: seeing `_closing_at` a moment late is no harm.
        return self._closing_at is not None and time.monotonic() >= self._closing_at

    def _done(self, entries: Sequence[_Entry], lost: int) -> None:
        """These were written, but for `lost` of them."""
        with self._condition:
            for entry in entries:
                if not self._queue or self._queue[0] is not entry:
                    return  # close() gave up on the rest meanwhile
                self._queue.popleft()
                self._left += 1
            self._finished = 0
            self._dropped += lost
            self._unreported += lost
            # With half the room still taken, telling of a loss would only cause the next one.
            room = len(self._queue) <= self._capacity // 2
            if len(entries) > lost and self._unreported and room and not self._ended:
                count, self._unreported = self._unreported, 0
                self._queue.append(_lost(self._wall(), count))
                self._accepted += 1
            self._condition.notify_all()  # whoever waits for what was written

    def _pause(self, wait_s: float) -> None:
        """Wait before the next try; not for long when told to close."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._closing_at is not None, wait_s):
                return
            self._condition.wait_for(lambda: self._ended, RETRY_FIRST_S)


def journald_is_there(journal_socket: str = JOURNAL_SOCKET) -> bool:
    """Whether records can go to journald."""
    try:
        return stat.S_ISSOCK(os.stat(journal_socket).st_mode)
    except OSError:
        return False


def open_audit(node: str, *, journal: str = "auto", journal_socket: str = JOURNAL_SOCKET) -> Audit:
    """The audit of this node, started; to be closed at the end. `journal` is the setting: "auto" or "stderr".

    It starts a thread, so a process that confines itself does that before.
    """
    to_journald = journal == "auto" and journald_is_there(journal_socket)
    audit = Audit(node, JournalSink(journal_socket) if to_journald else StderrSink())
    audit.start()
    return audit


def _lost(at: float, count: int) -> _Entry:
    message = f"the journal could not take all audit records, lost: {count}"
    return _Entry(at, Event.RECORDS_LOST, message, {"count": count})


def _in_words(node: str, entry: _Entry) -> Record:
    """The fields of an entry, in an order that never changes: the common ones first, then the others by name."""
    event, marked, hour = entry.event, entry.marked, entry.hour
    fields: dict[str, str | None] = {
        "MESSAGE": entry.message,
        "MESSAGE_ID": event.message_id,
        "PRIORITY": event.priority_text,
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "TOMBSYNC_NODE": node,
        "TOMBSYNC_EVENT": event.word,
        "TOMBSYNC_SEGMENT": marked.path if marked else entry.segment,
    }
    if marked:
        hour = marked.hour
    if hour:
        fields["TOMBSYNC_CHANNEL"], fields["TOMBSYNC_QUALITY"], fields["TOMBSYNC_HOUR"] = hour[0], hour[1], hour.text
    fields["TOMBSYNC_PEER"] = entry.peer
    fields["TOMBSYNC_SOURCE"] = entry.source
    fields["TOMBSYNC_ACTOR"] = entry.actor
    if entry.elapsed_ms is not None:
        fields["TOMBSYNC_ELAPSED_MS"] = f"{entry.elapsed_ms:.3f}"
    for name in sorted(entry.extra):
        key = "TOMBSYNC_" + _FIELD_FORBIDDEN.sub("_", name.upper())
        fields.setdefault(key[:_FIELD_CHARACTERS], str(entry.extra[name]))
    time_text = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds")
    told = {key: value for key, value in fields.items() if value is not None}
    if not "".join(told.values()).isprintable():  # at once, as a burst has thousands of records
        told = {key: printable(value) for key, value in told.items()}
    return Record(time_text, told)

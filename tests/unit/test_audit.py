"""The audit against a real datagram socket that reads the journal's native protocol as journald does."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tombsync import names
from tombsync.audit import CRITICAL, INFO, Audit, Event, JournalSink, Record, StderrSink, open_audit

HOUR = names.strict_hour("desertbus", "source", "2019-11-13T02")
STEM = "45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
MARKED = names.Marked(HOUR, STEM)
WAIT_S = 20  # a test that gets this far has failed


class Journal:
    """A journald: receives datagrams at a path and reads their fields, in all three forms of the protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memfds = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(WAIT_S)

    def receive(self) -> list[tuple[str, str]]:
        """The fields of the next record, in their order."""
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for level, kind, payload in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            (descriptor,) = array.array("i", payload)
            with os.fdopen(descriptor, "rb") as memfd:
                # journald takes a memfd only when nobody can change it any more.
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
                memfd.seek(0)
                data = memfd.read()
            self.memfds += 1
        return parse(data)

    def fields(self) -> dict[str, str]:
        """The fields of the next record, none of which came twice."""
        pairs = self.receive()
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def close(self) -> None:
        self.socket.close()


def parse(data: bytes) -> list[tuple[str, str]]:
    """Read one datagram: `KEY=value\\n`, or `KEY\\n`, 64 bits of length (little-endian), the value and `\\n`."""
    pairs = []
    while data:
        head, _, rest = data.partition(b"\n")
        key, is_short, value = head.partition(b"=")
        if not is_short:
            (length,) = struct.unpack_from("<Q", rest)
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert end == b"\n"
        assert re.fullmatch(rb"[A-Z0-9][A-Z0-9_]{0,63}", key), key
        pairs.append((key.decode(), value.decode()))
        data = rest
    return pairs


class Memory:
    """A sink that keeps records, and does what it is told before."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def send(self, record: Record) -> None:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.error is not None and record.fields["MESSAGE"] == "bad":
            raise self.error
        self.records.append(record)

    def close(self) -> None:
        self.closed = True

    @property
    def messages(self) -> list[str]:
        return [record.fields["MESSAGE"] for record in self.records]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "socket")
    yield journal
    journal.close()


@pytest.fixture
def audit(journal: Journal) -> Iterator[Audit]:
    audit = open_audit("node-a", journal_socket=str(journal.path))
    yield audit
    audit.close(0)


def test_the_parser_reads_every_form() -> None:
    long_value = b"two\nlines"
    data = b"A=1\nB_2=x=y\nC\n" + struct.pack("<Q", len(long_value)) + long_value + b"\nD=\n"
    assert parse(data) == [("A", "1"), ("B_2", "x=y"), ("C", "two\nlines"), ("D", "")]


def test_every_field(journal: Journal) -> None:
    audit = Audit("node-a", JournalSink(str(journal.path)), wall=lambda: 1573613151.608)
    audit.record(
        Event.HIDDEN,
        "hidden: the segment",
        marked=MARKED,
        peer="node-b",
        source="inbox",
        actor="uid 1000",
        elapsed_ms=0.2256,
        size=12,
        reason="a=b",
    )
    audit.start()
    assert journal.receive() == [
        ("MESSAGE", "hidden: the segment"),
        ("MESSAGE_ID", Event.HIDDEN.message_id),
        ("PRIORITY", "5"),
        ("SYSLOG_IDENTIFIER", "tombsync"),
        ("TOMBSYNC_NODE", "node-a"),
        ("TOMBSYNC_EVENT", "hidden"),
        ("TOMBSYNC_SEGMENT", f"desertbus/source/2019-11-13T02/{STEM}"),
        ("TOMBSYNC_CHANNEL", "desertbus"),
        ("TOMBSYNC_QUALITY", "source"),
        ("TOMBSYNC_HOUR", "2019-11-13T02"),
        ("TOMBSYNC_PEER", "node-b"),
        ("TOMBSYNC_SOURCE", "inbox"),
        ("TOMBSYNC_ACTOR", "uid 1000"),
        ("TOMBSYNC_ELAPSED_MS", "0.226"),
        ("TOMBSYNC_REASON", "a=b"),
        ("TOMBSYNC_SIZE", "12"),
        ("TOMBSYNC_TIME", "2019-11-13T02:45:51.608000+00:00"),
    ]
    assert audit.close() == 0


def test_what_is_not_known_is_left_out(journal: Journal, audit: Audit) -> None:
    audit.record(Event.READY, "ready")
    assert not {"TOMBSYNC_SEGMENT", "TOMBSYNC_HOUR", "TOMBSYNC_PEER", "TOMBSYNC_ELAPSED_MS"} & set(journal.fields())
    audit.record(Event.HOUR_GONE, "gone", hour=HOUR)
    fields = journal.fields()
    assert fields["TOMBSYNC_HOUR"] == "2019-11-13T02"
    assert "TOMBSYNC_SEGMENT" not in fields


def test_a_name_cannot_forge_a_field_or_a_record(journal: Journal, audit: Audit) -> None:
    name = os.fsdecode(b"evil\nPRIORITY=0\n\xff\x00\x1b[2J")
    audit.record(Event.REJECTED, f"refused {name}", segment=name, peer=name, actor=name, reason=name)
    fields = journal.fields()
    escaped = "evil\\nPRIORITY=0\\n\\xff\\x00\\x1b[2J"
    assert fields["PRIORITY"] == "4"
    assert fields["MESSAGE"] == f"refused {escaped}"
    for key in ("TOMBSYNC_SEGMENT", "TOMBSYNC_PEER", "TOMBSYNC_ACTOR", "TOMBSYNC_REASON"):
        assert fields[key] == escaped
    bad = names.Marked(names.Hour(name, "source", HOUR.number), "a\nb")
    audit.record(Event.HIDDEN, "hidden", marked=bad)
    fields = journal.fields()
    assert fields["TOMBSYNC_CHANNEL"] == escaped
    assert fields["TOMBSYNC_SEGMENT"] == f"{escaped}/source/2019-11-13T02/a\\nb"


def test_further_fields_cannot_replace_ours_and_have_valid_names(journal: Journal, audit: Audit) -> None:
    further: dict[str, Any] = {"node": "other", "zwölf-é=\n": 12, "x" * 100: "long"}
    audit.record(Event.STARTED, "started", **further)
    fields = journal.fields()
    assert fields["TOMBSYNC_NODE"] == "node-a"
    assert fields["TOMBSYNC_ZW_LF____"] == "12"
    assert fields["TOMBSYNC_" + "X" * 55] == "long"


def test_a_record_over_the_limit_of_the_socket(journal: Journal, audit: Audit) -> None:
    limit = journal.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    audit.record(Event.RESCAN_COMPLETED, "x" * (limit + 1))
    assert journal.fields()["MESSAGE"] == "x" * (limit + 1)
    audit.record(Event.RESCAN_COMPLETED, "small")
    assert journal.fields()["MESSAGE"] == "small"
    assert journal.memfds == 1


def test_order_is_kept_and_nothing_lost_when_journald_is_slower(journal: Journal, audit: Audit) -> None:
    """The queue of a datagram socket is short (net.unix.max_dgram_qlen), so most of these wait."""
    for number in range(2000):
        audit.record(Event.DELIVERED, str(number))
    assert [journal.fields()["MESSAGE"] for _ in range(2000)] == [str(number) for number in range(2000)]
    assert audit.dropped == 0


def test_records_wait_for_a_journald_that_is_away(journal: Journal) -> None:
    class Watched(JournalSink):
        failed = threading.Event()

        def send(self, record: Record) -> None:
            try:
                super().send(record)
            except OSError:
                self.failed.set()
                raise

    clock = iter(range(100))
    audit = Audit("node-a", Watched(str(journal.path)), wall=lambda: next(clock))
    audit.start()
    audit.record(Event.STARTED, "before")
    assert journal.fields()["MESSAGE"] == "before"

    journal.close()  # the path is still there: ECONNREFUSED
    audit.record(Event.HIDDEN, "refused")
    assert Watched.failed.wait(WAIT_S)
    journal.path.unlink()
    Watched.failed.clear()
    audit.record(Event.HIDDEN, "away")
    assert Watched.failed.wait(WAIT_S)

    again = Journal(journal.path)
    records = [again.fields() for _ in range(2)]
    assert [record["MESSAGE"] for record in records] == ["refused", "away"]
    assert [record["TOMBSYNC_TIME"][17:26] for record in records] == ["01.000000", "02.000000"]
    audit.record(Event.READY, "after")
    assert again.fields()["MESSAGE"] == "after"
    assert audit.close() == 0
    assert audit.dropped == 0
    again.close()


def test_what_does_not_fit_is_counted_and_told() -> None:
    sink = Memory()
    audit = Audit("node-a", sink, capacity=4)
    for number in range(7):
        audit.record(Event.HIDDEN, str(number))
    assert audit.dropped == 3
    assert audit.close() == 0
    assert sink.messages[:4] == ["0", "1", "2", "3"]
    told = sink.records[4].fields
    assert told["TOMBSYNC_EVENT"] == "records-lost"
    assert told["TOMBSYNC_COUNT"] == "3"
    assert len(sink.records) == 5
    assert audit.dropped == 3


def test_a_loss_is_told_once_journald_is_back_without_a_further_record() -> None:
    sink = Memory()
    sink.gate.clear()
    audit = Audit("node-a", sink, capacity=2)
    audit.start()
    for number in range(5):
        audit.record(Event.HIDDEN, str(number))
    assert audit.dropped == 3
    sink.gate.set()
    assert audit.close() == 0
    assert [record.fields["TOMBSYNC_EVENT"] for record in sink.records] == ["hidden", "hidden", "records-lost"]


def test_whoever_records_can_tell_what_is_written() -> None:
    sink = Memory()
    sink.gate.clear()
    audit = Audit("node-a", sink, capacity=4)
    audit.start()
    assert [audit.record(Event.HIDDEN, "waits") for _ in range(2)] == [1, 2]
    assert not audit.has_room
    assert audit.record(Event.HIDDEN, "waits") == 3
    assert [audit.record(Event.HIDDEN, "one too many") for _ in range(3)] == [4, 4, 4]  # and so no sign of its own
    assert audit.written == 0
    assert not audit.wait_written(1, 0.0)
    sink.gate.set()
    assert audit.wait_written(4, WAIT_S)
    assert audit.written >= 4
    assert audit.close() == 0
    assert (audit.written, audit.has_room) == (len(sink.records), True)


def test_a_stuck_journal_delays_no_caller() -> None:
    sink = Memory()
    sink.gate.clear()
    audit = Audit("node-a", sink)
    audit.start()
    for number in range(100):
        audit.record(Event.HIDDEN, str(number))  # returns, though no record can be written
    assert sink.messages == []
    sink.gate.set()
    assert audit.close() == 0
    assert sink.messages == [str(number) for number in range(100)]
    assert sink.closed


def test_close_gives_up_on_a_sink_that_is_stuck() -> None:
    sink = Memory()
    sink.gate.clear()
    audit = Audit("node-a", sink)
    audit.start()
    for _ in range(3):
        audit.record(Event.HIDDEN, "waits")
    assert sink.entered.wait(WAIT_S)
    assert (audit.close(0), audit.dropped, sink.closed) == (3, 3, False)  # not closed: its descriptor is in use
    sink.gate.set()
    assert (audit.close(), audit.dropped, sink.closed) == (0, 3, True)
    assert sink.messages == ["waits"]  # the one that was under way


def test_close_gives_up_on_a_journald_that_does_not_come_back(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    audit = Audit("node-a", JournalSink(str(tmp_path / "nobody")))
    audit.record(Event.STOPPING, "one")
    audit.record(Event.STOPPING, "two")
    assert audit.close(0.1) == 2
    assert audit.dropped == 2
    assert set(threading.enumerate()) == threads


def test_close_gives_up_on_a_sink_that_is_too_slow() -> None:
    class Slow(Memory):
        def send(self, record: Record) -> None:
            super().send(record)
            self.gate.clear()  # each record waits for the one that waits in close()

    threads = set(threading.enumerate())
    sink = Slow()
    audit = Audit("node-a", sink)
    for number in range(3):
        audit.record(Event.HIDDEN, str(number))
    assert audit.close(0.1) == 2
    sink.gate.set()
    assert audit.close() == 0
    assert sink.messages == ["0", "1"]  # the second was under way; the third is not begun
    assert set(threading.enumerate()) == threads


def test_close_accounts_for_every_record_when_nobody_reads(journal: Journal, audit: Audit) -> None:
    for number in range(1000):
        audit.record(Event.HIDDEN, str(number))
    lost = audit.close(0.1)
    journal.socket.setblocking(False)
    received = []
    try:
        while True:
            received.append(journal.fields()["MESSAGE"])
    except BlockingIOError:
        pass
    assert received == [str(number) for number in range(len(received))]
    assert len(received) + lost == 1000
    assert lost > 0


def test_a_record_after_close_is_counted() -> None:
    sink = Memory()
    audit = Audit("node-a", sink)
    assert audit.close() == 0
    audit.record(Event.STOPPING, "too late")
    assert audit.dropped == 1
    assert sink.messages == []


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EMSGSIZE, "too large for a memfd")])
def test_one_record_that_cannot_be_written_does_not_hold_the_others(error: Exception) -> None:
    sink = Memory()
    sink.error = error
    audit = Audit("node-a", sink)
    audit.record(Event.HIDDEN, "bad")
    audit.record(Event.HIDDEN, "good")
    assert audit.close() == 0
    assert sink.messages == ["good", "the journal could not take all audit records, lost: 1"]
    assert audit.dropped == 1


def test_nothing_is_left_open(journal: Journal) -> None:
    threads, descriptors = set(threading.enumerate()), os.listdir("/proc/self/fd")
    audit = open_audit("node-a", journal_socket=str(journal.path))
    audit.record(Event.STARTED, "started")
    assert audit.close() == 0
    assert set(threading.enumerate()) == threads
    assert os.listdir("/proc/self/fd") == descriptors


def test_without_a_journal_the_same_fields_go_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file"):
        audit = open_audit("node-a", journal_socket=str(path))
        audit.record(Event.HIDDEN, "hidden\n\udcff", marked=MARKED, source="watch", elapsed_ms=1)
        audit.record(Event.READY, "ready")
        assert audit.close() == 0
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 2
        hidden = json.loads(lines[0])
        assert list(hidden)[:3] == ["time", "MESSAGE", "MESSAGE_ID"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", hidden["time"])
        assert hidden["MESSAGE"] == "hidden\\n\\xff"
        assert hidden["TOMBSYNC_SEGMENT"] == MARKED.path
        assert hidden["TOMBSYNC_ELAPSED_MS"] == "1.000"
        assert json.loads(lines[1])["TOMBSYNC_EVENT"] == "ready"


def test_a_line_that_stderr_took_in_part_is_finished() -> None:
    """stderr can be a pipe that another process made non-blocking."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    audit = Audit("node-a", StderrSink(writer))
    long = "x" * 300_000  # more than a pipe holds
    audit.record(Event.STARTED, long)
    audit.record(Event.READY, "after")
    audit.start()
    with os.fdopen(reader, "rb") as stream:
        assert json.loads(stream.readline())["MESSAGE"] == long
        assert json.loads(stream.readline())["MESSAGE"] == "after"
        assert audit.close() == 0
    os.close(writer)


def test_the_events() -> None:
    """Their words and ids are an interface: alert rules, catalog entries and scripts are keyed by them."""
    assert {event.word for event in Event} >= {
        *("hidden", "delivered", "restored", "rejected", "mistaken-name", "not-regular"),
        *("peer-up", "peer-down", "host-key-changed", "peer-added", "peer-forgotten"),
        *("overflow", "watch-limit", "network-filesystem", "rescan-completed", "index-set-aside"),
        *("root-lost", "root-returned", "root-adopted", "hour-gone", "place-lost"),
        *("started", "ready", "stopping", "worker-died", "confinement", "records-lost"),
    }
    assert Event.HIDDEN.message_id == "75d8e9cb2f4242afabd09b4c45a3e495"
    assert len({event.message_id for event in Event}) == len(Event)
    for event in Event:
        assert re.fullmatch(r"[0-9a-f]{32}", event.message_id)
        assert CRITICAL <= event.priority <= INFO
        assert event.meaning
        assert event.meaning.isprintable()

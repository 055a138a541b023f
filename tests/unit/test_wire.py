"""SFTP packets: what is sent is what a server reads, and nothing that a server sends does harm."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tombsync.cli.demo import sftp_packets as server
from tombsync.peers import wire

uint32 = st.integers(0, 2**32 - 1)
strings = st.binary(max_size=40)
replies = st.sampled_from([wire.STATUS, wire.HANDLE, wire.ATTRS, wire.EXTENDED_REPLY])
packets = st.tuples(st.integers(0, 255), uint32, st.binary(max_size=60))
splits = st.lists(st.integers(1, 200), max_size=30)


def packed(kind: int, request: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, request) + body


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream cut after so many bytes each, and what is left of it."""
    cut = []
    for size in sizes:
        cut.append(stream[:size])
        stream = stream[size:]
    return [*cut, stream]


# -- the parser --------------------------------------------------------------------------------------------------------


@given(st.lists(packets, max_size=8), splits)
def test_packets_are_found_wherever_the_reads_end(sent: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    parser = wire.Parser()
    stream = b"".join(packed(*packet) for packet in sent)
    assert [packet for piece in pieces(stream, sizes) for packet in parser.feed(piece)] == sent


def test_packets_are_found_at_every_single_split() -> None:
    sent = [(wire.STATUS, 1, struct.pack(">I", 0)), (wire.HANDLE, 2**32 - 1, string(b"h")), (wire.VERSION, 3, b"")]
    stream = b"".join(packed(*packet) for packet in sent)
    for at in range(len(stream) + 1):
        parser = wire.Parser()
        assert [*parser.feed(stream[:at]), *parser.feed(stream[at:])] == sent


@given(st.lists(packets, min_size=1, max_size=8), splits)
def test_a_reader_that_takes_one_packet_only_loses_none(sent: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    parser = wire.Parser()
    stream = b"".join(packed(*packet) for packet in sent)
    found = []
    for piece in [*pieces(stream, sizes), *[b""] * len(sent)]:
        for packet in parser.feed(piece):
            found.append(packet)
            break
    assert found == sent


@pytest.mark.parametrize("length", [0, 1, 4, wire.MAX_PACKET_BYTES + 1, 0x53534820, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_absurd_length_is_not_sftp(length: int) -> None:
    with pytest.raises(wire.NotSftp, match=f"a packet of {length} bytes"):
        list(wire.Parser().feed(struct.pack(">IBI", length, wire.STATUS, 1)))


def test_an_absurd_length_behind_a_sound_packet() -> None:
    found = []
    with pytest.raises(wire.NotSftp):
        for packet in wire.Parser().feed(packed(wire.STATUS, 7, bytes(4)) + b"\xff" * 9):
            found.append(packet)
    assert found == [(wire.STATUS, 7, bytes(4))]


def test_the_longest_packet_is_taken_byte_by_byte_in_linear_memory() -> None:
    body = bytes(wire.MAX_PACKET_BYTES - 5)
    parser = wire.Parser()
    stream = packed(wire.EXTENDED_REPLY, 1, body)
    found = [packet for at in range(0, len(stream), 4096) for packet in parser.feed(stream[at : at + 4096])]
    assert found == [(wire.EXTENDED_REPLY, 1, body)]


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_end_the_session(data: bytes) -> None:
    try:
        for kind, _, body in wire.Parser().feed(data):
            wire.parse_reply(kind, body)
    except wire.NotSftp:
        pass


# -- replies -----------------------------------------------------------------------------------------------------------


@given(replies, st.binary(max_size=60))
def test_a_body_of_any_bytes_is_a_reply_or_not_sftp(kind: int, body: bytes) -> None:
    try:
        reply = wire.parse_reply(kind, body)
    except wire.NotSftp:
        return
    assert isinstance(reply, wire.Reply)


@given(uint32, st.text(max_size=40), st.booleans())
def test_status(code: int, message: str, with_message: bool) -> None:
    body = struct.pack(">I", code)
    if with_message:
        body += string(message.encode()) + string(b"en")
    reply = wire.parse_reply(wire.STATUS, body)
    assert (reply.code, reply.handle, reply.mode) == (code, b"", None)
    assert reply.message == (message if with_message and code else "")


def test_a_message_that_is_no_utf8_is_shown_as_far_as_it_goes() -> None:
    reply = wire.parse_reply(wire.STATUS, struct.pack(">I", wire.FAILURE) + string(b"no\xffpe"))
    assert reply == wire.Reply(wire.FAILURE, message="no\ufffdpe")


@given(strings)
def test_handle(handle: bytes) -> None:
    assert wire.parse_reply(wire.HANDLE, string(handle)) == wire.Reply(wire.OK, handle=handle)


@given(uint32, st.booleans(), st.booleans(), st.booleans(), st.binary(max_size=20))
def test_the_mode_is_found_behind_whatever_attributes_stand_before_it(
    mode: int, size: bool, owner: bool, times: bool, rest: bytes
) -> None:
    flags = wire.ATTR_PERMISSIONS | size * wire.ATTR_SIZE | owner * wire.ATTR_OWNER | times * 0x8
    body = struct.pack(">I", flags) + b"\x11" * 8 * size + b"\x22" * 8 * owner + struct.pack(">I", mode) + rest
    assert wire.parse_reply(wire.ATTRS, body) == wire.Reply(wire.OK, mode=mode)


@pytest.mark.parametrize("flags", [0, wire.ATTR_SIZE, wire.ATTR_OWNER, 0x8])
def test_attributes_without_a_mode_tell_nothing(flags: int) -> None:
    with pytest.raises(wire.NotSftp, match="without a mode"):
        wire.parse_reply(wire.ATTRS, struct.pack(">I", flags) + bytes(40))


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        pytest.param(wire.STATUS, struct.pack(">I", 4) + string(b"Failure"), id="status"),
        pytest.param(wire.HANDLE, string(b"handle"), id="handle"),
        pytest.param(wire.ATTRS, struct.pack(">IQIII", 0x7, 0, 0, 0, 0o100644), id="attrs"),
    ],
)
def test_a_reply_cut_short_anywhere_is_not_sftp(kind: int, whole: bytes) -> None:
    wire.parse_reply(kind, whole)
    for length in range(len(whole)):
        if kind == wire.STATUS and length in range(4, 8):  # a code alone is how servers before version 3 answer
            continue
        with pytest.raises(wire.NotSftp):
            wire.parse_reply(kind, whole[:length])


@given(st.integers(0, 255), st.binary(max_size=20))
def test_an_unknown_type_is_not_sftp(kind: int, body: bytes) -> None:
    if kind in (wire.STATUS, wire.HANDLE, wire.ATTRS, wire.EXTENDED_REPLY):
        return
    with pytest.raises(wire.NotSftp, match=f"a packet of type {kind}"):
        wire.parse_reply(kind, body)


# -- version and limits ------------------------------------------------------------------------------------------------


@given(st.dictionaries(strings, strings, max_size=5))
def test_the_extensions_of_a_server(extensions: dict[bytes, bytes]) -> None:
    ((kind, version, body),) = wire.Parser().feed(server.version(extensions))
    assert kind == wire.VERSION
    assert wire.parse_version(version, body) == set(extensions)


@pytest.mark.parametrize("version", [0, 2, 4, 6, 2**32 - 1])
def test_another_version_is_not_spoken(version: int) -> None:
    with pytest.raises(wire.NotSftp, match=f"version {version}"):
        wire.parse_version(version, b"")


def test_extensions_cut_short_are_not_sftp() -> None:
    whole = string(wire.FSYNC) + string(b"1")
    assert wire.parse_version(3, whole) == {wire.FSYNC}
    for length in range(1, len(whole)):
        with pytest.raises(wire.NotSftp):
            wire.parse_version(3, whole[:length])


def test_limits() -> None:
    ((kind, request, body),) = wire.Parser().feed(server.limits(5, 1019))
    reply = wire.parse_reply(kind, body)
    assert (request, reply.code, wire.parse_limits(reply.data)) == (5, wire.OK, 1019)
    for length in range(32):
        with pytest.raises(wire.NotSftp):
            wire.parse_limits(reply.data[:length])


# -- requests, read by the demo's server -------------------------------------------------------------------------------


def read_by_a_server(packet: bytes) -> tuple[int, int, server.Fields]:
    (fields,) = server.Splitter().feed(packet)
    return fields.byte(), fields.uint32(), fields


@given(uint32, strings)
def test_requests_that_carry_one_string(request: int, value: bytes) -> None:
    for build, kind in ((wire.close, wire.CLOSE), (wire.lstat, wire.LSTAT)):
        found_kind, found_request, fields = read_by_a_server(build(request, value))
        assert (found_kind, found_request, fields.string()) == (kind, request, value)


@given(uint32, strings)
def test_create_never_opens_what_is_there_and_asks_for_no_right_to_write(request: int, path: bytes) -> None:
    kind, found, fields = read_by_a_server(wire.create(request, path))
    assert (kind, found, fields.string()) == (wire.OPEN, request, path)
    flags = fields.uint32()
    assert flags == server.FXF_READ | server.FXF_CREAT | server.FXF_EXCL
    assert fields.attributes().mode == 0o644


@given(uint32, strings)
def test_open_existing_creates_nothing(request: int, path: bytes) -> None:
    kind, found, fields = read_by_a_server(wire.open_existing(request, path))
    assert (kind, found, fields.string(), fields.uint32()) == (wire.OPEN, request, path, server.FXF_READ)
    assert fields.attributes().mode is None


@given(uint32, strings)
def test_mkdir_leaves_the_mode_to_the_peer(request: int, path: bytes) -> None:
    kind, found, fields = read_by_a_server(wire.mkdir(request, path))
    assert (kind, found, fields.string(), fields.attributes().mode) == (wire.MKDIR, request, path, None)


@given(uint32, strings)
def test_extended_requests(request: int, handle: bytes) -> None:
    kind, found, fields = read_by_a_server(wire.fsync(request, handle))
    assert (kind, found, fields.string(), fields.string()) == (wire.EXTENDED, request, b"fsync@openssh.com", handle)
    kind, found, fields = read_by_a_server(wire.limits(request))
    assert (kind, found, fields.string()) == (wire.EXTENDED, request, b"limits@openssh.com")


def test_init() -> None:
    (fields,) = server.Splitter().feed(wire.init())
    assert (fields.byte(), fields.uint32()) == (wire.INIT, 3)

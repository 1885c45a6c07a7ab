"""ttrpc frames cut at any byte, and errors that arrive as what they were."""

from __future__ import annotations

import random
import struct

import pytest

from bufferzone.errors import (
    BufferzoneError,
    BugError,
    ExistsError,
    GuestError,
    HostError,
    NotFoundError,
    StateError,
    all_error_classes,
)
from bufferzone.systemd.bus import CallError
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Any_, DecodeError
from bufferzone.wire.ttrpc import DATA, HEADER, MAX_PAYLOAD, REQUEST, RESPONSE, FrameReader, ProtocolError

FRAMES = [
    (1, REQUEST, 0, b"one"),
    (3, REQUEST, 0, b""),
    (1, RESPONSE, 0, b"x" * 300),
    (0xFFFFFFFF, DATA, 5, b"\0"),
]
STREAM = b"".join(ttrpc.encode_frame(stream, kind, data, flags) for stream, kind, flags, data in FRAMES)


def test_a_header_is_the_published_one():
    assert ttrpc.encode_frame(7, REQUEST, b"abc", 2) == struct.pack(">IIBB", 3, 7, 1, 2) + b"abc"


def test_frames_come_out_as_they_went_in():
    frames = FrameReader().feed(STREAM)
    assert frames == FRAMES
    assert (frames[3].stream, frames[3].type, frames[3].flags, frames[3].payload) == FRAMES[3]


def test_frames_survive_a_cut_at_every_byte():
    for at in range(len(STREAM) + 1):
        reader = FrameReader()
        assert reader.feed(STREAM[:at]) + reader.feed(STREAM[at:]) == FRAMES


def test_frames_survive_one_byte_at_a_time():
    reader = FrameReader()
    found = [frame for byte in STREAM for frame in reader.feed(bytes([byte]))]
    assert found == FRAMES


def test_a_frame_is_returned_with_its_last_byte_and_not_before():
    reader = FrameReader()
    assert reader.feed(STREAM[: HEADER.size + 2]) == []
    assert reader.feed(STREAM[HEADER.size + 2 : HEADER.size + 3]) == FRAMES[:1]


def test_the_largest_frame_passes():
    payload = random.Random(4).randbytes(MAX_PAYLOAD)
    reader, found = FrameReader(), []
    data = ttrpc.encode_frame(1, RESPONSE, payload)
    for at in range(0, len(data), 65_536):
        found += reader.feed(data[at : at + 65_536])
    assert [frame.payload for frame in found] == [payload]


def test_a_frame_beyond_the_limit_is_neither_written_nor_waited_for():
    with pytest.raises(ProtocolError, match="exceeds"):
        ttrpc.encode_frame(1, REQUEST, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(ProtocolError):
        FrameReader().feed(HEADER.pack(MAX_PAYLOAD + 1, 1, REQUEST, 0))


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_an_unknown_frame_type_is_refused_with_its_header(kind):
    with pytest.raises(ProtocolError, match=f"type {kind}"):
        FrameReader().feed(HEADER.pack(10, 1, kind, 0))


def test_random_bytes_are_frames_or_a_protocol_error():
    source, refused = random.Random(99), 0
    for _ in range(10_000):
        reader = FrameReader()
        try:
            reader.feed(source.randbytes(source.randrange(40)))
            reader.feed(source.randbytes(source.randrange(40)))
        except ProtocolError:
            refused += 1
    assert 0 < refused < 10_000


@pytest.mark.parametrize("cls", all_error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_what_it_was(cls):
    sent = cls("it broke: /a/b", hint="mend it", code="very-broken")
    status = ttrpc.Status.decode(ttrpc.status_of(sent).encode())
    assert status.code == cls.rpc_code
    got = ttrpc.error_of(status, HostError)
    assert (type(got), got.message, got.hint, got.code) == (cls, sent.message, sent.hint, sent.code)
    assert got.exit_status == sent.exit_status


@pytest.mark.parametrize("cls", all_error_classes(), ids=lambda cls: cls.__name__)
def test_an_error_keeps_the_code_of_its_class_and_no_hint(cls):
    got = ttrpc.error_of(ttrpc.status_of(cls("short")), HostError)
    assert (got.code, got.hint) == (cls.code, "")


def test_an_error_of_a_modules_own_kind_arrives_as_what_it_is_in_the_tree():
    got = ttrpc.error_of(ttrpc.status_of(CallError("org.example.Denied", "no")), BugError)
    assert (type(got), got.message, got.code) == (HostError, "systemd: no", "systemd")


def test_a_foreign_exception_arrives_as_the_fallback():
    status = ttrpc.status_of(KeyError("x"))
    assert status.code == ttrpc.UNKNOWN
    got = ttrpc.error_of(status, GuestError)
    assert type(got) is GuestError
    assert got.message == "KeyError: 'x'"


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (ttrpc.NOT_FOUND, NotFoundError),
        (ttrpc.ALREADY_EXISTS, ExistsError),
        (ttrpc.FAILED_PRECONDITION, StateError),
        (ttrpc.UNAVAILABLE, GuestError),
        (ttrpc.INTERNAL, GuestError),
        (12_345, GuestError),
        (-1, GuestError),
    ],
)
def test_a_peer_that_sends_no_detail_is_read_by_its_code(code, cls):
    got = ttrpc.error_of(ttrpc.Status(code=code, message="no"), GuestError)
    assert type(got) is cls


def test_a_detail_naming_no_class_of_ours_is_the_fallback():
    detail = ttrpc.ErrorDetail(code="c", hint="h", cls="SystemExit")
    status = ttrpc.Status(
        code=2, message="m", details=[Any_(type_url=ttrpc.ERROR_TYPE_URL, value=detail.encode())]
    )
    got = ttrpc.error_of(status, GuestError)
    assert (type(got), got.code, got.hint) == (GuestError, "c", "h")


def test_a_detail_of_somebody_else_is_ignored():
    status = ttrpc.Status(code=5, message="m", details=[Any_(type_url="google.rpc.DebugInfo", value=b"\xff")])
    assert type(ttrpc.error_of(status, GuestError)) is NotFoundError


def test_a_malformed_detail_is_a_decode_error():
    status = ttrpc.Status(code=2, details=[Any_(type_url=ttrpc.ERROR_TYPE_URL, value=b"\xff")])
    with pytest.raises(DecodeError):
        ttrpc.error_of(status, GuestError)


def test_an_error_of_many_lines_is_told_in_one():
    assert BufferzoneError("a\nb", hint="c").line() == "a b (hint: c)"

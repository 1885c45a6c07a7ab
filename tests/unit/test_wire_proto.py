"""What wire/proto.py does with bytes that nobody should have sent: DecodeError, and never anything else."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from bufferzone.wire import agent, task, ttrpc
from bufferzone.wire.proto import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    DecodeError,
    Message,
    Timestamp,
    _read_varint,
    blob,
    double,
    message,
    sint,
    string,
    string_map,
    strings,
    uint,
    uints,
    write_varint,
)
from unit.wire_peer import message_classes, random_message


class Leaf(Message):
    text: str = string(1)
    data: bytes = blob(2)
    count: int = uint(3)
    offset: int = sint(4)
    ratio: float = double(5)
    names: list[str] = strings(6)
    labels: dict[str, str] = string_map(7)
    numbers: list[int] = uints(8)


class Branch(Message):
    leaf: Leaf | None = message(1, Leaf)


def varint(value: int) -> bytes:
    out = bytearray()
    write_varint(out, value)
    return bytes(out)


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    size = varint(len(payload)) if wire_type == 2 else b""
    return varint(number << 3 | wire_type) + size + payload


MALFORMED = {
    "a key that ends too early": b"\x80",
    "a value that ends too early": b"\x18\xff",
    "no value": b"\x18",
    "a varint of eleven bytes": b"\x18" + b"\x80" * 10 + b"\x01",
    "field number 0": b"\x00\x01",
    "start of a group": b"\x0b",
    "end of a group": b"\x0c",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "a length without bytes": b"\x0a\x05abc",
    "a length of 2**63": b"\x0a" + varint(1 << 63),
    "a length of 2**64-1 in an unknown field": b"\xfa\x01" + varint((1 << 64) - 1),
    "a fixed64 of seven bytes": b"\x29" + b"\0" * 7,
    "a fixed32 of three bytes in an unknown field": b"\x7d" + b"\0" * 3,
    "a string as a varint": field(1, 0, b"\x01"),
    "bytes as a fixed64": field(2, 1, b"\0" * 8),
    "an integer as a string": field(3, 2, b"1"),
    "an integer as a fixed32": field(3, 5, b"\0" * 4),
    "a double as a varint": field(5, 0, b"\x01"),
    "a map as a varint": field(7, 0, b"\x01"),
    "a map entry that is cut": field(7, 2, b"\x0a\x05a"),
    "a map entry of the wrong type": field(7, 2, field(1, 0, b"\x01")),
    "packed numbers that are cut": field(8, 2, b"\x01\x80"),
    "numbers as a fixed64": field(8, 1, b"\0" * 8),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_are_a_decode_error(data):
    with pytest.raises(DecodeError):
        Leaf.decode(data)


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_in_a_nested_message_are_a_decode_error(data):
    with pytest.raises(DecodeError):
        Branch.decode(field(1, 2, data))


def test_every_prefix_of_a_message_is_itself_a_message_or_a_decode_error():
    message = random_message(agent.HelloResponse, random.Random(7))
    data = message.encode()
    for size in range(len(data)):
        try:
            assert agent.HelloResponse.decode(data[:size]) != message
        except DecodeError as error:
            assert str(error)  # noqa: PT017 - both outcomes are right, a third is not


def test_unknown_fields_are_skipped_whatever_their_type():
    rows = ((100, 0, b"\x01"), (101, 1, b"\0" * 8), (102, 2, b"abc"), (103, 5, b"\0" * 4))
    unknown = b"".join(field(*row) for row in rows)
    assert Leaf.decode(unknown + field(3, 0, b"\x07") + unknown) == Leaf(count=7)


def test_the_last_value_of_a_single_field_counts():
    assert Leaf.decode(field(3, 0, b"\x01") + field(3, 0, b"\x02")).count == 2


def test_numbers_are_read_packed_and_one_by_one():
    assert Leaf.decode(field(8, 2, b"\x01\x02") + field(8, 0, b"\x03")).numbers == [1, 2, 3]


@pytest.mark.parametrize("value", [0, 1, 127, 128, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
def test_a_varint_comes_back(value):
    assert _read_varint(memoryview(varint(value)), 0) == (value, len(varint(value)))


@pytest.mark.parametrize("value", [-1, -(1 << 63), (1 << 63) - 1])
def test_a_signed_number_comes_back(value):
    assert Leaf.decode(Leaf(offset=value).encode()).offset == value


@pytest.mark.parametrize("raw", [b"\xff", b"a\x80b", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", bytes(range(256))])
def test_bytes_that_are_not_utf8_come_back_unchanged(raw):
    data = field(1, 2, raw) + field(6, 2, raw) + field(7, 2, field(1, 2, raw) + field(2, 2, raw))
    decoded = Leaf.decode(data)
    text = raw.decode("utf-8", "surrogateescape")
    assert (decoded.text, decoded.names, decoded.labels) == (text, [text], {text: text})
    assert decoded.encode() == data


def nested(depth: int) -> tuple[type[Message], bytes]:
    """A class that nests `depth` messages below itself, and one such message."""
    cls, data = Leaf, field(3, 0, b"\x01")
    for level in range(depth):
        cls = type(f"Level{level}", (Message,), {"below": message(1, cls)})
        data = field(1, 2, data)
    return cls, data


def test_messages_nest_as_deep_as_the_limit():
    cls, data = nested(MAX_DEPTH)
    found = cls.decode(data)
    for _ in range(MAX_DEPTH):
        found = found.below
    assert found == Leaf(count=1)


def test_messages_nested_deeper_than_the_limit_are_refused():
    cls, data = nested(MAX_DEPTH + 1)
    with pytest.raises(DecodeError, match="nested too deeply"):
        cls.decode(data)


def test_a_map_entry_counts_as_a_level():
    cls, _ = nested(MAX_DEPTH)
    data = field(7, 2, field(1, 2, b"k"))
    for _ in range(MAX_DEPTH):
        data = field(1, 2, data)
    with pytest.raises(DecodeError, match="nested too deeply"):
        cls.decode(data)


@pytest.mark.parametrize("element", [field(6, 2, b""), field(100, 0, b"\x01"), field(3, 0, b"\x01")])
def test_more_fields_than_the_limit_are_refused(element):
    Leaf.decode(element * MAX_ELEMENTS)
    with pytest.raises(DecodeError, match="too many fields"):
        Leaf.decode(element * (MAX_ELEMENTS + 1))


def test_more_packed_numbers_than_the_limit_are_refused_before_they_cost_memory():
    assert len(Leaf.decode(field(8, 2, b"\x01" * MAX_ELEMENTS)).numbers) == MAX_ELEMENTS
    data = field(8, 2, b"\x01" * ttrpc.MAX_PAYLOAD)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="too many elements"):
            Leaf.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_packed_numbers_of_several_fields_share_one_limit():
    half = field(8, 2, b"\x01" * (MAX_ELEMENTS // 2))
    with pytest.raises(DecodeError, match="too many elements"):
        Leaf.decode(half * 3)


def test_random_bytes_are_a_message_or_a_decode_error():
    source = random.Random(2026)
    classes = message_classes()
    refused = 0
    for round_ in range(10_000):
        cls = classes[round_ % len(classes)]
        data = source.randbytes(source.randrange(1, 64))
        try:
            cls.decode(data).encode()
        except DecodeError:
            refused += 1
    assert 0 < refused < 10_000


def test_messages_with_a_few_bytes_changed_are_a_message_or_a_decode_error():
    source = random.Random(1994)
    classes = [
        task.StateResponse,
        task.PidsResponse,
        task.UpdateTaskRequest,
        agent.HelloResponse,
        ttrpc.Response,
    ]
    refused = accepted = 0
    for round_ in range(5_000):
        cls = classes[round_ % len(classes)]
        data = bytearray(random_message(cls, source).encode())
        for _ in range(source.randrange(1, 4)):
            if data:
                data[source.randrange(len(data))] = source.randrange(256)
        try:
            cls.decode(bytes(data)).encode()
            accepted += 1
        except DecodeError:
            refused += 1
    assert refused
    assert accepted


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, 1_000_000_000, 1_764_000_000_123_456_789, -1])
def test_a_timestamp_keeps_every_nanosecond(ns):
    assert Timestamp.decode(Timestamp.from_ns(ns).encode()).to_ns() == ns
    assert 0 <= Timestamp.from_ns(ns).nanos < 1_000_000_000

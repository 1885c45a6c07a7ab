"""A protobuf codec driven by field numbers declared on message classes. No I/O, no descriptors, no groups.

Source: protobuf encoding specification (proto3). Scalars equal to their default are not written.
Unknown fields are skipped. Everything that can be malformed raises `DecodeError`.

    class Ping(Message):
        id: str = string(1)
        names: list[str] = strings(2)

Not `dataclasses`: that import alone costs more than a bare interpreter start.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 16
MAX_ELEMENTS = 1 << 16


class DecodeError(ValueError):
    """The bytes are not a message of the expected shape."""


class Field:
    """One declared field: number, kind, and for nested messages their class."""

    __slots__ = ("kind", "name", "nested", "number", "repeated")

    def __init__(self, number: int, kind: str, *, repeated: bool = False, nested: Any = None) -> None:
        self.number, self.kind, self.repeated, self.nested = number, kind, repeated, nested
        self.name = ""

    def default(self) -> Any:
        if self.repeated:
            return []
        if self.kind == "map":
            return {}
        return {"string": "", "bytes": b"", "bool": False, "double": 0.0, "message": None}.get(self.kind, 0)


def string(number: int) -> Any:
    """A UTF-8 string."""
    return Field(number, "string")


def strings(number: int) -> Any:
    """A repeated string."""
    return Field(number, "string", repeated=True)


def blob(number: int) -> Any:
    """Bytes."""
    return Field(number, "bytes")


def boolean(number: int) -> Any:
    """A bool."""
    return Field(number, "bool")


def uint(number: int) -> Any:
    """uint32, uint64 or an enum."""
    return Field(number, "uint")


def uints(number: int) -> Any:
    """Repeated uint32 or uint64 (packed when written, either way when read)."""
    return Field(number, "uint", repeated=True)


def sint(number: int) -> Any:
    """int32 or int64 in two's complement (not zigzag)."""
    return Field(number, "int")


def double(number: int) -> Any:
    """A 64-bit float."""
    return Field(number, "double")


def message(number: int, cls: type[Message]) -> Any:
    """A nested message, or None when absent."""
    return Field(number, "message", nested=cls)


def messages(number: int, cls: type[Message]) -> Any:
    """A repeated message."""
    return Field(number, "message", repeated=True, nested=cls)


def string_map(number: int) -> Any:
    """map<string, string>."""
    return Field(number, "map")


class Message:
    """Base of all messages: keyword constructor, equality, `encode()` and `decode()`."""

    _fields: tuple[Field, ...] = ()
    _by_number: dict[int, Field] = {}

    def __init_subclass__(cls) -> None:
        found = []
        for name, value in list(cls.__dict__.items()):
            if isinstance(value, Field):
                value.name = name
                found.append(value)
                delattr(cls, name)
        cls._fields = tuple(found)
        cls._by_number = {f.number: f for f in found}

    def __init__(self, **values: Any) -> None:
        for field in self._fields:
            self.__dict__[field.name] = values.pop(field.name) if field.name in values else field.default()
        if values:
            raise TypeError(f"{type(self).__name__} has no field {sorted(values)[0]!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inner = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in self._fields)
        return f"{type(self).__name__}({inner})"

    def encode(self) -> bytes:
        """The message as protobuf bytes, fields in order of declaration."""
        out = bytearray()
        for field in self._fields:
            _write_field(out, field, self.__dict__[field.name])
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes | memoryview, *, depth: int = 0) -> Self:
        """Parse `data`; raises `DecodeError` on anything malformed, including nesting deeper than 16."""
        if depth > MAX_DEPTH:
            raise DecodeError("nested too deeply")
        result = cls()
        for number, wire_type, value in _walk(memoryview(data)):
            field = cls._by_number.get(number)
            if field is not None:
                _store(result, field, wire_type, value, depth)
        return result


def write_varint(out: bytearray, value: int) -> None:
    """Append `value` (taken modulo 2**64) as a base-128 varint."""
    value &= 0xFFFFFFFFFFFFFFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_bytes(out: bytearray, number: int, data: bytes) -> None:
    write_varint(out, number << 3 | LENGTH)
    write_varint(out, len(data))
    out += data


def _write_field(out: bytearray, field: Field, value: Any) -> None:
    kind = field.kind
    if field.repeated and kind == "uint":
        if value:
            packed = bytearray()
            for item in value:
                write_varint(packed, item)
            _write_bytes(out, field.number, bytes(packed))
    elif field.repeated:
        for item in value:
            _write_one(out, field, item)
    elif kind == "map":
        for key, item in value.items():
            entry = bytearray()
            _write_bytes(entry, 1, key.encode("utf-8", "surrogateescape"))
            _write_bytes(entry, 2, item.encode("utf-8", "surrogateescape"))
            _write_bytes(out, field.number, bytes(entry))
    elif value is not None and (value or kind == "message"):
        _write_one(out, field, value)


def _write_one(out: bytearray, field: Field, value: Any) -> None:
    kind = field.kind
    if kind == "string":
        _write_bytes(out, field.number, value.encode("utf-8", "surrogateescape"))
    elif kind == "bytes":
        _write_bytes(out, field.number, bytes(value))
    elif kind == "message":
        _write_bytes(out, field.number, value.encode())
    elif kind == "double":
        write_varint(out, field.number << 3 | FIXED64)
        out += struct.pack("<d", value)
    else:
        write_varint(out, field.number << 3 | VARINT)
        write_varint(out, int(value))


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data):
            raise DecodeError("truncated varint")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise DecodeError("varint longer than ten bytes")


def _walk(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    at, count = 0, 0
    while at < len(data):
        count += 1
        if count > MAX_ELEMENTS:
            raise DecodeError("too many fields")
        key, at = _read_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise DecodeError("field number 0")
        value: Any
        if wire_type == VARINT:
            value, at = _read_varint(data, at)
        elif wire_type == LENGTH:
            size, at = _read_varint(data, at)
            if size > len(data) - at:
                raise DecodeError("truncated field")
            value, at = data[at : at + size], at + size
        elif wire_type in (FIXED64, FIXED32):
            size = 8 if wire_type == FIXED64 else 4
            if size > len(data) - at:
                raise DecodeError("truncated field")
            value, at = data[at : at + size], at + size
        else:
            raise DecodeError(f"wire type {wire_type}")
        yield number, wire_type, value


_WIRE_TYPE = {"uint": VARINT, "int": VARINT, "bool": VARINT, "double": FIXED64}


def _store(result: Message, field: Field, wire_type: int, value: Any, depth: int) -> None:
    values = result.__dict__
    if field.repeated and field.kind == "uint" and wire_type == LENGTH:
        at = 0
        while at < len(value):
            if len(values[field.name]) == MAX_ELEMENTS:
                raise DecodeError("too many elements")
            item, at = _read_varint(value, at)
            values[field.name].append(item)
        return
    if wire_type != _WIRE_TYPE.get(field.kind, LENGTH):
        raise DecodeError(f"field {field.name}: wire type {wire_type}")
    if field.kind == "map":
        entry = _MapEntry.decode(value, depth=depth + 1)
        values[field.name][entry.key] = entry.value
        return
    parsed = _parse(field, value, depth)
    if field.repeated:
        values[field.name].append(parsed)
    else:
        values[field.name] = parsed


def _parse(field: Field, value: Any, depth: int) -> Any:
    kind = field.kind
    if kind == "string":
        return str(value, "utf-8", "surrogateescape")  # a path need not be UTF-8: its bytes come back out
    if kind == "bytes":
        return bytes(value)
    if kind == "message":
        return field.nested.decode(value, depth=depth + 1)
    if kind == "bool":
        return value != 0
    if kind == "double":
        return struct.unpack("<d", value)[0]
    if kind == "int" and value >= 1 << 63:
        return value - (1 << 64)
    return value


class _MapEntry(Message):
    key: str = string(1)
    value: str = string(2)


class Empty(Message):
    """google.protobuf.Empty."""


class Any_(Message):
    """google.protobuf.Any: a type URL and the bytes of that type (JSON where containerd says so)."""

    type_url: str = string(1)
    value: bytes = blob(2)


class Timestamp(Message):
    """google.protobuf.Timestamp: seconds and nanoseconds since the epoch."""

    seconds: int = sint(1)
    nanos: int = sint(2)

    @classmethod
    def from_ns(cls, ns: int) -> Timestamp:
        return cls(seconds=ns // 1_000_000_000, nanos=ns % 1_000_000_000)

    def to_ns(self) -> int:
        return self.seconds * 1_000_000_000 + self.nanos

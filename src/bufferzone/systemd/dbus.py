"""D-Bus messages as bytes: only what a call of systemd's manager, its answer and its signals need. Pure.

Knows little-endian messages without file descriptors. Source: D-Bus Specification, "Type System" and
"Message Protocol".
"""

from __future__ import annotations

import struct

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = range(1, 9)
#: bytes of a header before its fields
FIXED = 16
#: the specification's, of a whole message
MOST = 1 << 27
#: type -> (struct's letter, size, which is its alignment too)
_NUMBERS = {
    "y": ("B", 1),
    "b": ("I", 4),
    "n": ("h", 2),
    "q": ("H", 2),
    "i": ("i", 4),
    "u": ("I", 4),
    "x": ("q", 8),
    "t": ("Q", 8),
    "d": ("d", 8),
}
_STRINGS = {"s": 4, "o": 4, "g": 1}
_ALIGNED = {"a": 4, "v": 1, "(": 8, "{": 8}
_FIELD_TYPES = {
    PATH: "o",
    INTERFACE: "s",
    MEMBER: "s",
    ERROR_NAME: "s",
    REPLY_SERIAL: "u",
    DESTINATION: "s",
    SENDER: "s",
    SIGNATURE: "g",
}


class Message:
    """One message: `fields` by their code, `body` its values."""

    def __init__(self, kind: int, serial: int, fields: dict[int, Any], body: Sequence[Any] = ()) -> None:
        self.kind, self.serial, self.fields, self.body = kind, serial, fields, body

    def encode(self) -> bytes:
        """The message as it is sent."""
        writer = _Writer()
        writer.put_all(str(self.fields.get(SIGNATURE, "")), self.body)
        head = _Writer()
        values = [(code, (_FIELD_TYPES[code], value)) for code, value in self.fields.items()]
        head.put_all("yyyyuua(yv)", (ord("l"), self.kind, 0, 1, len(writer.data), self.serial, values))
        head.align(8)
        return bytes(head.data + writer.data)


def size_of(head: bytes) -> int:
    """Bytes of the whole message that begins with these `FIXED` ones; raises `HostError`."""
    if head[:1] != b"l" or head[3] != 1:
        raise _nonsense("not a little-endian message of version 1")
    body, _, fields = struct.unpack_from("<III", head, 4)
    size = FIXED + (fields + 7 & ~7) + body
    if size > MOST:
        raise _nonsense(f"a message of {size} bytes")
    return int(size)


def decode(data: bytes) -> Message:
    """The message in `data`; raises `HostError` where it is none."""
    try:
        reader = _Reader(data)
        _, kind, _, _, body, serial, pairs = reader.take_all("yyyyuua(yv)")
        fields = dict(pairs)
        reader = _Reader(data[len(data) - body :])
        return Message(kind, serial, fields, reader.take_all(str(fields.get(SIGNATURE, ""))))
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise _nonsense(str(error)) from error


def _nonsense(what: str) -> HostError:
    return HostError(f"systemd's answer is not D-Bus: {what}", code="systemd")


def types_of(signature: str) -> Iterator[str]:
    """The complete types that a signature is made of."""
    at = 0
    while at < len(signature):
        end = _end_of(signature, at)
        yield signature[at:end]
        at = end


def _end_of(signature: str, at: int) -> int:
    while signature[at] == "a":
        at += 1
    depth = 0
    while True:
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[at], 0)
        at += 1
        if depth == 0:
            return at


def _alignment(kind: str) -> int:
    letter = kind[0]
    return _NUMBERS[letter][1] if letter in _NUMBERS else {**_STRINGS, **_ALIGNED}[letter]


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def put_all(self, signature: str, values: Sequence[Any]) -> None:
        for kind, value in zip(types_of(signature), values, strict=True):
            self._put(kind, value)

    def _put(self, kind: str, value: Any) -> None:
        letter = kind[0]
        self.align(_alignment(kind))
        if letter in _NUMBERS:
            self.data += struct.pack(f"<{_NUMBERS[letter][0]}", value)
        elif letter in _STRINGS:
            data = value.encode()
            self.data += struct.pack("<B" if letter == "g" else "<I", len(data)) + data + b"\0"
        elif letter == "a":
            self._put_array(kind[1:], value)
        elif letter == "v":
            self._put("g", value[0])
            self._put(*value)
        else:
            self.put_all(kind[1:-1], value)

    def _put_array(self, kind: str, values: Sequence[Any]) -> None:
        at = len(self.data)
        self.data += bytes(4)
        self.align(_alignment(kind))
        begin = len(self.data)
        for value in values:
            self._put(kind, value)
        struct.pack_into("<I", self.data, at, len(self.data) - begin)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take_all(self, signature: str) -> list[Any]:
        return [self._take(kind) for kind in types_of(signature)]

    def _number(self, letter: str, size: int) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._at)
        self._at += size
        return value

    def _take(self, kind: str) -> Any:
        letter = kind[0]
        self._at += -self._at % _alignment(kind)
        if letter in _NUMBERS:
            return self._number(*_NUMBERS[letter])
        if letter in _STRINGS:
            size = self._number(*(("B", 1) if letter == "g" else ("I", 4)))
            begin, self._at = self._at, self._at + size + 1
            if self._at > len(self._data):
                raise ValueError("a string goes beyond its message")
            return self._data[begin : begin + size].decode()
        if letter == "a":
            return self._take_array(kind[1:])
        if letter == "v":
            return self._take(self._take("g"))
        return tuple(self.take_all(kind[1:-1]))

    def _take_array(self, kind: str) -> list[Any]:
        size = self._number("I", 4)
        self._at += -self._at % _alignment(kind)
        end = self._at + size
        if end > len(self._data):
            raise ValueError("an array goes beyond its message")
        values = []
        while self._at < end:
            values.append(self._take(kind))
        return values

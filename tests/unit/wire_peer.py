"""Google's protobuf as the other side of wire/: descriptors from our own field tables; random messages."""

from __future__ import annotations

import random
import string

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bufferzone.wire import agent, metrics, shim, task, ttrpc
from bufferzone.wire.proto import Any_, Empty, Field, Message, Timestamp, _MapEntry

_F = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "bool": _F.TYPE_BOOL,
    "uint": _F.TYPE_UINT64,
    "int": _F.TYPE_INT64,
    "double": _F.TYPE_DOUBLE,
    "message": _F.TYPE_MESSAGE,
    "map": _F.TYPE_MESSAGE,
}


def message_classes() -> list[type[Message]]:
    """Every message of wire/, those that others nest included."""
    found = [Empty, Any_, Timestamp]
    for module in (agent, metrics, shim, task, ttrpc):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message) and value.__module__ == module.__name__:
                found.append(value)
    return found


def _unique(cls: type[Message]) -> str:
    return f"{cls.__module__}.{cls.__name__}".replace(".", "_")


class Peer:
    """The same messages, as protobuf sees them."""

    def __init__(self, classes: list[type[Message]]) -> None:
        file = descriptor_pb2.FileDescriptorProto(name="wire.proto", package="peer", syntax="proto3")
        for cls in classes:
            described = file.message_type.add(name=_unique(cls))
            for field in cls._fields:
                self._describe(described, field)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        described = {cls: pool.FindMessageTypeByName(f"peer.{_unique(cls)}") for cls in classes}
        self._types = {cls: message_factory.GetMessageClass(row) for cls, row in described.items()}

    def _describe(self, described: descriptor_pb2.DescriptorProto, field: Field) -> None:
        row = described.field.add(name=field.name, number=field.number, type=_TYPES[field.kind])
        many = field.repeated or field.kind == "map"
        row.label = _F.LABEL_REPEATED if many else _F.LABEL_OPTIONAL
        if field.kind == "message":
            row.type_name = f".peer.{_unique(field.nested)}"
        elif field.kind == "map":
            name = "".join(word.capitalize() for word in field.name.split("_")) + "Entry"
            entry = described.nested_type.add(name=name)
            entry.options.map_entry = True
            for inner in _MapEntry._fields:
                self._describe(entry, inner)
            row.type_name = f".peer.{described.name}.{name}"

    def encode(self, message: Message) -> bytes:
        return self._build(message).SerializeToString(deterministic=True)

    def decode(self, cls: type[Message], data: bytes) -> Message:
        return self._read(cls, self._types[cls].FromString(data))

    def _build(self, message: Message):
        values = {}
        for field in message._fields:
            value = getattr(message, field.name)
            if field.kind == "message" and field.repeated:
                value = [self._build(item) for item in value]
            elif field.kind == "message" and value is not None:
                value = self._build(value)
            values[field.name] = value
        return self._types[type(message)](**values)

    def _read(self, cls: type[Message], theirs) -> Message:
        values = {}
        for field in cls._fields:
            value = getattr(theirs, field.name)
            if field.kind == "map":
                value = dict(value)
            elif field.kind == "message" and field.repeated:
                value = [self._read(field.nested, item) for item in value]
            elif field.kind == "message":
                value = self._read(field.nested, value) if theirs.HasField(field.name) else None
            elif field.repeated:
                value = list(value)
            values[field.name] = value
        return cls(**values)


def random_message(cls: type[Message], source: random.Random) -> Message:
    """A message with each field at its default, at an extreme, or somewhere between."""
    return cls(**{field.name: _random_field(field, source) for field in cls._fields if source.random() < 0.8})


def _random_field(field: Field, source: random.Random):
    if field.kind == "map":
        return {_random_text(source): _random_text(source) for _ in range(source.randrange(2))}
    if field.repeated:
        return [_random_value(field, source) for _ in range(source.choice((0, 1, 2, 7)))]
    return _random_value(field, source)


def _random_value(field: Field, source: random.Random):
    if field.kind == "message":
        return random_message(field.nested, source)
    if field.kind == "string":
        return _random_text(source)
    if field.kind == "bytes":
        return source.randbytes(source.choice((0, 1, 127, 128, 300)))
    if field.kind == "bool":
        return source.random() < 0.5
    if field.kind == "double":
        return source.choice((0.0, -1.5, 1e300))
    bits = source.randrange(64)
    value = source.choice((0, 1, 127, 128, source.getrandbits(bits), (1 << 63) - 1))
    return -value if field.kind == "int" and source.random() < 0.5 else value


def _random_text(source: random.Random) -> str:
    letters = string.ascii_letters + '/.-_ \n\0"\\éß漢🦊'
    return "".join(source.choice(letters) for _ in range(source.choice((0, 1, 5, 130))))

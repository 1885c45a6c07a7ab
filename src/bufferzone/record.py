"""Values with named fields: what `dataclasses` gives with frozen, slots and kw_only, and nothing else.

    class Nic(Record):
        name: str
        mtu: int = 0

Not `dataclasses`: its import brings in `inspect`, `ast`, `dis` and `tokenize`, and each class is compiled
from source (docs/decisions/records.md has the figures). A type checker sees the same: PEP 681.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar, dataclass_transform

    _R = TypeVar("_R", bound="Record")
else:

    def dataclass_transform(**_):
        """The type checker's alone: `typing` costs as much as it saves."""
        return lambda kind: kind


_set = object.__setattr__


class Field:
    """What a class says of one field: a default, what makes one, and metadata that is the reader's."""

    __slots__ = ("factory", "has_default", "metadata", "name", "value")

    def __init__(self, name: str, *, default: object, factory: Any, metadata: Mapping[str, Any]) -> None:
        self.name, self.value, self.factory, self.metadata = name, default, factory, metadata
        self.has_default = factory is not None or default is not _NONE

    def default(self) -> object:
        """The default for one more value."""
        return self.value if self.factory is None else self.factory()


_NONE = object()


def field(
    *,
    default: Any = _NONE,
    default_factory: Callable[[], Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """The specifier of one field, as `dataclasses.field`."""
    return Field("", default=default, factory=default_factory, metadata=metadata or {})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class _Kind(type):
    """Makes the annotated names of a class its slots, and keeps what was said of them."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _Kind:
        declared = tuple(body.get("__annotations__", ()))
        own = {each: _said(each, body.pop(each, _NONE)) for each in declared}
        inherited = {key: value for base in bases for key, value in getattr(base, "_fields", {}).items()}
        body["__slots__"] = tuple(own)
        body["_fields"] = {**inherited, **own}
        return super().__new__(cls, name, bases, body)


def _said(name: str, value: object) -> Field:
    if not isinstance(value, Field):
        return Field(name, default=value, factory=None, metadata={})
    value.name = name
    return value


class Record(metaclass=_Kind):
    """Base of a frozen value. Fields are given by keyword; TypeError for one missing or unknown."""

    __slots__ = ()

    def __init__(self, **values: Any) -> None:
        known = _fields(type(self))
        for name, said in known.items():
            if name in values:
                _set(self, name, values.pop(name))
            elif said.has_default:
                _set(self, name, said.default())
            else:
                raise TypeError(f"{type(self).__name__}: the field {name} is missing")
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        """For `pickle` and `copy`, whose own way sets the fields of what is made already."""
        return _again, (type(self), {name: getattr(self, name) for name in _fields(type(self))})

    def __eq__(self, other: object) -> bool:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in _fields(type(self)))
        return f"{type(self).__name__}({said})"


def _again(kind: type[Record], values: dict[str, object]) -> Record:
    """A pickled one. A named function: a pickle tells by name what makes it."""
    return kind(**values)


def _fields(kind: type[object]) -> dict[str, Field]:
    found: dict[str, Field] = kind.__dict__["_fields"]
    return found


def _values(record: object) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in _fields(type(record)))


def fields(kind: type[Record]) -> tuple[Field, ...]:
    """The fields of a class, in order."""
    return tuple(_fields(kind).values())


def replace(record: _R, **changes: Any) -> _R:
    """A copy with some fields changed."""
    return type(record)(**{name: getattr(record, name) for name in _fields(type(record))} | changes)


def asdict(record: Record) -> dict[str, Any]:
    """Field -> value, nested records, lists, tuples and dicts copied."""
    return {name: _plain(getattr(record, name)) for name in _fields(type(record))}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value

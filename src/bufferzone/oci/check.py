"""Walks a JSON value along a schema and reports the first thing that does not fit, with its JSON path.

A schema is a kind name (`string`, `bool`, `u32`, ...), a dict (object with these keys; others are kept and
not looked at), a list of one (array of that), or `Map(of)`. Null stands for absent,
as it does for Go's decoder.
"""

from __future__ import annotations

from bufferzone.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 64
_MOST_REASON = 300

_INTEGERS = {
    "u16": (0, (1 << 16) - 1),
    "u32": (0, (1 << 32) - 1),
    "id": (0, (1 << 32) - 2),  # the last one means "no change", see chown(2)
    "u64": (0, (1 << 64) - 1),
    "i32": (-(1 << 31), (1 << 31) - 1),
    "i64": (-(1 << 63), (1 << 63) - 1),
}


class Map:
    """An object with any keys whose values all are `of`."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of


def fail(path: str, reason: str, hint: str = "") -> SpecError:
    """The error for `path`; raise what this returns. A long value is cut."""
    if len(reason) > _MOST_REASON:
        reason = reason[:_MOST_REASON] + "..."
    return SpecError(f"config.json: {path}: {reason}" if path else f"config.json: {reason}", hint=hint)


def type_name(value: Any) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    names = ((dict, "object"), (list, "array"), (str, "string"))
    return next((name for cls, name in names if isinstance(value, cls)), "number")


def check(value: Any, schema: Any, path: str) -> None:
    """Raise `SpecError` unless `value` fits; nulls inside objects are removed in place."""
    if isinstance(schema, str):
        _check_scalar(value, schema, path)
    elif isinstance(schema, dict):
        for key, item in _items(value, path):
            if key in schema:
                check(item, schema[key], f"{path}.{key}" if path else key)
    elif isinstance(schema, Map):
        for key, item in _items(value, path):
            check(item, schema.of, f"{path}.{key}")
    else:
        if not isinstance(value, list):
            raise fail(path, f"expected an array, got {type_name(value)}")
        if schema[0] == "string" and all(type(item) is str and "\0" not in item for item in value):
            return  # the usual case, and seccomp has a thousand of them
        for index, item in enumerate(value):
            check(item, schema[0], f"{path}[{index}]")


def _items(value: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise fail(path, f"expected an object, got {type_name(value)}")
    for key in [key for key, item in value.items() if item is None]:
        del value[key]
    return list(value.items())


def _check_scalar(value: Any, kind: str, path: str) -> None:
    if kind == "string":
        if not isinstance(value, str):
            raise fail(path, f"expected a string, got {type_name(value)}")
        if "\0" in value:
            raise fail(path, "contains a NUL character")
    elif kind == "bool":
        if not isinstance(value, bool):
            raise fail(path, f"expected true or false, got {type_name(value)}")
    elif kind != "any":
        low, high = _INTEGERS[kind]
        if not isinstance(value, int) or isinstance(value, bool):
            got = f"got {value}" if isinstance(value, float) else f"got {type_name(value)}"
            raise fail(path, f"expected a whole number, {got}")
        if not low <= value <= high:
            raise fail(path, f"expected {low} to {high}, got {value}")


def check_depth(value: Any, depth: int = 0) -> None:
    """Raise `SpecError` when objects and arrays nest deeper than 64."""
    if depth > MAX_DEPTH:
        raise fail("", f"nested deeper than {MAX_DEPTH} levels")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            check_depth(item, depth + 1)

"""One row of the settings' table, and what a value of it may be. Knows no setting; `config` has the table."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PREFIX = "bufferzone."


class Setting:
    """One row: key, kind (int, str, bool, path, list), what it decides (`VM`, `ORIGIN`, `GATE`, `HOST`),
    default, limits, the annotation that may set it, help.

    `open` says whether the annotation works without being listed in `allow_annotations`. `weaker(host's,
    annotation's)` says what makes the second value weaker, empty where it is not: it is refused, unless
    `by_request` lets that list allow it. `name` is the key as an attribute of `Settings`. `check` says what
    is wrong with a value of the right kind; empty: nothing.
    """

    __slots__ = (
        "annotation",
        "by_request",
        "check",
        "choices",
        "decides",
        "default",
        "help",
        "key",
        "kind",
        "maximum",
        "minimum",
        "name",
        "open",
        "weaker",
    )

    def __init__(
        self,
        key: str,
        kind: str,
        decides: str,
        default: Any,
        help: str,
        *,
        limits: tuple[int, int] = (0, 0),
        choices: tuple[str, ...] = (),
        annotation: str = "",
        open: bool = False,
        check: Callable[[Any], str] | None = None,
        weaker: Callable[[Any, Any], str] | None = None,
        by_request: bool = False,
    ) -> None:
        self.key, self.kind, self.decides, self.default, self.help = key, kind, decides, default, help
        self.name = key.replace(".", "_")
        self.minimum, self.maximum = limits
        self.choices = choices
        self.annotation = PREFIX + annotation if annotation else ""
        self.open = open
        self.check = check
        self.weaker = weaker
        self.by_request = by_request


def fault(row: Setting, value: Any) -> str:
    """Why `value` does not fit the row; empty when it does."""
    types: dict[str, type] = {"int": int, "bool": bool, "list": list}
    fits = isinstance(value, types.get(row.kind, str)) and (row.kind != "int" or not isinstance(value, bool))
    if not fits:
        return f"expected {_KIND_NAMES[row.kind]}, got {value!r}"
    if row.kind == "int" and not row.minimum <= value <= row.maximum:
        return f"must be {row.minimum} to {row.maximum}, got {value}"
    if row.choices and value not in row.choices:
        return f"must be one of {', '.join(row.choices)}, got {value!r}"
    if row.kind == "path" and value and not value.startswith("/"):
        return f"expected an absolute path, got {value!r}"
    items = value if row.kind == "list" else [value]
    if any(row.kind != "int" and "\0" in str(item) for item in items):
        return "contains a NUL byte"
    if row.kind == "list" and not all(isinstance(item, str) for item in value):
        return "expected a list of strings"
    return row.check(value) if row.check else ""


_KIND_NAMES = {"int": "a whole number", "bool": "true or false", "list": "a list of strings"} | dict.fromkeys(
    ("str", "path"), "a string"
)

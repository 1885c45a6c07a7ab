"""The plain part of TOML, read without tomllib, whose import costs a verb twelve milliseconds.

What it does not know (escapes, dotted keys, dates, nested tables, everything that may be wrong) it leaves to
tomllib: it never guesses, and has no errors of its own. Source: toml.io/en/v1.0.0.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class _Unknown(Exception):
    """Not plain."""


def parse(data: bytes) -> dict[str, Any]:
    """A TOML document as tomllib reads it; raises its errors: TOMLDecodeError and UnicodeDecodeError."""
    text = data.decode()
    try:
        return _plain(text)
    except _Unknown:
        import tomllib

        return tomllib.loads(text)


def _plain(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    table = found
    for whole in text.split("\n"):
        line = whole.strip(" ")
        if not line.isprintable():
            raise _Unknown
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name = _key(line[1:-1]) if line.endswith("]") else ""
            if name in found:
                raise _Unknown
            table = found[_key(name)] = {}
            continue
        key, equals, value = line.partition("=")
        key = _key(key.strip(" "))
        if not equals or key in table:
            raise _Unknown
        table[key] = _value(value.strip(" "))
    return found


def _key(text: str) -> str:
    if not text or not _KEY.issuperset(text):
        raise _Unknown
    return text


def _value(text: str) -> Any:
    if '"' not in text:
        text = text.partition("#")[0].rstrip(" ")
    if text in ("true", "false"):
        return text == "true"
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 19:
        return int(text)
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip(" ")
        return [_string(item.strip(" ")) for item in inner.split(",")] if inner else []
    return _string(text)


def _string(text: str) -> str:
    inner = text[1:-1]
    if len(text) < 2 or text[0] != '"' or text[-1] != '"' or '"' in inner or "\\" in inner:
        raise _Unknown
    return inner

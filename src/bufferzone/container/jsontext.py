"""JSON without the `json` package: its C scanner is used directly, since `json` imports `re` (10 ms under
TCG).

`dumps` writes what the state of a hook consists of, `encode` whatever `loads` gave.
"""

from __future__ import annotations

import _json

from bufferzone.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}


class _Context:
    """What `json.JSONDecoder` tells its C scanner."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__
    memo: dict[str, str] = {}


_context: Any = _Context()
_scan = _json.make_scanner(_context)


def loads(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`; raises `SpecError` naming `what` on anything else."""
    try:
        text = data.decode("utf-8", "surrogateescape").strip(" \t\n\r")
        value, end = _scan(text, 0)
    except (StopIteration, ValueError, RecursionError, SystemError) as error:
        # SystemError: the scanner takes its exception class from `json.decoder`, which is not loaded
        raise SpecError(f"{what}: not JSON") from error
    if end != len(text) or not isinstance(value, dict):
        raise SpecError(f"{what}: not a JSON object")
    return value


def dumps(value: dict[str, Any] | str | int | None) -> str:
    """Objects, strings, integers and null as JSON text."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ",".join(f"{dumps(str(key))}:{dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return _json.encode_basestring_ascii(value)
    return str(value)


def _refuse(value: object) -> object:
    raise SpecError(f"not JSON: {type(value).__name__}")


#: markers, default, encoder of strings, indent, separators, sort_keys, skipkeys, allow_nan; json.encoder
_encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)


def encode(value: dict[str, Any]) -> bytes:
    """Any JSON object as text, by the C encoder."""
    return "".join(_encode(value, 0)).encode()

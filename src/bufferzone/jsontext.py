"""JSON text to values and back on the host, through the interpreter's C scanner and encoder alone.

The json package is Python around the same C, and imports re, enum and functools for it: as much time as a
bare interpreter needs to start. It is used where something is wrong, since it says where, and on other
interpreters. The guest has `container.jsontext`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


class _Rules:
    """What the C scanner asks its decoder for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    def __init__(self, parse_constant: Callable[[str], Any]) -> None:
        self.parse_constant = parse_constant


def loads(text: str, constant: Callable[[str], Any] = float) -> Any:
    """Parse JSON; `constant` is called for NaN and the infinities and may raise.

    Raises what json.loads raises: `JSONDecodeError`, `ValueError` for a number too long, `RecursionError`.
    """
    try:
        from _json import make_scanner

        rules: Any = _Rules(constant)
        start = len(text) - len(text.lstrip(_SPACE))
        value, end = make_scanner(rules)(text, start)
        if not text[end:].strip(_SPACE):
            return value
    except (ImportError, StopIteration, SystemError):
        # SystemError: the scanner takes its exception class from `json.decoder`, which is not loaded.
        pass  # the package tells what is wrong
    import json

    return json.loads(text, parse_constant=constant)


def dumps(value: Any) -> str:
    """JSON text of dicts, lists and scalars: ASCII only, without blanks, keys in their order."""
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:
        import json

        return json.dumps(value, separators=(",", ":"))
    encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
    return "".join(encode(value, 0))


def quote(text: str) -> str:
    """A string as JSON, ASCII only."""
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json.encoder import encode_basestring_ascii
    return str(encode_basestring_ascii(text))


def _refuse(value: object) -> Any:
    raise TypeError(f"not JSON: {type(value).__name__}")

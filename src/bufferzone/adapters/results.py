"""What a function in a sandbox answered: read as plain values, never unpickled.

Whatever is in the sandbox may have written it: anything but the form of `inside.call` is an error, and the
classes of exceptions that come out are Python's own, or `RemoteError`.
"""

from __future__ import annotations

import base64
import builtins
import json

from bufferzone.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


class RemoteError(GuestError):
    """A function in a sandbox raised, or did not come to its end. `code` is remote-exception, bad-result,
    not-sent (there is no result), or the verdict that ended it: timeout, memory-limit and so on. `kind` is
    the name of the exception there, `traceback` its text.
    """

    code = "remote-exception"

    def __init__(self, message: str, *, code: str = "", kind: str = "", traceback: str = "") -> None:
        super().__init__(message, code=code, hint=traceback.strip().rpartition("\n")[2][:200])
        self.kind, self.traceback = kind, traceback

    def __str__(self) -> str:
        return f"{self.message}\n{self.traceback}" if self.traceback else self.message


def decode(answer: bytes) -> Any:
    """The value that was returned; raises what was raised, or `RemoteError`."""
    if not answer:
        raise RemoteError("the function's process ended without a result", code="not-sent")
    try:
        said = json.loads(answer)
        if "value" in said:
            return _value(said["value"])
        error = _exception(said)
    except (ValueError, TypeError, KeyError, RecursionError) as reason:
        raise RemoteError("what came from the sandbox is no result", code="bad-result") from reason
    raise error


def _value(form: Any) -> Any:
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise ValueError("an object")
        return form
    kind, content = form
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](_value(each) for each in content)
    if kind == "dict":
        return {_value(key): _value(each) for key, each in content}
    if kind == "complex":
        real, imaginary = content
        return complex(float(real), float(imaginary))
    if kind in ("bytes", "bytearray"):
        data = base64.b64decode(content, validate=True)
        return data if kind == "bytes" else bytearray(data)
    raise ValueError("no such kind")


def _exception(said: dict[str, Any]) -> Exception:
    kind, text = str(said["kind"])[:200], str(said["traceback"])
    remote = RemoteError(f"a function in a sandbox raised {kind}", kind=kind, traceback=text)
    found = getattr(builtins, kind, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return remote
    try:
        raised: Exception = found(*(_value(each) for each in said["args"]))
    except TypeError:
        return remote  # one whose arguments are not what it says
    raised.__cause__ = remote
    return raised

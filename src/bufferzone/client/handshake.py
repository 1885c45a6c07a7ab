"""One line through a pipe between two processes of ours: `ready`, `ok`, or an error as JSON."""

from __future__ import annotations

import os

from bufferzone import errors
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.log import quote


def read_line(fd: int) -> bytes:
    """Bytes up to a line break or the end, at most 64 KiB."""
    found = b""
    while b"\n" not in found and len(found) < 1 << 16:
        data = os.read(fd, 1 << 12)
        if not data:
            break
        found += data
    return found.partition(b"\n")[0]


def error_line(error: BufferzoneError) -> bytes:
    """An error as one line of JSON: code, message, hint, cls. Imports nothing: see `waiter`."""
    pairs = (
        ("code", error.code),
        ("message", error.message),
        ("hint", error.hint),
        ("cls", type(error).__name__),
    )
    return ("{" + ",".join(f'"{key}":{quote(value)}' for key, value in pairs) + "}\n").encode()


def error_from(line: bytes) -> BufferzoneError:
    """The error that another process of ours wrote as JSON."""
    import json

    classes = {cls.__name__: cls for cls in errors.all_error_classes()}
    try:
        form = json.loads(line)
        cls = classes.get(form["cls"], BufferzoneError)
        return cls(str(form["message"]), hint=str(form["hint"]), code=str(form["code"]))
    except (ValueError, KeyError, TypeError):
        return HostError(f"the shim said: {line[:200].decode('utf-8', 'replace')}", code="shim-died")

"""libc: one `call` for functions, one `syscall` for what glibc does not wrap. Retries EINTR."""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100


def encode(path: str | bytes) -> bytes:
    """A path for C; raises `ValueError` on an embedded NUL."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded NUL in path")
    return raw


def check(result: int, what: str, path: str | bytes | None = None) -> int:
    """Return `result`, or raise the OSError that errno stands for, naming the call and what it acted on."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", None if path is None else os.fsdecode(path))
    return result


def call(name: str, *arguments: Any, path: str | bytes | None = None) -> int:
    """Call a libc function that returns an int and -1 on error."""
    function = getattr(_libc, name)
    while True:
        ctypes.set_errno(0)
        result = int(function(*arguments))
        if result >= 0 or ctypes.get_errno() != errno.EINTR:
            return check(result, name, path)


def syscall(number: int, what: str, *arguments: Any, path: str | bytes | None = None) -> int:
    """Make a raw system call; integers are passed as longs."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    while True:
        ctypes.set_errno(0)
        result = int(_libc.syscall(ctypes.c_long(number), *converted))
        if result >= 0 or ctypes.get_errno() != errno.EINTR:
            return check(result, what, path)

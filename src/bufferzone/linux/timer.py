"""timerfd: a descriptor that becomes readable when a time has come. Source: timerfd_create(2)."""

from __future__ import annotations

import ctypes
import os
import struct

from bufferzone.linux.libc import call

_CLOCK_MONOTONIC = 1


def make() -> int:
    """A timer that is not set, not blocking."""
    return call("timerfd_create", _CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)


def set_in(fd: int, seconds: float) -> None:
    """Let it be readable after `seconds`, once; sooner than now is now."""
    nanoseconds = max(1, int(seconds * 1e9))
    value = struct.pack("=qqqq", 0, 0, *divmod(nanoseconds, 1_000_000_000))
    call("timerfd_settime", fd, 0, ctypes.create_string_buffer(value), None)


def drain(fd: int) -> None:
    """Forget that it was due."""
    try:
        os.read(fd, 8)
    except BlockingIOError:
        pass

"""Two names of one file system that change places. Source: renameat2(2), RENAME_EXCHANGE."""

from __future__ import annotations

from bufferzone.linux.libc import AT_FDCWD, call, encode

_EXCHANGE = 2


def exchange(one: str, other: str) -> None:
    """At no time is one of them missing. Raises OSError."""
    call("renameat2", AT_FDCWD, encode(one), AT_FDCWD, encode(other), _EXCHANGE, path=other)

"""inotify(7): hearing that a file in a directory, or the directory itself, has gone or was moved."""

from __future__ import annotations

import errno
import os
import struct

from bufferzone.linux.ignoring import ignoring
from bufferzone.linux.libc import call, encode

_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800
_IN_CLOSE = 0x08 | 0x10
_GONE = _IN_MOVED_FROM | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF


def watch_going(*directories: str) -> int:
    """A descriptor that becomes readable when one of the directories, or something in one, is removed or
    renamed. Raises OSError: a user may have only so many.
    """
    fd = call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for directory in directories:
            call("inotify_add_watch", fd, encode(directory), _GONE, path=directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def drain(fd: int) -> None:
    """Forget what was heard."""
    try:
        while os.read(fd, 1 << 16):
            pass
    except BlockingIOError:
        pass


def make() -> int:
    """An inotify descriptor that watches nothing yet, not blocking."""
    return call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)


def add_closing(fd: int, path: str) -> int:
    """Hear when an open file description of `path` is closed; the number of the watch. Raises OSError."""
    return call("inotify_add_watch", fd, encode(path), _IN_CLOSE, path=path)


#: what a change of a file in a directory is called; IN_Q_OVERFLOW: some were not told
_CHANGES = {0x08: "written", 0x40: "removed", 0x80: "made", 0x100: "made", 0x200: "removed", 0x4000: "missed"}
_IN_CHANGE, _IN_ONLYDIR = 0x08 | 0x40 | 0x80 | 0x100 | 0x200, 0x01000000


def watch_all(directory: str) -> int:
    """A descriptor, blocking, that tells what changes in a directory, see `changes`. Raises OSError."""
    fd = call("inotify_init1", os.O_CLOEXEC)
    call("inotify_add_watch", fd, encode(directory), _IN_CHANGE | _IN_ONLYDIR, path=directory)
    return fd


def changes(raw: bytes) -> list[tuple[str, str]]:
    """What was read from it: (made, written, removed or missed, name of the file)."""
    found, at = [], 0
    while at + 16 <= len(raw):
        _, mask, _, length = struct.unpack_from("=iIII", raw, at)
        name = os.fsdecode(raw[at + 16 : at + 16 + length].rstrip(b"\0"))
        found += [(kind, name) for bit, kind in _CHANGES.items() if mask & bit]
        at += 16 + length
    return found


def remove(fd: int, watch: int) -> None:
    """Stop watching; one that is gone is ignored."""
    with ignoring(errno.EINVAL):
        call("inotify_rm_watch", fd, watch)


def watches_of(fd: int) -> set[int]:
    """The watches that something was heard of, which is forgotten by that."""
    found: set[int] = set()
    try:
        raw = os.read(fd, 1 << 16)
    except BlockingIOError:
        return found
    at = 0
    while at + 16 <= len(raw):
        watch, _, _, length = struct.unpack_from("=iIII", raw, at)
        found.add(watch)
        at += 16 + length
    return found

"""inotify(7): hearing that a file in a directory, or the directory itself, has gone or was moved."""

from __future__ import annotations

import os

from bufferzone.linux.libc import call, encode

_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800
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

"""fanotify(7) permission events: being asked before a file or directory is opened, and letting it happen."""

from __future__ import annotations

import os
import struct

from bufferzone.linux.libc import syscall

_FANOTIFY_INIT, _FANOTIFY_MARK = 300, 301
_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_CLASS_CONTENT = 0x1, 0x2, 0x4
_FAN_MARK_ADD = 0x1
_FAN_OPEN_PERM, _FAN_ONDIR = 0x10000, 0x40000000
_FAN_ALLOW = 1
# struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid
_EVENT = struct.Struct("=IBBHQii")
_RESPONSE = struct.Struct("=iI")


def watch_opening(directory: int) -> int:
    """A descriptor that becomes readable when somebody is about to open the directory that the descriptor
    `directory` refers to, who waits for `allow`.

    Needs CAP_SYS_ADMIN and CONFIG_FANOTIFY_ACCESS_PERMISSIONS. Once it is closed, whoever waits goes on.
    """
    flags = _FAN_CLASS_CONTENT | _FAN_CLOEXEC | _FAN_NONBLOCK
    fd = syscall(_FANOTIFY_INIT, "fanotify_init", flags, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mask = _FAN_OPEN_PERM | _FAN_ONDIR
        syscall(_FANOTIFY_MARK, "fanotify_mark", fd, _FAN_MARK_ADD, mask, directory, None)
    except BaseException:
        os.close(fd)
        raise
    return fd


def waiting(fd: int) -> list[int]:
    """Tokens of those who wait, for `allow`; empty when there are none."""
    try:
        data = os.read(fd, 4096)
    except BlockingIOError:
        return []
    tokens, at = [], 0
    while at + _EVENT.size <= len(data):
        size, _, _, _, _, token, _ = _EVENT.unpack_from(data, at)
        if token >= 0:
            tokens.append(token)
        at += max(size, _EVENT.size)
    return tokens


def allow(fd: int, tokens: list[int]) -> None:
    """Let them go on. One that was killed meanwhile is passed over."""
    for token in tokens:
        try:
            os.write(fd, _RESPONSE.pack(token, _FAN_ALLOW))
        except FileNotFoundError:
            pass
        finally:
            os.close(token)

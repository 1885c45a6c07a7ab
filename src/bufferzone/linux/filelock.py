"""Locks of an open file description, and what makes a network file system look at its server again.

Source: fcntl(2) "Open file description locks", flock(2), statx(2) AT_STATX_FORCE_SYNC, mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from bufferzone.linux import mount as lm
from bufferzone.linux.libc import AT_EMPTY_PATH, syscall

F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 5, 6, 7, 36, 37, 38
F_SETLEASE = 1024
LEASE_UNLOCK = 2
#: l_type
READ, WRITE, UNLOCK = 0, 1, 2
END = (1 << 63) - 1
_FLOCK = struct.Struct("=hhxxxxqqixxxx")  # struct flock where off_t has 64 bits
FLOCK_SIZE = _FLOCK.size
_STATX, _FORCE_SYNC, _STATX_ALL = 332, 0x2000, 0x7FF
_SYNC_FILE_RANGE, _WRITE_AND_WAIT = 277, 7


def pack(kind: int, start: int, end: int, pid: int = 0) -> bytes:
    """struct flock for `kind` and the bytes from `start` up to `end`, `END`: to the end of the file."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start, pid)


def unpack(raw: bytes) -> tuple[int, int, int, int]:
    """(l_type, l_whence, l_start, l_len) of struct flock."""
    kind, whence, start, length, _ = _FLOCK.unpack(raw)
    return kind, whence, start, length


def set_range(fd: int, kind: int, start: int, end: int) -> None:
    """F_OFD_SETLK; raises BlockingIOError where another has it (EAGAIN, EACCES), OSError."""
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, pack(kind, start, end))
    except PermissionError as error:
        raise BlockingIOError(errno.EAGAIN, "fcntl") from error


def test_range(fd: int, kind: int, start: int, end: int) -> tuple[int, int, int]:
    """F_OFD_GETLK: (l_type, start, end) of a lock in the way; l_type `UNLOCK`: none is."""
    found, _, first, length = unpack(fcntl.fcntl(fd, F_OFD_GETLK, pack(kind, start, end)))
    return found, first, first + length if length else END


def look_again(fd: int) -> int:
    """Have size and times of an open file (O_PATH will do) fetched from the server; its mtime in ns."""
    buffer = ctypes.create_string_buffer(256)
    flags = AT_EMPTY_PATH | _FORCE_SYNC
    syscall(_STATX, "statx", fd, b"", flags, _STATX_ALL, buffer)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer.raw, 112)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def forget_names(mount_point: str) -> None:
    """Drop the names below a mount that nobody uses: a remount with the flags it has does that."""
    lm.mount("", mount_point, flags=lm.MS_REMOUNT | _flags_of(mount_point))


def _flags_of(path: str) -> int:
    """Flags for a remount that changes nothing: those of statvfs(3) have mount(2)'s values up to here."""
    return os.statvfs(path).f_flag & (lm.MS_RDONLY | lm.MS_NOSUID | lm.MS_NODEV | lm.MS_NOEXEC)


def write_back(fd: int) -> None:
    """Give the server what was written through a mapping; raises OSError."""
    syscall(_SYNC_FILE_RANGE, "sync_file_range", fd, 0, 0, _WRITE_AND_WAIT)

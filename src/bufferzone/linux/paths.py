"""openat2(2): paths that are resolved inside a directory by the kernel, so that no symlink leads out of
it.
"""

from __future__ import annotations

import os
import struct

from bufferzone.linux.libc import encode, syscall

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10

O_PATH = os.O_PATH


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as a process whose root is the directory `root` would, without magic links; close-on-exec.

    Raises OSError: ENOENT, ELOOP (a magic link of /proc), EAGAIN never leaves (a racing rename is retried).
    """
    return _open(root, path, flags, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def open_below(root: int, path: str, flags: int) -> int:
    """Open `path` below the directory `root`, with no symbolic link and no `..` out of it; close-on-exec.

    Raises OSError: ELOOP (a symbolic link), EXDEV (it leads out).
    """
    return _open(root, path, flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)


def _open(root: int, path: str, flags: int, mode: int, resolve: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        try:
            return syscall(_OPENAT2, "openat2", root, encode(path), how, len(how), path=path)
        except BlockingIOError:
            continue

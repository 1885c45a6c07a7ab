"""mount(2), umount2(2), pivot_root(2) and the mount API of Linux 5.2 (open_tree, move_mount,
mount_setattr).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from bufferzone.linux.libc import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, call, encode, syscall

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = 0x10, 0x20, 0x40, 0x80
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 0x100, 0x400, 0x800
MS_BIND, MS_MOVE, MS_REC, MS_SILENT = 0x1000, 0x2000, 0x4000, 0x8000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_I_VERSION, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 23, 1 << 24, 1 << 25
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

_PIVOT_ROOT, _OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 155, 428, 429, 442
_FSOPEN, _FSOPEN_CLOEXEC = 430, 1
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    call(
        "mount",
        encode(source),
        encode(target),
        encode(fstype) or None,
        ctypes.c_ulong(flags),
        encode(data) or None,
        path=target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    call("umount2", encode(target), flags, path=target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    syscall(_PIVOT_ROOT, "pivot_root", encode(new_root), encode(put_old), path=new_root)


def open_tree(path: str, *, at: int = AT_FDCWD, recursive: bool = True) -> int:
    """A detached copy (bind) of the mount tree at `path` as a close-on-exec descriptor; see open_tree(2).

    An empty `path` means the object `at` refers to.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    flags |= (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return syscall(_OPEN_TREE, "open_tree", at, encode(path), flags, path=path)


def move_mount(fd: int, target: str, *, at: int = AT_FDCWD) -> None:
    """Attach a detached mount at `target` (an empty `target` means the object `at` refers to)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (0 if target else _MOVE_MOUNT_T_EMPTY_PATH)
    syscall(_MOVE_MOUNT, "move_mount", fd, b"", at, encode(target), flags, path=target)


def is_known(fstype: str) -> bool:
    """Whether this kernel has the file system, or a module for it, which is loaded; true if it is not for us
    to know. Source: fsopen(2).
    """
    try:
        os.close(syscall(_FSOPEN, "fsopen", encode(fstype), _FSOPEN_CLOEXEC))
    except OSError as error:
        return error.errno != errno.ENODEV
    return True


def set_attributes(
    fd: int, *, add: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = True, path: str = ""
) -> None:
    """mount_setattr(2) on the mount that `fd` (or `path` below it) refers to."""
    attributes = struct.pack("=QQQQ", add, clear, propagation, 0)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    syscall(_MOUNT_SETATTR, "mount_setattr", fd, encode(path), flags, attributes, len(attributes))

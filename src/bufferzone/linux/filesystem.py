"""Which file system an open file lies on. Source: statfs(2), Linux include/uapi/linux/magic.h."""

from __future__ import annotations

import ctypes
import struct

from bufferzone.linux.libc import call

FUSE = 0x65735546
TMPFS = 0x01021994
#: file systems whose files are made as they are read, so that their size says 0
PSEUDO = {
    0x9FA0: "proc",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
}


def magic_of(fd: int) -> int:
    """f_type of statfs(2); an O_PATH descriptor will do."""
    buffer = ctypes.create_string_buffer(256)
    call("fstatfs", fd, buffer)
    return int(struct.unpack_from("=q", buffer.raw)[0])

"""A FUSE file system of one file, whose size is not its length: as of lxcfs and others with direct_io.

Source: include/uapi/linux/fuse.h of Linux, protocol 7.31.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bufferzone.linux import mount

_GETATTR, _OPEN, _READ, _STATFS, _INIT = 3, 14, 15, 17, 26
_DIRECT_IO = 1


@contextmanager
def mounted(path: Path, content: bytes, size: int) -> Iterator[Path]:
    """The existing file `path` is `content` as long as it lasts, and its size says `size`."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount.mount("f", str(path), "fuse", 0, f"fd={device},rootmode=100644,user_id=0,group_id=0")
    server = threading.Thread(target=_serve, args=(device, content, size))
    server.start()
    try:
        yield path
    finally:
        mount.unmount(str(path), mount.MNT_DETACH)
        server.join(60)
        os.close(device)
    assert not server.is_alive()


def _serve(device: int, content: bytes, size: int) -> None:
    """Answer until the last mount has gone (ENODEV)."""
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return
        _, opcode, unique = struct.unpack_from("=IIQ", request)
        status, answer = 0, b""
        if opcode == _INIT:
            answer = struct.pack("=IIIIHHI", 7, 31, 0, 0, 0, 0, 4096) + bytes(40)
        elif opcode == _GETATTR:
            answer = bytes(16) + struct.pack("=QQQ24x3I7I", 1, size, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 0, 0)
        elif opcode == _OPEN:
            answer = struct.pack("=QII", 1, _DIRECT_IO, 0)
        elif opcode == _STATFS:
            answer = bytes(80)
        elif opcode == _READ:
            _, offset, wanted = struct.unpack_from("=QQI", request, 40)
            answer = content[offset : offset + wanted]
        else:
            status = -errno.ENOSYS
        if opcode not in (2, 36, 42):  # FORGET, INTERRUPT and BATCH_FORGET have no answer
            os.write(device, struct.pack("=IiQ", 16 + len(answer), status, unique) + answer)

"""Loop devices: a file as a block device, for as long as something uses it. Source: loop(4)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_CONTROL = "/dev/loop-control"
_CTL_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
#: struct loop_config, of whose loop_info64 only lo_flags is set
_CONFIG = struct.Struct("=II52xI240x")
_TRIES = 32


def attach(fd: int) -> int:
    """A loop device that shows the file behind `fd`, read-only; returns its descriptor, close-on-exec.

    The device is free again when its last user is gone: descriptors, and what is mounted from it. Raises
    OSError: ENOENT without the driver, EBUSY when others were faster every time.
    """
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = os.open(f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(fd, 0, _READ_ONLY | _AUTOCLEAR))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), _CONTROL)

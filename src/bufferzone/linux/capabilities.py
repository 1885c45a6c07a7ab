"""Which capabilities this process has: capget(2), PR_CAPBSET_READ. Setting them is in `linux.process`."""

from __future__ import annotations

import ctypes
import struct

from bufferzone.linux.libc import call, syscall

_CAPGET, _VERSION_3, _PR_CAPBSET_READ = 125, 0x20080522, 23


def permitted() -> int:
    """The permitted set as a mask."""
    data = ctypes.create_string_buffer(24)
    syscall(_CAPGET, "capget", struct.pack("=Ii", _VERSION_3, 0), data)
    words = struct.unpack("=6I", data.raw)
    return int(words[1] | words[4] << 32)


def bounding() -> int:
    """The bounding set as a mask."""
    unused, mask = ctypes.c_ulong(0), 0
    for number in range(64):
        try:
            mask |= call("prctl", _PR_CAPBSET_READ, ctypes.c_ulong(number), unused, unused, unused) << number
        except OSError:
            break  # beyond the kernel's last capability
    return mask

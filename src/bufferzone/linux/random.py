"""Feeding the kernel's random number generator; random(4)."""

from __future__ import annotations

import fcntl
import os
import struct

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207


def add_entropy(data: bytes) -> None:
    """RNDADDENTROPY with full credit, then RNDRESEEDCRNG: what is drawn from now on depends on `data`."""
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)

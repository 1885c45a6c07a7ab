"""Tap devices: the Ethernet end of a virtual machine's NIC. Source: Documentation/networking/tuntap.rst."""

from __future__ import annotations

import fcntl
import os
import struct

DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_TUN_EXCL = 0x8000


def create(name: str) -> int:
    """Make the tap `name` in this thread's network namespace; it goes when the descriptor is closed.

    Frames carry a virtio-net header, so that offloads pass. Raises OSError: ENOENT without the device,
    EPERM without CAP_NET_ADMIN, EBUSY when there is one of that name.
    """
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd

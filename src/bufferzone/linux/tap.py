"""Tap devices: the Ethernet end of a virtual machine's NIC. Source: Documentation/networking/tuntap.rst."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bufferzone.linux.libc import syscall

DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNSETPERSIST, _TUNSETOWNER = 0x400454CB, 0x400454CC
_SIOCGSKNS = 0x894C
_PIDFD_GETFD = 438
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


def leave(fd: int, owner: int) -> tuple[str, int]:
    """Let go of the tap behind `fd`, which stays, so that a program of the user `owner` can attach to it by
    name: its name, and a descriptor of the network namespace that it is in. `fd` is /dev/null then.

    Who asks for a tap by name gets none that another descriptor has. It stays until it or its namespace is
    removed, or its program says that it shall not. Raises OSError.
    """
    name = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()
    namespace = fcntl.ioctl(fd, _SIOCGSKNS)
    try:
        os.set_inheritable(namespace, False)
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, fd, inheritable=False)
        os.close(null)
    except BaseException:
        os.close(namespace)
        raise
    return name, namespace


def come_back(fd: int, name: str) -> None:
    """Have `fd`, which `leave` made /dev/null, be the tap `name` of this thread's network namespace again,
    whether that is still there or not. Raises OSError.
    """
    again = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(again, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(again, _TUNSETPERSIST, 0)
        os.dup2(again, fd, inheritable=False)
    finally:
        os.close(again)


def end_with(pidfd: int, pid: int, name: str) -> None:
    """Have the tap `name` go with the process that attached to it, as one that no other program has lent.

    The descriptor is that process's own: a copy of it is taken and closed. Raises OSError (ESRCH: it has no
    such tap), pidfd_getfd(2).
    """
    for number in os.listdir(f"/proc/{pid}/fdinfo"):
        with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
            if f"\niff:\t{name}\n" not in file.read():
                continue
        fd = syscall(_PIDFD_GETFD, "pidfd_getfd", pidfd, int(number), 0)
        try:
            fcntl.ioctl(fd, _TUNSETPERSIST, 0)
        finally:
            os.close(fd)
        return
    raise OSError(errno.ESRCH, f"no tap {name} in process {pid}")

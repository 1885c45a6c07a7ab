"""Network interfaces by ioctl; netdevice(7)."""

from __future__ import annotations

import _socket
import fcntl
import struct

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1


def bring_up(name: str) -> None:
    """SIOCSIFFLAGS with IFF_UP, keeping the other flags."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
    finally:
        sock.close()

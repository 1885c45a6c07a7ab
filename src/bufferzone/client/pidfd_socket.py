"""What --pidfd-socket asks for: a descriptor of the process that stands for one in the VM. It is sent as that
of a terminal is. Source: runc(8), create.
"""

from __future__ import annotations

import os

from bufferzone.client.connection import connect_unix, rights
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
else:
    import _socket as socket  # see client/connection.py


def send(path: str, pid: int) -> None:
    """Send a descriptor of `pid`, a child or orphan of ours that nobody has reaped. Raises `HostError`."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connect_unix(sock, path)
            pidfd = os.pidfd_open(pid)
            try:
                sock.sendmsg([b"pidfd"], [rights([pidfd])])
            finally:
                os.close(pidfd)
        finally:
            sock.close()
    except OSError as error:
        raise HostError(f"pidfd socket {path}: {error.strerror}", code="pidfd-socket") from error

"""Whose a network namespace is: an abstract unix socket in it, which one process at a time can bind.

Such a name belongs to the namespace, whichever state root or user asks, and goes with its process, however
that ends. Source: unix(7), network_namespaces(7).
"""

from __future__ import annotations

import errno
import socket

from bufferzone.errors import HostError
from bufferzone.network import namespace

NAME = "\0bufferzone"


def take(fd: int) -> socket.socket:
    """Make the network namespace `fd` ours until the socket is closed, which keeps the namespace too.

    Raises `HostError` `network-in-use` while it is another's, and OSError.
    """
    try:
        return namespace.inside(fd, _bind)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise HostError(
            "its network namespace is already used by another VM",
            hint="containers that share a network namespace must share the sandbox",
            code="network-in-use",
        ) from error


def _bind() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(NAME)
    except BaseException:
        sock.close()
        raise
    return sock

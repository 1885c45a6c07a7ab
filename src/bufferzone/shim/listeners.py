"""The sockets that a shim is reached at: the state directory's, or the one that containerd names."""

from __future__ import annotations

import os
import socket

from bufferzone import state
from bufferzone.errors import HostError
from bufferzone.shim import address


def listen(directory: str) -> socket.socket:
    """Listen on the state directory's socket; paths longer than sun_path go through /proc/self/fd."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o077)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{state.SOCKET}")
        listener.listen(64)
    except OSError as error:
        raise HostError(f"cannot listen in {directory}: {error.strerror}", code="socket") from error
    finally:
        os.close(fd)
    return listener


def listen_at(path: str) -> socket.socket:
    """Listen at containerd's address for this shim; what lies there is of one that is gone.

    Raises OSError.
    """
    return socket.socket(fileno=address.bound(path))

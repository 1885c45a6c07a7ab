"""The socket in the state directory, at which a shim is reached that containerd did not start."""

from __future__ import annotations

import os
import socket

from bufferzone import state
from bufferzone.errors import HostError


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

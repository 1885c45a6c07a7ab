"""The keeper's socket, which callers look for, and the notice that it is no longer where they look.

Knows the form of a request, one JSON object on one line, and not what is asked.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct

from bufferzone import state
from bufferzone.errors import HostError
from bufferzone.linux import inotify
from bufferzone.linux.ignoring import ignoring
from bufferzone.log import passing_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_REQUEST = 1 << 16
_REQUEST_S = 1.0


class Listener:
    """`state.POOL_SOCKET` in `directory`, listening. `place` is the directory wherever it is moved, `watch` a
    descriptor
    that is readable when `is_there` may have changed, or -1. Raises `HostError`.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, state.POOL_SOCKET)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._fd = self.watch = -1
        try:
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with ignoring(errno.ENOENT):
                os.unlink(state.POOL_SOCKET, dir_fd=self._fd)
            self.listener.bind(f"{self.place}/{state.POOL_SOCKET}")
            self.listener.listen(64)
            self._ours = os.lstat(f"{self.place}/{state.POOL_SOCKET}")
        except OSError as error:
            self.close()
            raise HostError(f"cannot listen in {directory}: {error.strerror}", code="socket") from error
        with passing_over(f"watch {directory}", OSError):  # then `is_there` is asked from time to time
            self.watch = inotify.watch_going(directory, os.path.dirname(directory))

    @property
    def place(self) -> str:
        """The directory, as a path that follows it."""
        return f"/proc/self/fd/{self._fd}"

    def is_there(self) -> bool:
        """Whether callers still find this socket: nobody removed or moved it, or what it lies in."""
        if self.watch >= 0:
            inotify.drain(self.watch)
        try:
            return os.path.samestat(os.lstat(self._path), self._ours)
        except OSError:
            return False

    def shut(self) -> None:
        """No more callers. What another keeper put in our place stays."""
        self.listener.close()
        with ignoring(errno.ENOENT):
            path = f"{self.place}/{state.POOL_SOCKET}"
            if os.path.samestat(os.lstat(path), self._ours):
                os.unlink(path)

    def close(self) -> None:
        """Close all that is open."""
        self.listener.close()
        for fd in (self._fd, self.watch):
            if fd >= 0:
                os.close(fd)
        self._fd = self.watch = -1


def receive(connection: socket.socket, fds: list[int]) -> dict[str, Any]:
    """A request of our own uid, one line; descriptors that came along are added to `fds`.

    Raises `HostError`, OSError, ValueError or TypeError.
    """
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        raise HostError(f"a caller of uid {uid}")
    connection.settimeout(_REQUEST_S)
    data = b""
    while not data.endswith(b"\n"):
        chunk, received, _, _ = socket.recv_fds(connection, MOST_REQUEST, 4, socket.MSG_CMSG_CLOEXEC)
        fds += received
        data += chunk
        if not chunk or len(data) > MOST_REQUEST:
            raise ValueError("not one line")
    request = json.loads(data)
    if not isinstance(request, dict):
        raise TypeError("not an object")
    return request

"""Copies of single files, for a container whose root file system is on a disk. Copies no directory.

Given at create, and once more at start where they changed: an engine makes /etc/hosts and /etc/resolv.conf
before create and may fill them once it knows the network, as Podman 5 does. A bind mount would show that, and
keeps the file that was there at create, whatever its name leads to later; so do these.
"""

from __future__ import annotations

import os

from bufferzone.errors import HostError
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from bufferzone.model import FileCopy

    Send = Callable[[agent.WriteFileRequest], object]


class Copies:
    """The copies that one container has; none at first."""

    def __init__(self) -> None:
        self._given: list[tuple[int, str, agent.WriteFileRequest]] = []

    def give(self, files: Sequence[FileCopy], send: Send, undo: ExitStack) -> None:
        """Open every file, until `undo`, and send what is in it. Raises `HostError`."""
        for file in files:
            try:
                fd = os.open(file.source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _unreadable(file.source, error.strerror) from error
            undo.callback(os.close, fd)
            request = _read(fd, file.source, file.name)
            send(request)
            self._given.append((fd, file.source, request))

    def renew(self, send: Send) -> None:
        """Send those that changed since they were sent. Raises `HostError`."""
        for index, (fd, source, before) in enumerate(self._given):
            request = _read(fd, source, before.name)
            if request != before:
                send(request)
                self._given[index] = (fd, source, request)


def _read(fd: int, source: str, name: str) -> agent.WriteFileRequest:
    try:
        found, data = os.fstat(fd), os.pread(fd, agent.MOST_FILE + 1, 0)
    except OSError as error:
        raise _unreadable(source, error.strerror) from error
    if len(data) > agent.MOST_FILE:
        raise _unreadable(source, f"more than {agent.MOST_FILE} bytes")
    return agent.WriteFileRequest(
        name=name, data=data, mode=found.st_mode & 0o777, uid=found.st_uid, gid=found.st_gid
    )


def _unreadable(source: str, reason: str | None) -> HostError:
    return HostError(f"cannot read {source}: {reason}", code="volume")

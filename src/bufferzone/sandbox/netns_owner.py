"""The network namespaces that are this sandbox's: claimed, so that no other VM takes their interfaces, and
published, so that a container that names one of them finds the shim to join.

ROOT/@net-DEV-INO is another name (a hard link) of the shim's socket: it leads to the shim for as long as that
listens, whichever of its containers is deleted, and to nobody once the shim has been killed. It is removed
before the namespace is let go, so its inode cannot be another namespace's by then.
"""

from __future__ import annotations

import errno
import os
import threading

from bufferzone import log, state
from bufferzone.errors import CallerError, HostError, StateError
from bufferzone.linux.ignoring import ignoring
from bufferzone.network import claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from bufferzone.sandbox.sandbox import Sandbox


class _Entry:
    def __init__(self, claimed: socket.socket, path: str) -> None:
        self.claimed, self.path = claimed, path
        self.users = 1
        self.attached = False


class NetnsOwner:
    """Thread-safe. `directory` is the state directory with the socket, empty: nothing is published."""

    def __init__(self, directory: str, sandbox: Sandbox) -> None:
        self._directory, self._sandbox = directory, sandbox
        self._lock = threading.Lock()
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._ended = False

    def take(self, fd: int, *, joining: bool) -> None:
        """One more container is in the namespace `fd`; `joining`: it has to be the sandbox's already.

        Raises `HostError` `network-in-use` when it is another VM's, `CallerError` when it is not ours and has
        to be, `StateError` once the VM has ended.
        """
        key = _identity(fd)
        with self._lock:
            if self._ended:
                raise StateError("its VM has ended", code="vm-ended")
            if key in self._entries:
                self._entries[key].users += 1
                return
            if joining:
                raise CallerError("its network namespace is not that of the VM", code="network")
            try:
                claimed = claim.take(fd)
            except OSError as error:
                raise HostError(f"its network namespace: {error.strerror}", code="network") from error
            self._entries[key] = _Entry(claimed, self._publish(key))

    def drop(self, fd: int) -> bool:
        """One container less; whether it was the last in that namespace."""
        key = _identity(fd)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return True
            entry.users -= 1
            if entry.users:
                return False
            del self._entries[key]
            _release(entry)
            return True

    def is_attached(self, fd: int) -> bool:
        """Whether the interfaces in there are the VM's, and in use: they are not looked at again."""
        with self._lock:
            entry = self._entries.get(_identity(fd))
            return entry is not None and entry.attached

    def set_attached(self, fd: int) -> None:
        """A container runs on the interfaces in there."""
        with self._lock:
            if entry := self._entries.get(_identity(fd)):
                entry.attached = True

    def close(self) -> None:
        """The VM has ended: others may have the namespaces, and nobody joins it any more."""
        with self._lock:
            self._ended = True
            for entry in self._entries.values():
                _release(entry)
            self._entries.clear()

    def _publish(self, key: tuple[int, int]) -> str:
        """What a killed shim left under that name is replaced: the claim says that it is nobody's."""
        if not self._directory:
            return ""
        path = state.netns_entry(os.path.dirname(self._directory), *key)
        socket_path = os.path.join(self._directory, state.SOCKET)
        try:
            found = os.stat(socket_path)
            self._sandbox.left.add_link(path, [found.st_dev, found.st_ino])
            with ignoring(errno.ENOENT):
                os.unlink(path)
            os.link(socket_path, path, follow_symlinks=False)
        except OSError as error:
            raise HostError(f"cannot make {path}: {error.strerror}", code="write-failed") from error
        return path


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _release(entry: _Entry) -> None:
    if entry.path:
        with log.passing_over(f"remove {entry.path}", OSError), ignoring(errno.ENOENT):
            os.unlink(entry.path)
    entry.claimed.close()

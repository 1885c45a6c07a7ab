"""The cgroup of a VM that is none: one for the agent, one for its containers, in the unified hierarchy.

The shim has it locked as long as it lives (flock(2), on the directory): one that a killed shim left is
nobody's, and the next start removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from bufferzone.errors import HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.log import passing_over

_NAME = "bufferzone-host-"


def unified() -> str:
    """Where cgroup v2 is mounted and may be written to, or empty."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK):
                return fields[1]
    return ""


class VmCgroup:
    """A cgroup of this process's VM. `containers` is where the agent makes those of its containers."""

    def __init__(self) -> None:
        """Raises `HostError`."""
        root = unified()
        if not root:
            raise HostError(
                "no writable cgroup v2 hierarchy is mounted, which the agent on the host needs", code="cgroup"
            )
        _sweep(root)
        try:
            self._path, self._lock = _make(root)
            self._agent, self.containers = (
                os.path.join(self._path, name) for name in ("agent", "containers")
            )
            _enable_controllers(self._path)
            for path in (self._agent, self.containers):
                os.mkdir(path, 0o755)
        except OSError as error:
            raise HostError(f"cannot make a cgroup in {root}: {error.strerror}", code="cgroup") from error

    def join(self) -> None:
        """Move this process to the agent's; raises OSError."""
        _write(f"{self._agent}/cgroup.procs", "0")

    def freeze(self, frozen: bool) -> None:
        """Let everything in it stand still, or go on; raises OSError."""
        _write(f"{self._path}/cgroup.freeze", "1" if frozen else "0")

    def remove(self) -> None:
        """Remove it, once all that was in it has ended. May be called twice."""
        _remove(self._path)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make(root: str) -> tuple[str, int]:
    """A new one and the lock on it, which ends with us. Its name has our pid, for people: that of a process
    says nothing to those who look from another PID namespace, and they share this directory.
    """
    while True:
        path = os.path.join(root, f"{_NAME}{os.getpid()}-{os.urandom(4).hex()}")
        os.mkdir(path, 0o755)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody swept it away before it was locked
        if _try_lock(lock) and os.path.exists(path):
            return path, lock
        os.close(lock)


def _sweep(root: str) -> None:
    """Remove what nobody has locked."""
    for name in os.listdir(root):
        if not name.startswith(_NAME):
            continue
        path = os.path.join(root, name)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # gone
        try:
            if _try_lock(lock):
                _remove(path)
        finally:
            os.close(lock)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(top: str) -> None:
    for path, _, _ in os.walk(top, topdown=False):
        with ignoring(errno.EBUSY, errno.ENOENT):  # a process that is still going: the next start's
            os.rmdir(path)


def _enable_controllers(path: str) -> None:
    with open(f"{path}/cgroup.controllers", encoding="ascii") as file:
        for name in file.read().split():
            with passing_over(f"give {name} to the agent", OSError):  # its containers go without
                _write(f"{path}/cgroup.subtree_control", f"+{name}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)

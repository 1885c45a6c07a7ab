"""The cgroup of a VM that is none: one for the agent, one for its containers, in the unified hierarchy.

Named after the shim's pid, so that one that a killed shim left is found, and removed by the next start.
"""

from __future__ import annotations

import errno
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
        self._path = os.path.join(root, f"{_NAME}{os.getpid()}")
        self._agent, self.containers = (os.path.join(self._path, name) for name in ("agent", "containers"))
        try:
            os.mkdir(self._path, 0o755)
            _enable_controllers(self._path)
            for path in (self._agent, self.containers):
                os.mkdir(path, 0o755)
        except OSError as error:
            raise HostError(
                f"cannot make the cgroup {self._path}: {error.strerror}", code="cgroup"
            ) from error

    def join(self) -> None:
        """Move this process to the agent's; raises OSError."""
        _write(f"{self._agent}/cgroup.procs", "0")

    def freeze(self, frozen: bool) -> None:
        """Let everything in it stand still, or go on; raises OSError."""
        _write(f"{self._path}/cgroup.freeze", "1" if frozen else "0")

    def remove(self) -> None:
        """Remove it, once all that was in it has ended."""
        _remove(self._path)


def _sweep(root: str) -> None:
    for name in os.listdir(root):
        pid = name.removeprefix(_NAME)
        if name != pid and pid.isdigit() and not _is_alive(pid):
            _remove(os.path.join(root, name))


def _is_alive(pid: str) -> bool:
    """Whether the process runs; one that has ended may be waiting for its parent."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


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

"""The process that writes a checkpoint: what a shim in a limited cgroup must not write itself.

Pages of a file belong to the cgroup of whoever touched them first, those of a copy in memory for as long as
it lives. The container's cgroup has no room for its VM twice: the kernel would kill one of us. So a child of
the shim leaves for the root cgroup, where it can, and copies there. It ends with the thread that started it.
Source: Documentation/admin-guide/cgroup-v1/memory.rst, "2.3 Shared Page Accounting".
"""

from __future__ import annotations

import json
import os
import socket

from bufferzone import programs
from bufferzone.errors import HostError
from bufferzone.linux import process
from bufferzone.storage import ram
from bufferzone.vm import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_LINE = 1 << 12


class Saver:
    """Our end. `outside`: it is in another memory cgroup than we are, or there is none to be in."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair()
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, there.fileno(), 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            ]
            argv = programs.argv("shim", "saver")
            self._pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions)
        except BaseException:
            self._socket.close()
            raise
        finally:
            there.close()
        try:
            self.outside = bool(self._answer()["outside"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy(self, source_fd: int, target_fd: int) -> None:
        """As `ram.copy`. Raises OSError or `HostError`."""
        self._ask("copy", source_fd, target_fd)

    def pack(self, source_fd: int, target_fd: int) -> str:
        """As `ram.pack`, and on the disk; returns the digest of the file. Raises OSError or `HostError`."""
        return str(self._ask("pack", source_fd, target_fd)["digest"])

    def close(self) -> None:
        """End it."""
        self._socket.close()
        if self._pid > 0:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _ask(self, what: str, *fds: int) -> dict[str, Any]:
        try:
            socket.send_fds(self._socket, [what.encode()], fds)
        except OSError as error:
            raise _gone() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._socket.recv(_MOST_LINE)
        except OSError as error:
            raise _gone() from error
        if not line:
            raise _gone()
        value: dict[str, Any] = json.loads(line)
        if "errno" in value:
            raise OSError(value["errno"], value["message"])
        if "message" in value:
            raise HostError(value["message"], code=value["code"])
        return value


def _gone() -> HostError:
    return HostError("the process that writes the checkpoint died", code="saver-died")


def run_saver(fd: int) -> int:
    """The child's life: answer one order after the other on the socket `fd` until its other end closes."""
    process.die_with_parent()
    process.set_name("bufferzone-save")
    os.chdir("/")
    with socket.socket(fileno=fd) as orders:
        outside = _leave()
        _say(orders, {"outside": outside})
        while True:
            what, fds, _, _ = socket.recv_fds(orders, 64, 2)
            if not what:
                return 0
            try:
                answer = _obey(what.decode(), *fds, drop=not outside)
            except OSError as error:
                answer = {"errno": error.errno, "message": error.strerror}
            except HostError as error:
                answer = {"message": error.message, "code": error.code}
            finally:
                for each in fds:
                    os.close(each)
            _say(orders, answer)


def _leave() -> bool:
    """Leave for the root cgroup; whether what we touch is no longer charged to our parent's."""
    before = memory_cgroup("self")
    try:
        cgroups.join("", os.getpid())
    except HostError:
        pass  # not ours to change: then the VM stands still for longer
    return not before or memory_cgroup("self") != before


def memory_cgroup(pid: str) -> str:
    """The path of the memory cgroup of a process; empty in the root of all, where nothing is limited."""
    found = ""
    for line in cgroups.read_file(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return path.rstrip("/")
        if not controllers:
            found = path.rstrip("/")
    return found


def _obey(what: str, source_fd: int, target_fd: int, *, drop: bool) -> dict[str, Any]:
    if what == "copy":
        ram.copy(source_fd, target_fd)
        return {}
    ram.pack(source_fd, target_fd)
    os.fsync(target_fd)
    digest = ram.digest(target_fd, os.fstat(target_fd).st_size)
    if drop:
        os.posix_fadvise(target_fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return {"digest": digest}


def _say(orders: socket.socket, value: dict[str, Any]) -> None:
    orders.sendall(json.dumps(value).encode())

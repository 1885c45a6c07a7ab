"""The agent on the host as a `vmm.interface.Vmm`: a process with its descendants, its channels, its log.

What a VMM does to a machine, this one asks the agent for, on a channel of their own; see `guest.hosted`.
"""

from __future__ import annotations

import os
import socket

from bufferzone import vmmfeatures
from bufferzone.errors import VmmError
from bufferzone.linux import loopdevice
from bufferzone.vmm.explain import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from bufferzone.model import Share
    from bufferzone.spawn import Child
    from bufferzone.vmm.console import Reader
    from bufferzone.vmm.host.cgroup import VmCgroup

FEATURES = vmmfeatures.BY_NAME["host"]
_LINES = 20
#: what the agent is told, as `guest.hosted` has it, and its one answer when that is done; seconds until then
_DISK, _SAVE, _LOAD, _DONE = b"D", b"S", b"L", b"d"
_ANSWER_S = 60.0


class HostVm:
    """An agent that runs. Owns its process, its channels, its cgroup and its log."""

    features = FEATURES

    def __init__(
        self,
        child: Child,
        agent: socket.socket,
        machine: socket.socket,
        cgroup: VmCgroup,
        console: Reader,
    ) -> None:
        self.agent, self._machine = agent, machine
        machine.settimeout(_ANSWER_S)
        self.version = f"{FEATURES.name} {os.uname().release}"
        self._child, self._cgroup, self._console = child, cgroup, console

    @property
    def pid(self) -> int:
        """The agent's process id, in the host's namespace."""
        return self._child.pid

    def fileno(self) -> int:
        """The pidfd: readable when the agent, and all that it has started, is gone."""
        return self._child.pidfd

    def watch(self) -> None:
        """Start the thread that drains what the agent prints."""
        self._console.start()

    def greet(self, timeout_s: float = 20.0) -> None:
        """Nothing stands between us and the agent."""

    def load(self, state_fd: int) -> None:
        """Give the agent its state; it makes the container when that is adopted."""
        self._tell(_LOAD, state_fd, "restore")

    def plug_share(self, share: Share) -> None:
        """Raises `VmmError`."""
        self._refuse("plug a share")

    def insert_disk(self, name: str, fd: int) -> None:
        """Give the agent the disk of a root file system; there is one slot. Raises `VmmError`."""
        try:
            device = loopdevice.attach(fd)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise VmmError(f"cannot make a loop device: {error.strerror}{where}") from error
        try:
            self._tell(_DISK, device, f"take the disk {name}")
        finally:
            os.close(device)

    def plug_nic(self, tap_fd: int, *, number: int, mac: str) -> None:
        """Raises `VmmError`."""
        self._refuse("plug a NIC")

    def resume(self) -> None:
        """Let everything go on."""
        self._freeze(False)

    def stop(self) -> None:
        """Let the agent and its containers stand still."""
        self._freeze(True)

    def save(self, state_fd: int) -> None:
        """Have the agent write its state and fill its memory, then let it stand still."""
        self._tell(_SAVE, state_fd, "save")
        self.stop()

    def squeezed(self, *, memory: int, free: int) -> AbstractContextManager[None]:
        """Raises `VmmError`."""
        self._refuse("take memory from a guest")

    def failure(self, phase: str, *, waited_s: float | None = None) -> VmmError:
        """The explanation of what went wrong in `phase`, from the exit status and what the agent printed."""
        status = self._child.wait_exit(0.5)
        if status is not None:
            self._console.join()
        tail = self._console.log.tail(_LINES)
        return explain(phase, program=FEATURES.label, status=status, console=tail, waited_s=waited_s)

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """The exit status, negative for a signal; None when `timeout_s` passed first."""
        return self._child.wait_exit(timeout_s)

    def kill(self) -> None:
        """SIGKILL, for the agent and everything that it has started."""
        self._child.kill()

    def close(self) -> None:
        """Kill, reap, close everything. May be called twice."""
        self._child.close()
        self.agent.close()
        self._machine.close()
        self._console.join()
        self._cgroup.remove()

    def _freeze(self, frozen: bool) -> None:
        try:
            self._cgroup.freeze(frozen)
        except OSError as error:
            raise VmmError(f"cannot stop or resume the agent: {error.strerror}") from error

    def _tell(self, tag: bytes, fd: int, what: str) -> None:
        """Say it and wait until it is done. Raises `VmmError`; OSError for a file that did not take it."""
        try:
            socket.send_fds(self._machine, [tag], [fd])
            answer = self._machine.recv(4096)
        except TimeoutError as error:
            raise VmmError(
                f"the agent did not {what} within {_ANSWER_S:g} s", code="agent-timeout"
            ) from error
        except OSError as error:
            raise VmmError(f"the agent could not {what}: {error.strerror}", code="agent-lost") from error
        if answer == _DONE:
            return
        if not answer:
            raise VmmError(f"the agent ended and did not {what}", code="agent-lost")
        number, _, text = answer.decode("utf-8", "replace").partition(" ")
        if int(number):
            raise OSError(int(number), text)
        raise VmmError(f"the agent cannot {what}: {text}")

    def _refuse(self, what: str) -> NoReturn:
        raise VmmError(f"{FEATURES.label} cannot {what}", code="vmm-feature")

"""The agent on the host as a `vmm.interface.Vmm`: a process with its descendants, its channel, its log."""

from __future__ import annotations

import os

from bufferzone.errors import VmmError
from bufferzone.model import Features
from bufferzone.vmm.explain import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from bufferzone.model import Share
    from bufferzone.spawn import Child
    from bufferzone.vmm.console import Reader
    from bufferzone.vmm.host.cgroup import VmCgroup

FEATURES = Features(
    name="host",
    label="the host without a VM",
    wall=False,
    kernel=False,
    virtiofs=False,
    tree=True,
    share_in_template=False,
    nic=False,
    hotplug_nic=False,
    slot_bytes=0,
    snapshot=False,
    balloon=False,
)
_LINES = 20


class HostVm:
    """An agent that runs. Owns its process, the channel, its cgroup and its log."""

    features = FEATURES

    def __init__(self, child: Child, agent: socket.socket, cgroup: VmCgroup, console: Reader) -> None:
        self.agent = agent
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
        """Raises `VmmError`."""
        self._refuse("restore a VM")

    def plug_share(self, share: Share) -> None:
        """Raises `VmmError`."""
        self._refuse("plug a share")

    def insert_disk(self, name: str, fd: int) -> None:
        """Raises `VmmError`."""
        self._refuse("show a disk")

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
        """Raises `VmmError`."""
        self._refuse("save a VM")

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
        self._console.join()
        self._cgroup.remove()

    def _freeze(self, frozen: bool) -> None:
        try:
            self._cgroup.freeze(frozen)
        except OSError as error:
            raise VmmError(f"cannot stop or resume the agent: {error.strerror}") from error

    def _refuse(self, what: str) -> NoReturn:
        raise VmmError(f"{FEATURES.label} cannot {what}", code="vmm-feature")

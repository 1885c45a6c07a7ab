"""The taps of a VM's NICs, which Firecracker attaches to by name where QEMU inherits a descriptor."""

from __future__ import annotations

import os

from bufferzone import log
from bufferzone.errors import HostError
from bufferzone.linux import apart, process, tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.model import VmSpec
    from bufferzone.spawn import Child


class LentTaps:
    """Lets go, for `owner`, of the taps behind the descriptors of `spec.nics`: those are /dev/null then.

    `names` are theirs, `network` is a descriptor of the network namespace they are in (-1: there is none),
    until `settle` or `take_back`. Raises `HostError`.
    """

    def __init__(self, spec: VmSpec, owner: int) -> None:
        self.names: tuple[str, ...] = ()
        self.network = -1
        self._fds: tuple[int, ...] = ()
        for nic in spec.nics:
            try:
                name, network = tap.leave(nic.fd, owner)
            except OSError as error:
                self.take_back()
                raise HostError(f"cannot hand over a tap: {error.strerror}", code="no-tap") from error
            self.settle()  # all are in one namespace
            self.network = network
            self.names, self._fds = (*self.names, name), (*self._fds, nic.fd)

    def tie(self, child: Child) -> None:
        """Firecracker has attached to them: they are to go with it."""
        for name in self.names:
            with log.passing_over(f"the tap {name} stays when {child.name} is killed", OSError):
                tap.end_with(child.pidfd, child.pid, name)

    def settle(self) -> None:
        """They stay with it: the caller may close its descriptors. A second call changes nothing."""
        if self.network >= 0:
            os.close(self.network)
            self.network = -1

    def take_back(self) -> None:
        """It has ended and its guest never ran: what the caller's descriptors were they are again, for the VM
        that is started in its place. Nothing once they are settled.
        """
        if self.network < 0:
            return
        for name, fd in zip(self.names, self._fds, strict=True):
            with log.passing_over(f"the tap {name} is lost with the VM", OSError):
                apart.run(lambda name=name, fd=fd: _again(self.network, name, fd))  # type: ignore[misc]
        self.settle()


def _again(network: int, name: str, fd: int) -> None:
    process.setns(network, process.CLONE_NEWNET)
    tap.come_back(fd, name)

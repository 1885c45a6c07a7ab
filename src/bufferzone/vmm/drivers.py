"""The VMMs there are, by the name that the setting `vmm` has for them. Only the one that is asked for is
imported."""

from __future__ import annotations

from bufferzone import vmmfeatures
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.vmm.interface import Driver

NAMES = tuple(vmmfeatures.BY_NAME)


def find(name: str) -> Driver:
    """The driver of this name; raises `HostError`."""
    if name == "qemu":
        from bufferzone.vmm.qemu import driver as qemu

        return qemu
    if name == "firecracker":
        from bufferzone.vmm.firecracker import driver as firecracker

        return firecracker
    if name == "host":
        from bufferzone.vmm.host import driver as host

        return host
    raise HostError(f"no such VMM: {name}", hint=f"one of {', '.join(NAMES)}", code="no-vmm")

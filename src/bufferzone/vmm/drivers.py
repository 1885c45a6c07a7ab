"""The VMMs there are, by the name that the setting `vmm` has for them."""

from __future__ import annotations

from bufferzone.errors import HostError
from bufferzone.vmm.host import driver as host
from bufferzone.vmm.qemu import driver as qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.vmm.interface import Driver

DRIVERS: dict[str, Driver] = {"qemu": qemu, "host": host}


def find(name: str) -> Driver:
    """The driver of this name; raises `HostError`."""
    try:
        return DRIVERS[name]
    except KeyError:
        raise HostError(f"no such VMM: {name}", hint=f"one of {', '.join(DRIVERS)}", code="no-vmm") from None

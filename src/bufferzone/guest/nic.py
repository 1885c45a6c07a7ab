"""Virtual NICs without a driver: found on the virtio bus, given to virtio_net when the network wants them.

A NIC that nobody wired is not to be seen by a container, and negotiates its features with the back end it is
wired to: so it stays unbound until then. Runs in the VM only. Source: Documentation/driver-api/driver-model,
/sys/bus/virtio.
"""

from __future__ import annotations

import os

from bufferzone.container.kernel_files import read, write
from bufferzone.guest.mac import original
from bufferzone.guest.modprobe import modprobe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_BUS = "/sys/bus/virtio"
_DRIVER = f"{_BUS}/drivers/virtio_net"
_AUTOPROBE = f"{_BUS}/drivers_autoprobe"
_NETWORK_CARD = 1  # virtio device id


def load_unbound() -> None:
    """Load the driver; the NICs that are there already stay without it. Raises OSError."""
    if os.path.isdir(_DRIVER):
        return
    write(_AUTOPROBE, "0")
    try:
        modprobe("virtio_net")
    finally:
        write(_AUTOPROBE, "1")


def release_all() -> None:
    """Leave no NIC with its driver: a kernel that has it built in gave it to every one. Raises OSError."""
    if os.path.isdir(_DRIVER):
        unbind_all()


def bind_all() -> None:
    """Give every NIC its driver. Raises OSError."""
    load_unbound()
    for device in _devices(bound=False):
        write(f"{_DRIVER}/bind", device)


def unbind_all(but: Collection[str] = ()) -> None:
    """Take the driver from every NIC but these devices: its interface is gone, and comes back as if never
    used."""
    for device in _devices(bound=True):
        if device not in but:
            write(f"{_DRIVER}/unbind", device)


def unbind(names: Iterable[str]) -> None:
    """Take the driver from the NICs with these interfaces. Raises OSError."""
    for name in names:
        write(f"{_DRIVER}/unbind", device_of(name))


def device_of(name: str) -> str:
    """The device behind an interface, as its bus calls it."""
    return os.path.basename(os.path.realpath(f"/sys/class/net/{name}/device"))


def present() -> dict[str, tuple[int, str]]:
    """Index and name of each NIC's interface by its device, without those that a container has elsewhere."""
    return {device_of(name): (index, name) for name, index in _interfaces()}


def _devices(*, bound: bool) -> list[str]:
    found = []
    for device in os.listdir(f"{_BUS}/devices"):
        path = f"{_BUS}/devices/{device}"
        if int(read(f"{path}/device"), 16) == _NETWORK_CARD and os.path.exists(f"{path}/driver") == bound:
            found.append(device)
    return found


def by_mac(but: Collection[str] = ()) -> dict[str, tuple[int, str]]:
    """Index and name of each NIC's interface by the MAC address that its back end calls it, without these
    devices: one that is in use may have another."""
    return {
        original(read(f"/sys/class/net/{name}/address").strip()): (index, name)
        for name, index in _interfaces()
        if not but or device_of(name) not in but
    }


def _interfaces() -> list[tuple[str, int]]:
    """Name and index of each interface with a device behind it."""
    root = "/sys/class/net"
    names = [name for name in os.listdir(root) if os.path.exists(f"{root}/{name}/device")]
    return [(name, int(read(f"{root}/{name}/ifindex"))) for name in names]

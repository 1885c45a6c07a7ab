"""Plugging a NIC into a running VM, over the control channel.

Source: QEMU 7.2 qapi/net.json, docs/pcie.txt.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.vmm.qemu.driver import Vmm


def plug(vmm: Vmm, tap: int, *, number: int, mac: str) -> None:
    """Plug a NIC with the open tap as its back end into the free root port `number` - 1; QEMU gets its own
    copy of the descriptor. Raises `VmmError`.
    """
    name = f"nic{number}"
    vmm.qmp.send_descriptor(name, tap)
    vmm.qmp.execute("netdev_add", {"type": "tap", "id": name, "fd": name})
    device = {"driver": "virtio-net-pci", "id": f"{name}d", "netdev": name, "mac": mac, "romfile": ""}
    vmm.qmp.execute("device_add", {**device, "bus": f"spare{number - 1}", "disable-legacy": "on"})

"""Puts a disk image into a VM's empty slot while the VM is up: no hotplug, the guest has its device already.

A template cannot hold an image, but a device may lose and get its back end at any time: the node below
`slot-NAME` is exchanged. Source: QEMU 7.2 qapi/block-core.json (blockdev-reopen), docs of add-fd.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.vmm.qemu.driver import Vmm


def insert(vmm: Vmm, name: str, fd: int) -> None:
    """Let the slot `name` show the image behind `fd`, which is open for reading only. Raises `VmmError`.

    QEMU keeps a copy of the descriptor; the caller's stays its own. A slot takes one image in its life.
    """
    # a set of descriptors: QEMU opens by name and finds this one. Locking would open it once more
    vmm.qmp.send_descriptor(f"image of {name}", fd, command="add-fd", arguments={"fdset-id": _SET})
    image = {"driver": "file", "filename": f"/dev/fdset/{_SET}", "locking": "off"}
    vmm.qmp.execute("blockdev-add", {**image, "node-name": f"image-{name}", "read-only": True})
    slot = {"driver": "raw", "node-name": f"slot-{name}", "file": f"image-{name}", "read-only": True}
    vmm.qmp.execute("blockdev-reopen", {"options": [slot]})


_SET = 1

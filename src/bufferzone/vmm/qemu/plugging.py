"""What a VM of QEMU gets while it is up, over the control channel: a share, NICs, the image of a disk.

A template cannot hold an image, but a device may lose and get its back end at any time: the node below
`slot-NAME` is exchanged. Source: QEMU 7.2 qapi/net.json, docs/pcie.txt, qapi/block-core.json
(blockdev-reopen), docs of add-fd.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.model import Share
    from bufferzone.vmm.qemu.qmp import Qmp

#: the root port that a restored VM gets its share on
_SHARE_PORT = "spare3"
_IMAGE_SET = 1


def plug_share(qmp: Qmp, share: Share) -> None:
    """Plug a share, whose character device is there from the start, into its root port."""
    device = {
        "driver": "vhost-user-fs-pci",
        "chardev": f"share{share.fd}",
        "tag": share.tag,
        "queue-size": 1024,
    }
    qmp.execute("device_add", {**device, "id": f"fs{share.fd}", "bus": _SHARE_PORT})


def plug_nic(qmp: Qmp, tap_fd: int, *, number: int, mac: str) -> None:
    """Plug a NIC with the open tap as its back end into the free root port `number` - 1; QEMU gets its own
    copy of the descriptor. Raises `VmmError`.
    """
    name = f"nic{number}"
    qmp.send_descriptor(name, tap_fd)
    qmp.execute("netdev_add", {"type": "tap", "id": name, "fd": name})
    device = {"driver": "virtio-net-pci", "id": f"{name}d", "netdev": name, "mac": mac, "romfile": ""}
    qmp.execute("device_add", {**device, "bus": f"spare{number - 1}", "disable-legacy": "on"})


def insert_disk(qmp: Qmp, name: str, fd: int) -> None:
    """Let the slot `name` show the image behind `fd`, which is open for reading only. Raises `VmmError`.

    QEMU keeps a copy of the descriptor; the caller's stays its own. A slot takes one image in its life.
    """
    # a set of descriptors: QEMU opens by name and finds this one. Locking would open it once more
    qmp.send_descriptor(f"image of {name}", fd, command="add-fd", arguments={"fdset-id": _IMAGE_SET})
    image = {"driver": "file", "filename": f"/dev/fdset/{_IMAGE_SET}", "locking": "off"}
    qmp.execute("blockdev-add", {**image, "node-name": f"image-{name}", "read-only": True})
    slot = {"driver": "raw", "node-name": f"slot-{name}", "file": f"image-{name}", "read-only": True}
    qmp.execute("blockdev-reopen", {"options": [slot]})

#!/usr/bin/python3 -I
"""Prints docs/vmms.md, its table from the drivers' features: scripts/vmms_page.py >docs/vmms.md"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src"))
from bufferzone import allowlists, vmmfeatures

HEAD = """# Which VMM runs a VM

This page is printed by `scripts/vmms_page.py`, the table from `src/bufferzone/vmmfeatures.py`.

`vmm` in the settings chooses, or `bufferzone.vmm` of a bundle where `allow_annotations` lists
`vmm`. What a VMM cannot do is refused before a VM starts, in one line that says what and what else
there is. `bufferzone features` has the same by name, an annotation for each VMM.

| | {labels} |
|---|{rule}|
"""
ROWS = {
    "wall": "is a wall",
    "emulates": "runs without KVM",
    "virtiofs": "root file systems and volumes shared live",
    "slot_bytes": "a root file system on a disk",
    "nic": "a network",
    "hotplug_nic": "further interfaces while it runs",
    "stream_nic": "the host's network through passt",
    "snapshot": "checkpoint, restore, fork",
    "templates": "warm starts from a template",
    "disk_rate": "a limit of its disk (`disk_kib_per_s`, `disk_ops_per_s`)",
    "nic_rate": "a limit of its network (`network_kib_per_s`)",
}
#: under KVM, and without where that can be
CALLS = {
    "qemu": f"{allowlists.VMM_KVM.size} under KVM, {allowlists.VMM_TCG.size} without",
    "firecracker": str(allowlists.FIRECRACKER.size),
}
TAIL = """
## Firecracker

No distribution packages it. [Its
releases](https://github.com/firecracker-microvm/firecracker/releases) have a program for x86-64;
1.12 is the version that is known here, any other is refused.

```text
bz setup --vmm firecracker ./firecracker-v1.12.1-x86_64
podman --runtime bufferzone run --rm --annotation bufferzone.vmm=firecracker busybox true
```

- It runs with usable KVM alone, whatever `kvm` says: without, a start ends in one line that says
  why and names QEMU.
- The root file system is packed into an EROFS image, as with [`rootfs = "block"`](block-rootfs.md),
  which it implies: what a container writes is gone with its VM. An engine's image is packed once
  for all its containers. What engines bind into every container (`/etc/hosts` and the like) is
  copied.
- A volume is refused by its path, and so is a pod: there is one disk, and nothing is shared.
- A container has one network interface, which may come at any time before its start.
- An image file (`rootfs_image`) must be readable for all: Firecracker has a user of its own and
  opens it by name.
- A template's memory is mapped, not copied: what a clone does not change is in memory once, however
  many there are. There is no pool.
- A checkpoint writes all of a guest's memory to the disk of `/var/lib/bufferzone` while the guest stands
  still; a restore copies it there, for the VMM's own user, and maps the copy.
- A guest cannot say that its kernel panicked: an error line has "was reset by its guest" and the
  last lines of the console.

It runs in the same jail as every helper: own uid, read-only root, no capability, a network
namespace with its tap alone, Landlock, a list of system calls; its own filters, one for each kind
of thread, are on inside of that. Its `jailer` is not used: it does less, and wants real root.
"""


def page() -> str:
    """The whole page."""
    features = list(vmmfeatures.BY_NAME.values())
    head = HEAD.format(
        labels=" | ".join(f"{each.label} (`{each.name}`)" for each in features), rule="---|" * len(features)
    ).replace("||", "|")
    rows = [
        f"| {text} | {' | '.join('yes' if getattr(each, name) else 'no' for each in features)} |\n"
        for name, text in ROWS.items()
    ]
    cells = (CALLS.get(each.name, "-") for each in features)
    rows.append(f"| system calls that the jail's filter knows | {' | '.join(cells)} |\n")
    return head + "".join(rows) + TAIL


if __name__ == "__main__":
    sys.stdout.write(page())

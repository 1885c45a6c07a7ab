"""What each VMM can do, as data: for its driver, for the plan, for `features`, for docs/vmms.md.

Apart from the drivers, since a verb that tells of it loads none of them.
"""

from __future__ import annotations

from bufferzone.model import Features
from bufferzone.record import asdict

#: what a guest believes a disk to have: an image may be as large as that
SLOT_BYTES = 64 << 30

_EACH = (
    Features(
        name="qemu",
        label="QEMU",
        wall=True,
        kernel=True,
        emulates=True,
        virtiofs=True,
        tree=False,
        share_in_template=True,  # from 8.2 on; an older one says so to who tries
        nic=True,
        stream_nic=True,
        hotplug_nic=True,
        slot_bytes=SLOT_BYTES,
        snapshot=True,
        templates=True,
        maps_memory=False,  # virtiofsd maps it too: it has to be shared
        balloon=True,
        disk_rate=True,
        nic_rate=False,  # its throttle is for disks; traffic control is of the host's network
    ),
    Features(
        name="firecracker",
        label="Firecracker",
        wall=True,
        kernel=True,
        emulates=False,
        virtiofs=False,
        tree=False,
        share_in_template=False,
        nic=True,
        stream_nic=False,
        hotplug_nic=False,
        slot_bytes=SLOT_BYTES,
        snapshot=True,
        templates=True,
        maps_memory=True,
        balloon=False,
        disk_rate=True,
        nic_rate=True,
    ),
    Features(
        name="host",
        label="the host without a VM",
        wall=False,
        kernel=False,
        emulates=True,
        virtiofs=False,
        tree=True,
        share_in_template=False,
        nic=False,
        stream_nic=False,
        hotplug_nic=False,
        slot_bytes=SLOT_BYTES,
        snapshot=True,
        templates=False,  # it boots as fast as it would restore one
        maps_memory=False,
        balloon=False,
        disk_rate=False,
        nic_rate=False,
    ),
)
#: by the name that the setting `vmm` has for it
BY_NAME = {each.name: each for each in _EACH}


def names(features: Features) -> tuple[str, ...]:
    """What it can do, as the fields of `Features` are called."""
    return tuple(name for name, value in asdict(features).items() if value and not isinstance(value, str))

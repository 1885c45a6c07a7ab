"""Values that travel between rooms: a VM, its disks, its shares, a process. Frozen; they compute nothing but
their own sums, and this module imports nothing of ours."""

from __future__ import annotations

from bufferzone.record import Record, field


class Disk(Record):
    """A read-only virtio-blk slot; `name` is the serial number that the guest finds it by.

    It is empty when the VM starts, so that a template can have it; the VMM's `insert_disk` puts an image in.
    """

    name: str


class Share(Record):
    """A virtiofs share: the tag the guest mounts, and a connected vhost-user socket for the VMM."""

    tag: str
    fd: int


class Nic(Record):
    """A network interface: an open tap descriptor or a stream socket, and the MAC the guest shows.

    `mtu` 0: the guest may set what it likes, the back end limits it.
    """

    name: str
    fd: int
    mac: str
    mtu: int = 0
    is_tap: bool = True


class Rates(Record):
    """What a VM may take in a second, 0: no limit. `disk_bytes` and `disk_ops` (requests): of all its disks;
    `network_bytes`: of each NIC, each way.
    """

    disk_bytes: int = 0
    disk_ops: int = 0
    network_bytes: int = 0


class VmSpec(Record):
    """Everything a VMM driver needs to know of one VM. `shares` and `nics` have descriptors that are open.

    `accelerator` is `kvm` or `tcg`. `kernel`, `initrd` (empty: none) and `memory` are paths on the host, the
    last a file that is the guest's memory (empty: anonymous). `carries_share`: the share is part of what is
    saved, so that it is there from the start in a restored VM too; else such a VM has its shares plugged.
    `mapped_memory`: an open file that is a saved VM's memory, which this one maps and does not change; -1:
    none, `memory` is filled with it. `directory`: where the VMM's driver may have what it needs of the
    host's file system; its parent is the VM's own. `rates`: of this VM, whatever those of a saved one were.
    """

    name: str
    vcpus: int
    memory_mib: int
    accelerator: str
    kernel: str
    initrd: str
    kernel_arguments: tuple[str, ...]
    shares: tuple[Share, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    memory: str = ""
    carries_share: bool = False
    mapped_memory: int = -1
    directory: str = ""
    rates: Rates = Rates()


class Confinement(Record):
    """What the caller decides about a VMM's jail: its ids, and `cgroup.procs` descriptors to join."""

    uid: int
    gid: int
    cgroups: tuple[int, ...] = ()


class Features(Record):
    """What a VMM can do, as data for `sandbox/plan.py`: an impossible wish is refused before a VM starts.

    `label` is its name for people. `wall`: it keeps a container from the host's kernel. `kernel`: it boots a
    guest image; `emulates`: without KVM too. `virtiofs`: it shares files through a virtiofsd; `tree`: it
    takes the shared tree itself. `nic`: its VMs have a network; `stream_nic`: one behind a stream socket
    too, which passt serves; `hotplug_nic`: further NICs come while it runs. `slot_bytes`: the largest image
    that a disk slot takes, 0: it has no slots. `snapshot`: it saves and restores a VM with its container;
    `templates`: one that was saved empty is worth starting from. `maps_memory`: a template's memory file is
    mapped by each VM, which has copies of what it changes alone; else it is copied. `share_in_template`: it
    may save a VM with its share plugged; a version that cannot says so when told to. `balloon`: it can take
    memory from a guest. `disk_rate`, `nic_rate`: it keeps a VM's `Rates`.
    """

    name: str
    label: str
    wall: bool
    kernel: bool
    emulates: bool
    virtiofs: bool
    tree: bool
    share_in_template: bool
    nic: bool
    stream_nic: bool
    hotplug_nic: bool
    slot_bytes: int
    snapshot: bool
    templates: bool
    maps_memory: bool
    balloon: bool
    disk_rate: bool
    nic_rate: bool


class Bind(Record):
    """One host tree placed in the sandbox's share: `source` on the host, `name` below the share's root.

    A regular file, socket or fifo is bound onto a file. Read-only binds are read-only on the host's side too,
    and what is mounted below them with `read_only_below`. With a `type` it is no tree that is there: a file
    system to be mounted with `options`, as config.json has them.
    """

    source: str
    name: str
    read_only: bool = False
    read_only_below: bool = False
    recursive: bool = True
    type: str = ""
    options: tuple[str, ...] = ()


class FileCopy(Record):
    """One small host file of which the guest gets a copy: `source` on the host, `name` in the guest."""

    source: str
    name: str


class Hook(Record):
    """An OCI hook: absolute path, full argv, environment (None: the runtime's own), seconds or None."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    timeout_s: int | None = None


class ImageRef(Record):
    """A built guest image: its directory in the store, its digest, and the two files a VMM boots."""

    digest: str
    directory: str
    kernel: str
    initrd: str
    arguments: tuple[str, ...] = field(default=())

"""The nouns below `sandbox/plan.py`: frozen values, no behaviour beyond arithmetic on themselves, no imports
of ours."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A read-only virtio-blk slot; `name` is the serial number that the guest finds it by.

    It is empty when the VM starts, so that a template can have it; `vmm.qemu.slot` puts an image in.
    """

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A virtiofs share: the tag the guest mounts, and a connected vhost-user socket for the VMM."""

    tag: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network interface: an open tap descriptor or a stream socket, and the MAC the guest shows.

    `mtu` 0: the guest may set what it likes, the back end limits it.
    """

    name: str
    fd: int
    mac: str
    mtu: int = 0
    is_tap: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """Everything a VMM driver needs to know of one VM. Descriptors are already open and inherited by number.

    `accelerator` is `kvm` or `tcg`; `agent_fd`, `console_fd` and `control_fd` are connected stream sockets.
    `kernel_path` and `initrd_path` are paths inside the VMM's own root, and so is `memory_path`: a file that
    is the guest's memory (empty: anonymous). `restored`: the guest is loaded from a template, so nothing
    boots, it does not run until told to, and shares are announced but plugged later. `carries_share`: the
    share is part of what is saved, so that it is there from the start in a restored VM too.
    """

    name: str
    vcpus: int
    memory_mib: int
    accelerator: str
    kernel_path: str
    initrd_path: str
    kernel_arguments: tuple[str, ...]
    agent_fd: int
    console_fd: int
    control_fd: int
    shares: tuple[Share, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    memory_path: str = ""
    restored: bool = False
    carries_share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a VMM driver can do, as data for `plan.py`."""

    name: str
    virtiofs: bool
    hotplug: bool
    snapshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """One host tree placed in the sandbox's share: `source` on the host, `name` below the share's root.

    A regular file, socket or fifo is bound onto a file. Read-only binds are read-only on the host's side too.
    """

    source: str
    name: str
    read_only: bool = False
    recursive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCopy:
    """One small host file of which the guest gets a copy: `source` on the host, `name` in the guest."""

    source: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """An OCI hook: absolute path, full argv, environment, seconds or None."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """A built guest image: its directory in the store, its digest, and the two files a VMM boots."""

    digest: str
    directory: str
    kernel: str
    initrd: str
    arguments: tuple[str, ...] = field(default=())

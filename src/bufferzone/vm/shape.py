"""What decides the shape of a VM, and the `VmSpec` made of it.

A template and the VMs restored from it are made by the same function, so that they cannot differ.
"""

from __future__ import annotations

import os

from bufferzone.errors import HostError
from bufferzone.guestimage import current, store, template_store
from bufferzone.linux import kvm
from bufferzone.model import Disk, ImageRef, Nic, Rates, Share, VmSpec
from bufferzone.record import Record, field, fields, replace
from bufferzone.storage import virtiofs
from bufferzone.vm.fit import SAME, WITHIN, differences, same
from bufferzone.vmm import accelerator, drivers
from bufferzone.wire.agent import ROOT_DISK
from bufferzone.wire.network import FIRST_MAC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.vm.fit import Difference
    from bufferzone.vm.size import VmSize

#: raise it when the guest or the way of restoring changes in a way that the rest of the shape does not show
TEMPLATE_VERSION = 4
#: no part of the shape: a template has none, and a VM restored from it its own
UNLIMITED = Rates()


#: how a field of a saved VM agrees with what this host would start, see `fit`: not at all, since it lies in
#: the saved VM; or as it must, since the host gives it
_KEPT = {"restored": ""}
_EQUAL, _BOUNDED = {"restored": SAME}, {"restored": WITHIN}


class VmShape(Record):
    """Everything that two VMs must share to be restored from one template. `kernel` and `initrd` are host
    paths, `vmm` is the name of what runs it.
    `nic`: a NIC is in it from the start, see `network`; `user_network`: on a stream socket and not a tap.
    `block`: it has a slot for an image of a root file system.
    """

    image: ImageRef = field(metadata=_KEPT)
    kernel: str = field(metadata=_KEPT)
    initrd: str = field(metadata=_KEPT)
    kernel_arguments: tuple[str, ...] = field(metadata=_KEPT)
    accelerator: str = field(metadata=_EQUAL)
    vcpus: int = field(metadata=_BOUNDED)
    memory_mib: int = field(metadata=_BOUNDED)
    vmm: str = field(metadata=_EQUAL)
    nic: bool = field(default=True, metadata=_KEPT)
    user_network: bool = field(default=False, metadata=_KEPT)
    block: bool = field(default=False, metadata=_KEPT)


_RESTORED = {each.name: each.metadata["restored"] for each in fields(VmShape) if each.metadata["restored"]}


def describe(
    settings: Settings,
    size: VmSize,
    directory: str,
    log: Callable[[str], None],
    *,
    nic: bool,
    user_network: bool = False,
) -> VmShape:
    """The VM that the settings ask for; `directory` is where the probe of KVM is kept.

    Raises `HostError` for an image that is missing or damaged, or when KVM is required but not usable.
    """
    if not drivers.find(settings.vmm).FEATURES.kernel:
        return _without_kernel(settings, size)
    image = _image(settings, log)
    chosen = _accelerator(settings, directory, log)
    return VmShape(
        image=image,
        kernel=settings.kernel or image.kernel,
        initrd=settings.initrd or image.initrd,
        kernel_arguments=(*image.arguments, *settings.kernel_arguments),
        accelerator=chosen.name,
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        nic=nic or user_network,
        user_network=user_network,
        block=settings.rootfs == "block",
        vmm=settings.vmm,
    )


def _without_kernel(settings: Settings, size: VmSize) -> VmShape:
    """What is no machine: neither an image nor an accelerator."""
    return VmShape(
        image=ImageRef(digest="", directory="", kernel="", initrd=""),
        kernel="",
        initrd="",
        kernel_arguments=(),
        accelerator=accelerator.NONE,
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        vmm=settings.vmm,
        nic=False,
        block=settings.rootfs == "block",
    )


def _image(settings: Settings, log: Callable[[str], None]) -> ImageRef:
    """The guest image of the settings: a digest in the store, a directory, or the current one of `guest`."""
    if settings.image.startswith("/"):
        return store.open_image(
            os.path.dirname(settings.image.rstrip("/")), os.path.basename(settings.image.rstrip("/"))
        )
    if settings.image:
        return store.open_image(settings.image_store, settings.image)
    return current.current_image(settings.image_store, log, settings.guest)


def _accelerator(settings: Settings, directory: str, log: Callable[[str], None]) -> accelerator.Accelerator:
    """Probe and choose; what the user should know goes to the log."""
    features = drivers.find(settings.vmm).FEATURES
    if not features.emulates:
        return _kvm_alone(settings, features.label, directory)
    if settings.accelerator == "tcg" and settings.kvm != "require":
        return accelerator.Accelerator(name="tcg", reason="asked for")
    probe = kvm.cached_probe(os.path.join(directory, "kvm-probe.json"))
    chosen = accelerator.choose("require" if settings.accelerator == "kvm" else settings.kvm, probe)
    if chosen.warning:
        log(chosen.warning)
    return chosen


def _kvm_alone(settings: Settings, label: str, directory: str) -> accelerator.Accelerator:
    """For a VMM that does nothing without: whatever the policy is, that is an error."""
    reason = "accelerator = tcg asks for another"
    if settings.accelerator != "tcg":
        probe = kvm.cached_probe(os.path.join(directory, "kvm-probe.json"))
        if probe.usable:
            return accelerator.Accelerator(name="kvm")
        reason = probe.reason
    raise HostError(
        f"{label} runs with KVM alone: {reason}", hint="vmm = qemu runs without", code="kvm-required"
    )


def spec_of(
    shape: VmShape,
    name: str,
    *,
    shares: tuple[Share, ...] = (),
    memory: str = "",
    carries_share: bool = False,
    nic_fd: int = -1,
    mapped_memory: int = -1,
    directory: str = "",
    rates: Rates = UNLIMITED,
) -> VmSpec:
    """The VM `name` of this shape; `memory` is the file that is its memory (empty: none),
    `nic_fd` the descriptor of the NIC's tap or stream, if it has one, the rest as in `VmSpec`.
    """
    return VmSpec(
        name=name,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        accelerator=shape.accelerator,
        kernel=shape.kernel,
        initrd=shape.initrd,
        kernel_arguments=shape.kernel_arguments,
        shares=shares,
        nics=_nics(shape, nic_fd),
        disks=(Disk(name=ROOT_DISK),) if shape.block else (),
        memory=memory,
        carries_share=carries_share,
        mapped_memory=mapped_memory,
        directory=directory,
        rates=rates,
    )


def _nics(shape: VmShape, fd: int) -> tuple[Nic, ...]:
    nic = Nic(name="first", fd=fd, mac=FIRST_MAC, is_tap=not shape.user_network)
    return (nic,) if shape.nic else ()


def template_key(shape: VmShape) -> str:
    """The name of the template for this shape: image, the VMM's fingerprint, CPU; and virtiofsd where its
    state may be in it.
    """
    boot = [_identity(shape.kernel), _identity(shape.initrd)]
    return _key(shape, boot + ([_identity(virtiofs.find_program().path)] if may_carry(shape) else []))


def may_carry(shape: VmShape) -> bool:
    """Whether a template may have the share in it: if its VMs have one, and this virtiofsd can hand its state
    over. Of the VMM's and the Rust one's version the maker finds out. Raises `HostError` without a
    virtiofsd.
    """
    if shape.block or not drivers.find(shape.vmm).FEATURES.share_in_template:
        return False
    return virtiofs.find_program().kind == "rust"


def saved_key(shape: VmShape) -> str:
    """What a host must have to run a VM of this shape that was saved: as for a template, but for the files
    that a kernel is booted from.
    """
    return _key(shape, [])


def from_fields(value: dict[str, Any]) -> VmShape:
    """The shape that `record.asdict` was given; raises KeyError or TypeError."""
    image = {**value["image"], "arguments": tuple(value["image"]["arguments"])}
    arguments = tuple(value["kernel_arguments"])
    return VmShape(**{**value, "image": ImageRef(**image), "kernel_arguments": arguments})


def unlike_new(there: VmShape, new: VmShape) -> list[Difference]:
    """Where a VM that waits is not the one that would be started `new`."""
    return differences(there, new, same(each.name for each in fields(VmShape)))


def unlike_here(
    saved: VmShape, settings: Settings, size: VmSize, directory: str, log: Callable[[str], None]
) -> list[Difference]:
    """Where a saved VM does not fit this host with these settings, or is more than `size`, which its bundle
    would get. `directory` is where the probe of KVM is kept.
    """
    emulates = drivers.find(settings.vmm).FEATURES.kernel
    here = replace(
        saved,
        vmm=settings.vmm,
        accelerator=_accelerator(settings, directory, log).name if emulates else accelerator.NONE,
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
    )
    return differences(saved, here, _RESTORED)


def _key(shape: VmShape, boot: list[list[object]]) -> str:
    blank = spec_of(shape, "template", memory="/memory", nic_fd=6)
    return template_store.key_of(
        {
            "version": TEMPLATE_VERSION,
            "image": shape.image.digest,
            "boot": boot,
            "vmm": drivers.find(shape.vmm).fingerprint(blank),
            "cpu": _cpu() if shape.accelerator == "kvm" else "",
        }
    )


def _identity(path: str) -> list[object]:
    """A file as installed: path, size, time of change."""
    found = os.stat(path)
    return [path, found.st_size, found.st_mtime_ns]


def _cpu() -> str:
    """Model and flags of the first CPU: under KVM a guest sees the host's."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        text = file.read().partition("\n\n")[0]
    wanted = ("vendor_id", "cpu family", "model\t", "model name", "stepping", "microcode", "flags")
    return "\n".join(line for line in text.splitlines() if line.startswith(wanted))

"""The machine of a sandbox: what decides its shape, and the `VmSpec` made of it.

A template and the VMs restored from it are made by the same function, so that they cannot differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bufferzone.errors import HostError
from bufferzone.guestimage import current, store, template_store
from bufferzone.linux import kvm
from bufferzone.model import Disk, ImageRef, Nic, Share, VmSpec
from bufferzone.storage import virtiofs
from bufferzone.vmm import accelerator, drivers
from bufferzone.wire.agent import ROOT_DISK
from bufferzone.wire.network import FIRST_MAC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.sandbox.plan import VmPlan

#: raise it when the guest or the way of restoring changes in a way that the rest of the shape does not show
TEMPLATE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that two VMs must share to be restored from one template. `kernel` and `initrd` are host
    paths, `vmm` is the name of what runs it.
    `nic`: a NIC is in it from the start, see `network`; `user_network`: on a stream socket and not a tap.
    `block`: it has a slot for an image of a root file system.
    """

    image: ImageRef
    kernel: str
    initrd: str
    kernel_arguments: tuple[str, ...]
    accelerator: str
    vcpus: int
    memory_mib: int
    vmm: str
    nic: bool = True
    user_network: bool = False
    block: bool = False


def describe(
    settings: Settings, size: VmPlan, directory: str, log: Callable[[str], None], *, nic: bool
) -> Machine:
    """The machine that the settings ask for; `directory` is where the probe of KVM is kept.

    Raises `HostError` for an image that is missing or damaged, or when KVM is required but not usable.
    """
    image = _image(settings, log)
    chosen = _accelerator(settings, directory, log)
    return Machine(
        image=image,
        kernel=settings.kernel or image.kernel,
        initrd=settings.initrd or image.initrd,
        kernel_arguments=(*image.arguments, *settings.kernel_arguments),
        accelerator=chosen.name,
        vcpus=size.vcpus,
        memory_mib=size.memory_mib,
        nic=nic,
        block=settings.rootfs == "block",
        vmm=settings.vmm,
    )


def _image(settings: Settings, log: Callable[[str], None]) -> ImageRef:
    """The guest image the settings name: a digest in the store, a directory, or the current one."""
    if settings.image.startswith("/"):
        return store.open_image(
            os.path.dirname(settings.image.rstrip("/")), os.path.basename(settings.image.rstrip("/"))
        )
    if settings.image:
        return store.open_image(settings.image_store, settings.image)
    return current.current_image(settings.image_store, log)


def _accelerator(settings: Settings, directory: str, log: Callable[[str], None]) -> accelerator.Accelerator:
    """Probe and choose; what the user should know goes to the log."""
    if settings.accelerator == "tcg" and settings.kvm != "require":
        return accelerator.Accelerator("tcg", reason="asked for")
    probe = kvm.cached_probe(os.path.join(directory, "kvm-probe.json"))
    chosen = accelerator.choose("require" if settings.accelerator == "kvm" else settings.kvm, probe)
    if chosen.warning:
        log(chosen.warning)
    return chosen


def spec_of(
    machine: Machine,
    name: str,
    *,
    shares: tuple[Share, ...] = (),
    memory: str = "",
    carries_share: bool = False,
    tap: int = -1,
) -> VmSpec:
    """The VM `name` of this shape; `memory` is the file that is its memory (empty: none), `tap` the
    descriptor of the NIC's tap or stream, if it has one.
    """
    return VmSpec(
        name=name,
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        accelerator=machine.accelerator,
        kernel=machine.kernel,
        initrd=machine.initrd,
        kernel_arguments=machine.kernel_arguments,
        shares=shares,
        nics=_nics(machine, tap),
        disks=(Disk(name=ROOT_DISK),) if machine.block else (),
        memory=memory,
        carries_share=carries_share,
    )


def _nics(machine: Machine, fd: int) -> tuple[Nic, ...]:
    nic = Nic(name="first", fd=fd, mac=FIRST_MAC, is_tap=not machine.user_network)
    return (nic,) if machine.nic else ()


def template_key(machine: Machine) -> str:
    """The name of the template for this shape: image, the VMM's fingerprint, CPU; and virtiofsd where its
    state may be in it.
    """
    boot = [_identity(machine.kernel), _identity(machine.initrd)]
    return _key(machine, boot + ([_identity(virtiofs.find_program().path)] if may_carry(machine) else []))


def may_carry(machine: Machine) -> bool:
    """Whether a template may have the share in it: if its VMs have one, and this virtiofsd can hand its state
    over. Of the VMM's and the Rust one's version the maker finds out. Raises `HostError` without a
    virtiofsd.
    """
    if machine.block or not drivers.find(machine.vmm).FEATURES.share_in_template:
        return False
    return virtiofs.find_program().kind == "rust"


def saved_key(machine: Machine) -> str:
    """What a host must have to run a VM of this shape that was saved: as for a template, but for the files
    that a kernel is booted from.
    """
    return _key(machine, [])


def from_fields(value: dict[str, Any]) -> Machine:
    """The machine that `dataclasses.asdict` was given; raises KeyError or TypeError."""
    image = {**value["image"], "arguments": tuple(value["image"]["arguments"])}
    arguments = tuple(value["kernel_arguments"])
    return Machine(**{**value, "image": ImageRef(**image), "kernel_arguments": arguments})


def check_accelerator(
    machine: Machine, settings: Settings, directory: str, log: Callable[[str], None]
) -> None:
    """Raise `HostError` unless this host would run a VM the way that `machine` was run."""
    if machine.vmm != settings.vmm:
        raise HostError(
            f"the saved VM ran in {machine.vmm!r}, here it would run in {settings.vmm}",
            code="checkpoint-mismatch",
        )
    chosen = _accelerator(settings, directory, log).name
    if chosen != machine.accelerator:
        raise HostError(
            f"the saved VM ran under {machine.accelerator}, here it would run under {chosen}",
            code="checkpoint-mismatch",
        )


def _key(machine: Machine, boot: list[list[object]]) -> str:
    blank = spec_of(machine, "template", memory="/memory", tap=6)
    return template_store.key_of(
        {
            "version": TEMPLATE_VERSION,
            "image": machine.image.digest,
            "boot": boot,
            "vmm": drivers.find(machine.vmm).fingerprint(blank),
            "cpu": _cpu() if machine.accelerator == "kvm" else "",
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

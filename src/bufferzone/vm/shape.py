"""The machine of a sandbox: what decides its shape, its channels, and the `VmSpec` made of both.

A template and the VMs restored from it are made by the same function, so that they cannot differ.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from bufferzone.errors import HostError
from bufferzone.guestimage import current, store, template_store
from bufferzone.linux import kvm
from bufferzone.model import Disk, ImageRef, Nic, Share, VmSpec
from bufferzone.storage import virtiofs
from bufferzone.vmm import accelerator, console
from bufferzone.vmm.qemu import command_line, driver
from bufferzone.wire.agent import ROOT_DISK
from bufferzone.wire.network import FIRST_MAC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.sandbox.plan import VmPlan

#: raise it when the guest or the way of restoring changes in a way that the rest of the shape does not show
TEMPLATE_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that two VMs must share to be restored from one template. `kernel` and `initrd` are host
    paths.
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
    nic: bool = True
    user_network: bool = False
    block: bool = False


class Channels:
    """The three socket pairs to QEMU: agent, console, control. Our ends pass to their owners, QEMU's are
    closed.
    """

    def __init__(self, stack: ExitStack) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        (self.agent, agent_there), (self._console, console_there), (self.control, control_there) = pairs
        self._remote = (agent_there, console_there, control_there)
        self.ends = (agent_there.fileno(), console_there.fileno(), control_there.fileno())
        for near, far in pairs:
            stack.callback(near.close)
            stack.callback(far.close)

    def close_remote(self) -> None:
        """Close our copies of QEMU's ends, so that its death is seen as end of file."""
        for sock in self._remote:
            sock.close()

    def console_reader(self, log_fd: int) -> console.Reader:
        """The reader of the console; owns our end and `log_fd` (-1: no file)."""
        return console.Reader("console", self._console.detach(), console.BoundedLog(log_fd))


def describe(
    settings: Settings, size: VmPlan, directory: str, log: Callable[[str], None], *, nic: bool
) -> Machine:
    """The machine that the settings ask for; `directory` is where the probe of KVM is kept.

    Raises `HostError` for an image that is missing or damaged, or when KVM is required and not usable.
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
    ends: tuple[int, int, int],
    *,
    shares: tuple[Share, ...] = (),
    in_file: bool = False,
    restored: bool = False,
    carries_share: bool = False,
    tap: int = -1,
) -> VmSpec:
    """The VM `name` of this shape; `in_file`: its memory is the file donated to the VMM's root.

    `ends` are QEMU's descriptors: agent, console, control; `tap` that of the NIC's tap or stream, if it has
    one.
    """
    agent_fd, console_fd, control_fd = ends
    return VmSpec(
        name=name,
        vcpus=machine.vcpus,
        memory_mib=machine.memory_mib,
        accelerator=machine.accelerator,
        kernel_path=driver.KERNEL_PATH,
        initrd_path=driver.INITRD_PATH,
        kernel_arguments=machine.kernel_arguments,
        agent_fd=agent_fd,
        console_fd=console_fd,
        control_fd=control_fd,
        shares=shares,
        nics=_nics(machine, tap),
        disks=(Disk(name=ROOT_DISK),) if machine.block else (),
        memory_path=driver.MEMORY_PATH if in_file else "",
        restored=restored,
        carries_share=carries_share,
    )


def _nics(machine: Machine, fd: int) -> tuple[Nic, ...]:
    nic = Nic(name="first", fd=fd, mac=FIRST_MAC, is_tap=not machine.user_network)
    return (nic,) if machine.nic else ()


def template_key(machine: Machine) -> str:
    """The name of the template for this shape: image, QEMU and firmware files, command line, CPU; and
    virtiofsd where its state may be in it.
    """
    boot = [_identity(machine.kernel), _identity(machine.initrd)]
    return _key(machine, boot + ([_identity(virtiofs.find_program().path)] if may_carry(machine) else []))


def may_carry(machine: Machine) -> bool:
    """Whether a template may have the share in it: if its VMs have one, and this virtiofsd can hand its state
    over. Of QEMU and of the Rust one's version the maker finds out. Raises `HostError` without a virtiofsd.
    """
    return not machine.block and virtiofs.find_program().kind == "rust"


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
    chosen = _accelerator(settings, directory, log).name
    if chosen != machine.accelerator:
        raise HostError(
            f"the saved VM ran under {machine.accelerator}, here it would run under {chosen}",
            code="checkpoint-mismatch",
        )


def _key(machine: Machine, boot: list[list[object]]) -> str:
    program = driver.find_program()
    firmware, binds = driver.find_firmware()
    blank = spec_of(machine, "template", (3, 4, 5), in_file=True, tap=6)
    return template_store.key_of(
        {
            "version": TEMPLATE_VERSION,
            "image": machine.image.digest,
            "boot": boot,
            "argv": command_line.argv(program, blank, firmware=firmware),
            "files": [_identity(program), *(_identity(str(bind.source)) for bind in binds)],
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

"""Starts QEMU in its jail, see `vmm.interface.Driver`. Refuses: a jail with more in it than one VM needs."""

from __future__ import annotations

import os

from bufferzone import allowlists, jail, programs
from bufferzone.errors import HostError
from bufferzone.linux import landlock
from bufferzone.vmm.console import BoundedLog, Reader
from bufferzone.vmm.qemu import command_line, process
from bufferzone.vmm.qemu.channels import Channels
from bufferzone.vmm.qemu.process import Qemu
from bufferzone.vmm.qemu.qmp import Qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.model import Confinement, VmSpec

FEATURES = process.FEATURES
_PROGRAM = "qemu-system-x86_64"
_PLACES = ("/usr/bin", "/usr/local/bin", "/usr/libexec")
_FIRMWARE_PLACES = ("/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm")
# the first file found boots; pvh.bin is what lets SeaBIOS start a PVH kernel
_FIRMWARE_FILES = ("qboot.rom", "bios-256k.bin")
_OPTION_ROMS = ("pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin")


def find_program() -> str:
    """The QEMU binary; raises HostError `qemu-missing`."""
    path = programs.find(_PROGRAM, _PLACES)
    if not path:
        raise HostError(
            f"program not found: {_PROGRAM}", hint="apt-get install qemu-system-x86", code="qemu-missing"
        )
    return path


def find_firmware(places: tuple[str, ...] = _FIRMWARE_PLACES) -> tuple[str, tuple[jail.JailBind, ...]]:
    """The firmware to boot, and binds that show it and the option ROMs in the jail; raises HostError."""
    binds: list[jail.JailBind] = []
    found: list[str] = []
    for name in (*_FIRMWARE_FILES, *_OPTION_ROMS):
        for place in places:
            path = os.path.realpath(os.path.join(place, name))
            if os.path.isfile(path):
                binds.append(jail.JailBind(source=path, target=f"{command_line.FIRMWARE_DIRECTORY}/{name}"))
                found.append(name)
                break
    for name in _FIRMWARE_FILES:
        if name in found:
            return name, tuple(binds)
    raise HostError(
        f"no firmware for QEMU in: {' '.join(places)}",
        hint="apt-get install qemu-system-data seabios",
        code="qemu-missing",
    )


def start(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> Qemu:
    """Start QEMU for `spec`, in its jail: the guest boots. Raises `HostError`; then nothing runs."""
    return launch(spec, confinement, Channels(), console_log_fd=console_log_fd, restored=False)


def restore(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> Qemu:
    """Start QEMU for a saved VM, whose devices are to be loaded. Raises `HostError`."""
    return launch(spec, confinement, Channels(), console_log_fd=console_log_fd, restored=True)


def fingerprint(spec: VmSpec) -> dict[str, Any]:
    """The command line, and the files of QEMU and its firmware as they are installed. Raises `HostError`."""
    program = find_program()
    firmware, binds = find_firmware()
    ends = command_line.Ends(agent=3, console=4, control=5)
    return {
        "argv": command_line.argv(program, spec, ends, firmware=firmware),
        "files": [_identity(program), *(_identity(str(bind.source)) for bind in binds)],
    }


def _identity(path: str) -> list[object]:
    found = os.stat(path)
    return [path, found.st_size, found.st_mtime_ns]


def launch(
    spec: VmSpec, confinement: Confinement, channels: Channels, *, console_log_fd: int, restored: bool
) -> Qemu:
    """Start QEMU on these channels, which are taken over, as is `console_log_fd`. Raises `HostError`; then
    nothing runs and all are closed.
    """
    log = BoundedLog(console_log_fd)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        program = find_program()
        firmware, binds = find_firmware()
        ends = channels.ends
        confined = describe_jail(
            program, spec, confinement, ends, firmware=binds, log_fd=writer, restored=restored
        )
        words = command_line.argv(program, spec, ends, restored=restored, firmware=firmware)
        child = jail.start(words, confined)
    except BaseException:
        os.close(reader)
        channels.close()
        log.close()
        raise
    finally:
        os.close(writer)
    channels.close_remote()
    return Qemu(
        child,
        Qmp(channels.control),
        channels.agent,
        stderr=Reader("qemu-stderr", reader, BoundedLog()),
        console=Reader("console", channels.console.detach(), log),
    )


def describe_jail(
    program: str,
    spec: VmSpec,
    confinement: Confinement,
    ends: command_line.Ends,
    *,
    firmware: tuple[jail.JailBind, ...],
    log_fd: int,
    restored: bool,
) -> jail.Jail:
    """QEMU's jail: the program, libraries, firmware, kernel and initrd, all read-only; /dev/kvm when used.

    The memory file is the only thing QEMU may write to.
    """
    libraries, links = jail.library_view()
    binds = [*libraries, *firmware, jail.JailBind(source=program, target=program)]
    if spec.memory:
        binds.append(jail.JailBind(source=spec.memory, target=command_line.MEMORY_PATH, writable=True))
    if not restored:
        binds.append(jail.JailBind(source=spec.kernel, target=command_line.KERNEL_PATH))
    if spec.initrd and not restored:
        binds.append(jail.JailBind(source=spec.initrd, target=command_line.INITRD_PATH))
    kvm = spec.accelerator == "kvm"
    donated = [ends.agent, ends.console, ends.control]
    donated += [share.fd for share in spec.shares] + [nic.fd for nic in spec.nics]
    return jail.Jail(
        name=FEATURES.name,
        uid=confinement.uid,
        gid=confinement.gid,
        log_fd=log_fd,
        calls=allowlists.VMM_KVM if kvm else allowlists.VMM_TCG,
        keep_fds=tuple(donated),
        binds=tuple(binds),
        links=links,
        devices=("null", "urandom"),
        owned_devices=("kvm",) if kvm else (),
        cgroups=confinement.cgroups,
        # what it opens to write, besides what it was given; /dev/kvm where there is KVM
        restricted=landlock.Rules(
            writable=(
                "/dev/null",
                *(["/dev/kvm"] if kvm else []),
                *([command_line.MEMORY_PATH] if spec.memory else []),
            )
        ),
    )

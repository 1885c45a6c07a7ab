"""The QEMU command line: `argv` is a pure function of `VmSpec`, put together from one small function per
device.

Written for QEMU 7.2 (Debian 12) and later, x86-64, machine q35. Refuses: anything that came from a guest, and
devices that open host files by name (everything but kernel, initrd and firmware arrives as a descriptor).
"""

from __future__ import annotations

import json

from bufferzone.model import Disk, Nic, Rates, Share, VmSpec
from bufferzone.record import Record
from bufferzone.vmmfeatures import SLOT_BYTES
from bufferzone.wire.agent import PORT_NAME

#: where the jail shows the files of `VmSpec` and the firmware, see `driver.py`
KERNEL_PATH, INITRD_PATH, MEMORY_PATH = "/boot/kernel", "/boot/initrd", "/memory"
FIRMWARE_DIRECTORY = "/firmware"
#: root ports kept free for NICs that arrive after boot
SPARE_PORTS = 4
_MIB = 1 << 20
_GROUP = "rates"


class Ends(Record):
    """QEMU's ends of its channels: descriptors of connected stream sockets, which it inherits by number."""

    agent: int
    console: int
    control: int


def argv(
    program: str, spec: VmSpec, ends: Ends, *, restored: bool = False, firmware: str = "qboot.rom"
) -> list[str]:
    """The whole command line; `firmware` is a file in the jail's firmware directory.

    `restored`: nothing boots and nothing runs; a saved VM is loaded, then shares are plugged that are no part
    of it.
    """
    return [
        program,
        *_identity(spec),
        *_machine(firmware),
        *_accelerator(spec.accelerator),
        *_cpus(spec),
        *_memory(spec),
        *_walls(),
        *_ends(),
        *(_LOADED if restored else _boot(spec)),
        *_control(ends.control),
        *_console(ends.console),
        *_agent_port(ends.agent),
        *_entropy(),
        *_balloon(),
        *_root_ports(),
        *(
            word
            for share in spec.shares
            for word in share_device(share, plugged=spec.carries_share or not restored)
        ),
        *_throttle(spec.rates),
        *(word for disk in spec.disks for word in disk_device(disk, limited=_limits_disks(spec.rates))),
        *(word for nic in spec.nics for word in nic_device(nic)),
    ]


def quote(text: str) -> str:
    """A value inside a comma-separated option: QEMU reads two commas as one."""
    return text.replace(",", ",,")


def _identity(spec: VmSpec) -> list[str]:
    return ["-name", f"guest={quote(spec.name)},debug-threads=on"]


def _machine(firmware: str) -> list[str]:
    options = [
        "q35",
        # no System Management Mode: nothing of ours runs there, and firmware skips its set-up
        "smm=off",
        # no SATA, USB, SMBus, VMware port, HPET or PS/2: less device code for a guest to attack, and a faster
        # boot
        "sata=off",
        "usb=off",
        "smbus=off",
        "vmport=off",
        "hpet=off",
        "i8042=off",
        # guest memory stays out of core dumps, and is not merged with that of other guests (side channel)
        "dump-guest-core=off",
        "mem-merge=off",
        # guest RAM is the memfd of `_memory`
        "memory-backend=ram",
    ]
    return [
        "-machine",
        ",".join(options),
        # nothing that QEMU adds by itself, nothing from /etc/qemu, no window
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-L",
        FIRMWARE_DIRECTORY,
        # qboot does only what a direct kernel boot needs: about 0.2 s faster than SeaBIOS under TCG
        "-bios",
        firmware,
    ]


def _accelerator(name: str) -> list[str]:
    if name == "kvm":
        return ["-accel", "kvm"]
    # QEMU's default translation cache is 1 GiB per VM; a boot and a shell fill about 40 MiB
    return ["-accel", "tcg,thread=multi,tb-size=128"]


def _cpus(spec: VmSpec) -> list[str]:
    # under KVM the host's CPU as it is; TCG has no `host`, `max` is all that it can emulate
    model = "host" if spec.accelerator == "kvm" else "max"
    return ["-cpu", model, "-smp", str(spec.vcpus)]


def _memory(spec: VmSpec) -> list[str]:
    size = spec.memory_mib * _MIB
    # shared, since virtiofsd maps the guest's memory; a sealed memfd needs no path and no tmpfs
    backend = f"memory-backend-memfd,id=ram,size={size},share=on"
    if spec.memory:
        # the file is the template's memory, or our own copy of it
        backend = f"memory-backend-file,id=ram,size={size},mem-path={MEMORY_PATH},share=on"
    return ["-m", f"size={size // 1024}k", "-object", backend]


def _walls() -> list[str]:
    # every group that QEMU's filter knows is denied: nothing below forks, changes uid or sets scheduling
    return ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def _ends() -> list[str]:
    return [
        # a guest that resets is a guest that has ended
        "-no-reboot",
        # the guest kernel tells of its panic through this device: event GUEST_PANICKED, then QEMU exits with
        # 1
        "-device",
        "pvpanic-pci",
        "-action",
        "panic=exit-failure",
    ]


#: no kernel: QEMU would copy it over the restored memory. -S: shares are plugged before the guest runs
_LOADED = ["-incoming", "defer", "-S"]


def _boot(spec: VmSpec) -> list[str]:
    # a QEMU that cannot save a share (vhost-user-fs before 8.2, or its virtiofsd cannot) says so at once
    words = ["-only-migratable"] if spec.carries_share else []
    words += ["-kernel", KERNEL_PATH]
    if spec.initrd:
        words += ["-initrd", INITRD_PATH]
    return [*words, "-append", " ".join(spec.kernel_arguments)]


def _control(fd: int) -> list[str]:
    # every QEMU knows this form; -mon is deprecated in 11.1, and its successor, an -object, is unknown before
    return ["-chardev", f"socket,id=control,fd={fd}", "-qmp", "chardev:control"]


def _console(fd: int) -> list[str]:
    return ["-chardev", f"socket,id=console,fd={fd}", "-serial", "chardev:console"]


def _agent_port(fd: int) -> list[str]:
    return [
        "-chardev",
        f"socket,id=agent,fd={fd}",
        # port 0 is reserved for a console, so two ports make room for one
        "-device",
        "virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on",
        "-device",
        f"virtserialport,bus=serial.0,nr=1,chardev=agent,name={PORT_NAME}",
    ]


def _entropy() -> list[str]:
    # rng-builtin is getrandom(2): no /dev/urandom to open
    return ["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,disable-legacy=on"]


def _balloon() -> list[str]:
    # pages that the guest frees go back to the host by themselves, and a guest short of memory gets them back
    options = "free-page-reporting=on,deflate-on-oom=on,disable-legacy=on"
    return ["-device", f"virtio-balloon-pci,id=balloon,{options}"]


def _root_ports() -> list[str]:
    # devices on the root bus itself cannot be plugged later: NICs that come after boot each need a free port
    words: list[str] = []
    for number in range(SPARE_PORTS):
        words += [
            "-device",
            f"pcie-root-port,id=spare{number},chassis={number + 1},slot={number + 1},bus=pcie.0",
        ]
    return words


def share_device(share: Share, *, plugged: bool = True) -> list[str]:
    """A virtiofs share: QEMU is the front end of virtiofsd's vhost-user socket."""
    name = f"share{share.fd}"
    channel = ["-chardev", f"socket,id={name},fd={share.fd}"]
    if not plugged:
        return channel
    return [
        *channel,
        # 1024 requests in flight instead of 128: a read of 128 KiB takes up to 34 descriptors of the ring
        "-device",
        f"vhost-user-fs-pci,chardev={name},tag={quote(share.tag)},queue-size=1024",
    ]


def _limits_disks(rates: Rates) -> bool:
    return bool(rates.disk_bytes or rates.disk_ops)


def _throttle(rates: Rates) -> list[str]:
    """One group for all disks. Of what was not used before, a tenth of a second's worth may come at once, as
    QEMU has it where nothing else is said.

    Source: QEMU 7.2, docs/throttle.txt; qapi/qom.json: the flat form, x-bps-total, is not stable.
    """
    if not _limits_disks(rates):
        return []
    limits = {"bps-total": rates.disk_bytes, "iops-total": rates.disk_ops}
    return ["-object", json.dumps({"qom-type": "throttle-group", "id": _GROUP, "limits": limits})]


def disk_device(disk: Disk, *, limited: bool = False) -> list[str]:
    """An empty slot: 64 GiB of zeros, below a node whose file `Qemu.insert_disk` replaces; `limited`: the
    device has it through the filter of `_throttle`, which stays above whatever is put in.
    """
    name = quote(disk.name[:20])
    top = f"limited-{name}" if limited else f"slot-{name}"
    throttle = f"driver=throttle,node-name={top},throttle-group={_GROUP},file=slot-{name},read-only=on"
    return [
        "-blockdev",
        f"driver=null-co,node-name=empty-{name},size={SLOT_BYTES},read-zeroes=on,read-only=on",
        "-blockdev",
        f"driver=raw,node-name=slot-{name},file=empty-{name},read-only=on",
        *(["-blockdev", throttle] if limited else []),
        "-device",
        f"virtio-blk-pci,drive={top},serial={name},disable-legacy=on",
    ]


def nic_device(nic: Nic) -> list[str]:
    """A NIC on an open tap or stream socket."""
    name = f"net{nic.fd}"
    mtu = f",host_mtu={nic.mtu}" if nic.mtu else ""
    return [
        "-netdev",
        f"tap,id={name},fd={nic.fd}"
        if nic.is_tap
        else f"stream,id={name},server=off,addr.type=fd,addr.str={nic.fd}",
        # no option ROM: nobody boots from the network
        "-device",
        f"virtio-net-pci,netdev={name},mac={nic.mac}{mtu},romfile=,disable-legacy=on",
    ]

"""The command lines of QEMU and virtiofsd, word by word. A change here is a change of the wall: say why."""

import pytest

from bufferzone.model import Disk, Nic, Rates, Share, VmSpec
from bufferzone.storage import virtiofs
from bufferzone.vmm.qemu import command_line

SPEC = VmSpec(
    name="web,1",
    vcpus=2,
    memory_mib=256,
    accelerator="tcg",
    kernel="/images/vmlinux",
    initrd="/images/initrd",
    kernel_arguments=("console=ttyS0", "panic=-1"),
)
ENDS = command_line.Ends(agent=10, console=11, control=12)
BASE = """
qemu
-name guest=web,,1,debug-threads=on
-machine q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,hpet=off,i8042=off,dump-guest-core=off,\
mem-merge=off,memory-backend=ram
-nodefaults
-no-user-config
-display none
-L /firmware
-bios qboot.rom
-accel tcg,thread=multi,tb-size=128
-cpu max
-smp 2
-m size=262144k
-object memory-backend-memfd,id=ram,size=268435456,share=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-no-reboot
-device pvpanic-pci
-action panic=exit-failure
-kernel /boot/kernel
-initrd /boot/initrd
-append console=ttyS0 panic=-1
-chardev socket,id=control,fd=12
-qmp chardev:control
-chardev socket,id=console,fd=11
-serial chardev:console
-chardev socket,id=agent,fd=10
-device virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on
-device virtserialport,bus=serial.0,nr=1,chardev=agent,name=bufferzone.agent.0
-object rng-builtin,id=rng
-device virtio-rng-pci,rng=rng,disable-legacy=on
-device virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on,disable-legacy=on
-device pcie-root-port,id=spare0,chassis=1,slot=1,bus=pcie.0
-device pcie-root-port,id=spare1,chassis=2,slot=2,bus=pcie.0
-device pcie-root-port,id=spare2,chassis=3,slot=3,bus=pcie.0
-device pcie-root-port,id=spare3,chassis=4,slot=4,bus=pcie.0
"""


def lines(words: list[str]) -> list[str]:
    """One line per option, with its value."""
    found: list[str] = []
    for word in words:
        if found and not word.startswith("-") and " " not in found[-1] and found[-1].startswith("-"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def altered(**changes: object) -> VmSpec:
    values = {name: getattr(SPEC, name) for name in SPEC.__slots__}
    return VmSpec(**{**values, **changes})  # type: ignore[arg-type]


def test_the_smallest_vm() -> None:
    assert lines(command_line.argv("qemu", SPEC, ENDS)) == BASE.strip().split("\n")


def test_kvm_shows_the_hosts_cpu_and_has_no_translation_cache() -> None:
    words = lines(command_line.argv("qemu", altered(accelerator="kvm"), ENDS))
    assert "-accel kvm" in words
    assert "-cpu host" in words
    assert not any("tb-size" in word for word in words)


def test_a_share_a_disk_and_nics_add_these_words() -> None:
    spec = altered(
        shares=(Share(tag="bufferzone", fd=20),),
        disks=(Disk(name="rootfs"),),
        nics=(
            Nic(name="eth0", fd=22, mac="02:00:00:00:00:01"),
            Nic(name="eth1", fd=23, mac="02:00:00:00:00:02", mtu=9000, is_tap=False),
        ),
    )
    assert lines(command_line.argv("qemu", spec, ENDS))[len(BASE.strip().split("\n")) :] == [
        "-chardev socket,id=share20,fd=20",
        "-device vhost-user-fs-pci,chardev=share20,tag=bufferzone,queue-size=1024",
        "-blockdev driver=null-co,node-name=empty-rootfs,size=68719476736,read-zeroes=on,read-only=on",
        "-blockdev driver=raw,node-name=slot-rootfs,file=empty-rootfs,read-only=on",
        "-device virtio-blk-pci,drive=slot-rootfs,serial=rootfs,disable-legacy=on",
        "-netdev tap,id=net22,fd=22",
        "-device virtio-net-pci,netdev=net22,mac=02:00:00:00:00:01,romfile=,disable-legacy=on",
        "-netdev stream,id=net23,server=off,addr.type=fd,addr.str=23",
        "-device virtio-net-pci,netdev=net23,mac=02:00:00:00:00:02,host_mtu=9000,romfile=,disable-legacy=on",
    ]


@pytest.mark.parametrize("restored", [False, True])
def test_a_limit_is_a_filter_between_the_device_and_whatever_image_its_slot_gets(restored: bool) -> None:
    spec = altered(disks=(Disk(name="rootfs"),), rates=Rates(disk_bytes=1 << 20, disk_ops=50))
    limits = '"limits": {"bps-total": 1048576, "iops-total": 50}'
    throttle = "driver=throttle,node-name=limited-rootfs,throttle-group=rates,file=slot-rootfs"
    assert lines(command_line.argv("qemu", spec, ENDS, restored=restored))[-5:] == [
        f'-object {{"qom-type": "throttle-group", "id": "rates", {limits}}}',
        "-blockdev driver=null-co,node-name=empty-rootfs,size=68719476736,read-zeroes=on,read-only=on",
        "-blockdev driver=raw,node-name=slot-rootfs,file=empty-rootfs,read-only=on",
        f"-blockdev {throttle},read-only=on",
        "-device virtio-blk-pci,drive=limited-rootfs,serial=rootfs,disable-legacy=on",
    ]


def test_a_share_that_is_saved_is_there_from_the_start_and_one_that_cannot_be_is_refused() -> None:
    share = "-device vhost-user-fs-pci,chardev=share20,tag=bufferzone,queue-size=1024"
    shares = (Share(tag="bufferzone", fd=20),)
    made = lines(command_line.argv("qemu", altered(shares=shares, carries_share=True), ENDS))
    assert "-only-migratable" in made
    assert share in made
    restored = lines(
        command_line.argv("qemu", altered(shares=shares, carries_share=True), ENDS, restored=True)
    )
    assert "-only-migratable" not in restored
    assert share in restored
    plugged = lines(command_line.argv("qemu", altered(shares=shares), ENDS, restored=True))
    assert share not in plugged
    assert "-chardev socket,id=share20,fd=20" in plugged


def test_a_comma_in_a_name_stays_inside_its_value() -> None:
    assert command_line.quote("a,server=on") == "a,,server=on"


def test_the_c_virtiofsd() -> None:
    words = virtiofs.argv(virtiofs.Program(kind="c", path="/usr/lib/qemu/virtiofsd"), 7, 1024, uid=5)
    assert " ".join(words) == (
        "/usr/lib/qemu/virtiofsd --fd=7 -f --rlimit-nofile=0 -o source=/tree -o sandbox=chroot "
        "-o cache=always -o timeout=0.1 -o xattr -o announce_submounts "
        "-o no_posix_acl -o no_flock -o no_posix_lock"
    )


def test_the_rust_virtiofsd() -> None:
    program = virtiofs.Program(kind="rust", path="/usr/libexec/virtiofsd")
    expected = (
        "/usr/libexec/virtiofsd --fd=7 --shared-dir=/tree --sandbox={} --cache=auto --xattr "
        "--announce-submounts --inode-file-handles=never --rlimit-nofile=1024 --thread-pool-size=0"
    )
    assert " ".join(virtiofs.argv(program, 7, 1024, uid=0)) == expected.format("chroot")
    assert " ".join(virtiofs.argv(program, 7, 1024, uid=1000)) == expected.format("none")

"""Kernel and modules from files made here: ELF with notes and .modinfo, bzImage around it, load order."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import kernel, loadable, modprobe, modules, rootfs
from bufferzone.guestimage.elf import Elf
from bufferzone.guestimage.recipe import Kernel


def make_elf(*, modinfo: bytes = b"", notes: bytes = b"") -> bytes:
    """An ELF64 file with one PT_NOTE segment and the sections .modinfo and .shstrtab."""
    strings = b"\0.modinfo\0.shstrtab\0"
    at_notes = 64 + 56
    at_info = at_notes + len(notes)
    at_strings = at_info + len(modinfo)
    at_sections = at_strings + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, at_sections, 0, 64, 56, 1, 64, 3, 2
    )
    segment = struct.pack("<IIQQQQQQ", 4, 4, at_notes, 0, 0, len(notes), len(notes), 4)
    rows = [(0, 0, 0, 0), (1, 1, at_info, len(modinfo)), (10, 3, at_strings, len(strings))]
    table = b"".join(struct.pack("<IIQQQQIIQQ", n, k, 0, 0, at, size, 0, 0, 1, 0) for n, k, at, size in rows)
    return header + segment + notes + modinfo + strings + table


def note(owner: bytes, kind: int) -> bytes:
    return struct.pack("<III", len(owner) + 1, 4, kind) + owner + bytes(4 - len(owner) % 4) + bytes(4)


VMLINUX = make_elf(notes=note(b"Linux", 257) + note(b"Xen", 18))


def make_bzimage(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1  # one sector of setup: the protected-mode code starts at 0x400
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<II", image, 0x248, 0x10, len(payload))
    return bytes(image) + bytes(0x10) + payload + b"after the payload"


def with_size(packed: bytes, size: int) -> bytes:
    return packed + struct.pack("<I", size)


def test_a_gzip_payload_becomes_the_elf_file_inside() -> None:
    assert kernel.extract(make_bzimage(gzip.compress(VMLINUX))) == VMLINUX


def test_an_xz_payload_is_followed_by_its_size() -> None:
    assert kernel.extract(make_bzimage(with_size(lzma.compress(VMLINUX), len(VMLINUX)))) == VMLINUX


def test_relocations_appended_to_the_elf_file_are_cut_off() -> None:
    assert kernel.extract(VMLINUX + b"relocations") == VMLINUX


def test_an_unpacked_size_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(HostError, match="unpacks to"):
        kernel.extract(make_bzimage(with_size(lzma.compress(VMLINUX), 1)))


def test_a_kernel_without_pvh_entry_is_refused() -> None:
    with pytest.raises(HostError, match="CONFIG_PVH"):
        kernel.extract(make_elf(notes=note(b"Xen", 17)))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "not a bzImage"),
        (b"\0" * 4096, "not a bzImage"),
        (make_bzimage(gzip.compress(VMLINUX))[:0x420], "truncated"),
        (make_bzimage(b"unknown bytes"), "unknown way"),
        (make_bzimage(gzip.compress(VMLINUX)[:-20]), "cannot be unpacked"),
        (make_bzimage(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 64), "cannot be unpacked"),
        (make_bzimage(gzip.compress(b"no ELF file")), "payload"),
        (VMLINUX[:100], "truncated ELF"),
    ],
)
def test_a_file_that_is_no_kernel_is_one_line_with_a_code(image: bytes, reason: str) -> None:
    with pytest.raises(HostError, match=reason) as caught:
        kernel.extract(image)
    assert caught.value.code == "kernel-format"
    assert "\n" not in caught.value.message


def test_every_truncation_of_an_elf_file_is_a_value_error() -> None:
    for size in range(len(VMLINUX)):
        with pytest.raises(ValueError, match="ELF"):
            Elf(VMLINUX[:size])


def module(depends: str) -> bytes:
    return make_elf(modinfo=b"license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


AVAILABLE = {
    "virtio_ring": module(""),
    "virtio": module("virtio_ring"),
    "virtio_console": module("virtio,virtio-ring"),
    "broken": module("nowhere"),
    "circle_a": module("circle_b"),
    "circle_b": module("circle_a"),
}


def test_a_module_is_loaded_after_what_it_needs() -> None:
    order = modules.load_order(("virtio_console",), AVAILABLE, frozenset())
    assert order == ["virtio_ring", "virtio", "virtio_console"]


def test_a_module_built_into_the_kernel_is_not_loaded() -> None:
    order = modules.load_order(("virtio_console",), AVAILABLE, frozenset({"virtio", "virtio_ring"}))
    assert order == ["virtio_console"]


def test_a_module_that_is_nowhere_is_named_with_who_needs_it() -> None:
    with pytest.raises(HostError, match=r"no module nowhere \(needed by broken\)"):
        modules.load_order(("broken",), AVAILABLE, frozenset())


def test_modules_that_need_each_other_end() -> None:
    assert sorted(modules.load_order(("circle_a",), AVAILABLE, frozenset())) == ["circle_a", "circle_b"]


def test_only_an_appended_signature_is_removed_from_a_module() -> None:
    plain = module("virtio")
    trailer = bytes(8) + (5).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert modules.unsigned(plain + b"12345" + trailer) == plain
    assert modules.unsigned(plain) == plain


def test_a_packed_module_is_unpacked_when_it_is_asked_for() -> None:
    plain = module("virtio")
    trailer = bytes(8) + (5).to_bytes(4, "big") + b"~Module signature appended~\n"
    packed = lzma.compress(plain + b"12345" + trailer, check=lzma.CHECK_CRC32)
    found = modules.Modules({"virtio": module(""), "virtio_pci": packed, "cut": packed[:-9]})
    assert found["virtio_pci"] == plain
    assert modules.load_order(("virtio_pci",), found, frozenset()) == ["virtio", "virtio_pci"]
    assert sorted(found) == ["cut", "virtio", "virtio_pci"]
    assert modules.is_module("/usr/lib/modules/6.12/kernel/fs/fuse/virtiofs.ko.xz")
    with pytest.raises(HostError, match="cannot be unpacked"):
        found["cut"]


def test_a_damaged_module_is_a_host_error() -> None:
    with pytest.raises(HostError, match="unreadable"):
        modules.depends(module("")[:70])


def test_a_file_name_becomes_the_name_the_kernel_uses() -> None:
    assert modules.name_of("/lib/modules/6.1/kernel/drivers/char/hw_random/virtio-rng.ko") == "virtio_rng"


def test_exact_aliases_are_kept_and_patterns_are_not() -> None:
    data = make_elf(modinfo=b"alias=fs-overlay\0alias=virtio:d00000002v*\0depends=\0alias=net-pf-40\0")
    assert modules.aliases(data) == ["fs-overlay", "net-pf-40"]


def test_the_guests_modprobe_finds_names_and_aliases() -> None:
    table = "overlay overlay\nfs-overlay overlay\nvirtio_net failover virtio_net\n"
    assert modprobe.modules_of("fs-overlay", table) == ["overlay"]
    assert modprobe.modules_of("virtio-net", table) == ["failover", "virtio_net"]
    assert modprobe.modules_of("fs", table) == []
    assert modprobe.modules_of("../overlay", table) == []


def test_an_alias_of_two_modules_loads_both_and_what_they_share_once() -> None:
    table = "nft-expr-fib nf_tables nft_fib nft_fib_ipv4\nnft-expr-fib nf_tables nft_fib nft_fib_ipv6\n"
    found = modprobe.modules_of("nft-expr-fib", table)
    assert found == ["nf_tables", "nft_fib", "nft_fib_ipv4", "nft_fib_ipv6"]


def test_what_may_be_loaded_on_demand_is_what_containers_use_and_no_hardware() -> None:
    wanted = {"nf_tables", "nft_ct", "xt_conntrack", "iptable_nat", "ip_set_hash_ip", "wireguard", "macvlan"}
    others = {"dccp", "rds", "tipc", "can", "nvme", "e1000", "xfs", "nfs"}
    assert set(loadable.names({*wanted, *others})) == wanted


def test_what_is_loaded_on_demand_lies_compressed_and_is_the_same_module() -> None:
    found = {name: module("") for name in (*rootfs.BOOT_MODULES, *rootfs.OPTIONAL_MODULES, "nfnetlink")}
    found["nf_tables"] = make_elf(modinfo=b"depends=nfnetlink\0alias=nfnetlink-subsys-10\0")
    entries = {
        e.path: e.data
        for e in rootfs.module_entries(Kernel(release="6.1", vmlinux=b"", config=b"", modules=found))
    }
    assert zlib.decompress(entries["/usr/lib/modules/6.1/nf_tables.ko.z"]) == found["nf_tables"]
    assert entries["/usr/lib/modules/6.1/overlay.ko"] == found["overlay"]
    assert b"nfnetlink-subsys-10 nfnetlink nf_tables\n" in entries["/etc/bufferzone/modules.dep"]
    assert b"nf_tables" not in entries["/etc/bufferzone/modules"]  # the boot loads none of them

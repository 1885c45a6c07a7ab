"""From a distribution's bzImage to the uncompressed vmlinux that a hypervisor starts through PVH.

Starting vmlinux skips the decompressor inside the guest: about 0.7 s under TCG. It also skips KASLR, which
lives in that decompressor: the guest kernel sits at its link address. The wall is the hypervisor, not the
guest's layout. Sources: Documentation/arch/x86/boot.rst (setup header), xen/include/public/elfnote.h (the
PVH note). Nothing is stripped but what follows the ELF file's own end (the decompressor's relocation table).
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib

from bufferzone.errors import HostError
from bufferzone.guestimage import apt
from bufferzone.guestimage.elf import Elf

_PVH_NOTE = ("Xen", 18)  # XEN_ELFNOTE_PHYS32_ENTRY
_LZ4_LEGACY, _ZSTD, _GZIP, _XZ = b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\xfd7zXZ\0"


def extract(image: bytes) -> bytes:
    """The vmlinux inside a bzImage; raises `HostError` (`kernel-format`) on anything else, or without PVH."""
    if image.startswith(b"\x7fELF"):
        vmlinux = image
    else:
        vmlinux = _decompress(payload(image))
    try:
        elf = Elf(vmlinux)
    except ValueError as error:
        raise _unusable(f"the kernel's payload: {error}") from error
    if _PVH_NOTE not in elf.notes():
        raise _unusable("the kernel has no PVH entry (CONFIG_PVH)")
    return vmlinux[: elf.size]


def payload(image: bytes) -> bytes:
    """The compressed payload of a bzImage; raises `HostError` when the setup header is not there or lies."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise _unusable("the kernel file is not a bzImage")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x208:  # payload_offset appeared in protocol 2.08
        raise _unusable(f"the kernel's boot protocol {version:#x} is too old")
    sectors = image[0x1F1] or 4  # 0 means 4, for compatibility
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    if start + length > len(image) or length < 8:
        raise _unusable("the kernel file is truncated")
    return image[start : start + length]


def _decompress(data: bytes) -> bytes:
    # every format but gzip carries the unpacked size in 4 extra bytes (scripts/Makefile.lib: size_append)
    body, (size,) = data[:-4], struct.unpack("<I", data[-4:])
    try:
        if data.startswith(_LZ4_LEGACY):
            unpacked = apt.pipe(["lz4", "-dc"], body, package="lz4")
        elif data.startswith(_ZSTD):
            unpacked = apt.pipe(["zstd", "-dc"], body, package="zstd")
        elif data.startswith(_XZ):
            unpacked = lzma.decompress(body)
        elif data.startswith(_GZIP):
            unpacked = gzip.decompress(data)
        else:
            raise _unusable(f"the kernel is compressed in an unknown way (magic {data[:4].hex()})")
    except (lzma.LZMAError, zlib.error, OSError, EOFError) as error:
        raise _unusable(f"the kernel cannot be unpacked: {error}") from error
    if len(unpacked) != size:
        raise _unusable(f"the kernel unpacks to {len(unpacked)} bytes instead of {size}")
    return unpacked


def _unusable(message: str) -> HostError:
    return HostError(
        message, hint="fetch it again: python3 -m bufferzone.guestimage build --upgrade", code="kernel-format"
    )

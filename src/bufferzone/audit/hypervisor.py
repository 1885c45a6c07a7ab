"""Known holes of QEMU in devices that our machines have. Pure.

The table goes by the version that QEMU tells of itself. Distributions mend without a new version, so a
finding says what to look up, and not that there is a hole. Devices that no machine of ours has (VNC, USB,
IDE, SCSI, SLiRP, GPU, SD, e1000, SR-IOV, NBD) are left out.
"""

from __future__ import annotations

from bufferzone.record import Record


class Hole(Record):
    """`mended`: the first version of each branch that has the correction, lowest first; the last one counts
    for every newer branch."""

    cve: str
    device: str
    what: str
    mended: tuple[tuple[int, int, int], ...]


HOLES = (
    Hole(cve="CVE-2021-3748", device="virtio-net", what="use after free", mended=((6, 2, 0),)),
    Hole(cve="CVE-2022-26353", device="virtio-net", what="memory leak", mended=((7, 0, 0),)),
    Hole(
        cve="CVE-2023-6693",
        device="virtio-net",
        what="overflow of a buffer on the stack",
        mended=((7, 2, 9), (8, 1, 5), (8, 2, 1), (9, 0, 0)),
    ),
    Hole(
        cve="CVE-2024-3446",
        device="virtio-serial",
        what="double free by way of DMA to itself",
        mended=((7, 2, 11), (8, 2, 3), (9, 0, 0)),
    ),
    Hole(
        cve="CVE-2024-8612",
        device="virtio",
        what="leak of host memory through bounce buffers",
        mended=((7, 2, 14), (8, 2, 7), (9, 0, 3), (9, 1, 1), (9, 2, 0)),
    ),
)


def parse(text: str) -> tuple[int, int, int] | None:
    """`qemu 7.2.22` or `7.2.22` as numbers; None where it is something else."""
    words = text.split()[-1:] or [""]
    parts = words[0].split("-")[0].split(".")
    if len(parts) < 2 or not all(part.isdecimal() and part.isascii() for part in parts[:3]):
        return None
    numbers = [int(part) for part in parts[:3]] + [0]
    return numbers[0], numbers[1], numbers[2]


def holes(version: tuple[int, int, int]) -> list[Hole]:
    """Those that this version may have."""
    return [hole for hole in HOLES if not _mended(hole, version)]


def _mended(hole: Hole, version: tuple[int, int, int]) -> bool:
    for first in hole.mended:
        if first[:2] == version[:2]:
            return version >= first
    return version >= hole.mended[-1]

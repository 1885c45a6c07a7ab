"""The source of a kernel, unpacked as far as the lean guest's is made of it: 350 MB of 1.5 GB.

Kconfig and make read their files in every directory, so these stay; of the rest stays what can be compiled
for x86-64 without devices of hardware. Source: the kernel's own layout.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Callable

from bufferzone.errors import HostError
from bufferzone.guestimage import apt

#: directories of the kernel whose files nobody needs here, but for those that Kconfig and make read
_LEFT_OUT = tuple(
    f"{name}/"
    for name in (
        *("Documentation", "LICENSES", "rust", "samples", "sound", "tools/testing", "tools/perf"),
        *("fs/bcachefs", "fs/btrfs", "fs/ocfs2", "fs/smb", "fs/xfs"),
        *(
            f"drivers/{name}"
            for name in (
                *("accel", "clk", "comedi", "gpu", "hid", "hwmon", "iio", "infiniband", "input", "isdn"),
                *("media", "mfd", "mtd", "net/can", "net/dsa", "net/ethernet", "net/wireless", "pinctrl"),
                *("power", "scsi", "soc", "staging", "thunderbolt", "usb", "video"),
            )
        ),
    )
)
_ARCHITECTURE = "arch/x86/"
_READ_BY_MAKE = ("Kconfig", "Kbuild", "Makefile")


def is_wanted(path: str) -> bool:
    """Whether a file of the kernel's tree (its path below the top) is unpacked."""
    if posixpath.basename(path).startswith(_READ_BY_MAKE):
        return True
    if path.startswith("arch/"):
        return path.startswith(_ARCHITECTURE)
    return not path.startswith(_LEFT_OUT)


def unpack(package: apt.Package, cache: str, tree: str) -> None:
    """Unpack the archive in a source package to the directory `tree`; raises `HostError` or OSError."""
    for member, data in apt.contents(package, cache):
        if member.name.endswith(".tar.xz"):
            try:
                _unpack(data, tree)
            except (tarfile.TarError, EOFError) as error:
                raise HostError(
                    f"package {package.file} is unreadable: {error}", code="package-damaged"
                ) from error
            return
    raise HostError(f"package {package.file} holds no source", code="package-damaged")


def _unpack(data: bytes, tree: str) -> None:
    """Regular files and links that stay in the tree; what is executable stays so."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|xz") as archive:
        for member in archive:
            inner = posixpath.normpath(member.name).partition("/")[2]
            if not inner or inner.startswith("../") or not is_wanted(inner):
                continue
            path = posixpath.join(tree, inner)
            if member.issym() and _stays_inside(inner, member.linkname):
                os.makedirs(posixpath.dirname(path), exist_ok=True)
                os.symlink(member.linkname, path)
            elif (file := archive.extractfile(member) if member.isreg() else None) is not None:
                os.makedirs(posixpath.dirname(path), exist_ok=True)
                with open(path, "xb", opener=_opener(member.mode)) as target:
                    target.write(file.read())


def _stays_inside(inner: str, target: str) -> bool:
    return not posixpath.normpath(posixpath.join(posixpath.dirname(inner), target)).startswith(("/", "../"))


def _opener(mode: int) -> Callable[[str, int], int]:
    return lambda path, flags: os.open(path, flags, 0o755 if mode & 0o100 else 0o644)

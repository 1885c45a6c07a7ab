"""A root file system from a disk: read-only below, an overlay in the guest's memory on top, small layers in
between; and single files.

What a container writes is gone with the VM. Source: Documentation/filesystems/overlayfs.rst (the root of the
merged tree has the upper directory's owner and mode).
"""

from __future__ import annotations

import os

from bufferzone.container.kernel_files import read
from bufferzone.errors import CallerError, GuestError
from bufferzone.guest import layers as small
from bufferzone.guest.modprobe import modprobe
from bufferzone.linux import mount as lm
from bufferzone.wire import agent as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.wire.agent import Layer, WriteFileRequest

#: where the overlay keeps what was written
UPPER = f"{wire.ROOT_PATH}/over/upper"
_BLOCKS = "/sys/block"
#: no journal is replayed on a disk that cannot be written; EROFS has none
_OPTIONS = {"erofs": "", "ext4": "noload"}


def mount_root(kind: str, layers: Sequence[Layer] = (), device: str = "") -> None:
    """Mount the disk and the overlay, with `layers`, the topmost first, between them; raises `CallerError`,
    `GuestError` or OSError.

    `device` is the disk's path; empty: it is found by its serial number.
    """
    if kind not in _OPTIONS:
        raise CallerError(f"no kind of root file system: {kind!r}")
    lower, over, merged = (f"{wire.ROOT_PATH}/{part}" for part in ("image", "over", "rootfs"))
    os.makedirs(lower, 0o755, exist_ok=True)
    lm.mount(device or _find_root_disk(), lower, kind, lm.MS_RDONLY | lm.MS_NODEV, _OPTIONS[kind])
    put_together(lower, layers, over, merged)


def put_together(lower: str, layers: Sequence[Layer], over: str, merged: str) -> None:
    """Mount `lower` with `layers` above it and an overlay in memory on top at `merged`; the memory is mounted
    at `over`. Raises `CallerError` or OSError.
    """
    for path in (over, merged):
        os.makedirs(path, 0o755, exist_ok=True)
    lm.mount("overlay", over, "tmpfs", lm.MS_NODEV, "mode=0700")
    upper, work = f"{over}/upper", f"{over}/work"
    os.mkdir(upper)
    os.mkdir(work)
    between = [f"{over}/{index}" for index in range(len(layers))]
    for path, layer in zip(between, layers, strict=True):
        small.write(path, layer)
    below = [*between, lower]
    facts = os.stat(below[0])
    os.chown(upper, facts.st_uid, facts.st_gid)
    os.chmod(upper, facts.st_mode & 0o7777)
    data = f"lowerdir={':'.join(below)},upperdir={upper},workdir={work}"
    lm.mount("overlay", merged, "overlay", lm.MS_NODEV, data)


def _find_root_disk() -> str:
    name = find_disk(wire.ROOT_DISK)
    if not name:
        modprobe("virtio_blk")
        name = find_disk(wire.ROOT_DISK) or _only_disk()
    if not name:
        raise GuestError(f"no disk with the serial number {wire.ROOT_DISK}", code="no-disk")
    return f"/dev/{name}"


def find_disk(serial: str) -> str:
    """The name in /dev of the disk with this serial number, or nothing."""
    try:
        names = sorted(os.listdir(_BLOCKS))
    except FileNotFoundError:
        return ""
    return next((name for name in names if read(f"{_BLOCKS}/{name}/serial").strip() == serial), "")


def _only_disk() -> str:
    """The name in /dev of the one virtio disk: a VMM may have serial numbers of its own (Firecracker)."""
    try:
        names = [name for name in os.listdir(_BLOCKS) if name.startswith("vd")]
    except FileNotFoundError:
        return ""
    return names[0] if len(names) == 1 else ""


def put_file(request: WriteFileRequest) -> None:
    """Write one file that a container gets in place of the host's; raises `CallerError` or OSError."""
    if not request.name or "/" in request.name or request.name in (".", ".."):
        raise CallerError(f"not a file name: {request.name!r}")
    os.makedirs(wire.FILES_PATH, 0o755, exist_ok=True)
    path = os.path.join(wire.FILES_PATH, request.name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, request.uid, request.gid)
        os.fchmod(fd, request.mode & 0o777)
        os.write(fd, request.data)
    finally:
        os.close(fd)

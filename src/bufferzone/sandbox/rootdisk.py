"""The image behind a sandbox's root disk: where it comes from, and when it is there.

A directory is packed while the VM starts, since a helper can only be forked before there are threads; an
image file is opened once and travels as a descriptor. Both are read-only: the guest writes into its own
memory.
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import HostError, SpecError
from bufferzone.log import debug
from bufferzone.oci import cri
from bufferzone.sandbox.rootlayers import Layered, Order
from bufferzone.storage import erofs, overlay
from bufferzone.vmm import drivers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack

    from bufferzone.config import Settings
    from bufferzone.oci import Spec
    from bufferzone.snapshot.checkpoint_dir import Checkpoint
    from bufferzone.wire.agent import Layer
    from bufferzone.wire.task import Mount


class RootDisk:
    """The image: `image()` gives kind and descriptor, waiting for it where it is being packed. `layers` are,
    after that, what the guest is to have above it.
    """

    def __init__(self, stack: ExitStack, *, packing: erofs.Packing | Layered | None = None) -> None:
        self._stack, self._packing = stack, packing
        self.layers: list[Layer] = []
        self._fd, self._kind, self._user = -1, "", ""
        stack.callback(self._close)

    def give_to(self, container_id: str) -> None:
        """Reserve it; there is one container per disk, for good. Raises `HostError`."""
        if self._user:
            raise HostError(
                f"the VM's only disk is in use by container {self._user}",
                hint="rootfs = virtiofs for containers that share a VM",
                code="disk-in-use",
            )
        self._user = container_id

    def mount(self, mounts: list[Mount]) -> None:
        """Have these mounts packed. Raises `HostError` where something else is being packed already."""
        if not (isinstance(self._packing, Layered) and self._packing.awaits_mounts):
            kinds = ", ".join(mount.type for mount in mounts)
            raise HostError(
                f"a root file system of mounts cannot become a disk where one is there: {kinds}",
                code="rootfs",
            )
        self._packing.tell(mounts)

    def use(self, fd: int, name: str) -> None:
        """Take the image behind `fd`, which becomes ours. Raises `HostError` when it is none."""
        self._close()
        if self._packing is not None:
            self._packing.close()  # it has ended, or nobody needs it
        self._fd = fd
        self._kind = erofs.kind_of(fd, name)

    def image(self) -> tuple[str, int]:
        """(erofs or ext4, descriptor that stays ours). Raises `HostError` when packing failed."""
        if self._fd < 0:
            if self._packing is None:
                raise HostError("there is no image of a root file system", code="no-image")
            fd = self._packing.image()
            self.layers = list(self._packing.layers)
            self.use(fd, "the packed root file system")
        return self._kind, self._fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def choose(settings: Settings, spec: Spec) -> Settings:
    """The settings with `rootfs` decided: an image file means block, and so does a VMM that shares nothing; a
    pod's sandbox keeps sharing, since its further containers would need a disk each, and the machine has one.
    """
    features = drivers.find(settings.vmm).FEATURES
    if not (features.virtiofs or features.tree):
        if cri.is_pod(spec.pod):
            raise HostError(
                f"{features.label} cannot share a pod's root file systems, and its VMs have one disk",
                hint="vmm = qemu",
                code="vmm-feature",
            )
        if spec.annotations.get("bufferzone.rootfs") != "virtiofs":
            settings = settings.with_values(rootfs="block")
    if settings.rootfs_image and settings.rootfs != "block":
        settings = settings.with_values(rootfs="block")
    if settings.rootfs == "block" and cri.is_pod(spec.pod):
        if settings.rootfs_image or spec.annotations.get("bufferzone.rootfs") == "block":
            raise SpecError(
                "config.json: annotations.bufferzone.rootfs: a pod's containers share one VM with one disk",
                hint="rootfs = virtiofs",
            )
        settings = settings.with_values(rootfs="virtiofs")
    return settings


def open_root(stack: ExitStack, settings: Settings, spec: Spec, *, uid: int) -> RootDisk | None:
    """The disk that `settings` ask for, given back by `stack`; None: the root file system is shared.

    The process must have one thread only. Raises `HostError`.
    """
    if settings.rootfs != "block":
        return None
    if settings.rootfs_image:
        disk = RootDisk(stack)
        disk.use(open_image(settings.rootfs_image), settings.rootfs_image)
        return disk
    most = drivers.find(settings.vmm).FEATURES.slot_bytes
    packing = _pack(spec.rootfs, settings, uid, most)
    stack.callback(packing.close)
    return RootDisk(stack, packing=packing)


def _pack(rootfs: str, settings: Settings, uid: int, most: int) -> erofs.Packing | Layered:
    """Begin with an overlay's layers, or with the directory that it is; an empty one is the place of mounts
    that come with containerd's Create.
    """
    kept_bytes, found = settings.rootfs_cache_mib << 20, None
    empty = _is_empty(rootfs)
    try:
        found = overlay.find(rootfs) if kept_bytes and not empty else None
    except overlay.Unknown as error:
        debug(f"root file system: packed for this container alone: {error.line()}")
    if found is None and not empty:
        return erofs.pack(rootfs, directory_of(settings), uid=uid, most=most)
    order = Order(
        rootfs=rootfs,
        overlay=found,
        uid=uid,
        most=most,
        disks=directory_of(settings),
        kept=os.path.join(os.path.dirname(directory_of(settings)), "roots"),
        kept_bytes=kept_bytes,
    )
    return Layered(order)


def _is_empty(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except OSError:
        return False  # packing it tells why


def open_saved(stack: ExitStack, checkpoint: Checkpoint) -> RootDisk:
    """The disk of a checkpoint, given back by `stack`. Raises `HostError`."""
    disk = RootDisk(stack)
    disk.use(os.dup(checkpoint.disk_fd), "the checkpoint's disk")
    return disk


def directory_of(settings: Settings) -> str:
    """Where packed images lie while they are used, without a name: beside the guest images."""
    return os.path.join(os.path.dirname(settings.image_store.rstrip("/")), "disks")


def open_image(path: str) -> int:
    """An image file for reading only; raises `HostError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", code="bad-image") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostError(f"not a regular file: {path}", code="bad-image")
    return fd


def take_mounts(disk: RootDisk, mounts: list[Mount]) -> None:
    """containerd's root file system in a sandbox with a disk: an EROFS image as it is, anything else packed,
    by who was forked for that before the shim had threads. Raises `HostError`.
    """
    if not mounts:
        return
    if len(mounts) == 1 and mounts[0].type == "erofs" and not mounts[0].target:
        disk.use(open_image(mounts[0].source), mounts[0].source)
    elif any(mount.target for mount in mounts):
        raise HostError(
            f"a root file system with mounts in it cannot become a disk: {mounts[-1].target}",
            hint="rootfs = virtiofs",
            code="rootfs",
        )
    else:
        disk.mount(mounts)

"""containerd's root file system mounts, made in our own mount namespace onto BUNDLE/rootfs."""

from __future__ import annotations

import os

from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt
from bufferzone.linux import mountoptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack

    from bufferzone.wire.task import Mount


def mount(mounts: list[Mount], target: str, undo: ExitStack) -> None:
    """Make `mounts` in order at or below `target`; `undo` takes them away again. Raises `HostError`."""
    for entry in mounts:
        at = os.path.join(target, entry.target.lstrip("/")) if entry.target else target
        options = mountoptions.parse(entry.options)
        flags, data = options.set, ",".join(options.data)
        try:
            os.makedirs(at, exist_ok=True)
            mnt.mount(entry.source, at, entry.type, flags, data)
            if flags & mnt.MS_BIND and flags & mnt.MS_RDONLY:
                mnt.mount("", at, "", flags | mnt.MS_REMOUNT)
        except OSError as error:
            raise HostError(
                f"cannot mount the root file system ({entry.type}) on {at}: {error.strerror}", code="rootfs"
            ) from error
        undo.callback(_unmount, at)


def _unmount(path: str) -> None:
    try:
        mnt.unmount(path, mnt.MNT_DETACH)
    except OSError:
        pass  # the mount namespace goes with the shim

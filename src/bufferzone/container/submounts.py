"""Mounts the host's trees that a container uses in the agent's own mount namespace too, where they stay.

Each tree below the share is a file system of its own to the guest (virtiofsd's announce_submounts), mounted
by whoever walks into it first. Were that the container alone, its end would be the file system's: unmounted
while virtiofsd still answers the RELEASE of a file just closed, whose inode is held until then. Linux 6.1
does not wait for that at a submount (fuse_mount_remove, fs/fuse/inode.c): "VFS: Busy inodes after unmount",
kernel BUG at fs/super.c, and the process that ended is never reaped.
"""

from __future__ import annotations

import os

from bufferzone.wire.agent import SHARE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def hold(spec: dict[str, Any]) -> None:
    """Walk into every directory of the share that `spec` names; the rest is left to the mounts.

    `below` of a mount names what the host has mounted below its source: in the guest it is mounted when
    somebody gets there, with the attributes of the mount that it was reached by. So it is reached here first,
    where nothing is read-only.
    """
    sources = [str((spec.get("root") or {}).get("path") or "")]
    for mount in spec.get("mounts") or []:
        source = str(mount.get("source") or "")
        sources += [source, *(f"{source}/{part}" for part in mount.get("below") or ())]
    for path in sources:
        if path.startswith(f"{SHARE_PATH}/"):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError:
                continue  # the container's own mount says why, with its JSON path

"""Where what is measured lies: in memory, as runtimes have it for their state."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager

from bufferzone.linux import mount as mnt
from bufferzone.linux.process import CLONE_NEWNS, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_place(prefix: str, size: str = "50%") -> Iterator[str]:
    """A directory below /run that only we and what we start can see, in a file system of `size` (tmpfs(5)).

    Not /run itself: Debian with systemd mounts it `noexec`, and nothing that lies there can be started.
    Raises OSError.
    """
    unshare(CLONE_NEWNS)
    mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
    directory = tempfile.mkdtemp(prefix=prefix, dir="/run")
    try:
        mnt.mount("place", directory, "tmpfs", mnt.MS_NOSUID, f"size={size},mode=711")
        try:
            yield directory
        finally:
            mnt.unmount(directory, mnt.MNT_DETACH)
    finally:
        os.rmdir(directory)

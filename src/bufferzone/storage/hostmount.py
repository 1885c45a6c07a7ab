"""A file system that is made of host paths (overlay, a disk, a server), mounted on the host to be shared.

It is mounted in a copy of the caller's mount namespace, where its paths mean what they mean to the caller,
and leaves it as a detached tree: nothing of it shows in any mount table of the host.
"""

from __future__ import annotations

import errno

from bufferzone.errors import HostError
from bufferzone.linux import apart, mountoptions, process
from bufferzone.linux import mount as mnt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.model import Bind

#: any directory that every host has; the cover is in the copied namespace alone
_SCRATCH = "/proc"


def open_tree(bind: Bind) -> int:
    """The detached tree; raises `HostError` for a type that this kernel does not have, else OSError."""
    try:
        return apart.run(lambda: _mount(bind))
    except OSError as error:
        if error.errno == errno.ENODEV:
            text = f"unknown file system type, here and in the guest: {bind.type}"
            raise HostError(text, code="mount-type") from error
        raise


def _mount(bind: Bind) -> int:
    options = mountoptions.parse(list(bind.options))
    process.unshare(process.CLONE_NEWNS)
    mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
    mnt.mount(
        bind.source or bind.type, _SCRATCH, bind.type, options.set & ~mnt.MS_REC, ",".join(options.data)
    )
    return mnt.open_tree(_SCRATCH, recursive=False)

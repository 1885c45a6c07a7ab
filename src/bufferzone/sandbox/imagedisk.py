"""A whole container image as one EROFS file, packed once: the program that the caller of `bz run --disk` has
run, since it alone is a process with one thread and a mount namespace of its own.

What comes is the JSON of `client.imagedisk`. The layers are put together by a read-only overlay, or are a
single directory.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

from bufferzone import jail
from bufferzone.errors import HostError
from bufferzone.linux import identity, nameless
from bufferzone.linux import mount as mnt
from bufferzone.storage import erofs, share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 1 << 20


def run_packer(order_fd: int) -> int:
    """Pack as the order behind the descriptor says; the exit status. Raises `HostError`."""
    with open(order_fd, "rb", closefd=False) as file:
        order = json.loads(file.read(_MOST_BYTES))
    pack(order)
    return 0


def pack(order: dict[str, Any]) -> None:
    """Make the file `path`, whole or not at all, of `options`' overlay, or of the directory `source`; `at` is
    an empty directory. One thread only. Raises `HostError`.
    """
    share.own_namespace()
    directory = os.path.dirname(order["path"])
    source = order["source"]
    if order["options"]:
        source = order["at"]
        try:
            mnt.mount("overlay", source, "overlay", mnt.MS_RDONLY, ",".join(order["options"]))
        except OSError as error:
            text = f"cannot put the layers of the image together: {error.strerror}"
            raise HostError(text, code="rootfs") from error
    with ExitStack() as stack:
        uids = stack.enter_context(jail.allocate_uid(order["run_directory"]))
        packing = erofs.pack(source, directory, uid=uids.helper, most=order["most"])
        stack.callback(packing.close)
        fd = packing.image()
        stack.callback(os.close, fd)
        _keep(fd, order["path"])


def _keep(fd: int, path: str) -> None:
    """Give the nameless file behind `fd` its name; one that is there by now is as good."""
    try:
        if not identity.is_namespace_root() or os.fstat(fd).st_uid != os.geteuid():
            os.fchown(fd, os.geteuid(), os.getegid())
        os.fsync(fd)
        nameless.give_name(fd, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise HostError(f"cannot keep {path}: {error.strerror}", code="write-failed") from error

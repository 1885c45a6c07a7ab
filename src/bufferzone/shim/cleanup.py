"""The `delete` action: after the shim is gone, ends what it left and tells containerd how the task ended."""

from __future__ import annotations

import os
import sys
import time

from bufferzone import state
from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt
from bufferzone.vm import leftovers
from bufferzone.wire import task
from bufferzone.wire.proto import Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.shim.arguments import Arguments

_KILLED = 137


def delete(arguments: Arguments) -> int:
    """Clean up for `arguments.id`; prints a DeleteResponse for containerd. Nothing there is fine."""
    directory = os.path.join(arguments.state_root, state.check_id(arguments.id))
    left = leftovers.clean(directory) if os.path.isdir(directory) else []
    if not arguments.root:
        _unmount_rootfs(arguments.bundle or os.getcwd())
        state.remove(directory)
        now = Timestamp.from_ns(time.time_ns())
        sys.stdout.buffer.write(task.DeleteResponse(exit_status=_KILLED, exited_at=now).encode())
        sys.stdout.buffer.flush()
    if left:
        raise HostError(f"{arguments.id}: left behind: {', '.join(left)}", code="leftovers")
    return 0


def _unmount_rootfs(bundle: str) -> None:
    try:
        mnt.unmount(os.path.join(bundle, "rootfs"), mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)
    except OSError:
        pass  # our mounts live in the shim's own namespace; this is for those of an earlier containerd

"""The `delete` action: after the shim is gone, ends what it left and tells containerd how the task ended."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time

from bufferzone import state
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, HostError, NotFoundError, StateError
from bufferzone.linux import mount as mnt
from bufferzone.linux.ignoring import ignoring
from bufferzone.shim import address
from bufferzone.vm import leftovers
from bufferzone.wire import task
from bufferzone.wire.proto import Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.shim.arguments import Arguments

_KILLED = 137
_CALL_S = 1.0  # of 5 that containerd waits


def delete(arguments: Arguments) -> int:
    """Clean up for `arguments.id`; prints a DeleteResponse for containerd. Nothing there is fine.

    containerd calls it for every container that it needs no longer, whether the shim lives or not: one whose
    sandbox goes on with others is left to that.
    """
    directory = os.path.join(arguments.state_root, state.check_id(arguments.id))
    left: list[str] = []
    if not arguments.root and _is_others(arguments, directory):
        if os.path.exists(os.path.join(directory, state.LEFTOVERS)):  # it is the sandbox's own
            with ignoring(errno.ENOENT):
                os.unlink(os.path.join(directory, state.STATE))  # and no container's any more
        else:
            state.remove(directory)
    else:
        left = leftovers.clean(directory) if os.path.isdir(directory) else []
        if not arguments.root:
            state.remove(directory)
    if not arguments.root:
        _unmount_rootfs(arguments.bundle or os.getcwd())
        now = Timestamp.from_ns(time.time_ns())
        sys.stdout.buffer.write(task.DeleteResponse(exit_status=_KILLED, exited_at=now).encode())
        sys.stdout.buffer.flush()
    if left:
        raise HostError(f"{arguments.id}: left behind: {', '.join(left)}", code="leftovers")
    return 0


def remove_own(directory: str) -> None:
    """Remove the state directory of this shim, with what is mounted there in its own mount namespace."""
    for path in reversed(state.mounts_below(directory)):
        mnt.unmount(path, mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)
    state.remove(directory)


def _is_others(arguments: Arguments, directory: str) -> bool:
    """Whether a shim lives that has no such container, or is rid of it now. One that does not answer is to
    be ended.
    """
    if not state.owner_alive(directory):
        return False
    try:
        with Client.connect(address.socket_path(arguments, arguments.bundle or os.getcwd())) as client:
            _give_up(client, arguments.id)
    except NotFoundError:
        return True
    except (BufferzoneError, OSError):
        return False
    return True


def _give_up(client: Client, id: str) -> None:
    """Have the shim end and delete a container that containerd does not want to know any more."""
    client.call("State", task.StateRequest(id=id), timeout_s=_CALL_S)
    with contextlib.suppress(StateError):
        client.call("Kill", task.KillRequest(id=id, signal=signal.SIGKILL, all=True), timeout_s=_CALL_S)
    client.call("Wait", task.WaitRequest(id=id), timeout_s=_CALL_S)
    client.call("Delete", task.DeleteRequest(id=id), timeout_s=_CALL_S)
    client.call("Shutdown", task.ShutdownRequest(id=id), timeout_s=_CALL_S)


def _unmount_rootfs(bundle: str) -> None:
    with ignoring(errno.ENOENT, errno.EINVAL):  # not there, or nothing is mounted there
        # our mounts live in the shim's own namespace; this is for those of an earlier containerd
        mnt.unmount(os.path.join(bundle, "rootfs"), mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)

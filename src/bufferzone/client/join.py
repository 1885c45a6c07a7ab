"""A container that names the network namespace of another one's VM, or that container itself, gets that one's
shim instead of its own.

Its state directory becomes like any other: a hard link of the shim's socket, which outlives the directory of
whoever was there first, and the shim as the owner whose life makes the status true.
"""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.client.connection import Client
from bufferzone.errors import SANDBOX_ENDED, BufferzoneError, CallerError, HostError, StateError
from bufferzone.wire import task

_ANSWER_S = 20.0


def join_container(directory: str, id: str) -> int:
    """Have the shim of container `id` of the same state root serve the new one too; its pid.

    Raises `StateError` `sandbox-ended` where there is none any more, and as `join`.
    """
    entry = state.socket_path(os.path.join(os.path.dirname(directory), id))
    if pid := join(directory, entry, ""):
        return pid
    raise StateError(f"the sandbox has ended: {id}", code=SANDBOX_ENDED)


def join(directory: str, entry: str, restore_from: str) -> int:
    """Have the shim that `entry` leads to serve the new container too; its pid, or 0 when there is none.

    Raises `CallerError` for a checkpoint, which has a VM of its own, and for another user's shim, `VmmError`
    when the shim does not answer.
    """
    socket_path = state.socket_path(directory)
    try:
        os.link(entry, socket_path, follow_symlinks=False)
    except FileNotFoundError:
        return 0  # it ended just now
    except OSError as error:
        raise HostError(f"cannot make {socket_path}: {error.strerror}", code="write-failed") from error
    try:
        with Client.connect(directory) as client:
            pid, uid = client.peer()
            if uid != os.geteuid():
                raise CallerError(
                    f"the network namespace belongs to the VM of another user: uid {uid}",
                    code="network-in-use",
                )
            if restore_from:
                raise CallerError(
                    "a checkpoint cannot be restored into the network namespace of another container's VM",
                    code="network-in-use",
                )
            client.call("Connect", task.ConnectRequest(id=os.path.basename(directory)), timeout_s=_ANSWER_S)
    except BufferzoneError as error:
        os.unlink(socket_path)  # also: nobody is to be asked to delete what never was
        if error.code in ("shim-gone", "shim-ended"):
            return 0  # it was killed; ours makes the name its own
        raise
    state.write_owner(directory, pid)
    return pid

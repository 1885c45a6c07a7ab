"""An existing container as its callers need it: its directory, its status, a call to its shim."""

from __future__ import annotations

import os
import time

from bufferzone import state
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, NotFoundError, StateError
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.wire.proto import Message


#: how long a start waits for a create that is under way, and for its shim, which is there in a moment
_CREATE_S, _SHIM_S, _LOOK_S = 10.0, 1.0, 0.02
_EARLY = "still-creating"


def find(root: str, id: str) -> str:
    """The state directory of container `id` below `root` (empty: the user's own).

    Raises `NotFoundError` or `UsageError`.
    """
    return state.directory(state.runtime_root(root), id)


def ask(directory: str, method: str, request: Message, verb: str, **options: Any) -> Any:
    """One call to the container's shim.

    Raises what the shim refuses with; where there is no shim, `StateError` that `verb` does not fit a stopped
    container, in runc's words where callers match them.
    """
    try:
        with Client.connect(directory) as client:
            return client.call(method, request, **options)
    except BufferzoneError as error:
        id = os.path.basename(directory)
        if error.code == "shim-gone" and state.status(directory) == state.STOPPED:
            raise refusal(verb, id, state.STOPPED) from error
        early = error.code == "shim-gone" or isinstance(error, NotFoundError)
        if early and state.status(directory) == state.CREATING:
            raise refusal(verb, id, state.CREATING) from error
        raise


def start(directory: str) -> None:
    """Run the process of a created container; raises `StateError` when it is none, `ExecError` when its
    program cannot be executed.

    A create that is under way is waited for: with runc nobody sees a container before it is made, so callers
    start it once `state` shows it.
    """
    begun = time.monotonic()
    while True:
        try:
            ask(directory, "Start", task.StartRequest(id=os.path.basename(directory)), "start")
            return
        except (StateError, NotFoundError) as error:
            wait_s = _CREATE_S if state.owner_alive(directory) else _SHIM_S
            if not _is_early(directory, error) or time.monotonic() > begun + wait_s:
                raise
        time.sleep(_LOOK_S)


def _is_early(directory: str, error: BufferzoneError) -> bool:
    """Whether the create is under way, or was when the shim said that it has no such container."""
    unknown = isinstance(error, NotFoundError)
    return error.code == _EARLY or (unknown and state.status(directory) == state.CREATED)


def start_through(client: Client, id: str) -> None:
    """The same over a connection that is there."""
    client.call("Start", task.StartRequest(id=id))


def refusal(verb: str, id: str, status: str) -> StateError:
    """Why `verb` does not fit a container with this status. Source: runc's libcontainer and its callers."""
    if status == state.CREATING:
        return StateError(f"cannot {verb} container {id}: it is still being created", code=_EARLY)
    if verb == "kill":
        return StateError("container not running", code="not-running")
    if verb == "events":
        return StateError(f"container with id {id} is not running", code="not-running")
    if verb == "start":
        now = "has stopped" if status == state.STOPPED else f"is {status}"
        return StateError(f"cannot start a container that {now}")
    if verb == "delete":
        return StateError(f"cannot delete container {id} that is not stopped: {status}")
    if verb == "exec":
        return StateError(f"cannot exec in a {status} container")
    return StateError(f"cannot {verb} container {id}: it is {status}")

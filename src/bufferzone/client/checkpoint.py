"""Has a container saved with its VM: one call to its shim, with the directory it is written to."""

from __future__ import annotations

import os

from bufferzone.client import container
from bufferzone.errors import HostError
from bufferzone.wire import task
from bufferzone.wire.proto import Any_


def save(directory: str, path: str, *, leave_running: bool) -> None:
    """Have the shim of the container in the state `directory` save it to `path`, a directory.

    The container ends then, unless `leave_running`. Raises `HostError`, or what the shim refuses with.
    """
    options = task.CheckpointOptions(exit=not leave_running)
    request = task.CheckpointTaskRequest(
        id=os.path.basename(directory),
        path=path,
        options=Any_(type_url="runc.options.v1.CheckpointOptions", value=options.encode()),
    )
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot write the checkpoint {path}: {error.strerror}", code="no-dir") from error
    try:
        container.ask(directory, "Checkpoint", request, "checkpoint", fds=[fd])
    finally:
        os.close(fd)

"""What Create asks for too late: its VM was begun before, and containerd's `start` was not told of it."""

from __future__ import annotations

from bufferzone.errors import CallerError
from bufferzone.shim.engine_options import EngineOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.wire import task


def check(request: task.CreateTaskRequest) -> None:
    """Raises `CallerError` for a checkpoint to go on from, and for settings that its VM does not have."""
    if request.checkpoint or request.parent_checkpoint:
        raise CallerError(
            f"cannot make {request.id} from a checkpoint: its VM was begun before containerd told of one",
            hint="bufferzone restore, or podman container restore",
            code="no-restore",
        )
    options = EngineOptions.of(request.options)
    if not options.was_read():
        raise CallerError(
            f"the VM of {request.id} was begun without the settings of {options.where}",
            hint="name them in /etc/bufferzone/config.toml",
            code="late-options",
        )

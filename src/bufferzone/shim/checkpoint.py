"""The Task service's Checkpoint: a whole VM with its one container, saved to a directory."""

from __future__ import annotations

import os

from bufferzone.errors import HostError, NotFoundError, StateError
from bufferzone.wire import task
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.containers import Containers
    from bufferzone.shim.events import Publisher
    from bufferzone.shim.process import Process
    from bufferzone.shim.server import Peer
    from bufferzone.shim.table import Table


class Checkpoints:
    """Saves containers of `table` through `containers`."""

    def __init__(self, table: Table, containers: Containers, publisher: Publisher) -> None:
        self._table, self._containers, self._events = table, containers, publisher

    def checkpoint(self, peer: Peer, request: task.CheckpointTaskRequest) -> Empty:
        """Save the VM with its container; with the option `exit` it ends then, as if killed.

        Our own commands send the directory's descriptor too: their mounts need not be ours.
        """
        fds = peer.take_fds()
        try:
            return self._checkpoint(request, f"/proc/self/fd/{fds[0]}" if fds else request.path)
        finally:
            for fd in fds:
                os.close(fd)

    def _checkpoint(self, request: task.CheckpointTaskRequest, at: str) -> Empty:
        options = task.CheckpointOptions.decode(request.options.value if request.options else b"")
        process = self._table.find(request.id, "")
        with process.transition:
            process.require("checkpoint")
            try:
                self._save(process, request.path, at, leave=not options.exit)
            except StateError as error:
                text = f"cannot checkpoint {process.name}: {error.message}"
                raise StateError(text, hint=error.hint, code=error.code) from error
        if options.exit:
            process.exited.wait()
        self._events.publish(task.TaskCheckpointed(container_id=request.id, checkpoint=request.path))
        return Empty()

    def _save(self, process: Process, path: str, at: str, *, leave: bool) -> None:
        if self._table.others(process):
            raise StateError(
                "an exec or another container is in its VM", hint="end it first", code="not-saveable"
            )
        container = self._table.container(process.ref.id)
        if container is None:
            raise NotFoundError(f"container {process.ref.id} does not exist")

        def ended() -> None:
            process.saved = True
            self._containers.stopped(True)

        frozen = process.status == task.PAUSED
        end = None if leave else ended
        try:
            self._containers.checkpoint(container, at, frozen=frozen, ended=end)
        except OSError as error:
            text = f"cannot write the checkpoint {path}: {error.strerror}"
            raise HostError(text, code="checkpoint-failed") from error

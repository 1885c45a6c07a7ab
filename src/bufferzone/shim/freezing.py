"""The Task service's Pause and Resume: every process of a container, at once."""

from __future__ import annotations

from bufferzone.errors import NotFoundError
from bufferzone.wire import task
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.containers import Containers
    from bufferzone.shim.events import Publisher
    from bufferzone.shim.server import Peer
    from bufferzone.shim.state_files import StateFiles
    from bufferzone.shim.table import Table


class Freezing:
    """Freezes and thaws containers of `table`."""

    def __init__(
        self, table: Table, containers: Containers, state_files: StateFiles, publisher: Publisher
    ) -> None:
        self._table, self._agent = table, containers.agent
        self._state_files, self._events = state_files, publisher

    def pause(self, peer: Peer, request: task.PauseRequest) -> Empty:
        """Freeze every process of the container."""
        self._freeze(request.id, "pause", "Pause")
        self._events.publish(task.TaskPaused(container_id=request.id))
        return Empty()

    def resume(self, peer: Peer, request: task.ResumeRequest) -> Empty:
        """Thaw the container."""
        self._freeze(request.id, "resume", "Resume")
        self._events.publish(task.TaskResumed(container_id=request.id))
        return Empty()

    def _freeze(self, container_id: str, verb: str, method: str) -> None:
        process = self._table.find(container_id, "")
        with process.transition:
            process.require(verb)
            container = self._table.container(container_id)
            if container is None:
                raise NotFoundError(f"container {container_id} does not exist")
            self._agent.call(method, process.ref, Empty)
            if verb == "pause":
                process.before_pause, process.status = process.status, task.PAUSED
            else:
                process.status = process.before_pause
            self._state_files.changed(process, container)

"""The table of one shim's processes and containers, guarded by one lock that is never held during a call."""

from __future__ import annotations

import threading

from bufferzone.errors import ExistsError, NotFoundError
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.container import Container
    from bufferzone.shim.process import Process

#: how long the end of an init waits for those of its execs
_EXECS_S = 10


class Table:
    """Processes by (container id, exec id), containers by id. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[tuple[str, str], Process] = {}
        self._containers: dict[str, Container] = {}
        self.used = False  # a container was made

    def reserve(self, process: Process) -> None:
        """Add `process`; raises `ExistsError` when its name is taken."""
        key = (process.ref.id, process.ref.exec_id)
        with self._lock:
            if key in self._processes:
                raise ExistsError(f"{process.name} already exists")
            self._processes[key] = process

    def forget(self, process: Process) -> None:
        """Remove `process`; twice is harmless."""
        key = (process.ref.id, process.ref.exec_id)
        with self._lock:
            if self._processes.get(key) is process:
                del self._processes[key]

    def find(self, container_id: str, exec_id: str = "") -> Process:
        """A container's init or one of its execs; raises `NotFoundError`."""
        with self._lock:
            process = self._processes.get((container_id, exec_id))
        if process is None:
            what = f"exec {exec_id} of container" if exec_id else "container"
            raise NotFoundError(f"{what} {container_id} does not exist")
        return process

    def of(self, container_id: str) -> list[Process]:
        """A container's processes that have not ended."""
        with self._lock:
            every = list(self._processes.values())
        return [p for p in every if p.ref.id == container_id and p.status != task.STOPPED]

    def inits(self) -> list[Process]:
        """The containers' first processes, ended ones included."""
        with self._lock:
            return [process for process in self._processes.values() if not process.ref.exec_id]

    def alone_inside(self) -> list[Process]:
        """What there is of containers that were added to a sandbox (`task.INSIDE`), once no other lives."""
        living = [process for process in self.inits() if process.status != task.STOPPED]
        if any(task.INSIDE not in process.wishes for process in living):
            return []
        return [process for process in living if self.container(process.ref.id) is not None]

    def wait_for_execs(self, container_id: str) -> None:
        """All exits of execs are announced before the init's: containerd's order."""
        for process in self.of(container_id):
            if process.ref.exec_id and not process.spec:
                process.exited.wait(_EXECS_S)

    def stood_for_by_us(self) -> list[str]:
        """Ids of the containers whose init has not ended and for which no waiter stands on the host."""
        return [p.ref.id for p in self.inits() if p.status != task.STOPPED and p.stands_in]

    def others(self, process: Process) -> bool:
        """Whether there is any other process, ended and not yet deleted ones of other containers included."""
        with self._lock:
            every = [other for other in self._processes.values() if other is not process]
        return any(other.ref.id != process.ref.id or other.status != task.STOPPED for other in every)

    def all_stopped(self) -> bool:
        """Whether every process has ended, or there is none."""
        with self._lock:
            return all(process.status == task.STOPPED for process in self._processes.values())

    def is_empty(self) -> bool:
        """Whether there is no process at all."""
        with self._lock:
            return not self._processes

    def add_container(self, container: Container) -> None:
        """Keep `container` for its init's lifetime."""
        with self._lock:
            self.used = True
            self._containers[container.id] = container

    def container(self, container_id: str) -> Container | None:
        """A container, or None."""
        with self._lock:
            return self._containers.get(container_id)

    def take_container(self, container_id: str) -> Container | None:
        """Remove and return a container, or None."""
        with self._lock:
            return self._containers.pop(container_id, None)

    def have_hooks(self, stage: str) -> bool:
        """Whether a container that has not been deleted has hooks of this stage."""
        with self._lock:
            return any(container.hooks.get(stage) for container in self._containers.values())

    def has_containers(self) -> bool:
        """Whether any container is left, or being made."""
        with self._lock:
            return bool(self._containers) or any(not exec_id for _, exec_id in self._processes)

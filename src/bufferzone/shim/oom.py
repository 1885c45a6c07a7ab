"""Passes on the guest's out-of-memory kills: to containerd, to `events`, and to conmon's callers.

conmon learns of a kill from the host's cgroup, which sees nothing of one inside the VM. So where a conmon is
the parent of the process that stands for the container, we leave the file that it would have left: `oom` in
the bundle, and in its persist directory where it was given one. Podman and CRI-O look for it when the
container has ended. Source: conmon 2.1 cgroup.c and cli.c.
"""

from __future__ import annotations

import itertools
import os
import threading
import time

from bufferzone import log
from bufferzone.errors import BufferzoneError
from bufferzone.wire import agent, shim, task
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.shim.events import Publisher
    from bufferzone.shim.process import Process
    from bufferzone.shim.server import Peer
    from bufferzone.shim.table import Table
    from bufferzone.vm.agent_client import AgentClient

_PAUSE_S = 1.0  # a guest that answers at once for ever would fill the queue of events
_LONGEST_S = 10.0
_CONMON = "conmon"
#: a FIFO of that name must not hold up the container's end
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_PERSIST = ("--persist-dir", "-0")


class OomReporter:
    """One per shim. Thread-safe."""

    def __init__(self, table: Table, publisher: Publisher) -> None:
        self._table, self._events = table, publisher
        self._changed = threading.Condition()
        self._counts: dict[str, int] = {}

    def watch(self, client: AgentClient) -> None:
        """Publish what the guest reports until the VM ends; runs in a thread of its own."""
        with log.passing_over("wait for an OOM kill", BufferzoneError):  # the sandbox has ended
            while True:
                for container_id in set(client.call("WaitOom", Empty(), agent.OomEvents).ids):
                    self._hit(container_id)
                time.sleep(_PAUSE_S)

    def ended(self, process: Process) -> None:
        """The container's init ended: a kill that was not published yet is published now, before the exit."""
        with self._changed:
            known = self._counts.get(process.ref.id, 0)
            self._changed.notify_all()
        if process.oom_kills and not known:
            self._publish(process)

    def forget(self, container_id: str) -> None:
        """The container is deleted."""
        with self._changed:
            self._counts.pop(container_id, None)
            self._changed.notify_all()

    def wait(self, peer: Peer, request: shim.OomRequest) -> shim.OomResponse:
        """Block until more kills than `seen` are known, the container ended, or `timeout_ms` passed."""
        id = request.id
        self._table.find(id)

        def news() -> bool:
            return self._counts.get(id, 0) > request.seen or not self._table.of(id)

        with self._changed:
            self._changed.wait_for(news, min(request.timeout_ms / 1000, _LONGEST_S))
            return shim.OomResponse(count=self._counts.get(id, 0), ended=not self._table.of(id))

    def _hit(self, container_id: str) -> None:
        processes = [p for p in self._table.of(container_id) if not p.ref.exec_id]
        if processes:  # else it ended, and `ended` has published it, or the guest invents names
            self._publish(processes[0])

    def _publish(self, process: Process) -> None:
        leave_file(process.pid, process.bundle)
        self._events.publish(task.TaskOOM(container_id=process.ref.id))
        with self._changed:  # last: `ended` takes it for published
            self._counts[process.ref.id] = self._counts.get(process.ref.id, 0) + 1
            self._changed.notify_all()


def leave_file(pid: int, bundle: str, proc: str = "/proc") -> list[str]:
    """Make the file `oom` where the conmon that is the parent of `pid` would; returns the paths made.

    Without a conmon nothing is made: the bundle is its caller's.
    """
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        with open(f"{proc}/{parent}/comm", encoding="ascii", errors="replace") as text:
            if parent <= 1 or text.read().strip() != _CONMON:
                return []
        with open(f"{proc}/{parent}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except (OSError, ValueError, IndexError):
        return []  # the process is gone, and with it who would ask
    made = []
    for directory in [bundle, *_persist_directories(words)]:
        path = os.path.join(directory, "oom")
        try:
            os.close(os.open(path, _FLAGS, 0o600))
            made.append(path)
        except OSError:
            pass  # as conmon does: the exit status still says 137
    return made


def _persist_directories(words: list[str]) -> list[str]:
    found = [after for word, after in itertools.pairwise(words) if word in _PERSIST]
    found += [word.partition("=")[2] for word in words if word.startswith("--persist-dir=")]
    return [path for path in found if path.startswith("/")]

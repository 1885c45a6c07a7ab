"""What the Task service is only asked: nothing of a task changes by these calls."""

from __future__ import annotations

import os

from bufferzone.errors import BufferzoneError, StateError
from bufferzone.log import passing_over
from bufferzone.wire import agent, metrics, task
from bufferzone.wire.proto import Any_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bufferzone.shim.server import Peer
    from bufferzone.shim.table import Table
    from bufferzone.vm.agent_client import AgentClient


class Inquiries:
    """Answers from the table of tasks, and from the guest. Thread-safe."""

    def __init__(self, table: Table, client: AgentClient) -> None:
        self._table, self._agent = table, client

    def state(self, peer: Peer, request: task.StateRequest) -> task.StateResponse:
        return self._table.find(request.id, request.exec_id).state()

    def stats(self, peer: Peer, request: task.StatsRequest) -> task.StatsResponse:
        process = self._table.find(request.id, "")
        reply = self._agent.call("Stats", process.ref, agent.StatsResponse)
        value = metrics.from_counters({c.name: c.value for c in reply.counters})
        return task.StatsResponse(stats=Any_(type_url=metrics.TYPE_URL, value=value.encode()))

    def counters(self) -> Iterator[tuple[str, int]]:
        """Those of all containers, one after the other."""
        for process in self._table.inits():
            if process.status == task.STOPPED:
                continue
            with passing_over("measure a container", BufferzoneError):  # it has just ended
                reply = self._agent.call("Stats", process.ref, agent.StatsResponse)
                yield from ((counter.name, counter.value) for counter in reply.counters)

    def pids(self, peer: Peer, request: task.PidsRequest) -> task.PidsResponse:
        """Host pids: the processes that stand for the container and its running execs.

        The container's own is among them until it is deleted. containerd 1.7 and newer take a shim whose
        task has none for leaked when they start again, and forget how it ended (`loadShim`, runtime/v2).
        """
        pids = {self._table.find(request.id).pid}
        pids |= {process.pid for process in self._table.of(request.id)}
        return task.PidsResponse(processes=[task.ProcessInfo(pid=pid) for pid in sorted(pids)])

    def processes(self, peer: Peer, request: agent.ProcessRef) -> agent.PidsResponse:
        """The guest's own process table of the container (service bufferzone.shim.v1.Shim)."""
        process = self._table.find(request.id, "")
        if process.status == task.STOPPED:
            raise StateError("container not running", code="not-running")
        return self._agent.call("Pids", process.ref, agent.PidsResponse)

    def usage(self, peer: Peer, request: agent.ProcessRef) -> agent.UsageResponse:
        """What a measured exec has used by now (service bufferzone.shim.v1.Shim)."""
        process = self._table.find(request.id, request.exec_id)
        return self._agent.call("Usage", process.ref, agent.UsageResponse)

    def connect(self, peer: Peer, request: task.ConnectRequest) -> task.ConnectResponse:
        init = [process for process in self._table.of(request.id) if not process.ref.exec_id]
        pid = init[0].pid if init else 0
        return task.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version="2")

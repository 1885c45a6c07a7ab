"""An exec from its making to its end in one call, and what it has used: what the library asks for.

What was started by `Exec` and `Start` is waited for by `Result`.
"""

from __future__ import annotations

import time

from bufferzone import log
from bufferzone.errors import BufferzoneError, VmmError
from bufferzone.wire import shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.shim.process import Process
    from bufferzone.shim.server import Peer
    from bufferzone.shim.table import Table
    from bufferzone.wire import agent


class Runs:
    """The methods `Run` and `Result`, made of those of the Task service. Thread-safe."""

    def __init__(
        self,
        table: Table,
        exec: Callable[[Peer, task.ExecProcessRequest], object],
        start: Callable[[Peer, task.StartRequest], object],
        delete: Callable[[Peer, task.DeleteRequest], object],
        dismiss: Callable[[Process], None],
    ) -> None:
        """`dismiss` deletes one that has ended, and does not wait for the guest to do so."""
        self._table, self._exec, self._start, self._delete = table, exec, start, delete
        self._dismiss = dismiss

    def run(self, peer: Peer, request: task.ExecProcessRequest) -> shim.RunResponse:
        """Exec, Start, Wait, Delete; after any failure the exec is forgotten."""
        begun = time.monotonic()
        self._exec(peer, request)
        try:
            self._start(peer, task.StartRequest(id=request.id, exec_id=request.exec_id))
        except BaseException:
            with log.passing_over("free an exec that never began", BufferzoneError):  # its caller has gone
                self._delete(peer, task.DeleteRequest(id=request.id, exec_id=request.exec_id))
            raise
        answer = self._result(self._table.find(request.id, request.exec_id))
        answer.start_us = max(0, round((time.monotonic() - begun) * 1e6) - answer.run_us)
        return answer

    def result(self, peer: Peer, request: agent.ProcessRef) -> shim.RunResponse:
        """Wait and Delete. Raises `VmmError` `vm-lost` where the exec went down with its VM."""
        return self._result(self._table.find(request.id, request.exec_id))

    def _result(self, process: Process) -> shim.RunResponse:
        begun = time.monotonic()
        process.exited.wait()
        waited_us = round((time.monotonic() - begun) * 1e6)
        if not process.failure:
            self._dismiss(process)
            return _answer(process, waited_us)
        raise VmmError(process.failure, code="vm-lost")


def _answer(process: Process, run_us: int) -> shim.RunResponse:
    return shim.RunResponse(
        exit_status=process.exit_status,
        signal=process.signalled,
        oom=process.oom,
        cpu_us=process.cpu_us,
        peak_bytes=process.peak_bytes,
        run_us=run_us,
    )

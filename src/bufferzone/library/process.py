"""A program that runs: its streams, signals, size of its terminal, its end."""

from __future__ import annotations

import os
import select
import threading
import time

from bufferzone.client import signals
from bufferzone.errors import StateError
from bufferzone.library import values
from bufferzone.library.run import exec_request, kill
from bufferzone.library.values import Result, Timings
from bufferzone.wire import agent, shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import BufferedReader, FileIO
    from typing import Any, Self, overload

    from bufferzone.client.connection import Client
    from bufferzone.library.connections import Connections

_MIB = 1 << 20


class Process:
    """A program that was started by `Sandbox.start`. A context manager that ends it.

    `stdin` is unbuffered and binary, `stdout` and `stderr` are buffered; `stderr` is None with a terminal. A
    program whose output nobody reads stands still. Streams are one thread's at a time, the rest is anybody's.
    """

    def __init__(self, connections: Connections, container_id: str, process: dict[str, Any]) -> None:
        self.args = tuple(process["args"])
        self._connections, self._id = connections, container_id
        self._lock = threading.Lock()
        self._result: Result | None = None
        self._begun = time.monotonic()
        request = exec_request(container_id, process)
        self._exec_id = request.exec_id
        self._client: Client | None = connections.take()
        try:
            self._open(request)
        except BaseException:
            self._client.close()
            raise
        self._start_s = time.monotonic() - self._begun

    def _open(self, request: task.ExecProcessRequest) -> None:
        """Have it started, and make its streams."""
        client = self._connected()
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(2 if request.terminal else 3)]
        theirs = [pairs[0][0], *(writer for _, writer in pairs[1:])]
        ours = [pairs[0][1], *(reader for reader, _ in pairs[1:])]
        try:
            client.call("Exec", request, fds=theirs)
            client.call("Start", task.StartRequest(id=self._id, exec_id=self._exec_id))
            ref = agent.ProcessRef(id=self._id, exec_id=self._exec_id)
            self._stream = client.send("Result", ref, service=shim.SERVICE)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.stdin: FileIO = open(ours[0], "wb", buffering=0)  # noqa: SIM115 (until `close`)
        self.stdout: BufferedReader = open(ours[1], "rb")  # noqa: SIM115
        self.stderr: BufferedReader | None = None if request.terminal else open(ours[2], "rb")  # noqa: SIM115

    def _connected(self) -> Client:
        if self._client is None:
            raise StateError("the process was closed", code="closed")
        return self._client

    if TYPE_CHECKING:

        @overload
        def wait(self, timeout_s: None = None) -> Result: ...

        @overload
        def wait(self, timeout_s: float | None) -> Result | None: ...

    def wait(self, timeout_s: float | None = None) -> Result | None:
        """Wait for its end, which is the result, without what it wrote; None when the time is up before.

        Raises `VmmError` where the VM is lost.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            while self._result is None:
                client = self._connected()
                left_s = None if end is None else max(0.0, end - time.monotonic())
                if not select.select([client.fileno()], [], [], left_s)[0]:
                    return None
                answer = client.poll_response(self._stream, shim.SERVICE, "Result")
                if answer is not None:
                    self._result = self._ended(answer)
            return self._result

    def poll(self) -> Result | None:
        """The result, or None while it runs."""
        return self.wait(0)

    def _ended(self, answer: shim.RunResponse) -> Result:
        verdict = values.MEMORY_LIMIT if answer.oom else values.SIGNAL if answer.signal else ""
        total_s = time.monotonic() - self._begun
        return Result(
            args=self.args,
            exit_code=answer.exit_status,
            signal=answer.signal,
            verdict=verdict or (values.NONZERO if answer.exit_status else values.OK),
            stdout_bytes=b"",
            stderr_bytes=b"",
            wall_s=answer.run_us / 1e6,
            cpu_s=answer.cpu_us / 1e6,
            peak_memory_mib=answer.peak_bytes / _MIB if answer.peak_bytes else None,
            timings=Timings(start_s=self._start_s, total_s=total_s),
        )

    def signal(self, number: int | str) -> None:
        """Send it a signal, by number or name; one that has ended is none the worse."""
        number = signals.number_of(str(number))
        kill(self._connections.call, self._id, self._exec_id, number, everyone=False)

    def kill(self) -> None:
        """SIGKILL for it and all it started."""
        kill(self._connections.call, self._id, self._exec_id, signals.KILL, everyone=True)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of its terminal."""
        size = task.ResizePtyRequest(id=self._id, exec_id=self._exec_id, width=columns, height=rows)
        self._connections.call("ResizePty", size)

    def close(self) -> None:
        """Close its streams and end it with all it started, unless it has ended; twice is harmless."""
        client, self._client = self._client, None
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bufferzone.Process {' '.join(self.args)!a:.60}>"

"""Publishes task events to containerd over its ttrpc socket, in order, without making a task wait.

Source: containerd pkg/shim publisher: service Events/Forward, 5 s a try, one reconnect, up to 5 tries.
Without an address (CRI-O, our CLI) publishing is a no-op.
"""

from __future__ import annotations

import queue
import threading
import time

from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError
from bufferzone.recorder import Silent
from bufferzone.wire import task
from bufferzone.wire.proto import Any_, Message, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.recorder.journal import Journal
    from bufferzone.shim.process import Process

_TRIES = 5
_TIMEOUT_S = 5.0
#: of an event, what the flight recorder gets
_RECORDED = ("exec_id", "pid", "bundle", "exit_status", "checkpoint")


_SILENT = Silent()


class Publisher:
    """A queue and one thread; `close` waits until the queue is empty (bounded by the tries)."""

    def __init__(
        self,
        address: str,
        namespace: str,
        log: Callable[[str], None],
        recorder: Journal | Silent = _SILENT,
        *,
        untold: str = "",
    ) -> None:
        """`recorder` is told of every event, whether there is an address or not. `untold` is the id of one
        that is no task of containerd's.
        """
        self._untold = untold
        self._recorder = recorder
        self._path = address.removeprefix("unix://")
        self.namespace = namespace
        self._log = log
        self._queue: queue.SimpleQueue[task.Envelope | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        if self._path:
            self._thread.start()

    def publish(self, event: Message) -> None:
        """Queue `event`; returns at once."""
        if self._recorder.on:
            self._record(event)
        if not self._path or (self._untold and getattr(event, "container_id", "") == self._untold):
            return
        kind = type(event)
        any_ = Any_(type_url=f"containerd.events.{kind.__name__}", value=event.encode())
        now = Timestamp.from_ns(time.time_ns())
        self._queue.put(
            task.Envelope(timestamp=now, namespace=self.namespace, topic=task.TOPICS[kind], event=any_)
        )

    def _record(self, event: Message) -> None:
        """Its numbers and names; not its stdio, nor times that the line has."""
        id = str(getattr(event, "container_id", ""))
        known = {name: getattr(event, name, "") for name in _RECORDED}
        facts = {name: value for name, value in known.items() if value or name == "exit_status"}
        if not hasattr(event, "exit_status"):
            facts.pop("exit_status", None)
        if getattr(event, "id", id) != id:
            facts["exec_id"] = event.id  # type: ignore[attr-defined]
        self._recorder.note(task.TOPICS[type(event)].rpartition("/")[2], id, **facts)

    def close(self) -> None:
        """Send what is queued and end the thread."""
        if self._path:
            self._queue.put(None)
            self._thread.join(_TRIES * _TIMEOUT_S)

    def _run(self) -> None:
        client: Client | None = None
        while (envelope := self._queue.get()) is not None:
            client = self._send(client, envelope)
        if client is not None:
            client.close()

    def _send(self, client: Client | None, envelope: task.Envelope) -> Client | None:
        request = task.ForwardRequest(envelope=envelope)
        for attempt in range(_TRIES):
            try:
                if client is None:
                    client = Client.connect(self._path, timeout_s=_TIMEOUT_S)
                client.call("Forward", request, service=task.EVENTS_SERVICE, timeout_s=_TIMEOUT_S)
                return client
            except (BufferzoneError, OSError) as error:
                self._log(f"event {envelope.topic} not delivered (try {attempt + 1}): {error}")
                if client is not None:
                    client.close()
                client = None
                if attempt:
                    time.sleep(attempt)
        return None


def created(request: task.CreateTaskRequest, pid: int) -> task.TaskCreate:
    """A container was made, and `pid` stands for it."""
    io = task.TaskIO(
        stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
    )
    return task.TaskCreate(
        container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, io=io, pid=pid
    )


def exited(process: Process) -> task.TaskExit:
    """A container's init or an exec has ended."""
    return task.TaskExit(**_end_of(process))


def deleted(process: Process) -> task.TaskDelete:
    """A container or an exec is known no longer."""
    return task.TaskDelete(**_end_of(process))


def _end_of(process: Process) -> dict[str, Any]:
    return {
        "container_id": process.ref.id,
        "id": process.ref.exec_id or process.ref.id,
        "pid": process.pid,
        "exit_status": process.exit_status,
        "exited_at": process.exited_at(),
    }

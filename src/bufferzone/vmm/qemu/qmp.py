"""QEMU's control channel (QMP): one command at a time, each with its own deadline, events in a queue.

QEMU is not trusted to be well-behaved, since a guest may have taken it over: lines and queue are bounded, and
bytes that do not decode end the connection. Refuses: asynchronous commands, reconnecting, a thread of its
own.

Format: one JSON object per line; docs/interop/qmp-spec.txt of QEMU 7.2.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque

from bufferzone.errors import VmmError
from bufferzone.vmm.console import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: longest line we read; the largest reply we ask for (query-qmp-schema, not asked for) would be 200 KiB
LINE_LIMIT = 1 << 20
#: events kept for the reader; the oldest are dropped
EVENT_LIMIT = 256


class Qmp:
    """A client over a connected stream socket, which it owns. Thread-safe; calls wait for each other.

    After any VmmError with code `qmp-lost` the connection is closed and every later call raises the same.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._lock = threading.Lock()
        self._pending = b""
        self._serial = 0
        self._lost = ""
        #: QEMU's major version, as the greeting tells it; 0: unknown
        self.major = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENT_LIMIT)

    def fileno(self) -> int:
        """For poll(2): readable means `pump` has something to take."""
        return self._sock.fileno()

    def greet(self, timeout_s: float = 20.0) -> str:
        """Wait for the greeting, leave negotiation mode; returns the version, such as `7.2.22`."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not isinstance(qmp := self._receive(deadline).get("QMP"), dict):
                self._check_time(deadline, "greeting")
        self.execute("qmp_capabilities", timeout_s=timeout_s)
        version = qmp.get("version")
        numbers = version.get("qemu") if isinstance(version, dict) else None
        if not isinstance(numbers, dict):
            return "unknown"
        major = numbers.get("major")
        self.major = major if isinstance(major, int) else 0
        return ".".join(str(numbers.get(part, 0)) for part in ("major", "minor", "micro"))[:40]

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> Any:
        """Run a command and return its `return` value.

        Raises VmmError: `qmp-refused` when QEMU said no, `qmp-timeout` after `timeout_s`, `qmp-lost` when it
        is gone.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._serial += 1
            message: dict[str, Any] = {"execute": command, "id": self._serial}
            if arguments:
                message["arguments"] = arguments
            self._send(json.dumps(message).encode() + b"\n", deadline, command)
            while True:
                reply = self._receive(deadline, command)
                if reply.get("id") == self._serial:
                    break
                self._check_time(deadline, command)
        if "error" in reply:
            error = reply["error"]
            text = str(error.get("desc", "")) if isinstance(error, dict) else ""
            raise VmmError(f"QEMU refused {command}: {printable(text)}", code="qmp-refused")
        return reply.get("return")

    def send_descriptor(
        self,
        name: str,
        fd: int,
        *,
        command: str = "getfd",
        arguments: dict[str, Any] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Give QEMU a copy of `fd` under `name` (command getfd), for `netdev_add` and the like; or with
        another `command` that takes one.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._serial += 1
            serial = self._serial
            order = {"execute": command, "id": serial, "arguments": arguments or {"fdname": name}}
            message = json.dumps(order).encode() + b"\n"
            self._wait(select.POLLOUT, deadline, command)
            try:
                socket.send_fds(self._sock, [message], [fd])
            except OSError as error:
                raise self._lose(f"cannot send: {error}") from error
            while (reply := self._receive(deadline, command)).get("id") != serial:
                self._check_time(deadline, command)
        if "error" in reply:
            raise VmmError(f"QEMU refused {command}: {name}", code="qmp-refused")

    def status(self) -> str:
        """`running`, `paused`, `prelaunch`, `guest-panicked`, `shutdown`, ..."""
        reply = self.execute("query-status")
        return printable(str(reply.get("status", "unknown"))) if isinstance(reply, dict) else "unknown"

    def pump(self) -> None:
        """Take in what has arrived without waiting, so that `events` is up to date. Never raises."""
        with self._lock:
            try:
                for _ in range(4 * EVENT_LIMIT):  # one that never stops talking is not listened to for ever
                    self._receive(time.monotonic())
            except VmmError:
                pass  # nothing more has come, or the next command raises it again

    def panic(self) -> bool:
        """Whether the guest kernel has said that it panicked (pvpanic)."""
        return any(event.get("event") == "GUEST_PANICKED" for event in tuple(self.events))

    def reset(self) -> bool:
        """Whether the guest reset its machine: what a panic does before the kernel has its pvpanic driver."""
        reasons = [event.get("data") for event in tuple(self.events) if event.get("event") == "SHUTDOWN"]
        return any(isinstance(data, dict) and data.get("reason") == "guest-reset" for data in reasons)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._lost = self._lost or "closed"
        self._sock.close()

    def _lose(self, reason: str) -> VmmError:
        self._lost = self._lost or reason
        self._sock.close()
        return VmmError(f"lost the control channel to QEMU: {self._lost}", code="qmp-lost")

    def _check_time(self, deadline: float, command: str) -> None:
        """A QEMU that floods us with messages is always ready to be read: poll(2) alone keeps no deadline."""
        if time.monotonic() > deadline:
            raise VmmError(f"QEMU did not answer in time: {command}", code="qmp-timeout")

    def _wait(self, event: int, deadline: float, command: str) -> None:
        if self._lost:
            raise self._lose(self._lost)
        poller = select.poll()
        poller.register(self._sock, event)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise VmmError(f"QEMU did not answer in time: {command}", code="qmp-timeout")

    def _send(self, data: bytes, deadline: float, command: str) -> None:
        while data:
            self._wait(select.POLLOUT, deadline, command)
            try:
                data = data[self._sock.send(data) :]
            except OSError as error:
                raise self._lose(f"cannot send: {error}") from error

    def _receive(self, deadline: float, command: str = "greeting") -> dict[str, Any]:
        """The next message; events are queued on the way and returned too (they carry no id)."""
        while b"\n" not in self._pending:
            self._wait(select.POLLIN, deadline, command)
            try:
                chunk = self._sock.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lose(f"cannot receive: {error}") from error
            if not chunk:
                raise self._lose("QEMU closed it")
            self._pending += chunk
            if len(self._pending) > LINE_LIMIT:
                raise self._lose("a line is too long")
        line, self._pending = self._pending.split(b"\n", 1)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._lose("a line is not JSON") from error
        if not isinstance(message, dict):
            raise self._lose("a line is not an object")
        if "event" in message:
            self.events.append(message)
        return message

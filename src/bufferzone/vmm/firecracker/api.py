"""Firecracker's control channel: HTTP/1.1 with JSON on a UNIX socket, one request at a time.

Firecracker is not trusted to be well-behaved, since a guest may have taken it over: heads and bodies are
bounded, each call has its own deadline, and bytes that are no answer end the connection. The few rules of
HTTP that its server keeps (micro_http: a length, no chunks, connections stay) are read here: http.client
costs a start 60 ms of imports and bounds no body. Refuses: reconnecting, a thread of its own, events.

Source: Firecracker 1.12, src/firecracker/swagger/firecracker.yaml; RFC 9112.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time

from bufferzone.errors import VmmError
from bufferzone.vmm.console import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: most bytes of an answer's head and of its body; the largest that is asked for is the version
HEAD_LIMIT, BODY_LIMIT = 16 << 10, 256 << 10
#: how often a server that is starting is asked whether it is there: it takes milliseconds
_AGAIN_S = 0.002
#: most characters of what Firecracker says about a refusal
_REASON = 300


class Api:
    """A client of the socket at `path`. Thread-safe; calls wait for each other.

    After any VmmError with code `api-lost` the connection is closed and every later call raises the same.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)
        self._lock = threading.Lock()
        self._pending = b""
        self._lost = ""

    def connect(self, timeout_s: float, ended: int) -> None:
        """Connect as soon as the server is there; `ended` is a descriptor that is readable when it never will
        be. Raises VmmError: `api-timeout`, `api-lost`.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while True:
            try:
                self._sock.connect(self._path)
                return
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                pass  # not bound, not listening, not quick enough
            except OSError as error:
                raise self._lose(f"cannot connect: {error.strerror}") from error
            if poll.poll(_AGAIN_S * 1000):
                raise self._lose("it has ended")
            if time.monotonic() > deadline:
                raise VmmError("Firecracker's API does not come up", code="api-timeout")

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
        """Make a request; the answer's JSON, None where it has no body.

        Raises VmmError: `vmm-refused` when Firecracker said no, `api-timeout` after `timeout_s`, `api-lost`
        when it is gone.
        """
        what, deadline = f"{method} {path}", time.monotonic() + timeout_s
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{what} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if data:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        with self._lock:
            self._send(f"{head}\r\n".encode() + data, deadline, what)
            status, answer = self._answer(deadline, what)
        if status >= 300:
            raise VmmError(f"Firecracker refused {what}: {_reason(answer)}", code="vmm-refused")
        return answer

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._lost = self._lost or "closed"
        self._sock.close()

    def _lose(self, reason: str) -> VmmError:
        self._lost = self._lost or reason
        self._sock.close()
        return VmmError(f"lost the control channel to Firecracker: {self._lost}", code="api-lost")

    def _wait(self, event: int, deadline: float, what: str) -> None:
        if self._lost:
            raise self._lose(self._lost)
        poll = select.poll()
        poll.register(self._sock, event)
        # one that sends without end is always ready to be read: poll(2) alone keeps no deadline
        left = deadline - time.monotonic()
        if left < 0 or not poll.poll(left * 1000):
            # its answer would be taken for that of the next request
            self._lose(f"no answer to {what}")
            raise VmmError(f"Firecracker did not answer in time: {what}", code="api-timeout")

    def _send(self, data: bytes, deadline: float, what: str) -> None:
        while data:
            self._wait(select.POLLOUT, deadline, what)
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lose(f"cannot send: {error.strerror}") from error

    def _receive(self, deadline: float, what: str) -> None:
        self._wait(select.POLLIN, deadline, what)
        try:
            chunk = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lose(f"cannot receive: {error.strerror}") from error
        if not chunk:
            raise self._lose("Firecracker closed it")
        self._pending += chunk

    def _answer(self, deadline: float, what: str) -> tuple[int, Any]:
        """Status and JSON of the next answer; interim ones (100 to 199) are passed over."""
        status = 100
        while status < 200:
            while b"\r\n\r\n" not in self._pending:
                if len(self._pending) > HEAD_LIMIT:
                    raise self._lose("a head is too long")
                self._receive(deadline, what)
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            status, length = self._head(head)
        while len(self._pending) < length:
            self._receive(deadline, what)
        body, self._pending = self._pending[:length], self._pending[length:]
        try:
            return status, json.loads(body) if body else None
        except (ValueError, RecursionError) as error:
            raise self._lose("a body is not JSON") from error

    def _head(self, head: bytes) -> tuple[int, int]:
        """The status and how many bytes of body follow."""
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ")
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not _is_number(words[1], 3):
            raise self._lose("an answer is not HTTP")
        length = b"0"
        for line in lines:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = value.strip()
        if not _is_number(length, 9) or int(length) > BODY_LIMIT:
            raise self._lose("a body is too long")
        return int(words[1]), int(length)


def _is_number(text: bytes, most: int) -> bool:
    return text.isdigit() and len(text) <= most


def _reason(answer: Any) -> str:
    """What a refusal says, for a person."""
    said = answer.get("fault_message") if isinstance(answer, dict) else None
    return printable(str(said).replace("\n", " ").strip(), _REASON) if said else "no reason given"

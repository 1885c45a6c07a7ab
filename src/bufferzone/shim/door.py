"""A shim that containerd's Sandbox API started, until its pod is asked for.

`start` learns nothing of the pod: how large its VM is to be and what network it is in comes with the first
request, CreateSandbox. A VM is booted by one thread alone; so it is that thread which reads the request, and
answers whatever comes before. The request itself is answered by the server, once there is one.
"""

from __future__ import annotations

import socket
import time

from bufferzone.errors import StateError
from bufferzone.log import passing_over
from bufferzone.shim.sandbox_service import SandboxService
from bufferzone.shim.server import peer_of, reply
from bufferzone.wire import sandbox, ttrpc
from bufferzone.wire.proto import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.errors import BufferzoneError
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.shim.server import Server, Service
    from bufferzone.shim.task import TaskService

_RECEIVE = 1 << 16
#: for a caller whose pod could not be made to say that the shim may go
_LEAVE_S = 5.0


class Door:
    """What comes to the socket `listener`. One thread only."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._sock: socket.socket | None = None
        self._frames = ttrpc.FrameReader()
        self._read: list[ttrpc.Frame] = []

    def await_create(self, timeout_s: float) -> sandbox.CreateSandboxRequest | None:
        """What the pod is to be; None where nobody says so in time, or the shim is to end."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frame = self._next(deadline)
            except TimeoutError:
                return None
            method, payload = _asked(frame)
            try:
                if method == "CreateSandbox":
                    return sandbox.CreateSandboxRequest.decode(payload)
                status = ttrpc.status_of(StateError("no pod has been asked for"), ours=False)
            except DecodeError as error:
                status = ttrpc.Status(code=ttrpc.INVALID_ARGUMENT, message=str(error))
            self._read.pop(0)
            if method == "ShutdownSandbox":
                self._say(frame, ttrpc.Response())
                return None
            self._say(frame, ttrpc.Response(status=status))

    def hand_over(self, server: Server) -> None:
        """From now on `server` answers, first of all what was waited for."""
        self._listener.settimeout(None)
        if self._sock is not None:
            self._sock.settimeout(None)
            server.go_on(self._sock, self._frames, self._read)
            self._sock = None

    def services(self, tasks: TaskService, box: Sandbox) -> dict[str, Service]:
        """What is served besides, for who asks here."""
        return {sandbox.SERVICE: SandboxService(tasks, box).methods()}

    def refuse(self, error: BufferzoneError) -> None:
        """There will be no pod: say why, and stay until the caller lets go. It hears of our end when nothing
        is left.
        """
        if self._sock is None or not self._read:
            return
        self._say(self._read.pop(0), ttrpc.Response(status=ttrpc.status_of(error, ours=False)))
        self.await_create(_LEAVE_S)

    def _next(self, deadline: float) -> ttrpc.Frame:
        """A request that is to be answered, which stays the first; raises `TimeoutError`."""
        while not self._read:
            if self._sock is None:
                self._accept(deadline)
            else:
                self._receive(self._sock, deadline)
        return self._read[0]

    def _accept(self, deadline: float) -> None:
        self._listener.settimeout(_left(deadline))
        self._sock, _ = self._listener.accept()
        self._frames = ttrpc.FrameReader()
        with passing_over("let in a caller", ttrpc.ProtocolError):
            peer_of(self._sock)
            return
        self.close()

    def _receive(self, sock: socket.socket, deadline: float) -> None:
        """More of the requests, or the next caller: some only look whether anybody listens."""
        sock.settimeout(_left(deadline))
        try:
            data = sock.recv(_RECEIVE)
            self._read = [frame for frame in self._frames.feed(data) if frame.type == ttrpc.REQUEST]
        except TimeoutError:
            raise
        except (OSError, ttrpc.ProtocolError):
            data = b""
        if not data:
            self.close()

    def _say(self, frame: ttrpc.Frame, response: ttrpc.Response) -> None:
        if self._sock is not None:
            with passing_over("answer a caller", OSError):
                self._sock.sendall(reply(frame.stream, response))

    def close(self) -> None:
        """Hang up; nothing where a server has the connection."""
        if self._sock is not None:
            self._sock.close()
        self._sock = None


def _asked(frame: ttrpc.Frame) -> tuple[str, bytes]:
    """Method of the Sandbox API and its payload; no method for anything else."""
    try:
        request = ttrpc.Request.decode(frame.payload)
    except DecodeError:
        return "", b""
    return (request.method if request.service == sandbox.SERVICE else ""), request.payload


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())

"""A shim's socket while nothing serves it: before a pod is asked for, and after a start that failed.

`start` does not wait for a VM, so what is wrong is told to whoever asks for the container. And of a pod it
learns nothing: how large its VM is to be and what network it is in comes with the first request,
CreateSandbox. A VM is booted by one thread alone; so it is that thread which reads the request, and answers
whatever comes before. A request that is well is answered by the server, once there is one.
"""

from __future__ import annotations

import socket
import time

from bufferzone.errors import NotFoundError, StateError
from bufferzone.log import passing_over
from bufferzone.shim.server import peer_of, reply
from bufferzone.wire import sandbox, task, ttrpc
from bufferzone.wire.proto import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bufferzone.errors import BufferzoneError
    from bufferzone.shim.server import Server
    from bufferzone.wire.proto import Message

_RECEIVE = 1 << 16
#: for a caller whose pod or container could not be made to say that the shim may go
_LEAVE_S = 5.0


def of_pod(listener: socket.socket) -> Door:
    """A door at which CreateSandbox is awaited."""
    wanted = {(sandbox.SERVICE, "CreateSandbox"): sandbox.CreateSandboxRequest}
    last = {(sandbox.SERVICE, "ShutdownSandbox")}
    return Door(listener, wanted, last, StateError("no pod has been asked for"))


def of_container(listener: socket.socket, id: str) -> Door:
    """A door at which the Create of a container is awaited."""
    services = (task.SERVICE, task.SERVICE_V3)
    wanted = {(service, "Create"): task.CreateTaskRequest for service in services}
    last = {(service, "Shutdown") for service in services}
    return Door(listener, wanted, last, NotFoundError(f"container {id} does not exist"))


class Door:
    """What comes to the socket `listener`. One thread only.

    `wanted` is what is awaited, by service and method, `last` what ends the wait; all else fails with
    `otherwise`.
    """

    def __init__(
        self,
        listener: socket.socket,
        wanted: Mapping[tuple[str, str], type[Message]],
        last: set[tuple[str, str]],
        otherwise: BufferzoneError,
    ) -> None:
        self._listener = listener
        self._wanted, self._last, self._otherwise = wanted, last, otherwise
        self._sock: socket.socket | None = None
        self._frames = ttrpc.FrameReader()
        self._read: list[ttrpc.Frame] = []

    def await_create(self, timeout_s: float) -> bytes | None:
        """What is asked for, which can be decoded; None where nobody says so in time, or the shim is to end.
        It stays to be answered.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frame = self._next(deadline)
            except TimeoutError:
                return None
            asked, payload = _asked(frame)
            status = ttrpc.status_of(self._otherwise, ours=False)
            if asked in self._wanted:
                try:
                    self._wanted[asked].decode(payload)
                    return payload
                except DecodeError as error:
                    status = ttrpc.Status(code=ttrpc.INVALID_ARGUMENT, message=str(error))
            self._read.pop(0)
            if asked in self._last:
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

    def refuse(self, error: BufferzoneError) -> None:
        """To what was awaited say why it cannot be had, and stay until the caller lets go."""
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


def _asked(frame: ttrpc.Frame) -> tuple[tuple[str, str], bytes]:
    """Service and method of a request, and its payload; names that nothing has where it is none."""
    try:
        request = ttrpc.Request.decode(frame.payload)
    except DecodeError:
        return ("", ""), b""
    return (request.service, request.method), request.payload


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())

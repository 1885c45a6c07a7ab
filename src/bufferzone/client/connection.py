"""The blocking ttrpc client that every face uses to talk to a shim: one call at a time, no threads."""

from __future__ import annotations

import os
import struct
import time

from bufferzone import log, state
from bufferzone.errors import BufferzoneError, BugError, CallerError, HostError, VmmError
from bufferzone.wire import task, ttrpc
from bufferzone.wire.proto import DecodeError, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any, Self
else:
    import _socket as socket  # socket.py alone (enum, selectors) costs as much as a bare interpreter

_RECEIVE = 1 << 16
_MAX_SUN_PATH = 107
#: how long an answer takes before one looks why
_LOOK_S = 2.0


class Client:
    """A connection to a shim; a context manager that owns its socket.

    Only one call may be in flight. After `VmmError` with code `shim-ended` or `shim-timeout` the connection
    is of no further use.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = ttrpc.FrameReader()
        self._stream = 1

    @classmethod
    def connect(cls, path: str, timeout_s: float = 10.0) -> Self:
        """Connect to the shim of a container's state directory, or to a socket path.

        Raises `HostError` with code `shim-gone` when nobody listens.
        """
        if os.path.isdir(path):
            path = state.socket_path(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            connect_unix(sock, path)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            reason = error.strerror or "timed out"
            raise HostError(f"the shim is not running: {path}: {reason}", code="shim-gone") from error
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def peer(self) -> tuple[int, int]:
        """Pid and uid of who listens there, as the kernel tells them (SO_PEERCRED)."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        return pid, uid

    def fileno(self) -> int:
        """The socket's descriptor, for poll."""
        return self._sock.fileno()

    def call(
        self,
        method: str,
        request: Message,
        *,
        service: str = task.SERVICE,
        fds: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> Any:
        """Call `method` and return its response message; `fds` travel with the request.

        Raises what the shim refused with, or `VmmError` when it ended or did not answer in time.
        """
        stream = self.send(method, request, service=service, fds=fds)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            payload = self._receive(stream, method, end)
            if payload is not None:
                return parse(payload, service, method)

    def send(
        self, method: str, request: Message, *, service: str = task.SERVICE, fds: Sequence[int] = ()
    ) -> int:
        """Send a request without waiting and return its stream id; `poll_response` fetches the answer."""
        log.debug(f"asking the shim: {method}")
        envelope = ttrpc.Request(service=service, method=method, payload=request.encode())
        stream, self._stream = self._stream, self._stream + 2
        try:
            frame = memoryview(ttrpc.encode_frame(stream, ttrpc.REQUEST, envelope.encode()))
            sent = self._sock.sendmsg([frame], [rights(fds)]) if fds else 0
            self._sock.sendall(frame[sent:])
        except ttrpc.ProtocolError as error:
            raise CallerError(f"request too large: {method}: {error}") from error
        except OSError as error:
            raise _ended(method) from error
        return stream

    def poll_response(self, stream: int, service: str, method: str) -> Any:
        """Read once (blocks until there are bytes); the response of `stream`, or None if not complete."""
        payload = self._receive(stream, method, None)
        return None if payload is None else parse(payload, service, method)

    def _receive(self, stream: int, method: str, end: float | None) -> bytes | None:
        left_s = _LOOK_S if end is None else end - time.monotonic()
        try:
            self._sock.settimeout(max(0.001, min(_LOOK_S, left_s)))
            data = self._sock.recv(_RECEIVE)
            self._sock.settimeout(None)
        except TimeoutError as error:
            self._sock.settimeout(None)
            self._refuse_frozen()
            if end is not None and time.monotonic() >= end:
                raise VmmError(f"the shim did not answer {method} in time", code="shim-timeout") from error
            return None
        except OSError as error:
            raise _ended(method) from error
        if not data:
            raise _ended(method)
        try:
            for frame in self._frames.feed(data):
                if frame.stream == stream and frame.type == ttrpc.RESPONSE:
                    return frame.payload
        except ttrpc.ProtocolError as error:
            raise BugError(f"the shim's answer to {method} is malformed: {error}") from error
        return None

    def _refuse_frozen(self) -> None:
        """Raise `HostError` `cgroup-frozen` where the shim stands still in a cgroup that somebody froze: its
        answer would not come before that is undone.
        """
        from bufferzone.linux import freezer  # hardly ever

        place = freezer.frozen_place_of(self.peer()[0])
        if place:
            raise HostError(
                f"the shim does not answer, its cgroup is frozen: {place}",
                hint="thaw it, or those above it",
                code="cgroup-frozen",
            )


def _ended(method: str) -> VmmError:
    """The same words for end of file, EPIPE and ECONNRESET: which of them it is depends on the moment."""
    return VmmError(f"the shim ended before it answered {method}", code="shim-ended")


def _methods(service: str) -> dict[str, tuple[type[Message], type[Message]]]:
    if service == task.SERVICE:
        return task.METHODS
    if service == task.EVENTS_SERVICE:
        return task.EVENTS_METHODS
    from bufferzone.wire import shim  # brings the agent's messages, which no call of the Task API needs

    return shim.METHODS


def parse(payload: bytes, service: str, method: str) -> Any:
    """The response message in a ttrpc response, or its status raised as our own exception."""
    try:
        response = ttrpc.Response.decode(payload)
        if response.status is not None and response.status.code != ttrpc.OK:
            raise ttrpc.error_of(response.status, BufferzoneError)
        return _methods(service)[method][1].decode(response.payload)
    except DecodeError as error:
        raise BugError(f"the shim's answer to {method} is malformed: {error}") from error


def rights(fds: Sequence[int]) -> tuple[int, int, bytes]:
    """Descriptors as ancillary data for sendmsg(2)."""
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds)


def connect_unix(sock: socket.socket, path: str) -> None:
    """connect(2); a path too long for sun_path goes through its directory's descriptor."""
    if len(os.fsencode(path)) <= _MAX_SUN_PATH:
        sock.connect(path)
        return
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
    finally:
        os.close(fd)

"""A ttrpc server over a unix socket: a thread per connection, a thread per request. Knows nothing of tasks.

Descriptors that a client sends with a request (SCM_RIGHTS) belong to that request. Only peers of our own uid
(or root) are served.
"""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct
import threading
import time

from bufferzone import log
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import DecodeError, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Handler = Callable[["Peer", Any], Message]
    Service = dict[str, tuple[type[Message], Handler]]

_RECEIVE = 1 << 16
_MAX_FDS = 8
#: accept(2) fails and the listener is well: no descriptor or memory for one more, or the caller has left
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR)
_FULL = (errno.EMFILE, errno.ENFILE)
_BREATH_S = 0.1


class Peer:
    """Who sent a request: its pid, the descriptors it donated, and a way to know that it is gone.

    `take_fds` hands the descriptors over; what nobody took is closed after the request.
    """

    def __init__(
        self,
        pid: int,
        fds: list[int],
        gone: threading.Event,
        on_gone: list[Callable[[], None]],
        lost: OSError | None = None,
    ) -> None:
        """`lost`: why some of the descriptors are not among `fds`."""
        self.pid = pid
        self._fds = fds
        self._lost = lost
        self._gone = gone
        self._on_gone = on_gone

    def take_fds(self) -> list[int]:
        """The descriptors of this request; the caller owns them from now on. Raises `HostError` if some that
        it came with are not there.
        """
        if self._lost:
            words = f"cannot take the descriptors of the request: {self._lost.strerror}"
            raise HostError(words, code="stdio") from self._lost
        return self._release()

    def _release(self) -> list[int]:
        fds, self._fds = self._fds, []
        return fds

    def when_gone(self, action: Callable[[], None]) -> Callable[[], None]:
        """Run `action` once when the connection ends (at once if it has), or never once what is returned was
        called: a connection may live long.
        """
        self._on_gone.append(action)
        if self._gone.is_set():
            action()

        def never() -> None:
            if action in self._on_gone:
                self._on_gone.remove(action)

        return never

    def close_untaken(self) -> None:
        """Close the descriptors that no handler took."""
        for fd in self._release():
            os.close(fd)


class Server:
    """Serves `services` (name -> method -> (request class, handler)) on a listening socket it owns."""

    def __init__(
        self, listener: socket.socket, services: dict[str, Service], log: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._services = services
        self._log = log
        self._active = 0
        self._idle = threading.Condition()

    def go_on(self, sock: socket.socket, frames: ttrpc.FrameReader, read: list[ttrpc.Frame]) -> None:
        """Serve a connection, which is owned from now on, of which somebody else has read some frames."""
        threading.Thread(target=self._connection, args=(sock, frames, read), daemon=True).start()

    def start(self) -> None:
        """Accept connections in a thread until `stop_accepting`."""
        threading.Thread(target=self._accept_forever, name="accept", daemon=True).start()

    def _accept_forever(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in _PASSING:
                    return
                self._log(f"cannot accept a connection: {error.strerror}")
                time.sleep(_BREATH_S)  # the caller waits in the queue until somebody has let go
                continue
            self.go_on(sock, ttrpc.FrameReader(), [])

    def stop_accepting(self) -> None:
        """Accept no more connections."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already shut down

    def drain(self, timeout_s: float) -> None:
        """Wait until no request is being answered, at most `timeout_s`."""
        with self._idle:
            self._idle.wait_for(lambda: self._active == 0, timeout_s)

    def _connection(self, sock: socket.socket, frames: ttrpc.FrameReader, read: list[ttrpc.Frame]) -> None:
        gone, on_gone, lock = threading.Event(), [], threading.Lock()  # type: ignore[var-annotated]
        pending: list[int] = []
        lost, pid = None, 0
        try:
            pid = peer_of(sock)
            while True:
                for frame in read:
                    if frame.type != ttrpc.REQUEST:
                        continue  # streams are not served
                    peer = Peer(pid, pending, gone, on_gone, lost)
                    pending, lost = [], None
                    threading.Thread(target=self._answer, args=(sock, lock, peer, frame), daemon=True).start()
                data, fds, whole = _receive(sock)
                pending += fds
                lost = lost if whole else OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                if not data:
                    break
                read = frames.feed(data)
        except (OSError, ttrpc.ProtocolError) as error:
            self._log(f"connection of pid {pid}: {error}")
        finally:
            gone.set()
            for fd in pending:
                os.close(fd)
            for action in list(on_gone):
                action()
            with lock:
                sock.close()

    def _answer(self, sock: socket.socket, lock: threading.Lock, peer: Peer, frame: ttrpc.Frame) -> None:
        with self._idle:
            self._active += 1
        try:
            answer = reply(frame.stream, self._dispatch(peer, frame))
            with lock:
                sock.sendall(answer)
        except OSError as error:
            self._log(f"answer to pid {peer.pid} is lost: {error}")
        finally:
            peer.close_untaken()
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def _dispatch(self, peer: Peer, frame: ttrpc.Frame) -> ttrpc.Response:
        name, ours = "?", True
        try:
            request = ttrpc.Request.decode(frame.payload)
            name = request.method
            ours = all(pair.key != ttrpc.CONTAINERD_NAMESPACE for pair in request.metadata)
            entry = self._services.get(request.service, {}).get(request.method)
            if entry is None:
                text = f"{request.service}/{request.method} is not implemented"
                return ttrpc.Response(status=ttrpc.Status(code=ttrpc.UNIMPLEMENTED, message=text))
            cls, handler = entry
            log.debug(f"{name}: asked by pid {peer.pid}")
            return ttrpc.Response(payload=handler(peer, cls.decode(request.payload)).encode())
        except DecodeError as error:
            return ttrpc.Response(status=ttrpc.Status(code=ttrpc.INVALID_ARGUMENT, message=str(error)))
        except BufferzoneError as error:
            return self._failed(name, error, ours=ours)
        except Exception as error:  # the boundary: a handler's bug must not end the sandbox
            if isinstance(error, OSError) and error.errno in _FULL:
                full = HostError(f"{name}: {error.strerror}", code="open-files")
                full.__cause__ = error
                return self._failed(name, full, ours=ours)
            self._log(f"{name}: internal error: {error!r}")
            return ttrpc.Response(status=ttrpc.status_of(error))

    def _failed(self, name: str, error: BufferzoneError, *, ours: bool) -> ttrpc.Response:
        _explain(error)
        self._log(f"{name}: {error.line()}")
        return ttrpc.Response(status=ttrpc.status_of(error, ours=ours))


def peer_of(sock: socket.socket) -> int:
    """Pid of who is at the other end; raises `ProtocolError` for one that is neither root nor we."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.getuid()):
        raise ttrpc.ProtocolError(f"peer of uid {uid}")
    return int(pid)


def reply(stream: int, response: ttrpc.Response) -> bytes:
    """The frame of an answer; one that is too large becomes an error, since a client waits for something."""
    try:
        return ttrpc.encode_frame(stream, ttrpc.RESPONSE, response.encode())
    except ttrpc.ProtocolError as error:
        status = ttrpc.Status(code=ttrpc.INTERNAL, message=f"the answer is too large: {error}")
        return ttrpc.encode_frame(stream, ttrpc.RESPONSE, ttrpc.Response(status=status).encode())


def _explain(error: BufferzoneError) -> None:
    """Give an error that comes of too many open files a hint whose limit it is."""
    if error.hint or not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _FULL:
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    where = "ulimit -Hn, or LimitNOFILE= of the service that starts containers"
    if error.__cause__.errno == errno.ENFILE:
        where = "sysctl fs.file-max"
    error.hint = f"the shim may have {most} files open; {where}"


def _receive(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """recvmsg(2) with descriptors, close-on-exec, and whether there was room for all of them."""
    size = socket.CMSG_SPACE(_MAX_FDS * 4)
    data, ancillary, flags, _ = sock.recvmsg(_RECEIVE, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), not flags & socket.MSG_CTRUNC

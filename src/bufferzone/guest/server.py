"""ttrpc over one byte stream: a virtio-serial port in the VM, a socket in tests. Knows frames, not methods.

Many requests are in flight at once and their replies leave in any order. While more than `BACKLOG` bytes of
replies wait for the peer no further request is read, so a peer that does not read bounds our memory.
Source: containerd/ttrpc PROTOCOL.md; drivers/char/virtio_console.c (short writes of 32 KiB; read gives 0 and
poll says HUP for as long as the host side is not connected, hence edge-triggered).
"""

from __future__ import annotations

import errno
import os
import select

from bufferzone.container.loop import report
from bufferzone.errors import CallerError
from bufferzone.wire import agent as wire
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import DecodeError, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.container.loop import Loop

BACKLOG = 1 << 20
READ_SIZE = 1 << 20
_READ = select.EPOLLIN | select.EPOLLET
#: of a connection that has ended; a vsock that was reset says that it is not connected
_LOST = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_AT_ONCE = 32 << 10  # more than the port takes in one write(2)


class Reply:
    """The one answer that a request gets, now or later. A second answer is ignored."""

    __slots__ = ("_server", "_session", "_stream", "done")

    def __init__(self, server: Server, session: int, stream: int) -> None:
        self._server, self._session, self._stream = server, session, stream
        self.done = False

    @property
    def awaited(self) -> bool:
        """Whether there is somebody to answer now: not after the connection ended, nor while it is held."""
        return not self.done and self._session == self._server.session and not self._server.held

    def ok(self, message: Message) -> None:
        """Answer with `message`."""
        self._send(ttrpc.Response(payload=message.encode()))

    def now(self, message: Message) -> None:
        """Answer with `message` at once: what it says of the time is not to become old."""
        self.ok(message)
        self._server.flush()

    def hold(self) -> None:
        """Answer with an empty message, and nothing else leaves after it; see `Server.hold`."""
        self.done = True
        self._server.hold(ttrpc.encode_frame(self._stream, ttrpc.RESPONSE, ttrpc.Response().encode()))

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self._send(ttrpc.Response(status=ttrpc.status_of(error)))

    def _send(self, response: ttrpc.Response) -> None:
        if not self.done:
            self.done = True
            self._server.send(
                self._session, ttrpc.encode_frame(self._stream, ttrpc.RESPONSE, response.encode())
            )


class Server:
    """Requests from `fd` to `handle(method, request, reply)`; replies back. `persistent`: end of file is a
    pause; or the connection is made anew by `reconnect`, whose descriptor takes the place of `fd`.

    `handle` returns the response, or None when it keeps the reply for later; what it raises is sent as the
    error.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        handle: Callable[[str, Message, Reply], Message | None],
        *,
        persistent: bool,
        reconnect: Callable[[], int] | None = None,
    ) -> None:
        self._loop, self._fd, self._handle, self._persistent = loop, fd, handle, persistent
        self._reconnect = reconnect
        self._reader = ttrpc.FrameReader()
        self._queue: list[memoryview] = []
        self._queued = 0
        self.session = 0
        self.held = False
        self._later: list[bytes] = []  # replies given while held
        self._receiving = self._stuck = False
        self._finished: Callable[[], None] | None = None
        self._watch()
        loop.before_waiting = self.flush

    def send(self, session: int, frame: bytes) -> None:
        """Queue a frame of `session`, which leaves when the loop is about to wait; frames of an earlier
        connection are dropped.
        """
        if session != self.session:
            return
        if self.held:
            self._later.append(frame)
            return
        self._queue.append(memoryview(frame))
        self._queued += len(frame)

    def hold(self, frame: bytes) -> None:
        """Send `frame` and nothing after it until `release` or `renew`: the VM is about to be saved.

        The host sends nothing meanwhile. So what is under way between it and us ends with this frame, in both
        directions, and a saved VM can go on with this connection or with another.
        """
        self.held = True  # before the host can know of it
        self._queue.append(memoryview(frame))
        self._queued += len(frame)
        self._flush()

    def release(self) -> None:
        """Go on with the same connection."""
        self.held = False
        later, self._later = self._later, []
        for frame in later:
            self.send(self.session, frame)

    def renew(self) -> None:
        """Whoever speaks now is another host: forget the connection that was held."""
        self.held = False
        self.session += 1
        self._later.clear()
        self._queue.clear()
        self._queued = 0
        self._stuck = False

    def finish(self, action: Callable[[], None]) -> None:
        """Call `action` once every queued reply has left."""
        self._finished = action
        self._flush()

    def _ready(self, events: int) -> None:
        try:
            self._flush()
            self._receive()
        except ttrpc.ProtocolError as error:
            report(error)
            self._disconnected()

    def _receive(self) -> None:
        """Read until nothing is left (the watch is edge-triggered) or the peer owes us a read."""
        if self._receiving:
            return
        self._receiving = True
        try:
            while self._queued <= BACKLOG and self._receive_some():
                pass
        finally:
            self._receiving = False

    def _receive_some(self) -> bool:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _LOST:
                raise
            data = b""
        if not data:
            self._disconnected()
            return False
        for frame in self._reader.feed(data):
            if frame.type == ttrpc.REQUEST:
                self._dispatch(frame)
        return True

    def _dispatch(self, frame: ttrpc.Frame) -> None:
        reply = Reply(self, self.session, frame.stream)
        try:
            request = ttrpc.Request.decode(frame.payload)
            if request.service != wire.SERVICE or request.method not in wire.METHODS:
                raise CallerError(
                    f"no such method: {request.service}/{request.method}", code="no-such-method"
                )
            if self.held and request.method != "Release":  # all that the host of before may say
                self.renew()
                reply = Reply(self, self.session, frame.stream)
            message = wire.METHODS[request.method][0].decode(request.payload)
            response = self._handle(request.method, message, reply)
        except DecodeError as error:
            reply.fail(CallerError(f"malformed request: {error}"))
        except Exception as error:
            reply.fail(error)
        else:
            if response is not None:
                reply.ok(response)

    def flush(self) -> None:
        """Write until nothing is left or the peer takes no more: what is written lets us read on."""
        while self._queue and not self._stuck:
            self._flush()

    def _flush(self) -> None:
        """Write what the peer takes now; the rest goes when the descriptor becomes writable."""
        blocked = self._queued > BACKLOG
        if len(self._queue) > 1 and self._queued <= _AT_ONCE:
            self._queue = [memoryview(b"".join(self._queue))]
        while self._queue:
            try:
                count = os.write(self._fd, self._queue[0])
            except BlockingIOError:
                self._loop.watch(self._fd, _READ | select.EPOLLOUT, self._ready)
                self._stuck = True
                break
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                self._disconnected()
                break
            self._queued -= count
            if count < len(self._queue[0]):
                self._queue[0] = self._queue[0][count:]
            else:
                del self._queue[0]
        if self._stuck and not self._queue:
            self._stuck = False
            self._loop.watch(self._fd, _READ, self._ready)
        if not self._queue and self._finished is not None:
            self._finished()
        elif blocked and self._queued <= BACKLOG:
            self._receive()

    def _disconnected(self) -> None:
        """Forget the connection: half frames, unsent replies. What runs in the VM goes on.

        One that is held goes on with the next connection, where the same host may release it.
        """
        self.session += not self.held
        self._reader = ttrpc.FrameReader()
        self._queue.clear()
        self._queued = 0
        self._stuck = False
        if self._reconnect is not None:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = self._reconnect()
            self._watch()
        elif not self._persistent:
            self._loop.unwatch(self._fd)
            self._loop.running = False

    def _watch(self) -> None:
        os.set_blocking(self._fd, False)
        self._loop.watch(self._fd, _READ, self._ready)

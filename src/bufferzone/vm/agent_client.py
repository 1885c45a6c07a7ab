"""The shim's end of the agent channel: many calls in flight on one stream socket, one reader thread.

The guest is hostile: frames and messages are decoded by `wire`, with limits; a reply to a request that was
never sent, a frame of the wrong type or bytes that do not decode end the connection, and with it every call.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from contextlib import contextmanager

from bufferzone import log
from bufferzone.errors import BufferzoneError, GuestError, VmmError
from bufferzone.linux import process
from bufferzone.vm import guest_errors
from bufferzone.wire import agent, ttrpc
from bufferzone.wire.proto import DecodeError, Empty, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn, TypeVar

    Reply = TypeVar("Reply", bound=Message)

_RECEIVE = 1 << 18
#: seconds a guest may take to answer: a hostile one must not hold a verb for ever. None: as long as it takes
_LIMITS_S: dict[str, float | None] = {
    "Wait": None,
    "Read": None,
    "Write": None,
    "WaitOom": None,
    "Locks": None,
    "Create": 240.0,  # Podman gives up after as long
    "Start": 240.0,
    "Exec": 120.0,
    "Delete": 15.0,
}
_LIMIT_S = 30.0


class if_alive:
    """A context for a call that puts back what was changed for a while: it ends quietly where the VM has
    ended. A guest that lives and does not answer in time still is as it was: that `VmmError` is raised.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, VmmError) and error.code != "agent-timeout"


class _Call:
    """One request in flight: filled by the reader thread, awaited by the caller."""

    __slots__ = ("arrived_ns", "done", "error", "response")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.arrived_ns = 0  # wall clock
        self.response: ttrpc.Response | None = None
        self.error: BufferzoneError | None = None


class Pending:
    """A request that was sent: its answer, once."""

    __slots__ = ("_call", "_client", "_limit_s", "end", "method", "stream")

    def __init__(
        self, client: AgentClient, call: _Call, stream: int, method: str, limit_s: float | None
    ) -> None:
        self._client, self._call, self._limit_s = client, call, limit_s
        self.stream, self.method = stream, method
        self.end = None if limit_s is None else time.monotonic() + limit_s

    def result(self, reply: type[Reply]) -> Reply:
        """Wait for the answer, which is a `reply`; raises as `AgentClient.call` does."""
        call = self._call
        self._client.read_until(call, self.end)
        if not call.done.wait(_left(self.end)):
            self.time_is_up()
        if call.error is not None:
            raise call.error
        response = call.response
        assert response is not None
        if response.status is not None and response.status.code != ttrpc.OK:
            raise guest_errors.error_of(response.status)
        try:
            return reply.decode(response.payload)
        except DecodeError as error:
            raise GuestError(
                f"the agent's answer to {self.method} is malformed: {error}", code="agent-bytes"
            ) from error

    @property
    def arrived_ns(self) -> int:
        """When the answer came, by the wall clock."""
        return self._call.arrived_ns

    def time_is_up(self) -> NoReturn:
        """Raise what says so."""
        self._client.forget(self.stream)
        raise VmmError(
            f"the agent did not answer {self.method} within {self._limit_s:g} s", code="agent-timeout"
        )


class AgentClient:
    """Calls the agent over `sock`, which it owns; None: over one that comes with `attach`. Thread-safe.

    After the connection is lost every call, pending or new, raises the same `VmmError`.
    """

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock or _closed()
        self._there = threading.Event()  # the first connection, or that there will be none
        if sock is not None:
            self._there.set()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._unsent = b""  # the rest of a frame that the guest did not take in time
        self._calls: dict[int, _Call] = {}
        self._next_stream = 1
        self._lost: VmmError | None = None
        self._broken: Callable[[VmmError], None] = self.lose
        self._frames = ttrpc.FrameReader()
        self._started = self._held = False
        self._ended: VmmError | None = None  # how the connection ended while it was held
        self._thread = self._reader()

    def when_broken(self, action: Callable[[VmmError], None]) -> None:
        """Call `action` with the reason when the connection breaks, in place of `lose`; it has to call
        `lose`.
        """
        self._broken = action

    def start(self) -> None:
        """Start reading replies; threads come after the helpers were forked. Until then each call reads for
        itself, and there may be only one at a time. A second call changes nothing.
        """
        self._started = True
        if self._thread.ident is None and self._sock.fileno() >= 0:
            self._thread.start()

    def attach(self, sock: socket.socket | None) -> None:
        """Go on with `sock`, which is owned now: the first connection, or while it is `held` another one.
        What was asked before is answered there. The one that is there already, and None, change nothing.
        """
        if sock is None or sock is self._sock:
            return
        if self._thread.ident is not None:
            with log.passing_over("end a connection that is over", OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._sock.close()
        self._sock, self._ended = sock, None
        self._frames, self._unsent = ttrpc.FrameReader(), b""
        if self._started:
            self._thread = self._reader()
            self._thread.start()
        self._there.set()

    def call(self, method: str, request: Message, reply: type[Reply], *, timeout_s: float = 0) -> Reply:
        """Call `method` and return its reply; `timeout_s` 0 means the method's own limit.

        Raises what the agent refused with (`GuestError`, `ExecError`, ...), or `VmmError` when the connection
        is lost or `timeout_s` has passed.
        """
        return self.send((method, request), timeout_s=timeout_s)[0].result(reply)

    def send(self, *requests: tuple[str, Message], timeout_s: float = 0) -> list[Pending]:
        """Send requests at once and return their pending answers, in that order. Before the first connection
        is there they wait for it.

        The guest wakes up once for all of them and takes them in this order: a request may be about what the
        one before it made. Answers that nobody asks for are dropped. `timeout_s`, as in `call`, is for the
        first. Raises `VmmError` as `call` does.
        """
        pending, frames, end = [], b"", None
        for method, request in requests:
            call, limit_s = _Call(), timeout_s or _LIMITS_S.get(method, _LIMIT_S)
            timeout_s = 0  # of the first alone
            stream, frame = self._register(call, method, request)
            pending.append(Pending(self, call, stream, method, limit_s))
            frames += frame
        end = pending[0].end
        try:
            sent = self._send(frames, end)
        except OSError as error:
            self._broken(VmmError(f"the agent channel broke: {error.strerror}", code="agent-lost"))
            sent = True
        if not sent:
            for one in pending[1:]:
                self.forget(one.stream)
            pending[0].time_is_up()
        return pending

    def tell(self, method: str, request: Message) -> None:
        """Call `method`, wait for no answer and hear of no refusal. The guest does it before what it is asked
        from then on. Raises `VmmError` as `call` does.
        """
        self.forget(self.send((method, request))[0].stream)

    def forget(self, stream: int) -> None:
        """Nobody waits for this answer any more."""
        with self._lock:
            self._calls.pop(stream, None)

    def read_until(self, call: _Call, end: float | None) -> None:
        """Read for ourselves while there is no thread that does."""
        if self._thread.ident is None:
            self._read_until(call, end)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While in this context nothing is under way in either direction, and nobody else sends.

        Every answer that the agent gave before has arrived; what it has to say after is said afterwards. So a
        VM saved now can go on with another connection, and this one too. Raises as `call` does.
        """
        if not self._send_lock.acquire(timeout=_LIMIT_S):
            raise VmmError("the agent does not read its channel", code="agent-timeout")
        try:
            self._ask_locked("Hold")
            self._held = True
            try:
                yield
            finally:
                self._held = False
                if self._ended is not None:
                    self._broken(self._ended)
                with if_alive():  # it may have been ended meanwhile
                    self._ask_locked("Release")
        finally:
            self._send_lock.release()

    def _ask_locked(self, method: str) -> None:
        """Call `method`, which takes and gives nothing, while the send lock is ours."""
        call, end = _Call(), time.monotonic() + _LIMIT_S
        stream, frame = self._register(call, method, Empty())
        try:
            sent = self._send_locked(frame, end)
        except OSError as error:
            raise VmmError(f"the agent channel broke: {error.strerror}", code="agent-lost") from error
        if not sent or not call.done.wait(_left(end)):
            with self._lock:
                self._calls.pop(stream, None)
            raise VmmError(f"the agent did not answer {method} in time", code="agent-timeout")
        if call.error is not None:
            raise call.error
        if call.response is not None and call.response.status is not None:
            raise guest_errors.error_of(call.response.status)

    def lose(self, reason: VmmError) -> None:
        """End the connection for `reason`: every pending and later call raises it. The first reason stays."""
        with self._lock:
            if self._lost is None:
                self._lost = reason
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.error = self._lost
            call.done.set()
        self._there.set()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def close(self) -> None:
        """Close the socket; pending calls fail."""
        self.lose(VmmError("the sandbox is shutting down", code="agent-closed"))
        if self._thread.ident not in (None, threading.get_ident()):
            self._thread.join()  # its descriptor's number is somebody else's at once
        self._sock.close()

    def _register(self, call: _Call, method: str, request: Message) -> tuple[int, bytes]:
        envelope = ttrpc.Request(service=agent.SERVICE, method=method, payload=request.encode())
        with self._lock:
            if self._lost is not None:
                raise self._lost
            stream = self._next_stream
            self._next_stream += 2
            self._calls[stream] = call
        return stream, ttrpc.encode_frame(stream, ttrpc.REQUEST, envelope.encode())

    def _send(self, frame: bytes, end: float | None) -> bool:
        """Send `frame`; False when the guest took nothing of it before `end`. What it took in part is
        finished by a later call.
        """
        if not self._there.wait(_left(end)):
            return False
        if self._lost is not None:
            raise self._lost  # while we waited
        if not self._send_lock.acquire(timeout=-1 if end is None else max(0.0, end - time.monotonic())):
            return False
        try:
            return self._send_locked(frame, end)
        finally:
            self._send_lock.release()

    def _send_locked(self, frame: bytes, end: float | None) -> bool:
        poll = None
        rest = memoryview(self._unsent + frame)
        while rest:
            try:
                # sendmsg(2), and read(2) below: what others of the sandbox call anyway, and nothing beside it
                rest = rest[self._sock.sendmsg((rest,), (), socket.MSG_DONTWAIT) :]
                continue
            except BlockingIOError:
                poll = poll or self._poll(select.POLLOUT)
            left = _left(end)
            if not poll.poll(None if left is None else left * 1000):
                self._unsent = bytes(rest if len(rest) < len(frame) else rest[: len(rest) - len(frame)])
                return len(rest) < len(frame)
        self._unsent = b""
        return True

    def _poll(self, events: int) -> select.poll:
        """A poll of the socket; raises OSError when another thread has closed it."""
        fd = self._sock.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        poll = select.poll()
        poll.register(fd, events)
        return poll

    def _reader(self) -> threading.Thread:
        return threading.Thread(target=self._read_forever, name="agent", daemon=True)

    def _read_forever(self) -> None:
        # for the end: the VMM is of another uid, and the kernel's log says what was denied to it
        process.hold_only("CAP_KILL", "CAP_SYSLOG")
        while self._read_once():
            pass

    def _read_until(self, call: _Call, end: float | None) -> None:
        try:
            poll = self._poll(select.POLLIN)
        except OSError as error:
            self._broken(VmmError(f"the agent channel broke: {error.strerror}", code="agent-lost"))
            return
        while not call.done.is_set():
            left = _left(end)
            if not poll.poll(None if left is None else left * 1000) or not self._read_once():
                return

    def _read_once(self) -> bool:
        """Wait for bytes and deliver the answers in them; False when the connection has ended."""
        try:
            data = os.read(self._sock.fileno(), _RECEIVE)
            for frame in self._frames.feed(data):
                self._deliver(frame)
            if data:
                return True
            reason = "the agent channel was closed"
        except (ttrpc.ProtocolError, DecodeError) as error:
            reason = f"the agent sent bytes that are not ttrpc: {error}"
        except OSError as error:
            reason = f"the agent channel broke: {error.strerror}"
        if self._held:  # another one may take its place
            self._ended = VmmError(reason, code="agent-lost")
        else:
            self._broken(VmmError(reason, code="agent-lost"))
        return False

    def _deliver(self, frame: ttrpc.Frame) -> None:
        if frame.type != ttrpc.RESPONSE:
            raise ttrpc.ProtocolError(f"frame of type {frame.type}")
        response = ttrpc.Response.decode(frame.payload)
        with self._lock:
            if not frame.stream & 1 or frame.stream >= self._next_stream:
                raise ttrpc.ProtocolError(f"an answer to no request: stream {frame.stream}")
            call = self._calls.pop(frame.stream, None)
        if call is not None:  # else it timed out
            call.response, call.arrived_ns = response, time.time_ns()
            call.done.set()


def _closed() -> socket.socket:
    """In place of a connection that is not there yet: whatever is done with it fails."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.close()
    return sock


def _left(end: float | None) -> float | None:
    """Seconds until `end`; None: for ever."""
    return None if end is None else max(0.0, end - time.monotonic())

"""One program from its start to its end: its output collected, its limits held, its end told as a value."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack, suppress

from bufferzone import jsontext
from bufferzone.client import signals
from bufferzone.errors import PROCESS_DIED, BufferzoneError, GuestError, NotFoundError
from bufferzone.library import values
from bufferzone.library.values import Result, Timings
from bufferzone.wire import agent, shim, task
from bufferzone.wire.proto import Any_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.client.connection import Client
    from bufferzone.library.connections import Connections

_MIB = 1 << 20
_READ = 256 << 10
#: how often the CPU time is asked for at most, and a kill repeated: it may come before the program does
_LEAST_S, _AGAIN_S = 0.02, 0.25
#: a guest that has not ended it by then does not do what it must
_KILL_S = 20.0
_GONE = select.POLLERR | select.POLLHUP


def exec_request(container_id: str, process: dict[str, Any]) -> task.ExecProcessRequest:
    """The request for one more process, with three descriptors or, with a terminal, two."""
    terminal = bool(process["terminal"])
    stdin, stdout, stderr = ("fd:0", "fd:1", "") if terminal else ("fd:0", "fd:1", "fd:2")
    return task.ExecProcessRequest(
        id=container_id,
        exec_id=f"{os.getpid()}-{os.urandom(6).hex()}",
        terminal=terminal,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        spec=Any_(type_url=f"{task.OWN_PROCESS_URL}/{task.HELD}", value=jsontext.dumps(process).encode()),
    )


class Limits:
    """What ends a run: seconds since the call, seconds of CPU time, bytes of both outputs; None: nothing. Or
    that the descriptor `stop` is readable, -1: none.
    """

    __slots__ = ("cpu_s", "output", "stop", "time_s")

    def __init__(self, time_s: float | None, cpu_s: float | None, output: int | None, stop: int = -1) -> None:
        self.time_s, self.cpu_s, self.output, self.stop = time_s, cpu_s, output, stop


def run(
    connections: Connections,
    container_id: str,
    process: dict[str, Any],
    stdin: bytes | int | None,
    limits: Limits,
) -> Result:
    """Run it to its end. `stdin`: bytes, a descriptor, or None for no input.

    Raises `ExecError` where there is no such program, `StateError` in a sandbox that is paused or has ended,
    `VmmError` where the VM is lost, `GuestError`.
    """
    begun = time.monotonic()
    request = exec_request(container_id, process)
    with ExitStack() as stack:
        ours, theirs = _pipes(stack, stdin)
        with connections.borrow() as client:
            stream = client.send("Run", request, service=shim.SERVICE, fds=theirs.fds)
            theirs.close()
            text = b"" if stdin is None or isinstance(stdin, int) else stdin
            loop = _Loop(connections, request, limits, ours, text, begun)
            try:
                answer = loop.until_answered(client, stream)
            except GuestError as error:
                if not loop.exceeded or error.code != PROCESS_DIED:
                    raise
                answer = shim.RunResponse(
                    exit_status=128 + signals.KILL, signal=signals.KILL
                )  # before its program began
        loop.drain()
    total_s = time.monotonic() - begun
    return Result(
        args=tuple(process["args"]),
        exit_code=answer.exit_status,
        signal=answer.signal,
        verdict=_verdict(answer, loop.exceeded),
        stdout_bytes=b"".join(loop.stdout),
        stderr_bytes=b"".join(loop.stderr),
        wall_s=answer.run_us / 1e6,
        cpu_s=answer.cpu_us / 1e6,
        peak_memory_mib=answer.peak_bytes / _MIB if answer.peak_bytes else None,
        timings=Timings(start_s=answer.start_us / 1e6, total_s=total_s),
    )


def _verdict(answer: shim.RunResponse, exceeded: str) -> str:
    if exceeded and (answer.signal == signals.KILL or exceeded == values.OUTPUT_LIMIT):
        return exceeded  # else it ended by itself at that moment
    if answer.oom:
        return values.MEMORY_LIMIT
    if answer.signal:
        return values.SIGNAL
    return values.NONZERO if answer.exit_status else values.OK


class _Ends:
    """Descriptors of a run: stdin (-1: none of ours), stdout, stderr. Those that are `owned` are closed."""

    def __init__(self, fds: list[int], owned: Sequence[int]) -> None:
        self.fds, self._owned = fds, set(owned)

    def close_one(self, fd: int) -> None:
        if fd in self._owned:
            self._owned.discard(fd)
            os.close(fd)

    def close(self) -> None:
        for fd in list(self._owned):
            self.close_one(fd)


def _pipes(stack: ExitStack, stdin: bytes | int | None) -> tuple[_Ends, _Ends]:
    """(our ends, the shim's); whatever is open of them is closed with `stack`."""
    ours, theirs = _Ends([-1, -1, -1], ()), _Ends([-1, -1, -1], ())
    stack.callback(ours.close)
    stack.callback(theirs.close)
    for number in (1, 2):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        _own(ours, number, reader)
        _own(theirs, number, writer)
    if isinstance(stdin, int):
        theirs.fds[0] = stdin
    elif stdin:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        _own(ours, 0, writer)
        _own(theirs, 0, reader)
    else:
        _own(theirs, 0, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    return ours, theirs


def _own(ends: _Ends, number: int, fd: int) -> None:
    ends.fds[number] = fd
    ends._owned.add(fd)


class _Loop:
    """Feeds and reads a run until the shim has answered, and has it killed when it exceeds a limit."""

    def __init__(
        self,
        connections: Connections,
        request: task.ExecProcessRequest,
        limits: Limits,
        ends: _Ends,
        stdin: bytes,
        begun: float,
    ) -> None:
        self._connections, self._limits, self._ends = connections, limits, ends
        self._id, self._exec_id = request.id, request.exec_id
        self._stdin = memoryview(stdin)
        self._room = limits.output
        self.stdout: list[bytes] = []
        self.stderr: list[bytes] = []
        self.exceeded = ""
        self._killed = 0.0
        self._time_end = begun + limits.time_s if limits.time_s is not None else None
        self._cpu_look = begun + self._cpu_wait_s(0.0) if limits.cpu_s is not None else None
        self._kill_again: float | None = None

    def until_answered(self, client: Client, stream: int) -> Any:
        """The shim's answer; raises what it refuses with."""
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        readers = {self._ends.fds[1]: self.stdout, self._ends.fds[2]: self.stderr}
        for fd in readers:
            poll.register(fd, select.POLLIN)
        if self._ends.fds[0] >= 0:
            poll.register(self._ends.fds[0], select.POLLOUT)
        if self._limits.stop >= 0:
            poll.register(self._limits.stop, select.POLLIN)
        while True:
            for fd, events in poll.poll(self._patience_ms()):
                if fd == client.fileno():
                    answer = client.poll_response(stream, shim.SERVICE, "Run")
                    if answer is not None:
                        return answer
                elif fd == self._limits.stop:
                    poll.unregister(fd)
                    self._exceed(values.SIGNAL)
                elif fd in readers:
                    if not self._read(fd, readers[fd]):
                        poll.unregister(fd)
                elif not self._write(fd, events):
                    poll.unregister(fd)
                    self._ends.close_one(fd)
            self._look_at_the_clock()

    def drain(self) -> None:
        """What it wrote last: all of it is in the pipes by now."""
        for fd, parts in ((self._ends.fds[1], self.stdout), (self._ends.fds[2], self.stderr)):
            with suppress(BlockingIOError):
                while self._read(fd, parts, once=True):
                    pass

    def _read(self, fd: int, parts: list[bytes], *, once: bool = False) -> bool:
        """Take what is there; False at the end. What exceeds the limit is dropped. `once` raises
        BlockingIOError where there is nothing.
        """
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            if once:
                raise
            return True
        if self._room is not None:
            if len(data) > self._room:
                self._exceed(values.OUTPUT_LIMIT)
            data, kept = data[: self._room], data
            self._room -= len(data)
            parts.append(data)
            return bool(kept)
        parts.append(data)
        return bool(data)

    def _write(self, fd: int, events: int) -> bool:
        """Give it some input; False once there is no more, or nobody takes it."""
        if events & _GONE:
            return False
        try:
            self._stdin = self._stdin[os.write(fd, self._stdin) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(self._stdin)

    def _patience_ms(self) -> float | None:
        """Until the next thing to do without an event."""
        dues = [due for due in (self._time_end, self._cpu_look, self._kill_again) if due is not None]
        return max(0.0, min(dues) - time.monotonic()) * 1000 + 1 if dues else None

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        if self._time_end is not None and now >= self._time_end:
            self._exceed(values.TIMEOUT)
        if self._cpu_look is not None and now >= self._cpu_look:
            self._look_at_the_cpu_time(now)
        if self._kill_again is not None and now >= self._kill_again:
            self._kill(now)

    def _look_at_the_cpu_time(self, now: float) -> None:
        used_s = 0.0
        with suppress(NotFoundError):  # it is not there yet, or not any more
            ref = agent.ProcessRef(id=self._id, exec_id=self._exec_id)
            used_s = self._connections.call("Usage", ref, service=shim.SERVICE).cpu_us / 1e6
        wait_s = self._cpu_wait_s(used_s)
        if wait_s <= 0:
            self._exceed(values.CPU_LIMIT)
        else:
            self._cpu_look = now + wait_s

    def _cpu_wait_s(self, used_s: float) -> float:
        """How long it cannot reach its limit, if all CPUs of this machine work for it; 0: it has."""
        left_s = (self._limits.cpu_s or 0.0) - used_s
        return max(_LEAST_S, left_s / (os.cpu_count() or 1)) if left_s > 0 else 0.0

    def _exceed(self, verdict: str) -> None:
        """It has exceeded a limit: the first one counts."""
        self._time_end = self._cpu_look = None
        if not self.exceeded:
            self.exceeded = verdict
            self._killed = time.monotonic()
            self._kill(self._killed)

    def _kill(self, now: float) -> None:
        if now - self._killed > _KILL_S:
            text = f"the guest did not end a program within {_KILL_S:g} s of SIGKILL"
            raise GuestError(text, code="kill-ignored")
        kill(self._connections.call, self._id, self._exec_id, signals.KILL, everyone=True)
        self._kill_again = now + _AGAIN_S


def kill(call: Callable[..., Any], container_id: str, exec_id: str, number: int, *, everyone: bool) -> None:
    """Send a signal to an exec, or to all it started; one that has ended is none the worse."""
    request = task.KillRequest(id=container_id, exec_id=exec_id, signal=number, all=everyone)
    try:
        call("Kill", request)
    except BufferzoneError as error:
        if error.code not in ("not-running", "not-found"):
            raise

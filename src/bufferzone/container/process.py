"""A process of a container as the agent keeps it: state, streams, its end. Children run `child.py`.

process: creating -> created -> starting -> running -> stopped     (an exec goes through created alone)
a failure at any step: the child reports it and dies; the answer is given once it is reaped.
"""

from __future__ import annotations

import os
import time

from bufferzone.container import channel as ch
from bufferzone.container import launch, process_limits
from bufferzone.container.mounts import describe
from bufferzone.errors import PROCESS_DIED, BufferzoneError, CallerError, GuestError, StateError
from bufferzone.wire import agent as wire
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.container.cgroup import Cgroup
    from bufferzone.container.child_spec import ChildSpec
    from bufferzone.container.loop import Loop
    from bufferzone.container.reply import Reply
    from bufferzone.container.stdio import Streams
    from bufferzone.container.zygote import ZygoteSlot


#: signals whose default action is not to end a process; source: signal(7)
_HARMLESS = frozenset((0, 17, 18, 19, 20, 21, 22, 23, 28))


class Process:
    """One process of a container.

    `discard(callback)` frees it when it never came to run its program, and then calls `callback`. `streams`
    are owned from now on, whatever happens. `listen(fd)` gets what hears of its calls for file locks, if
    it has volumes.
    """

    def __init__(
        self,
        loop: Loop,
        child_spec: ChildSpec,
        streams: Streams,
        cgroup: Cgroup,
        zygotes: ZygoteSlot,
        reply: Reply,
        discard: Callable[[Callable[[], None]], None],
        listen: Callable[[int], None],
    ) -> None:
        self._loop, self._child_spec, self._cgroup, self._discard = loop, child_spec, cgroup, discard
        self.streams, self._listen = streams, listen
        self._pending: Reply | None = reply
        self._ended_by = 0  # the signal that our SIGKILL stands for
        self._failure: BufferzoneError | None = None
        self._exit_replies: list[Reply] = []
        self._oom_before = cgroup.oom_kills()
        self.measured: Cgroup | None = None  # its own, where it has one
        self.exit: wire.WaitResponse | None = None
        self.state = "creating"
        self.lingering = False  # its output is whole once every writer has closed it
        self.outlived = False  # the same, and its readers are told where its own part ends
        try:
            self.pid, self._sock = launch.begin(child_spec, zygotes)
        except BaseException:
            streams.close()
            raise
        loop.watch(self._sock.fileno(), 1, self._heard)

    def _heard(self, events: int) -> None:
        while self._sock.fileno() >= 0:
            packet = ch.receive(self._sock)
            if packet is None:
                return
            try:
                self._receive(*packet)
            except BufferzoneError as error:
                self._abort(error)
            except (BrokenPipeError, ConnectionResetError, ProcessLookupError):
                os.kill(self.pid, 9)  # it was killed meanwhile: `reaped` follows, and that is what failed
            except OSError as error:
                self._abort(GuestError(describe(error)))

    def _receive(self, tag: bytes, body: bytes, fd: int) -> None:
        if tag in (ch.MAP, ch.PID, ch.LIMITS):
            self._serve_child(tag, body)
            self._sock.send(ch.DONE)
        elif tag == ch.TERMINAL:
            self.streams.use_terminal(fd)
        elif tag == ch.LOCKS:
            self._listen(fd)
        elif tag == ch.READY:
            self.state = "created"
            if self._child_spec.init_pid:
                self._run_program()
            elif self._pending is not None:
                self._pending.ok(wire.PidResponse(pid=self.pid))
                self._pending = None
        elif tag == ch.ERROR:
            self._failure = ttrpc.error_of(ttrpc.Status.decode(body), GuestError)
        else:
            self._end_of_channel()

    def _serve_child(self, tag: bytes, body: bytes) -> None:
        """What the child cannot do or know itself."""
        if tag == ch.MAP:
            launch.write_maps(self.pid, self._child_spec.config)
        elif tag == ch.PID:
            self.pid = int(body)
        else:
            process_limits.apply(self.pid, self._child_spec.process)

    def _end_of_channel(self) -> None:
        """The program runs, or the child is gone: then `reaped` follows."""
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        if self.state == "starting" and self._failure is None:
            self.state = "running"
            self._answer(wire.PidResponse(pid=self.pid) if self._child_spec.init_pid else Empty())

    def _answer(self, message: wire.PidResponse | Empty) -> None:
        if self._pending is not None:
            self._pending.ok(message)
            self._pending = None

    def _abort(self, error: BufferzoneError) -> None:
        self._failure = error
        os.kill(self.pid, 9)

    def start(self, reply: Reply) -> None:
        """Let the created process run its program; answered when it does."""
        if self.state != "created":
            raise StateError(f"cannot start a container in the {self.state} state")
        self._pending = reply
        self._run_program()

    def _run_program(self) -> None:
        self.state = "starting"
        try:
            self._sock.send(ch.START)
        except OSError:
            pass  # it died meanwhile: `reaped` follows

    def reaped(self, pid: int, status: int) -> bool:
        """The kernel's last word on `pid`. False if that was only the helper of a user namespace."""
        self._heard(0)
        if self.pid != pid:
            return False
        if self._sock.fileno() >= 0:
            self._end_of_channel()
        before, self.state = self.state, "stopped"
        self.exit = self._describe_exit(status)
        if not self.lingering:
            self.streams.process_ended(outlived=self.outlived)
        for reply in self._exit_replies:
            reply.ok(self.exit)
        self._exit_replies.clear()
        self._report_failure(before)
        return True

    def _describe_exit(self, status: int) -> wire.WaitResponse:
        code = os.waitstatus_to_exitcode(status)
        if code == -9 and self._ended_by:
            code = -self._ended_by
        kills = self._cgroup.oom_kills()
        cpu_us, peak_bytes = self._cgroup.usage() if self.measured is not None else (0, 0)
        return wire.WaitResponse(
            exit_status=code if code >= 0 else 128 - code,
            signal=max(0, -code),
            exited_at_ns=time.time_ns(),
            oom=(code == -9 or (code != 0 and self.measured is not None)) and kills > self._oom_before,
            oom_kills=kills,
            cpu_us=cpu_us,
            peak_bytes=peak_bytes,
        )

    def _report_failure(self, before: str) -> None:
        """Answer a Create, Start or Exec that its process did not live to see the end of."""
        reply, self._pending = self._pending, None
        if reply is None and before != "creating":
            return
        failure = self._failure or GuestError(
            f"the container process died while {before}: {_describe_end(self.exit)}", code=PROCESS_DIED
        )

        def answer() -> None:
            if reply is not None:
                reply.fail(failure)

        if before == "creating" or self._child_spec.init_pid:
            self._discard(answer)
        else:
            answer()

    def wait(self, reply: Reply) -> None:
        """Answer once it has ended."""
        if self.exit is not None:
            reply.ok(self.exit)
        else:
            self._exit_replies = [other for other in self._exit_replies if other.awaited]
            self._exit_replies.append(reply)

    def signal(self, number: int) -> None:
        """kill(2); raises `StateError` of code `FINISHED`.

        What would end the program ends one that waits for its start, as runc's does: as PID 1 of a namespace
        without a handler it would take no signal but SIGKILL, see pid_namespaces(7).
        """
        if self.exit is not None:
            raise StateError("process already finished", code=wire.FINISHED)
        if not 0 <= number <= 64:
            raise CallerError(f"unknown signal: {number}")
        if self.state == "created" and number not in _HARMLESS:
            self._ended_by, number = number, 9
        os.kill(self.pid, number)

    def read(self, stream: int, limit: int, reply: Reply) -> None:
        """Answer with the next bytes of a stream; raises `CallerError` or `StateError`."""
        if self.streams.read(stream, limit, reply):
            return
        if self.state == "creating":
            raise StateError("the process is being created")
        reply.ok(wire.ReadResponse())  # stderr of a terminal

    def close(self) -> None:
        """Give up every descriptor; waiting reads get end of file."""
        self.streams.close()
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()


def _describe_end(exit: wire.WaitResponse | None) -> str:
    """The end of a process that nobody expected to end."""
    if exit is None:
        return "gone"
    if exit.oom:
        return "out of memory: linux.resources.memory.limit is too small"
    return f"killed by signal {exit.signal}" if exit.signal else f"exit status {exit.exit_status}"

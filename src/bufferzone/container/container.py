"""A container and its processes as the agent keeps them: state, streams, waiters. Children run `child.py`.

process: creating -> created -> starting -> running -> stopped     (an exec goes through created alone)
a failure at any step: the child reports it and dies; the answer is given once it is reaped.
"""

from __future__ import annotations

import os
import time

from bufferzone.container import channel as ch
from bufferzone.container import launch, stdio
from bufferzone.container.mounts import describe
from bufferzone.container.process_limits import settle
from bufferzone.errors import BufferzoneError, CallerError, GuestError, StateError
from bufferzone.linux import terminal
from bufferzone.wire import agent as wire
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.container.cgroup import Cgroup
    from bufferzone.container.child_spec import Task
    from bufferzone.container.loop import Loop
    from bufferzone.container.reply import Reply
    from bufferzone.container.zygote import Nursery


class Process:
    """One process of a container.

    `failed(then)` frees it when it never came to run its program, and calls `then`. `listen(fd)` gets what
    hears of its calls for file locks, if it has volumes.
    """

    def __init__(
        self,
        loop: Loop,
        task: Task,
        cgroup: Cgroup,
        nursery: Nursery,
        reply: Reply,
        failed: Callable[[Callable[[], None]], None],
        listen: Callable[[int], None],
    ) -> None:
        self._loop, self._task, self._cgroup, self._failed = loop, task, cgroup, failed
        self._listen = listen
        self._pending: Reply | None = reply
        self._failure: BufferzoneError | None = None
        self._waiters: list[Reply] = []
        self._outputs: dict[int, stdio.Output] = {}
        self._input: stdio.Input | None = None
        self._master = -1
        self._oom_before = cgroup.oom_kills()
        self.exit: wire.WaitResponse | None = None
        self.state = "creating"
        given: tuple[int, ...] = ()
        try:
            given = () if task.process.get("terminal") else self._make_pipes()
            self.pid, self._sock = launch.begin(task, nursery)
        except BaseException:
            self._close_streams()
            raise
        finally:
            for fd in given:
                os.close(fd)
        loop.watch(self._sock.fileno(), 1, self._heard)

    def _make_pipes(self) -> tuple[int, int, int]:
        """Pipes for stdio, owned by the container's user like runc's; returns the child's ends."""
        (stdin, ours), pairs = stdio.make_pipe(), [stdio.make_pipe(), stdio.make_pipe()]
        self._input = stdio.Input(self._loop, ours, terminal=False)
        for stream, (ours, _) in zip((wire.STDOUT, wire.STDERR), pairs, strict=True):
            self._outputs[stream] = stdio.Output(self._loop, ours)
        theirs = (stdin, pairs[0][1], pairs[1][1])
        linux = self._task.spec.get("linux") or {}
        user = self._task.process.get("user") or {}
        uid = launch.guest_id(int(user.get("uid") or 0), linux.get("uidMappings") or [])
        gid = launch.guest_id(int(user.get("gid") or 0), linux.get("gidMappings") or [])
        for fd in theirs:
            if uid or gid:
                os.fchown(fd, uid, gid)
        self._task.stdio = theirs
        return theirs

    def _heard(self, events: int) -> None:
        while self._sock.fileno() >= 0:
            packet = ch.receive(self._sock)
            if packet is None:
                return
            try:
                self._obey(*packet)
            except BufferzoneError as error:
                self._abort(error)
            except OSError as error:
                self._abort(GuestError(describe(error)))

    def _obey(self, tag: bytes, body: bytes, fd: int) -> None:
        if tag in (ch.MAP, ch.PID, ch.SETTLE):
            self._assist(tag, body)
            self._sock.send(ch.DONE)
        elif tag == ch.TERMINAL:
            self._master = fd
            self._outputs[wire.STDOUT] = stdio.Output(self._loop, os.dup(fd))
            self._input = stdio.Input(self._loop, os.dup(fd), terminal=True)
        elif tag == ch.LOCKS:
            self._listen(fd)
        elif tag == ch.READY:
            self.state = "created"
            if self._task.init_pid:
                self._go()
            elif self._pending is not None:
                self._pending.ok(wire.PidResponse(pid=self.pid))
                self._pending = None
        elif tag == ch.ERROR:
            self._failure = ttrpc.error_of(ttrpc.Status.decode(body), GuestError)
        else:
            self._end_of_channel()

    def _assist(self, tag: bytes, body: bytes) -> None:
        """What the child cannot do or know itself."""
        if tag == ch.MAP:
            launch.write_maps(self.pid, self._task.spec)
        elif tag == ch.PID:
            self.pid = int(body)
        else:
            settle(self.pid, self._task.process)

    def _end_of_channel(self) -> None:
        """The program runs, or the child is gone: then `reaped` follows."""
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        if self.state == "starting" and self._failure is None:
            self.state = "running"
            self._answer(wire.PidResponse(pid=self.pid) if self._task.init_pid else Empty())

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
        self._go()

    def _go(self) -> None:
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
        if self._input is not None:
            self._input.close()
        for output in self._outputs.values():
            output.drain()
        for waiter in self._waiters:
            waiter.ok(self.exit)
        self._waiters.clear()
        self._tell_failure(before)
        return True

    def _describe_exit(self, status: int) -> wire.WaitResponse:
        code = os.waitstatus_to_exitcode(status)
        kills = self._cgroup.oom_kills()
        return wire.WaitResponse(
            exit_status=code if code >= 0 else 128 - code,
            signal=max(0, -code),
            exited_at_ns=time.time_ns(),
            oom=code == -9 and kills > self._oom_before,
            oom_kills=kills,
        )

    def _tell_failure(self, before: str) -> None:
        """Answer a Create, Start or Exec that its process did not live to see the end of."""
        reply, self._pending = self._pending, None
        if reply is None and before != "creating":
            return
        failure = self._failure or GuestError(f"the container process died while {before}: {_how(self.exit)}")

        def answer() -> None:
            if reply is not None:
                reply.fail(failure)

        if before == "creating" or self._task.init_pid:
            self._failed(answer)
        else:
            answer()

    def wait(self, reply: Reply) -> None:
        """Answer once it has ended."""
        if self.exit is not None:
            reply.ok(self.exit)
        else:
            self._waiters = [waiter for waiter in self._waiters if waiter.awaited]
            self._waiters.append(reply)

    def signal(self, number: int) -> None:
        """kill(2); raises `StateError` `process-finished`."""
        if self.exit is not None:
            raise StateError("process already finished", code="process-finished")
        if not 0 <= number <= 64:
            raise CallerError(f"unknown signal: {number}")
        os.kill(self.pid, number)

    def read(self, stream: int, limit: int, reply: Reply) -> None:
        output = self._outputs.get(stream)
        if output is not None:
            output.read(limit, reply)
        elif stream not in (wire.STDOUT, wire.STDERR):
            raise CallerError(f"no such stream: {stream}")
        elif self.state == "creating":
            raise StateError("the process is being created")
        else:
            reply.ok(wire.ReadResponse())  # stderr of a terminal

    def go_on(self) -> None:
        """The connection is held no longer."""
        for output in self._outputs.values():
            output.go_on()

    def close_output(self, stream: int) -> None:
        """Nobody reads `stream` any more: who writes to it gets EPIPE."""
        if stream in self._outputs:
            self._outputs[stream].close()

    def write(self, data: bytes, reply: Reply) -> None:
        if self._input is None:
            raise GuestError("standard input is closed", code="stdin-closed")
        self._input.write(data, reply)

    def close_stdin(self) -> None:
        if self._input is not None:
            self._input.finish()

    def resize(self, width: int, height: int) -> None:
        """The terminal's size in characters; raises `StateError` without a terminal."""
        if self._master < 0:
            raise StateError("the process has no terminal", code="no-terminal")
        if max(width, height) > 0xFFFF:
            raise CallerError(f"impossible terminal size: {width}x{height}")
        terminal.resize(self._master, width, height)

    def close(self) -> None:
        """Give up every descriptor; waiting reads get end of file."""
        self._close_streams()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()

    def _close_streams(self) -> None:
        for output in self._outputs.values():
            output.close()
        if self._input is not None:
            self._input.close()


class Container:
    """One container: its cgroup, its init and its execs."""

    def __init__(self, id: str, spec: dict[str, Any], cgroup: Cgroup) -> None:
        self.id, self.spec, self.cgroup = id, spec, cgroup
        self.resources: dict[str, Any] = (spec.get("linux") or {}).get("resources") or {}
        self.init: Process | None = None
        self.execs: dict[str, Process] = {}
        self.paused = self.deleting = self.empty = self.locks = False
        self.when_gone: list[Callable[[], None]] = []
        self.oom_kills = 0

    @property
    def state(self) -> str:
        if self.init is None:
            return "creating"
        if self.paused and self.init.state == "running":
            return "paused"
        return {"starting": "running"}.get(self.init.state, self.init.state)

    def processes(self) -> list[Process]:
        return [*([self.init] if self.init is not None else []), *self.execs.values()]

    def close(self) -> None:
        for process in self.processes():
            process.close()


def _how(exit: wire.WaitResponse | None) -> str:
    """The end of a process that nobody expected to end."""
    if exit is None:
        return "gone"
    if exit.oom:
        return "out of memory: linux.resources.memory.limit is too small"
    return f"killed by signal {exit.signal}" if exit.signal else f"exit status {exit.exit_status}"

"""The agent's methods: decode, delegate in a line or two, answer now or later. Serves one connection."""

from __future__ import annotations

import os
import time

from bufferzone import __version__
from bufferzone.container.jsontext import loads
from bufferzone.container.loop import Loop, warn
from bufferzone.container.mounts import describe
from bufferzone.errors import CallerError, GuestError
from bufferzone.guest import adopt, block, mac, nic, process_table, unsent
from bufferzone.guest.clock import set_wall_clock
from bufferzone.guest.containers import Containers
from bufferzone.guest.modprobe import begin
from bufferzone.guest.network import take_over
from bufferzone.guest.server import Server
from bufferzone.guest.template_prep import prepare, zero_free_memory
from bufferzone.linux import mount as lm
from bufferzone.linux import mountoptions
from bufferzone.linux.random import add_entropy
from bufferzone.wire import agent as wire
from bufferzone.wire.locks import LocksRequest
from bufferzone.wire.network import SetNetworkRequest
from bufferzone.wire.proto import Empty, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.guest.server import Reply

    Phases = list[tuple[str, int]]
    Handler = Callable[[Any, Reply], Message | None]

_MIN_ENTROPY = 32


class Agent:
    """Serves `fd` until `Shutdown`, or until end of file where it is not `persistent`: in a VM that is the
    host's pause, or the time to `reconnect`.
    """

    def __init__(
        self,
        fd: int,
        cgroup_root: str,
        phases: Phases,
        *,
        persistent: bool = True,
        reconnect: Callable[[], int] | None = None,
    ) -> None:
        self._phases = phases
        self._loop = Loop(self._reap)
        self._containers = Containers(self._loop, cgroup_root, self._oom)
        self._oom_reply: Reply | None = None
        self._oom_ids: list[str] = []
        self._handlers = self._table()
        self._server = Server(self._loop, fd, self.handle, persistent=persistent, reconnect=reconnect)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods it has."""
        return tuple(self._handlers)

    def serve(self) -> None:
        """Serve until the end, then leave no container behind."""
        self._loop.run()
        for container in list(self._containers.containers.values()):
            self._containers.end(container, lambda: None)
        while self._containers.containers:
            self._loop.run_once()

    def handle(self, method: str, request: Message, reply: Reply) -> Message | None:
        """Run one method; OSErrors of ours become `GuestError`."""
        try:
            return self._handlers[method](request, reply)
        except OSError as error:
            raise GuestError(f"{method}: {describe(error)}") from error

    def _table(self) -> dict[str, Handler]:
        """A handler for each of `wire.METHODS`."""
        return {
            "Hello": self._hello,
            "SetClock": self._clock,
            "PrepareSnapshot": self._prepare_snapshot,
            "ZeroFreeMemory": self._zero_free_memory,
            "Mount": self._mount,
            "SetNetwork": self._network,
            "MountRoot": self._root,
            "WriteFile": self._file,
            "Prefork": self._prefork,
            "Create": self._create,
            "Hold": self._hold,
            "Release": self._release,
            "Adopt": self._adopt,
            "Start": self._start,
            "Exec": self._exec,
            "Signal": self._signal,
            "Wait": self._wait,
            "Delete": self._delete,
            "Read": self._read,
            "Write": self._write,
            "CloseStdin": self._close_stdin,
            "CloseOutput": self._close_output,
            "Resize": self._resize,
            "Pause": self._pause,
            "Resume": self._resume,
            "Update": self._update,
            "Stats": self._stats,
            "Usage": self._usage,
            "Pids": self._pids,
            "WaitOom": self._wait_oom,
            "Unsent": self._unsent,
            "Forget": self._forget,
            "Locks": self._locks,
            "Shutdown": self._shutdown,
        }

    def _reap(self) -> None:
        """Every child that has ended: processes of containers, helpers, and orphans that came to PID 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._containers.reaped(pid, status)

    def _hello(self, request: wire.HelloRequest, reply: Reply) -> None:
        self._take_identity(request)
        answer = wire.HelloResponse(
            kernel=os.uname().release,
            version=__version__,
            cpus=os.cpu_count() or 1,
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            phases=[wire.Phase(name=name, at_ns=at_ns) for name, at_ns in self._phases],
        )
        answer.monotonic_ns = time.monotonic_ns()
        reply.now(answer)

    def _take_identity(self, request: wire.HelloRequest) -> None:
        """What no other VM has, though it was restored from the same template."""
        if len(request.entropy) < _MIN_ENTROPY:
            raise CallerError(f"at least {_MIN_ENTROPY} bytes of entropy are needed")
        add_entropy(request.entropy)
        if request.hostname:
            import _socket

            _socket.sethostname(request.hostname)
        mac.randomize_all()

    def _clock(self, request: wire.SetClockRequest, reply: Reply) -> Message:
        if request.offset_ns:
            set_wall_clock(request.offset_ns)
        return wire.SetClockResponse(monotonic_ns=time.monotonic_ns())

    def _prepare_snapshot(self, request: Message, reply: Reply) -> Message:
        """Get ready to be a template: what is loaded on first use is loaded now, caches are dropped."""
        return wire.PrepareSnapshotResponse(free=prepare())

    def _zero_free_memory(self, request: Message, reply: Reply) -> Message:
        zero_free_memory()
        return Empty()

    def _mount(self, request: wire.MountRequest, reply: Reply) -> Message:
        options = mountoptions.parse(request.options)
        os.makedirs(request.target, 0o755, exist_ok=True)
        lm.mount(request.source, request.target, request.kind, options.set, ",".join(options.data))
        return Empty()

    def _network(self, request: SetNetworkRequest, reply: Reply) -> Message:
        take_over(request.interfaces)
        return Empty()

    def _root(self, request: wire.MountRootRequest, reply: Reply) -> Message:
        block.mount_root(request.kind, request.layers)
        return Empty()

    def _file(self, request: wire.WriteFileRequest, reply: Reply) -> Message:
        block.put_file(request)
        return Empty()

    def _prefork(self, request: Message, reply: Reply) -> None:
        self._containers.zygotes.when_ready(lambda: reply.ok(Empty()))

    def _create(self, request: wire.CreateRequest, reply: Reply) -> None:
        config = loads(request.spec, "config.json")
        seccomp = request.seccomp, request.seccomp_flags
        self._containers.create(request.id, config, seccomp, request.locks, reply)

    def _hold(self, request: Message, reply: Reply) -> None:
        reply.hold()

    def _release(self, request: Message, reply: Reply) -> Message:
        """Go on as if nothing had been: reads that found bytes meanwhile are answered now."""
        self._server.release()
        for container in self._containers.containers.values():
            for process in container.processes():
                process.streams.resume()
        self._report_oom()
        return Empty()

    def _adopt(self, request: wire.AdoptRequest, reply: Reply) -> Message | None:
        container = self._containers.adopt(request.id, request.new_id)
        pid = container.init.pid
        if request.hostname:
            adopt.set_hostname(pid, request.hostname)
        self._leave_networks()
        return wire.PidResponse(pid=pid)

    def _leave_networks(self) -> None:
        nic.unbind_all()

    def _start(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.process(request.id, request.exec_id).start(reply)
        begin("virtio_balloon")  # there in a restored VM; it gives back memory, and no start waits for it

    def _exec(self, request: wire.ProcessRequest, reply: Reply) -> None:
        process = loads(request.process, "process.json")
        self._containers.execute(
            request.id,
            request.exec_id,
            process,
            (request.seccomp, request.seccomp_flags),
            reply,
            patient=request.patient,
            lingering=request.lingering,
            outlived=request.outlived,
        )

    def _signal(self, request: wire.SignalRequest, reply: Reply) -> Message:
        self._containers.signal(request.id, request.exec_id, request.signal, everyone=request.all)
        return Empty()

    def _wait(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.process(request.id, request.exec_id).wait(reply)

    def _delete(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.delete(request.id, request.exec_id, lambda: reply.ok(Empty()))

    def _read(self, request: wire.ReadRequest, reply: Reply) -> None:
        self._containers.process(request.id, request.exec_id).read(request.stream, request.limit, reply)

    def _write(self, request: wire.WriteRequest, reply: Reply) -> None:
        self._containers.process(request.id, request.exec_id).streams.write(request.data, reply)

    def _close_output(self, request: wire.ReadRequest, reply: Reply) -> Message:
        self._containers.process(request.id, request.exec_id).streams.close_output(request.stream)
        return Empty()

    def _close_stdin(self, request: wire.ProcessRef, reply: Reply) -> Message:
        self._containers.process(request.id, request.exec_id).streams.close_stdin()
        return Empty()

    def _resize(self, request: wire.ResizeRequest, reply: Reply) -> Message:
        self._containers.process(request.id, request.exec_id).streams.resize(request.width, request.height)
        return Empty()

    def _pause(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.pause(request.id, True, lambda: reply.ok(Empty()))

    def _resume(self, request: wire.ProcessRef, reply: Reply) -> None:
        self._containers.pause(request.id, False, lambda: reply.ok(Empty()))

    def _update(self, request: wire.UpdateRequest, reply: Reply) -> Message:
        self._containers.update(request.id, loads(request.resources, "resources"))
        return Empty()

    def _stats(self, request: wire.ProcessRef, reply: Reply) -> Message:
        counters = self._containers.container(request.id).cgroup.counters()
        return wire.StatsResponse(counters=[wire.Counter(name=name, value=value) for name, value in counters])

    def _usage(self, request: wire.ProcessRef, reply: Reply) -> Message:
        cpu_us, peak_bytes = self._containers.usage(request.id, request.exec_id)
        return wire.UsageResponse(cpu_us=cpu_us, peak_bytes=peak_bytes)

    def _pids(self, request: wire.ProcessRef, reply: Reply) -> Message:
        return wire.PidsResponse(
            processes=process_table.table(self._containers.container(request.id).cgroup.pids())
        )

    def _wait_oom(self, request: Message, reply: Reply) -> None:
        if self._oom_reply is not None:
            self._oom_reply.fail(CallerError("replaced by a later WaitOom", code="replaced"))
        self._oom_reply = reply
        self._report_oom()

    def _oom(self, id: str) -> None:
        if id not in self._oom_ids:
            self._oom_ids.append(id)
        self._report_oom()

    def _report_oom(self) -> None:
        if self._oom_ids and self._oom_reply is not None and self._oom_reply.awaited:
            ids, self._oom_ids = self._oom_ids, []
            self._oom_reply.ok(wire.OomEvents(ids=ids))
            self._oom_reply = None

    def _locks(self, request: LocksRequest, reply: Reply) -> None:
        self._containers.locks.serve(request, reply)

    def _unsent(self, request: Message, reply: Reply) -> Message:
        return wire.UnsentResponse(connections=unsent.count())

    def _forget(self, request: Message, reply: Reply) -> Message:
        """Dentries and inodes: the host's file server has each of them open."""
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("2")
        return Empty()

    def _shutdown(self, request: Message, reply: Reply) -> None:
        """Kill every container; when the last is gone: sync, answer, and end once the answer has left."""
        left = list(self._containers.containers.values())

        def finish_after_the_last() -> None:
            if not self._containers.containers:
                os.sync()
                reply.ok(Empty())
                self._server.finish(self._stop)

        for container in left:
            self._containers.end(container, finish_after_the_last)
        if not left:
            finish_after_the_last()

    def _stop(self) -> None:
        self._loop.running = False
        warn("shutting down")

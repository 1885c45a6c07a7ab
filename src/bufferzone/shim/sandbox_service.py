"""containerd's Sandbox API: a pod whose VM is there before its first container, without a pause container.

What holds the pod's namespaces is a task like any other, whose id is the pod's; containerd is told nothing of
it but by this service. `StopSandbox` ends what runs and the VM, whose memory the node needs: the shim, which
is asked how the pod ended, goes with `ShutdownSandbox`.
"""

from __future__ import annotations

import json
import os
import threading
import time

from bufferzone.errors import BufferzoneError, ExistsError, HostError, NotFoundError, StateError
from bufferzone.linux import mount as mnt
from bufferzone.log import passing_over
from bufferzone.wire import metrics, sandbox, task
from bufferzone.wire.proto import Any_, Empty, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.shim.process import Process
    from bufferzone.shim.server import Handler, Peer, Service
    from bufferzone.shim.task import TaskService

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SIGKILL = 9
_KILL_S = 10.0
_MEMORY = "mode=1777,size=65536k"


class SandboxService:
    """The service for one pod, whose id is the sandbox's."""

    def __init__(self, tasks: TaskService, box: Sandbox) -> None:
        self._tasks, self._box = tasks, box
        self._stopping = threading.Lock()
        self._made: tuple[Process, int] | None = None  # and when, in nanoseconds since the epoch
        self._stopped = False

    def methods(self) -> Service:
        """The service as the server wants it: method -> (request class, handler)."""
        handlers: dict[str, Handler] = {
            "CreateSandbox": self.create,
            "StartSandbox": self.start,
            "Platform": self.platform,
            "StopSandbox": self.stop,
            "WaitSandbox": self.wait,
            "SandboxStatus": self.status,
            "PingSandbox": self.ping,
            "ShutdownSandbox": self.shutdown,
            "SandboxMetrics": self.metrics,
        }
        return {name: (sandbox.METHODS[name][0], handler) for name, handler in handlers.items()}

    def create(self, peer: Peer, request: sandbox.CreateSandboxRequest) -> Empty:
        """Make what holds the pod's namespaces. The VM is booting, and the bundle complete."""
        self._check(request.sandbox_id)
        if self._made is not None:
            raise ExistsError(f"sandbox {request.sandbox_id} already exists")
        _mount_memory(os.path.join(request.bundle_path, "shm"))
        wish = task.CreateTaskRequest(
            id=request.sandbox_id, bundle=request.bundle_path, rootfs=request.rootfs
        )
        self._tasks.create(peer, wish)
        self._made = self._tasks.table.find(request.sandbox_id), time.time_ns()
        return Empty()

    def start(self, peer: Peer, request: sandbox.SandboxRequest) -> sandbox.StartSandboxResponse:
        """Take the pod's network over, and run."""
        _, created_ns = self._find(request.sandbox_id)
        started = self._tasks.start(peer, task.StartRequest(id=request.sandbox_id))
        return sandbox.StartSandboxResponse(pid=started.pid, created_at=Timestamp.from_ns(created_ns))

    def platform(self, peer: Peer, request: sandbox.SandboxRequest) -> sandbox.PlatformResponse:
        self._check(request.sandbox_id)
        machine = os.uname().machine
        found = sandbox.Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))
        return sandbox.PlatformResponse(platform=found)

    def stop(self, peer: Peer, request: sandbox.StopSandboxRequest) -> Empty:
        """Kill what runs in the pod, and end its VM. A second call changes nothing."""
        process, _ = self._find(request.sandbox_id)
        self._end(process)
        return Empty()

    def wait(self, peer: Peer, request: sandbox.SandboxRequest) -> sandbox.WaitSandboxResponse:
        """Block until the pod has ended, by `stop` or because its VM has."""
        process, _ = self._find(request.sandbox_id)
        process.exited.wait()
        return sandbox.WaitSandboxResponse(exit_status=process.exit_status, exited_at=process.exited_at())

    def status(self, peer: Peer, request: sandbox.SandboxStatusRequest) -> sandbox.SandboxStatusResponse:
        process, created_ns = self._find(request.sandbox_id)
        runs = process.status in (task.RUNNING, task.PAUSED)
        info = {"info": json.dumps(self._box.info())} if request.verbose else {}
        return sandbox.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=process.pid if runs else 0,
            state=sandbox.READY if runs else sandbox.NOT_READY,
            info=info,
            created_at=Timestamp.from_ns(created_ns),
            exited_at=process.exited_at(),
        )

    def ping(self, peer: Peer, request: sandbox.SandboxRequest) -> Empty:
        self._find(request.sandbox_id)
        return Empty()

    def shutdown(self, peer: Peer, request: sandbox.SandboxRequest) -> Empty:
        """Stop, and end the shim."""
        self._check(request.sandbox_id)
        if self._made is not None:
            self._end(self._made[0])
        self._box.end()
        return Empty()

    def metrics(self, peer: Peer, request: sandbox.SandboxRequest) -> sandbox.SandboxMetricsResponse:
        """What the pod's containers use together; the limit is the VM's."""
        self._find(request.sandbox_id)
        counters: dict[str, int] = {}
        for name, value in self._tasks.inquiries.counters():
            counters[name] = counters.get(name, 0) + value
        counters["memory.max"] = self._box.memory_mib << 20
        counters["pids.max"] = 0
        summed = metrics.from_counters(counters)
        told = sandbox.Metric(
            timestamp=Timestamp.from_ns(time.time_ns()),
            id=request.sandbox_id,
            data=Any_(type_url=metrics.TYPE_URL, value=summed.encode()),
        )
        return sandbox.SandboxMetricsResponse(metrics=told)

    def _check(self, sandbox_id: str) -> None:
        if sandbox_id != self._box.id:
            raise NotFoundError(f"sandbox {sandbox_id} does not exist")

    def _find(self, sandbox_id: str) -> tuple[Process, int]:
        self._check(sandbox_id)
        if self._made is None:
            raise StateError(f"sandbox {sandbox_id} was not created")
        return self._made

    def _end(self, own: Process) -> None:
        """The containers, then what holds their namespaces, then the VM."""
        with self._stopping:
            if self._stopped:
                return
            inits = [process for process in self._tasks.table.inits() if process is not own]
            for process in (*inits, own):
                self._kill(process)
            for process in (*inits, own):
                self._tasks.give_back(process)
            self._box.container_stopped(True)
            self._stopped = True

    def _kill(self, process: Process) -> None:
        with passing_over("kill what is left of a pod", BufferzoneError):  # it has just ended
            self._tasks.kill(None, task.KillRequest(id=process.ref.id, signal=_SIGKILL, all=True))
        if not process.exited.wait(_KILL_S):
            self._box.give_up(f"the guest did not end {process.name} within {_KILL_S:g} s of SIGKILL")
            process.exited.wait()


def _mount_memory(path: str) -> None:
    """Shared memory of a size, as containerd's own pods have it: the guest's is made after it."""
    try:
        mnt.mount("shm", path, "tmpfs", mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC, _MEMORY)
    except OSError as error:
        raise HostError(f"cannot mount {path}: {error.strerror}", code="share-failed") from error

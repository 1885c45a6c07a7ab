"""The containerd Task service: one line of state checking, one call into the sandbox, one event.

A container is a `Process` plus its plan; the table of them is guarded by one lock that is never held while
the guest is asked anything.
"""

from __future__ import annotations

import functools
import os
import threading

from bufferzone.errors import BufferzoneError, NotFoundError, StateError, VmmError
from bufferzone.log import passing_over
from bufferzone.shim import events, stand_ins, too_late
from bufferzone.shim.checkpoint import Checkpoints
from bufferzone.shim.freezing import Freezing
from bufferzone.shim.inquiries import Inquiries
from bufferzone.shim.oom import OomReporter
from bufferzone.shim.process import Process, check_spec, parse_resources, wishes_of
from bufferzone.shim.runs import Runs
from bufferzone.shim.stdio import open_stdio
from bufferzone.shim.table import Table
from bufferzone.vm.agent_client import if_alive
from bufferzone.wire import agent, task
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.sandbox.container import Container
    from bufferzone.sandbox.containers import Containers
    from bufferzone.shim.callers import Callers
    from bufferzone.shim.events import Publisher
    from bufferzone.shim.server import Handler, Peer, Service
    from bufferzone.shim.stand_ins import StandIns
    from bufferzone.shim.state_files import StateFiles
    from bufferzone.shim.stdio import Stdio

_SIGKILL = 9
_KILL_S = 10.0
#: how long a shim stays for who wants to delete its container, where its caller cannot end before it
_KEPT_S = 5.0


class TaskService:
    """Everything one shim knows of its tasks. `ended` is called when Shutdown is due."""

    def __init__(
        self,
        containers: Containers,
        state_files: StateFiles,
        publisher: Publisher,
        ended: Callable[[], None],
        *,
        single: bool,
        stand_ins: StandIns | None = None,
        callers: Callers | None = None,
    ) -> None:
        """`single`: the sandbox exists for its containers, one as a rule, and ends with the last (the CLI); a
        pod outlives them. `stand_ins` are for tasks that come without a process of the host, `callers` who
        may wait for this process.
        """
        self._callers = callers
        self._stand_ins = stand_ins
        self._single = single
        self._containers = containers
        self._state_files = state_files
        self._events = publisher
        self._ended = ended
        self.table = self._table = Table()
        self.oom = OomReporter(self._table, publisher)
        self._checkpoints = Checkpoints(self._table, containers, publisher)
        self.inquiries = Inquiries(self._table, containers.agent)
        self.freezing = Freezing(self._table, containers, state_files, publisher)
        self.runs = Runs(self._table, self.exec, self.start, self.delete, self._dismiss)

    def methods(self) -> Service:
        """The service as the server wants it: method -> (request class, handler)."""
        handlers: dict[str, Handler] = {
            "State": self.inquiries.state,
            "Create": self.create,
            "Start": self.start,
            "Delete": self.delete,
            "Pids": self.inquiries.pids,
            "Pause": self.freezing.pause,
            "Resume": self.freezing.resume,
            "Kill": self.kill,
            "Exec": self.exec,
            "ResizePty": self.resize_pty,
            "CloseIO": self.close_io,
            "Update": self.update,
            "Checkpoint": self._checkpoints.checkpoint,
            "Wait": self.wait,
            "Stats": self.inquiries.stats,
            "Connect": self.inquiries.connect,
            "Shutdown": self.shutdown,
        }
        return {name: (task.METHODS[name][0], handler) for name, handler in handlers.items()}

    # ---- life of a container

    def create(self, peer: Peer, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        """Make the container; on any failure nothing of it is left."""
        too_late.check(request)
        stdio = self._open_stdio(request, request.id, peer.take_fds())
        uris = (request.stdin, request.stdout, request.stderr)
        attended = request.stdin.startswith("fd:") or request.stdout.startswith("fd:")
        process = Process(
            agent.ProcessRef(id=request.id),
            bundle=request.bundle,
            terminal=request.terminal,
            uris=uris,
            stdio=stdio,
            pid=peer.pid if attended else os.getpid(),
            wishes=wishes_of(request.options),
        )
        try:
            self._table.reserve(process)
            if not attended and self._stand_ins is not None:
                self._give_stand_in(self._stand_ins, process, *stand_ins.of_container(request.bundle))
            container, pending = self._containers.create(
                request.id,
                request.bundle,
                request.rootfs,
                process.pid,
                process.first_requests(),
                foreground=bool(request.options and task.FOREGROUND_URL in request.options.type_url),
                inside=task.INSIDE in process.wishes,
            )
        except BaseException:
            process.leave_host()
            self._table.forget(process)
            stdio.close()
            self._end_if_done()
            raise
        self._table.add_container(container)
        with process.transition:
            process.attend(self._containers.agent, pending, self._finished)
            self._state_files.changed(process, container)
            self._events.publish(events.created(request, process.pid))
        if attended:
            process.forget_caller = peer.when_gone(lambda: self._abandoned(process))
        self._end_inside()
        return task.CreateTaskResponse(pid=process.pid)

    def start(self, peer: Peer, request: task.StartRequest) -> task.StartResponse:
        """Start a created container or an added exec."""
        process = self._table.find(request.id, request.exec_id)
        if request.exec_id:
            return self._start_exec(peer, process)
        container = self._container(request.id)
        with process.transition:  # the exit, however fast, is told after the start
            process.require("start")
            self._containers.start(container)
            process.status = task.RUNNING
            self._state_files.changed(process, container)
            self._events.publish(task.TaskStart(container_id=request.id, pid=process.pid))
        self._containers.run_hooks(container, "poststart", self._state_files.text(container, "running"))
        return task.StartResponse(pid=process.pid)

    def delete(self, peer: Peer, request: task.DeleteRequest) -> task.DeleteResponse:
        """Free an exec or a container; a created container is killed first, as runc does."""
        process = self._table.find(request.id, request.exec_id)
        process.require("delete")
        if process.status == task.CREATED and not process.spec:
            process.signal(self._containers.agent, _SIGKILL, everyone=False)
            process.exited.wait()
        self._free(process)
        if not request.exec_id:
            self.give_back(process)
        self._events.publish(events.deleted(process))
        return task.DeleteResponse(
            pid=process.pid, exit_status=process.exit_status, exited_at=process.exited_at()
        )

    def kill(self, peer: Peer | None, request: task.KillRequest) -> Empty:
        """Signal a process, or with `all` every process of the container. `peer`: None, it is ourselves."""
        process = self._table.find(request.id, request.exec_id)
        if process.status == task.STOPPED and request.all:
            return Empty()  # runc kill --all of a stopped container is not an error
        process.require("kill")
        if request.signal == _SIGKILL:
            self._enforce_kill(process)
        try:
            process.signal(self._containers.agent, request.signal, everyone=request.all)
        except VmmError:
            if request.signal != _SIGKILL or not process.exited.wait(_KILL_S):
                raise  # else it went down with its VM, which is what was asked for
        return Empty()

    def _enforce_kill(self, process: Process) -> None:
        """SIGKILL is not a request: a guest that does not carry it out in time goes down as a whole."""
        if self._single and not process.ref.exec_id:
            threading.Thread(target=self._await_kill, args=(process,), name="kill", daemon=True).start()

    def _await_kill(self, process: Process) -> None:
        if not process.killed(_KILL_S):
            self._containers.give_up(f"the guest did not end the container within {_KILL_S:g} s of SIGKILL")

    def wait(self, peer: Peer, request: task.WaitRequest) -> task.WaitResponse:
        """Block until the process ended and its output is delivered."""
        process = self._table.find(request.id, request.exec_id)
        process.exited.wait()
        return task.WaitResponse(exit_status=process.exit_status, exited_at=process.exited_at())

    # ---- execs

    def exec(self, peer: Peer, request: task.ExecProcessRequest) -> Empty:
        """Add an exec; `start` with its exec_id runs it."""
        init = self._table.find(request.id, "")
        fds = peer.take_fds()
        stdio = self._open_stdio(request, request.exec_id, fds)
        ref = agent.ProcessRef(id=request.id, exec_id=request.exec_id)
        wishes = wishes_of(request.spec)
        process = Process(
            ref,
            bundle=init.bundle,
            terminal=request.terminal,
            uris=(request.stdin, request.stdout, request.stderr),
            stdio=stdio,
            pid=peer.pid if fds and task.HELD not in wishes else os.getpid(),
            spec=request.spec.value if request.spec else b"",
            wishes=wishes,
        )
        try:
            init.require("exec", paused=task.PATIENT in process.wishes)
            check_spec(process.spec)
            self._table.reserve(process)
        except BaseException:
            stdio.close()
            raise
        if fds:
            process.forget_caller = peer.when_gone(lambda: self._abandoned(process))
        self._events.publish(task.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    def _start_exec(self, peer: Peer, process: Process) -> task.StartResponse:
        self._table.find(process.ref.id, "").require("exec", paused=task.PATIENT in process.wishes)
        process.begun = True
        try:
            if self._stand_ins is not None and process.pid == os.getpid() and task.HELD not in process.wishes:
                self._give_stand_in(self._stand_ins, process, None, process.words())
            pending = self._containers.exec(
                process.ref, process.spec, process.pid, process.first_requests(), wishes=process.wishes
            )
        except BaseException:
            # as with runc: the exec existed, ended with 126/127/255 and is there to be deleted
            process.spec = b""
            process.end(255, "", lambda *_: None)  # what never ran has no exit event
            raise
        process.spec, process.status = b"", task.RUNNING
        started = task.TaskExecStarted(
            container_id=process.ref.id, exec_id=process.ref.exec_id, pid=process.pid
        )
        self._events.publish(started)
        process.attend(self._containers.agent, pending, self._finished)
        return task.StartResponse(pid=process.pid)

    # ---- the smaller verbs

    def resize_pty(self, peer: Peer, request: task.ResizePtyRequest) -> Empty:
        process = self._table.find(request.id, request.exec_id)
        size = agent.ResizeRequest(
            id=request.id, exec_id=request.exec_id, width=request.width, height=request.height
        )
        if process.status != task.STOPPED and not process.spec:
            self._containers.agent.call("Resize", size, Empty)
        return Empty()

    def close_io(self, peer: Peer, request: task.CloseIORequest) -> Empty:
        process = self._table.find(request.id, request.exec_id)
        if request.stdin and process.status != task.STOPPED:
            process.stdio.close_stdin()
        return Empty()

    def update(self, peer: Peer, request: task.UpdateTaskRequest) -> Empty:
        """Change limits, in the guest and on the host."""
        process = self._table.find(request.id, "")
        process.require("update")
        changes = parse_resources(request.resources.value if request.resources else b"{}")
        with process.transition:
            self._containers.update(self._container(request.id), changes)
        return Empty()

    def shutdown(self, peer: Peer | None, request: task.ShutdownRequest) -> Empty:
        """End the shim unless containers are left: `StateError` `vm-shared` for the CLI, which would wait."""
        if not self._table.has_containers():
            self._ended()
        elif self._single:
            raise StateError("another container is in its VM", code="vm-shared")
        return Empty()

    def is_unused(self) -> bool:
        """Whether nobody made a container yet."""
        return self._table.is_empty()

    # ---- inside

    def _container(self, container_id: str) -> Container:
        """A container that has been created; raises `NotFoundError` while it is being made or removed."""
        container = self._table.container(container_id)
        if container is None:
            raise NotFoundError(f"container {container_id} does not exist")
        return container

    def _open_stdio(
        self, request: task.CreateTaskRequest | task.ExecProcessRequest, name: str, fds: list[int]
    ) -> Stdio:
        logged = (name, self._events.namespace)
        return open_stdio(request.stdin, request.stdout, request.stderr, fds, logged)

    def _give_stand_in(
        self, makers: StandIns, process: Process, network: str | None, words: list[str]
    ) -> None:
        """Have a process of the host's stand for one that nobody stands for."""
        process.stand_on_host(makers.begin(network, words, functools.partial(self._lost, process)))

    def _abandoned(self, process: Process) -> None:
        """The host process that stood for it is gone: so goes the process, as with runc."""
        self._lost(process)
        if process.ref.exec_id or task.HELD in process.wishes:  # nobody is left to delete it
            process.exited.wait()
            if task.OUTLIVED in process.wishes:
                process.stdio.outlive()
            with passing_over("free an exec that nobody deletes", BufferzoneError):  # it stays
                self._free(process)
                if not process.ref.exec_id:
                    self.give_back(process)
                    self.shutdown(None, task.ShutdownRequest(id=process.ref.id))

    def _lost(self, process: Process) -> None:
        """The same for a stand-in, whose caller is there to delete it."""
        if process.status != task.STOPPED:
            self._enforce_kill(process)
            with passing_over("kill what nobody stands for", BufferzoneError):  # it has just ended
                process.signal(self._containers.agent, _SIGKILL, everyone=True)

    def _free(self, process: Process) -> None:
        """Forget the process, and have the guest forget it. Raises what the guest says that still has it."""
        try:
            with if_alive():
                self._containers.agent.call("Delete", process.ref, Empty)
        except NotFoundError:
            pass  # an exec that was never started
        self._table.forget(process)
        process.forget_caller()

    def _dismiss(self, process: Process) -> None:
        """`delete` for one that has ended, whose caller waits for nothing of the guest any more."""
        with if_alive():
            self._containers.agent.tell("Delete", process.ref)
        self._table.forget(process)
        process.forget_caller()
        self._events.publish(events.deleted(process))

    def _finished(self, process: Process, failure: str) -> None:
        ref = process.ref
        if not ref.exec_id:
            self._table.wait_for_execs(ref.id)
            self.oom.ended(process)
            container = self._table.container(ref.id)
            if container is not None:
                self._state_files.ended(process, container)
        self._events.publish(events.exited(process))
        if not ref.exec_id:
            self._end_inside()
            alone = self._single and self._table.all_stopped()
            self._containers.stopped(alone)
            if alone and self._callers is not None and self._callers.wait_for_us():
                timer = threading.Timer(_KEPT_S, self._leave)
                timer.daemon = True
                timer.start()

    def _leave(self) -> None:
        """What is known of containers that have ended is in their files. Hooks after their end are ours."""
        if self._table.all_stopped() and not self._table.have_hooks("poststop"):
            self._ended()

    def _end_if_done(self) -> None:
        """A container was not made: the last one, and whoever asked for them, may be gone meanwhile."""
        if self._single and self._table.used and self._table.all_stopped():
            self._containers.stopped(True)
            if not self._table.has_containers():
                self._ended()

    def _end_inside(self) -> None:
        """What was added to a sandbox ends with it; what is being made at that moment, once it is."""
        for process in self._table.alone_inside():
            self._lost(process)

    def give_back(self, process: Process) -> None:
        """Free what the host holds for the container of this init; a second call changes nothing."""
        container = self._table.take_container(process.ref.id)
        if container is not None:
            self._containers.delete(container)
            self.oom.forget(container.id)
            self._containers.run_hooks(container, "poststop", self._state_files.text(container, "stopped"))

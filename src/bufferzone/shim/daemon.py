"""The life of a shim: boot while single-threaded, then threads, then wait for the end and give everything
back.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import threading

from bufferzone import config, oci, state
from bufferzone.client import handshake
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux import process
from bufferzone.linux.ignoring import ignoring
from bufferzone.sandbox.boot import boot
from bufferzone.sandbox.containers import Containers
from bufferzone.shim import cleanup, records, rights, termination
from bufferzone.shim.callers import Callers
from bufferzone.shim.events import Publisher
from bufferzone.shim.listeners import listen
from bufferzone.shim.logs import log
from bufferzone.shim.server import Server
from bufferzone.shim.stand_ins import StandIns
from bufferzone.shim.state_files import StateFiles
from bufferzone.shim.task import TaskService
from bufferzone.snapshot.checkpoint_dir import open_checkpoint
from bufferzone.wire import agent, shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.errors import VmmError
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.shim.arguments import Arguments
    from bufferzone.shim.door import Door
    from bufferzone.shim.server import Handler, Peer, Service
    from bufferzone.wire.proto import Empty

#: a shim that was started and never given a container ends by itself after this many seconds
_UNUSED_S = 120.0


def serve(arguments: Arguments) -> int:
    """The process behind the CLI: stays in the foreground; the verb that started it reads -ready-fd."""
    directory = state.directory(arguments.state_root, arguments.id)
    ready = handshake.Ready(int(arguments.ready_fd or "1"))
    _log_to(
        os.open(
            os.path.join(directory, "shim.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
    )
    try:
        listener = listen(directory)
        state.write_owner(directory, os.getpid())
        _run(arguments, directory, listener, ready, cli=True)
    except BufferzoneError as error:
        _report(ready, error, arguments.id)
        return 1
    except OSError as error:
        _report(ready, HostError(f"cannot start the shim: {error.strerror or error}"), arguments.id)
        return 1
    return 0


def run(arguments: Arguments, path: str, listener: socket.socket, ready: handshake.Ready) -> int:
    """A daemon of containerd's, which listens at `path`: the rest of its life. With nobody waiting at `ready`
    it is a pod's.
    """
    door = None
    try:
        listener.listen(64)  # again: callers are told who did last (SO_PEERCRED)
        state.remove(os.path.join(arguments.state_root, arguments.id))
        directory = state.create(arguments.state_root, arguments.id)
        try:
            if ready.awaited:
                _run(arguments, directory, listener, ready, cli=False)
            else:
                door = _run_pod(arguments, directory, listener, ready)
        finally:
            if not ready.awaited:  # else who waits tells at `path` of what was wrong
                os.unlink(path)
            cleanup.remove_own(directory)  # containerd asks for no clean-up after a start that failed
        if door is not None:
            door.close()
        return 0
    except BufferzoneError as error:
        _report(ready, error, arguments.id)
    except OSError as error:
        _report(ready, HostError(f"cannot start the shim: {error.strerror or error}"), arguments.id)
    return 1


def _run_pod(arguments: Arguments, directory: str, listener: socket.socket, ready: handshake.Ready) -> Door:
    """The same for containerd's Sandbox API: what to boot is said by a caller who knows the address.

    Until what is returned is closed, the caller does not hear of an end.
    """
    from bufferzone.shim import door as doors  # what no other shim has to do with
    from bufferzone.wire.sandbox import CreateSandboxRequest
    from bufferzone.workload import pod

    door = doors.of_pod(listener)
    payload = door.await_create(_UNUSED_S)
    if payload is None:
        return door
    request = CreateSandboxRequest.decode(payload)
    try:
        pod.write(arguments.bundle, request, pod.config_of(request))
        _run(arguments, directory, listener, ready, cli=False, door=door)
    except BufferzoneError as error:
        door.refuse(error)
        raise
    return door


def _run(
    arguments: Arguments,
    directory: str,
    listener: socket.socket,
    ready: handshake.Ready,
    *,
    cli: bool,
    door: Door | None = None,
) -> None:
    """Boot, serve, wait, close. `door`: a pod was asked for there."""
    be_a_shim()
    chosen = json.loads(arguments.settings) if cli and arguments.settings else None
    spec = oci.load(arguments.bundle, containerd=not cli, chosen=chosen)

    source = arguments.restore_from
    checkpoint = open_checkpoint(source, config.load()) if source else None
    scope = arguments.systemd_cgroup
    with boot(arguments.id, spec, directory, log, checkpoint, systemd=scope) as sandbox:
        if checkpoint is not None:
            checkpoint.close()
        stand_ins = None if cli else StandIns()  # a fork: before the first thread

        def announce() -> None:
            ready.say(handshake.ready_line(b"ready", sandbox.cgroup.others))

        run_sandbox(arguments, sandbox, listener, announce, stand_ins, hooks=spec.has_hooks, door=door)


def be_a_shim() -> None:
    """What a shim's process is from its beginning: its name, deaf to what would end it by accident."""
    process.set_name("bufferzone-shim")
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def run_sandbox(
    arguments: Arguments,
    sandbox: Sandbox,
    listener: socket.socket,
    on_serving: Callable[[], None],
    stand_ins: StandIns | None,
    *,
    hooks: bool,
    door: Door | None = None,
) -> None:
    """From its first container to the end of a sandbox; `on_serving` is called once it is served. Closes
    nothing of the VM. `stand_ins` are for containerd, and ended here; None: the CLI's. `hooks`: the first
    container has some. `door`: the Sandbox API is served too, and first what was asked there.
    """
    cli = stand_ins is None
    if stand_ins is not None and sandbox.cgroup.unit:
        stand_ins.be_deaf()
    _lift_descriptor_limit()  # not before: helpers get the caller's
    rights.give_up(hooks=hooks)
    sandbox.when_up = lambda: _count_start(sandbox)
    sandbox.when_failed = _count_failure
    sandbox.start_threads()
    untold, pod_files = (arguments.id, arguments.bundle) if door is not None else ("", "")
    to = os.environ.get("TTRPC_ADDRESS", "")
    publisher = Publisher(to, arguments.namespace, log, sandbox.recorder, untold=untold)
    socket_path = "" if cli else listener.getsockname()
    state_files = StateFiles(arguments.state_root, sandbox.annotations, socket_path)
    home = os.path.join(arguments.state_root, arguments.id) if cli else ""
    containers = Containers(sandbox, state_files.text, home, pod_files=pod_files)
    tasks = TaskService(
        containers,
        state_files,
        publisher,
        sandbox.end,
        single=cli,
        stand_ins=stand_ins,
        callers=Callers() if cli else None,
    )
    if stand_ins is not None:
        stand_ins.start()
    server = Server(listener, _services(tasks, sandbox, door), records.telling(sandbox, log))
    if door is not None:
        door.hand_over(server)
    server.start()
    threading.Thread(target=tasks.oom.watch, args=(sandbox.agent,), name="oom", daemon=True).start()
    termination.be_told(sandbox, tasks)
    records.begin(sandbox)
    on_serving()
    sandbox.finish_start()
    sandbox.wait_end(tasks.is_unused, _UNUSED_S)
    sandbox.let_leave()
    containers.close()
    server.stop_accepting()
    server.drain(2.0)
    publisher.close()
    records.end(sandbox)
    if stand_ins is not None:
        stand_ins.close()


def _count_failure(error: VmmError) -> None:
    from bufferzone import counters

    counters.count_failure(state.lease_root(), error.code)


def _count_start(sandbox: Sandbox) -> None:
    from bufferzone import counters  # nobody waits for it; a start has no time for imports

    counters.count_start(state.lease_root(), sandbox.start.kind, sandbox.phases())


def _lift_descriptor_limit() -> None:
    """Every exec holds about ten descriptors, and a login's soft limit may be 64."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _services(tasks: TaskService, sandbox: Sandbox, door: Door | None) -> dict[str, Service]:
    def info(peer: Peer, request: Empty) -> shim.InfoResponse:
        return shim.InfoResponse(json=json.dumps(sandbox.info()).encode())

    def metrics(peer: Peer, request: agent.ProcessRef) -> agent.StatsResponse:
        return sandbox.agent.call("Stats", request, agent.StatsResponse)

    own: dict[str, Handler] = {
        "Processes": tasks.inquiries.processes,
        "Info": info,
        "Metrics": metrics,
        "WaitOom": tasks.oom.wait,
        "Run": tasks.runs.run,
        "Result": tasks.runs.result,
        "Usage": tasks.inquiries.usage,
    }
    methods = tasks.methods()
    of_pod: dict[str, Service] = {}
    if door is not None:
        from bufferzone.shim.sandbox_service import SandboxService
        from bufferzone.wire.sandbox import SERVICE

        of_pod[SERVICE] = SandboxService(tasks, sandbox).methods()
    return {
        task.SERVICE: methods,
        task.SERVICE_V3: methods,
        shim.SERVICE: {name: (shim.METHODS[name][0], handler) for name, handler in own.items()},
        **of_pod,
    }


def _log_to(fd: int) -> None:
    os.dup2(fd, 2)


def _report(ready: handshake.Ready, error: BufferzoneError, id: str) -> None:
    """Hand an error to whoever waits for `ready`, unless that was said."""
    log(error.line())
    records.start_failed(error, id)
    with ignoring(errno.EPIPE):  # the verb is gone
        ready.say(handshake.error_line(error))

"""The containerd Task API (v2; v3 has the same messages) and the task events.

Source: containerd api/runtime/task/v2/shim.proto, api/events/task.proto, api/types/mount.proto,
api/services/ttrpc/events/v1/events.proto.
"""

from __future__ import annotations

from bufferzone.wire.proto import (
    Any_,
    Empty,
    Message,
    Timestamp,
    blob,
    boolean,
    message,
    messages,
    string,
    string_map,
    strings,
    uint,
)

SERVICE = "containerd.task.v2.Task"
SERVICE_V3 = "containerd.task.v3.Task"
EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"

UNKNOWN, CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(6)
STATUS_NAMES = ("unknown", "created", "running", "stopped", "paused", "pausing")

PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


class Mount(Message):
    type: str = string(1)
    source: str = string(2)
    target: str = string(3)
    options: list[str] = strings(4)


#: type of `CreateTaskRequest.options` from a verb that waits for the end itself and goes on afterwards; with
#: /held from the library: when it is gone the container is not only ended but deleted; with /inside it is one
#: more in the sandbox of another, ends with that, and has its IPC namespace
FOREGROUND_URL, INSIDE = "bufferzone.shim.v1.Foreground", "inside"
#: type of `ExecProcessRequest.spec` from our own verbs, with these words behind slashes: the container may be
#: paused, and the exec begins once it is resumed; all output of its descendants belongs to it; that too,
#: and its end is told before they have written it; its caller does other things too, so that no process of
#: the host stands for it
OWN_PROCESS_URL, PATIENT, LINGERING = "bufferzone.shim.v1.Process", "patient", "lingering"
OUTLIVED, HELD = "outlived", "held"


class CreateTaskRequest(Message):
    id: str = string(1)
    bundle: str = string(2)
    rootfs: list[Mount] = messages(3, Mount)
    terminal: bool = boolean(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    checkpoint: str = string(8)
    parent_checkpoint: str = string(9)
    options: Any_ | None = message(10, Any_)


class CreateTaskResponse(Message):
    pid: int = uint(1)


class StartRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)


class StartResponse(Message):
    pid: int = uint(1)


class DeleteRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)


class DeleteResponse(Message):
    pid: int = uint(1)
    exit_status: int = uint(2)
    exited_at: Timestamp | None = message(3, Timestamp)


class StateRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)


class StateResponse(Message):
    id: str = string(1)
    bundle: str = string(2)
    pid: int = uint(3)
    status: int = uint(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    terminal: bool = boolean(8)
    exit_status: int = uint(9)
    exited_at: Timestamp | None = message(10, Timestamp)
    exec_id: str = string(11)


class ExecProcessRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)
    terminal: bool = boolean(3)
    stdin: str = string(4)
    stdout: str = string(5)
    stderr: str = string(6)
    spec: Any_ | None = message(7, Any_)


class ResizePtyRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)
    width: int = uint(3)
    height: int = uint(4)


class KillRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)
    signal: int = uint(3)
    all: bool = boolean(4)


class CloseIORequest(Message):
    id: str = string(1)
    exec_id: str = string(2)
    stdin: bool = boolean(3)


class PidsRequest(Message):
    id: str = string(1)


class ProcessInfo(Message):
    pid: int = uint(1)
    info: Any_ | None = message(2, Any_)


class PidsResponse(Message):
    processes: list[ProcessInfo] = messages(1, ProcessInfo)


class PauseRequest(Message):
    id: str = string(1)


class ResumeRequest(Message):
    id: str = string(1)


class CheckpointTaskRequest(Message):
    id: str = string(1)
    path: str = string(2)
    options: Any_ | None = message(3, Any_)


class CheckpointOptions(Message):
    """runc's options of a checkpoint as containerd sends them; the others concern CRIU."""

    exit: bool = boolean(1)


class UpdateTaskRequest(Message):
    id: str = string(1)
    resources: Any_ | None = message(2, Any_)
    annotations: dict[str, str] = string_map(3)


class WaitRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)


class WaitResponse(Message):
    exit_status: int = uint(1)
    exited_at: Timestamp | None = message(2, Timestamp)


class StatsRequest(Message):
    id: str = string(1)


class StatsResponse(Message):
    stats: Any_ | None = message(1, Any_)


class ConnectRequest(Message):
    id: str = string(1)


class ConnectResponse(Message):
    shim_pid: int = uint(1)
    task_pid: int = uint(2)
    version: str = string(3)


class ShutdownRequest(Message):
    id: str = string(1)
    now: bool = boolean(2)


#: method name -> (request, response)
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "State": (StateRequest, StateResponse),
    "Create": (CreateTaskRequest, CreateTaskResponse),
    "Start": (StartRequest, StartResponse),
    "Delete": (DeleteRequest, DeleteResponse),
    "Pids": (PidsRequest, PidsResponse),
    "Pause": (PauseRequest, Empty),
    "Resume": (ResumeRequest, Empty),
    "Checkpoint": (CheckpointTaskRequest, Empty),
    "Kill": (KillRequest, Empty),
    "Exec": (ExecProcessRequest, Empty),
    "ResizePty": (ResizePtyRequest, Empty),
    "CloseIO": (CloseIORequest, Empty),
    "Update": (UpdateTaskRequest, Empty),
    "Wait": (WaitRequest, WaitResponse),
    "Stats": (StatsRequest, StatsResponse),
    "Connect": (ConnectRequest, ConnectResponse),
    "Shutdown": (ShutdownRequest, Empty),
}


class TaskIO(Message):
    stdin: str = string(1)
    stdout: str = string(2)
    stderr: str = string(3)
    terminal: bool = boolean(4)


class TaskCreate(Message):
    container_id: str = string(1)
    bundle: str = string(2)
    rootfs: list[Mount] = messages(3, Mount)
    io: TaskIO | None = message(4, TaskIO)
    checkpoint: str = string(5)
    pid: int = uint(6)


class TaskStart(Message):
    container_id: str = string(1)
    pid: int = uint(2)


class TaskDelete(Message):
    container_id: str = string(1)
    pid: int = uint(2)
    exit_status: int = uint(3)
    exited_at: Timestamp | None = message(4, Timestamp)
    id: str = string(5)


class TaskExit(Message):
    container_id: str = string(1)
    id: str = string(2)
    pid: int = uint(3)
    exit_status: int = uint(4)
    exited_at: Timestamp | None = message(5, Timestamp)


class TaskOOM(Message):
    container_id: str = string(1)


class TaskExecAdded(Message):
    container_id: str = string(1)
    exec_id: str = string(2)


class TaskExecStarted(Message):
    container_id: str = string(1)
    exec_id: str = string(2)
    pid: int = uint(3)


class TaskPaused(Message):
    container_id: str = string(1)


class TaskCheckpointed(Message):
    container_id: str = string(1)
    checkpoint: str = string(2)


class TaskResumed(Message):
    container_id: str = string(1)


#: event class -> topic; the type URL is `containerd.events.<class name>`
TOPICS: dict[type[Message], str] = {
    TaskCreate: "/tasks/create",
    TaskStart: "/tasks/start",
    TaskDelete: "/tasks/delete",
    TaskExit: "/tasks/exit",
    TaskOOM: "/tasks/oom",
    TaskExecAdded: "/tasks/exec-added",
    TaskExecStarted: "/tasks/exec-started",
    TaskPaused: "/tasks/paused",
    TaskResumed: "/tasks/resumed",
    TaskCheckpointed: "/tasks/checkpointed",
}


class Envelope(Message):
    timestamp: Timestamp | None = message(1, Timestamp)
    namespace: str = string(2)
    topic: str = string(3)
    event: Any_ | None = message(4, Any_)


class ForwardRequest(Message):
    envelope: Envelope | None = message(1, Envelope)


#: of EVENTS_SERVICE, which containerd serves
EVENTS_METHODS: dict[str, tuple[type[Message], type[Message]]] = {"Forward": (ForwardRequest, Empty)}


class RuncOptions(Message):
    """containerd.runc.v1.Options: what containerd sends with Create for runc-like runtimes."""

    no_pivot_root: bool = boolean(1)
    no_new_keyring: bool = boolean(2)
    shim_cgroup: str = string(3)
    io_uid: int = uint(4)
    io_gid: int = uint(5)
    binary_name: str = string(6)
    root: str = string(7)
    systemd_cgroup: bool = boolean(9)


class RuntimeOptions(Message):
    """runtimeoptions.v1.Options: the generic form, with the text or path of a configuration."""

    type_url: str = string(1)
    config_path: str = string(2)
    config_body: bytes = blob(3)

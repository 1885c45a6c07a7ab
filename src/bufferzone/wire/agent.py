"""The protocol between the shim and the agent in the VM: service `bufferzone.agent.v1.Agent` over ttrpc.

The host is always the client. Everything the agent returns is hostile input: numbers and opaque bytes,
never a host path, an argv or a format string. Payloads stay below `CHUNK` for stdio and 4 MiB at all times.
"""

from __future__ import annotations

from bufferzone.wire.locks import LocksRequest, LocksResponse
from bufferzone.wire.network import SetNetworkRequest
from bufferzone.wire.proto import Empty, Message, blob, boolean, messages, sint, string, strings, uint

SERVICE = "bufferzone.agent.v1.Agent"
PORT_NAME = "bufferzone.agent.0"  # name of the virtio-serial port
VSOCK_PORT = 1024  # of the host, where the VMM has a vsock in its place
CHANNEL_IS_VSOCK = "bufferzone.channel=vsock"  # the kernel argument that says so
SHARE_TAG = "bufferzone"  # virtiofs tag of the sandbox's share
SHARE_PATH = "/run/bufferzone/shared"  # where the guest mounts it
ROOT_DISK = "rootfs"  # serial number of the disk with the root file system
ROOT_PATH = "/run/bufferzone/root"  # where the guest mounts it, with an overlay: a directory `rootfs` below
FILES_PATH = "/run/bufferzone/files"  # copies of single files
FINISHED = "process-finished"  # code of the answer to a signal for a process that has ended
MOST_FILE = 64 << 10  # bytes of such a file
CHUNK = 256 << 10  # most bytes of stdio in one call
STDOUT, STDERR = 1, 2


class Phase(Message):
    """One step of the guest's boot: name, and nanoseconds of CLOCK_MONOTONIC (since its kernel started)."""

    name: str = string(1)
    at_ns: int = uint(2)


class HelloRequest(Message):
    """First call: at least 32 bytes of entropy, the hostname."""

    entropy: bytes = blob(2)
    hostname: str = string(3)


class HelloResponse(Message):
    """What answered: guest kernel release, agent version, CPUs, memory in bytes, boot phases in order.

    `monotonic_ns` is the guest's CLOCK_MONOTONIC just before the answer left.
    """

    kernel: str = string(1)
    version: str = string(2)
    cpus: int = uint(3)
    memory: int = uint(4)
    phases: list[Phase] = messages(5, Phase)
    monotonic_ns: int = uint(6)


class SetClockRequest(Message):
    """Set the wall clock: CLOCK_REALTIME (ns since the epoch) minus the guest's CLOCK_MONOTONIC; 0: do not.

    A difference, so that it does not matter how long the request takes: the first requests after a restore
    take a tenth of a second under TCG, since all code is translated anew.
    """

    offset_ns: int = sint(1)


class SetClockResponse(Message):
    """`monotonic_ns` is the guest's CLOCK_MONOTONIC just before the answer left."""

    monotonic_ns: int = uint(1)


class PrepareSnapshotResponse(Message):
    """The guest is ready to be saved as a template: bytes of its memory that nobody uses."""

    free: int = uint(1)


class MountRequest(Message):
    """Mount a device of the sandbox in the guest: `kind` is `virtiofs` (source = tag) or a block fs type."""

    kind: str = string(1)
    source: str = string(2)
    target: str = string(3)
    options: list[str] = strings(4)


class Xattr(Message):
    """One extended attribute."""

    name: str = string(1)
    value: bytes = blob(2)


class LayerEntry(Message):
    """One file of a layer, after the directory that it is in. `path` is relative to the layer, empty: its
    root. `mode` is st_mode; `device` st_rdev (a character device 0: what is below is removed); `data` what
    a regular file holds, or where a link leads; `same_as`: it is the file of this earlier path. `opaque`:
    nothing of a directory below it is seen.
    """

    path: bytes = blob(1)
    mode: int = uint(2)
    uid: int = uint(3)
    gid: int = uint(4)
    mtime_ns: int = sint(5)
    device: int = uint(6)
    data: bytes = blob(7)
    same_as: bytes = blob(8)
    opaque: bool = boolean(9)
    xattrs: list[Xattr] = messages(10, Xattr)


class Layer(Message):
    """A layer of a root file system that is small, as overlayfs means one; its root comes first."""

    entries: list[LayerEntry] = messages(1, LayerEntry)


class MountRootRequest(Message):
    """Mount `ROOT_DISK` (`kind`: erofs or ext4), read-only, below an overlay in the guest's memory, with
    `layers` between them, the topmost first.
    """

    kind: str = string(1)
    layers: list[Layer] = messages(2, Layer)


class WriteFileRequest(Message):
    """Put a regular file below `FILES_PATH`: at most `MOST_FILE` bytes, `name` is one path component."""

    name: str = string(1)
    data: bytes = blob(2)
    mode: int = uint(3)
    uid: int = uint(4)
    gid: int = uint(5)


class CreateRequest(Message):
    """Make a container: namespaces, cgroup, mounts, everything up to (not including) the exec of its process.

    `spec` is JSON in the shape of an OCI config.json whose mount sources and root path are guest paths, whose
    hooks are only startContainer (with them `bundle`, the host's), and without linux.seccomp: the filter is
    `seccomp` (array of struct sock_filter, native byte order) with `seccomp_flags` for seccomp(2). `locks`:
    the names in the share whose files are locked on the host, see `wire.locks`.
    """

    id: str = string(1)
    spec: bytes = blob(2)
    seccomp: bytes = blob(3)
    seccomp_flags: int = uint(4)
    locks: list[str] = strings(5)


class AdoptRequest(Message):
    """Take over the container `id` of a restored VM: it is called `new_id` from now on, and its hostname is
    `hostname` unless that is empty. It stays frozen until `Resume`.
    """

    id: str = string(1)
    new_id: str = string(2)
    hostname: str = string(3)


class ProcessRequest(Message):
    """Start one more process in a container; `process` is JSON in the shape of OCI config.json's process."""

    id: str = string(1)
    exec_id: str = string(2)
    process: bytes = blob(3)
    seccomp: bytes = blob(4)
    seccomp_flags: int = uint(5)
    patient: bool = boolean(6)  # where the container is paused, begin once it is resumed
    lingering: bool = boolean(7)  # its output ends with its last writer, also after its own end
    outlived: bool = boolean(8)  # the same, and where its own ends is told by `ReadResponse.ended`


class PidResponse(Message):
    """The pid inside the guest."""

    pid: int = uint(1)


class ProcessRef(Message):
    """A container's init (`exec_id` empty) or one of its execs."""

    id: str = string(1)
    exec_id: str = string(2)


class SignalRequest(Message):
    """`all`: every process of the container; of an exec that is measured, all that it started."""

    id: str = string(1)
    exec_id: str = string(2)
    signal: int = uint(3)
    all: bool = boolean(4)


class WaitResponse(Message):
    """How a process ended: `exit_status` 0-255 (128+n for signal n), `signal` n or 0, `oom` when the OOM
    killer did it, `oom_kills` how often it has hit the container by then. `cpu_us` and `peak_bytes` (0: the
    guest cannot tell) are what a measured process and all it started have used."""

    exit_status: int = uint(1)
    signal: int = uint(2)
    exited_at_ns: int = sint(3)
    oom: bool = boolean(4)
    oom_kills: int = uint(5)
    cpu_us: int = uint(6)
    peak_bytes: int = uint(7)


class ReadRequest(Message):
    """Blocks until bytes or end of file; `stream` is STDOUT or STDERR; a terminal has STDOUT only."""

    id: str = string(1)
    exec_id: str = string(2)
    stream: int = uint(3)
    limit: int = uint(4)


class ReadResponse(Message):
    """Empty `data` is end of file, unless the process has `ended`: it has written nothing after `data`, and
    its descendants may. Told once.
    """

    data: bytes = blob(1)
    ended: bool = boolean(2)


class WriteRequest(Message):
    """Blocks until everything is written; fails with code `stdin-closed` once the reader is gone."""

    id: str = string(1)
    exec_id: str = string(2)
    data: bytes = blob(3)


class ResizeRequest(Message):
    id: str = string(1)
    exec_id: str = string(2)
    width: int = uint(3)
    height: int = uint(4)


class UpdateRequest(Message):
    """`resources` is JSON in the shape of OCI config.json's linux.resources; absent keys stay as they are."""

    id: str = string(1)
    resources: bytes = blob(2)


class Counter(Message):
    """One number of the guest cgroup, named like `memory.current`, `cpu.usage_usec`, `memory.stat.anon`."""

    name: str = string(1)
    value: int = uint(2)


class UsageResponse(Message):
    """What a measured exec and all it started have used by now."""

    cpu_us: int = uint(1)
    peak_bytes: int = uint(2)


class StatsResponse(Message):
    counters: list[Counter] = messages(1, Counter)


class ProcessInfo(Message):
    """A row of a process table, as the guest tells it; `ns_pid` is the pid as the container sees it,
    `state` a letter, see proc(5).
    """

    pid: int = uint(1)
    ppid: int = uint(2)
    uid: int = uint(3)
    start_s: int = uint(4)
    cpu_ms: int = uint(5)
    tty: str = string(6)
    command: str = string(7)
    ns_pid: int = uint(8)
    state: str = string(9)


class PidsResponse(Message):
    processes: list[ProcessInfo] = messages(1, ProcessInfo)


class UnsentResponse(Message):
    """How many TCP connections of processes that have ended have something to send yet."""

    connections: int = uint(1)


class OomEvents(Message):
    """Containers whose OOM count rose since the last call; the call blocks until there is one."""

    ids: list[str] = strings(1)


#: method name -> (request, response)
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Hello": (HelloRequest, HelloResponse),
    "SetClock": (SetClockRequest, SetClockResponse),
    "PrepareSnapshot": (Empty, PrepareSnapshotResponse),
    "ZeroFreeMemory": (Empty, Empty),
    "Mount": (MountRequest, Empty),
    "SetNetwork": (SetNetworkRequest, Empty),
    "MountRoot": (MountRootRequest, Empty),
    "WriteFile": (WriteFileRequest, Empty),
    "Prefork": (Empty, Empty),  # answered once a child is forked that can become the next process
    "Create": (CreateRequest, PidResponse),
    "Hold": (Empty, Empty),
    "Release": (Empty, Empty),
    "Adopt": (AdoptRequest, PidResponse),
    "Start": (ProcessRef, Empty),
    "Exec": (ProcessRequest, PidResponse),
    "Signal": (SignalRequest, Empty),
    "Wait": (ProcessRef, WaitResponse),
    "Delete": (ProcessRef, Empty),
    "Read": (ReadRequest, ReadResponse),
    "Write": (WriteRequest, Empty),
    "CloseStdin": (ProcessRef, Empty),
    "CloseOutput": (ReadRequest, Empty),
    "Resize": (ResizeRequest, Empty),
    "Pause": (ProcessRef, Empty),
    "Resume": (ProcessRef, Empty),
    "Update": (UpdateRequest, Empty),
    "Stats": (ProcessRef, StatsResponse),
    "Usage": (ProcessRef, UsageResponse),
    "Pids": (ProcessRef, PidsResponse),
    "WaitOom": (Empty, OomEvents),
    "Unsent": (Empty, UnsentResponse),
    "Forget": (Empty, Empty),  # the kernel's memory of files that nobody has open
    "Locks": (LocksRequest, LocksResponse),
    "Shutdown": (Empty, Empty),
}

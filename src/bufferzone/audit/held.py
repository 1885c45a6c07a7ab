"""What one process holds, thread by thread, read from /proc: proc(5), capabilities(7), namespaces(7)."""

from __future__ import annotations

import os

from bufferzone.linux.capability_names import CAPABILITIES
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_SETS = {"CapEff": "effective", "CapPrm": "permitted", "CapInh": "inheritable", "CapAmb": "ambient"}
_O_ACCMODE, _O_PATH = 0o3, 0o10000000
_LIMITS = {"Max core file size": "core", "Max open files": "nofile", "Max processes": "nproc"}


class Descriptor(Record):
    """An open descriptor: what /proc says it is; `kind` is file, directory, socket, pipe, device, anonymous
    or other. One that cannot be read or written (O_PATH) has `path_only`. `device` is what a device node
    stands for whatever its name is, as `c 10:232`, else empty.
    """

    number: int
    target: str
    kind: str
    writable: bool
    path_only: bool
    device: str = ""


class Mount(Record):
    """A mount in the process's sight: its point, type, and the options of this mount."""

    point: str
    type: str
    options: tuple[str, ...]


class Thread(Record):
    """`seccomp` is 0 none, 1 strict, 2 filter; `filters` how many, -1 where the kernel does not tell."""

    tid: int
    name: str
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    capabilities: dict[str, tuple[str, ...]]
    no_new_privileges: bool
    seccomp: int
    filters: int


class Held(Record):
    """A process; `program` is the path of its program and `inode` (device, inode) of that, since a program in
    a root that was left has no path. `namespaces` has the numbers by kind, `root` that of its root directory,
    `limits` soft limits (-1: none), `environment` the number of its bytes. `tracer` is a pid or 0.
    """

    pid: int
    program: str
    inode: tuple[int, int]
    threads: tuple[Thread, ...]
    namespaces: dict[str, int]
    root: tuple[int, int]
    descriptors: tuple[Descriptor, ...]
    mounts: tuple[Mount, ...]
    cgroups: tuple[str, ...]
    limits: dict[str, int]
    environment: int
    tracer: int

    @property
    def first(self) -> Thread:
        """The main thread."""
        return self.threads[0]

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Everything that any thread has in any of its sets, the bounding set left out."""
        names = {
            name
            for thread in self.threads
            for kind, held in thread.capabilities.items()
            if kind != "bounding"
            for name in held
        }
        return tuple(name for name in CAPABILITIES if name in names)


def read(pid: int, *, mounts: bool = True) -> Held:
    """Everything, `mounts` if asked for; raises OSError when the process is gone or may not be looked at."""
    place = f"/proc/{pid}"
    names = sorted(map(int, os.listdir(f"{place}/task")), key=lambda tid: (tid != pid, tid))
    threads = [thread for tid in names if (thread := _thread(f"{place}/task/{tid}", tid)) is not None]
    if not threads:
        raise ProcessLookupError(pid)
    root = os.stat(f"{place}/root")
    return Held(
        pid=pid,
        program=_link(f"{place}/exe"),
        inode=inode_of(f"{place}/exe"),
        threads=tuple(threads),
        namespaces=namespaces(place),
        root=(root.st_dev, root.st_ino),
        descriptors=tuple(_descriptors(place)),
        mounts=tuple(_mounts(place)) if mounts else (),
        cgroups=tuple(sorted({line.split(":", 2)[2] for line in _text(f"{place}/cgroup").splitlines()})),
        limits=_limits(place),
        environment=len(_text(f"{place}/environ")),
        tracer=int(_status(place).get("TracerPid", "0")),
    )


def namespaces(place: str) -> dict[str, int]:
    """kind -> its number, for those kinds that the kernel has; `place` is a directory of a process."""
    found = {}
    for kind in NAMESPACES:
        try:
            found[kind] = os.stat(f"{place}/ns/{kind}").st_ino
        except FileNotFoundError:
            continue
    return found


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # a kernel thread, or a process that is a zombie


def inode_of(path: str) -> tuple[int, int]:
    """(device, inode) of a file; (0, 0) where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _status(place: str) -> dict[str, str]:
    rows = (line.partition(":") for line in _text(f"{place}/status").splitlines())
    return {key: value.strip() for key, _, value in rows}


def _thread(place: str, tid: int) -> Thread | None:
    try:
        status = _status(place)
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended while we looked
    return Thread(
        tid=tid,
        name=status["Name"],
        uids=_numbers(status["Uid"]),
        gids=_numbers(status["Gid"]),
        groups=_numbers(status["Groups"]),
        capabilities={name: _capabilities(status[key]) for key, name in _SETS.items()}
        | {"bounding": _capabilities(status["CapBnd"])},
        no_new_privileges=status.get("NoNewPrivs") == "1",
        seccomp=int(status.get("Seccomp", "0")),
        filters=int(status.get("Seccomp_filters", "-1")),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _capabilities(mask: str) -> tuple[str, ...]:
    value = int(mask, 16)
    return tuple(name for number, name in enumerate(CAPABILITIES) if value >> number & 1)


def _descriptors(place: str) -> list[Descriptor]:
    found = []
    for name in sorted(os.listdir(f"{place}/fd"), key=int):
        try:
            target, flags = os.readlink(f"{place}/fd/{name}"), _flags(f"{place}/fdinfo/{name}")
            seen = os.stat(f"{place}/fd/{name}")
        except OSError:
            continue  # closed meanwhile
        path_only = bool(flags & _O_PATH)
        found.append(
            Descriptor(
                number=int(name),
                target=target,
                kind=_kind(target, seen.st_mode),
                writable=not path_only and flags & _O_ACCMODE != os.O_RDONLY,
                path_only=path_only,
                device=_device(seen),
            )
        )
    return found


def _flags(path: str) -> int:
    row = next(line for line in _text(path).splitlines() if line.startswith("flags:"))
    return int(row.split()[1], 8)


def _device(seen: os.stat_result) -> str:
    letter = {0o020000: "c", 0o060000: "b"}.get(seen.st_mode & 0o170000)
    return f"{letter} {os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}" if letter else ""


def _kind(target: str, mode: int) -> str:
    if target.startswith("anon_inode:"):
        return "anonymous"
    kinds = {0o140000: "socket", 0o010000: "pipe", 0o040000: "directory", 0o100000: "file"}
    kinds |= {0o020000: "device", 0o060000: "device"}
    return kinds.get(mode & 0o170000, "other")


def _mounts(place: str) -> list[Mount]:
    found = []
    for line in _text(f"{place}/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        found.append(Mount(point=fields[4], type=right.split(" ")[0], options=tuple(fields[5].split(","))))
    return found


def _limits(place: str) -> dict[str, int]:
    found = {}
    for line in _text(f"{place}/limits").splitlines():
        for label, name in _LIMITS.items():
            if line.startswith(label):
                soft = line[len(label) :].split()[0]
                found[name] = -1 if soft == "unlimited" else int(soft)
    return found


def as_json(held: Held) -> dict[str, Any]:
    """What a report says of a process."""
    first = held.first
    return {
        "pid": held.pid,
        "program": held.program,
        "uid": first.uids[1],
        "gid": first.gids[1],
        "groups": list(first.groups),
        "capabilities": list(held.capabilities),
        "bounding": list(first.capabilities["bounding"]),
        "no_new_privileges": all(thread.no_new_privileges for thread in held.threads),
        "threads": [
            {"tid": each.tid, "name": each.name, "seccomp": each.seccomp, "filters": each.filters}
            for each in held.threads
        ],
        "namespaces": held.namespaces,
        "descriptors": [
            {"number": fd.number, "target": fd.target, "kind": fd.kind, "writable": fd.writable}
            for fd in held.descriptors
        ],
        "mounts": [
            {"point": mount.point, "type": mount.type, "options": ",".join(mount.options)}
            for mount in held.mounts
        ],
        "cgroups": list(held.cgroups),
        "limits": held.limits,
        "environment_bytes": held.environment,
    }

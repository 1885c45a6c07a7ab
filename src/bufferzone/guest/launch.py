"""Forking a child into the namespaces that only a fork can enter, and what the agent does for it as the guest's root.

The agent unshares or joins the pid (and time) namespace, forks, and goes back to its own: so the child is at once
pid 1 (or a member) of that namespace and a direct child of the agent, without a helper. A pid namespace that a new
user namespace must own is made by the child itself, whose second child comes to us as to the nearest reaper.
Source: pid_namespaces(7), time_namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import _socket
import os

from bufferzone.errors import SpecError
from bufferzone.guest import child
from bufferzone.guest.channel import ChildEnd
from bufferzone.guest.task import NAMESPACE_FILES, NAMESPACES
from bufferzone.linux import limits
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.guest.task import Task

_BY_FORK = lp.CLONE_NEWPID | lp.CLONE_NEWTIME
SCHEDULERS = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}


def fork(task: Task, sock: _socket.socket) -> int:
    """Fork the child that becomes the process of `task`, with `sock` as its channel; return its pid.

    Afterwards the agent is in its own namespaces again, also when the fork failed. Raises OSError.
    """
    in_user = bool(task.unshares & lp.CLONE_NEWUSER) or any(kind == lp.CLONE_NEWUSER for _, kind in task.joins)
    joins = [(fd, kind) for fd, kind in task.joins if kind & _BY_FORK]
    unshares = 0 if in_user else task.unshares & _BY_FORK
    touched = unshares
    for _, kind in joins:
        touched |= kind
    own = {name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "time") if touched & NAMESPACES[name]}
    try:
        for fd, kind in joins:
            lp.setns(fd, kind)
        if unshares:
            lp.unshare(unshares)
            child.write_offsets(child.time_offsets(task.spec))
        pid = os.fork()
    except BaseException:
        _go_back(own)
        raise
    if pid == 0:
        child.main(task, ChildEnd(sock))
    _go_back(own)
    return pid


def _go_back(own: dict[str, int]) -> None:
    for name, fd in own.items():
        lp.setns(fd, NAMESPACES[name])
        os.close(fd)


def namespaces_of(pid: int, spec: dict[str, Any]) -> list[tuple[int, int]]:
    """Descriptors of the namespaces of a container's init, those that the container has for itself."""
    found = []
    declared = {str(entry.get("type")) for entry in (spec.get("linux") or {}).get("namespaces") or []}
    try:
        for name, kind in NAMESPACES.items():
            if name in declared:
                found.append((os.open(f"/proc/{pid}/ns/{NAMESPACE_FILES[name]}", os.O_RDONLY | os.O_CLOEXEC), kind))
    except BaseException:
        for fd, _ in found:
            os.close(fd)
        raise
    return found


def write_maps(pid: int, spec: dict[str, Any]) -> None:
    """linux.uidMappings and gidMappings of the user namespace that `pid` has just made. Raises OSError or `SpecError`."""
    linux = spec.get("linux") or {}
    for key, file in (("uidMappings", "uid_map"), ("gidMappings", "gid_map")):
        rows = linux.get(key) or []
        if not rows:
            raise SpecError(f"linux.{key}: a new user namespace needs a mapping")
        text = "".join(f"{int(r['containerID'])} {int(r['hostID'])} {int(r['size'])}\n" for r in rows)
        fd = os.open(f"/proc/{pid}/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def guest_id(container_id: int, mappings: list[dict[str, Any]]) -> int:
    """A uid or gid of the container as the guest sees it; unchanged without a mapping."""
    for row in mappings:
        offset = container_id - int(row["containerID"])
        if 0 <= offset < int(row["size"]):
            return int(row["hostID"]) + offset
    return container_id


def settle(pid: int, process: dict[str, Any]) -> None:
    """What needs rights beyond the container's: rlimits, oom_score_adj, I/O priority, scheduler. Raises on failure."""
    if process.get("oomScoreAdj") is not None:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(int(process["oomScoreAdj"])).encode())
        finally:
            os.close(fd)
    for entry in process.get("rlimits") or []:
        name = str(entry.get("type"))
        if name not in limits.RLIMITS:
            raise SpecError(f"process.rlimits: unknown type: {name}")
        limits.set_rlimit(pid, name, int(entry.get("soft") or 0), int(entry.get("hard") or 0))
    priority = process.get("ioPriority")
    if priority:
        limits.set_io_priority(pid, _named(IO_CLASSES, priority.get("class"), "process.ioPriority.class"), int(priority.get("priority") or 0))
    scheduler = process.get("scheduler")
    if scheduler:
        policy = _named(SCHEDULERS, scheduler.get("policy"), "process.scheduler.policy")
        flags = 0
        for flag in scheduler.get("flags") or []:
            flags |= _named(SCHEDULER_FLAGS, flag, "process.scheduler.flags")
        numbers = [int(scheduler.get(key) or 0) for key in ("nice", "priority", "runtime", "deadline", "period")]
        limits.set_scheduler(pid, policy, numbers[0], numbers[1], flags, (numbers[2], numbers[3], numbers[4]))


def _named(table: dict[str, int], name: object, where: str) -> int:
    if name not in table:
        raise SpecError(f"{where}: unknown value: {name}")
    return table[str(name)]

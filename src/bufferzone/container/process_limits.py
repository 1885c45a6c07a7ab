"""What a process is given from outside, by the agent: rlimits, oom_score_adj, I/O priority, scheduler.

Its own rights might not do, least of all in a user namespace. Source: runtime-spec config.md "process",
prlimit(2), proc(5), ioprio_set(2), sched_setattr(2).
"""

from __future__ import annotations

import os

from bufferzone.container.kernel_files import write
from bufferzone.errors import GuestError, SpecError
from bufferzone.linux import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEDULERS = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
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


def apply(pid: int, process: dict[str, Any]) -> None:
    """Apply it all to `pid`; raises `SpecError`, or `GuestError` naming what was refused."""
    if process.get("oomScoreAdj") is not None:
        score = int(process["oomScoreAdj"])
        try:
            write(f"/proc/{pid}/oom_score_adj", str(score))
        except OSError as error:
            raise _refused(f"oom score adj to {score}", error) from error
    for entry in process.get("rlimits") or []:
        _set_rlimit(pid, entry)
    if process.get("ioPriority"):
        _set_io_priority(pid, process["ioPriority"])
    if process.get("scheduler"):
        _set_scheduler(pid, process["scheduler"])


def _refused(what: str, error: OSError) -> GuestError:
    return GuestError(f"error setting {what}: {os.strerror(error.errno or 0).lower()}", code="refused")


def _set_rlimit(pid: int, entry: dict[str, Any]) -> None:
    name = str(entry.get("type"))
    if name not in limits.RLIMITS:
        raise SpecError(f"process.rlimits: unknown type: {name}")
    try:
        limits.set_rlimit(pid, name, int(entry.get("soft") or 0), int(entry.get("hard") or 0))
    except OSError as error:
        raise _refused(f"rlimit {name}", error) from error


def _set_io_priority(pid: int, priority: dict[str, Any]) -> None:
    class_ = _named(IO_CLASSES, priority.get("class"), "process.ioPriority.class")
    try:
        limits.set_io_priority(pid, class_, int(priority.get("priority") or 0))
    except OSError as error:
        raise _refused("I/O priority", error) from error


def _set_scheduler(pid: int, scheduler: dict[str, Any]) -> None:
    policy = _named(SCHEDULERS, scheduler.get("policy"), "process.scheduler.policy")
    flags = 0
    for flag in scheduler.get("flags") or []:
        flags |= _named(SCHEDULER_FLAGS, flag, "process.scheduler.flags")
    nice, priority, *times = (
        int(scheduler.get(key) or 0) for key in ("nice", "priority", "runtime", "deadline", "period")
    )
    try:
        limits.set_scheduler(pid, policy, nice, priority, flags, (times[0], times[1], times[2]))
    except OSError as error:
        raise _refused("scheduler", error) from error


def _named(table: dict[str, int], name: object, where: str) -> int:
    if name not in table:
        raise SpecError(f"{where}: unknown value: {name}")
    return table[str(name)]

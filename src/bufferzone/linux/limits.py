"""Limits and classes of a process: prlimit(2), ioprio_set(2), sched_setattr(2), personality(2),
setdomainname(2).
"""

from __future__ import annotations

import struct

from bufferzone.linux.libc import call, syscall

_PERSONALITY, _IOPRIO_SET, _PRLIMIT64, _SCHED_SETATTR = 135, 251, 302, 314

#: setrlimit(2), in order of their numbers on x86-64
RLIMITS = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
]


def set_rlimit(pid: int, name: str, soft: int, hard: int) -> None:
    """prlimit(2) on `pid`; numbers are taken modulo 2**64 (-1 is infinity).

    Raises `ValueError` on an unknown name.
    """
    mask = (1 << 64) - 1
    syscall(
        _PRLIMIT64,
        "prlimit",
        pid,
        RLIMITS.index(name),
        struct.pack("=QQ", soft & mask, hard & mask),
        None,
        path=name,
    )


def set_io_priority(pid: int, class_: int, level: int) -> None:
    """ioprio_set(2) on a process: class 1 real time, 2 best effort, 3 idle; level 0-7."""
    syscall(_IOPRIO_SET, "ioprio_set", 1, pid, class_ << 13 | level)


def set_scheduler(
    pid: int, policy: int, nice: int, priority: int, flags: int, times: tuple[int, int, int]
) -> None:
    """sched_setattr(2); `times` is runtime, deadline and period in nanoseconds."""
    attributes = struct.pack("=IIQiIQQQ", 48, policy, flags, nice, priority, *times)
    syscall(_SCHED_SETATTR, "sched_setattr", pid, attributes, 0)


def set_personality(persona: int) -> None:
    """personality(2)."""
    syscall(_PERSONALITY, "personality", persona)


def set_domain_name(name: str) -> None:
    """setdomainname(2)."""
    raw = name.encode()
    call("setdomainname", raw, len(raw))

"""Numbers of a container as containerd, Docker and the kubelet want them, from the guest cgroup's counters.

Source: containerd/cgroups cgroup2/stats/metrics.proto (io.containerd.cgroups.v2.Metrics); runc
types/events.go.
"""

from __future__ import annotations

from bufferzone.wire.proto import Message, message, messages, string, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TYPE_URL = "io.containerd.cgroups.v2.Metrics"
UNLIMITED = (1 << 64) - 1


class PidsStat(Message):
    current: int = uint(1)
    limit: int = uint(2)


class CPUStat(Message):
    usage_usec: int = uint(1)
    user_usec: int = uint(2)
    system_usec: int = uint(3)
    nr_periods: int = uint(4)
    nr_throttled: int = uint(5)
    throttled_usec: int = uint(6)


class MemoryStat(Message):
    """The keys of memory.stat under their own names, then memory.current, memory.max and the swap pair."""

    anon: int = uint(1)
    file: int = uint(2)
    kernel_stack: int = uint(3)
    slab: int = uint(4)
    sock: int = uint(5)
    shmem: int = uint(6)
    file_mapped: int = uint(7)
    file_dirty: int = uint(8)
    file_writeback: int = uint(9)
    anon_thp: int = uint(10)
    inactive_anon: int = uint(11)
    active_anon: int = uint(12)
    inactive_file: int = uint(13)
    active_file: int = uint(14)
    unevictable: int = uint(15)
    slab_reclaimable: int = uint(16)
    slab_unreclaimable: int = uint(17)
    pgfault: int = uint(18)
    pgmajfault: int = uint(19)
    workingset_refault: int = uint(20)
    workingset_activate: int = uint(21)
    workingset_nodereclaim: int = uint(22)
    pgrefill: int = uint(23)
    pgscan: int = uint(24)
    pgsteal: int = uint(25)
    pgactivate: int = uint(26)
    pgdeactivate: int = uint(27)
    pglazyfree: int = uint(28)
    pglazyfreed: int = uint(29)
    thp_fault_alloc: int = uint(30)
    thp_collapse_alloc: int = uint(31)
    usage: int = uint(32)
    usage_limit: int = uint(33)
    swap_usage: int = uint(34)
    swap_limit: int = uint(35)
    max_usage: int = uint(36)
    swap_max_usage: int = uint(37)


class MemoryEvents(Message):
    low: int = uint(1)
    high: int = uint(2)
    max: int = uint(3)
    oom: int = uint(4)
    oom_kill: int = uint(5)


class IOEntry(Message):
    major: int = uint(1)
    minor: int = uint(2)
    rbytes: int = uint(3)
    wbytes: int = uint(4)
    rios: int = uint(5)
    wios: int = uint(6)


class IOStat(Message):
    usage: list[IOEntry] = messages(1, IOEntry)


class HugeTlbStat(Message):
    current: int = uint(1)
    max: int = uint(2)
    pagesize: str = string(3)


class Metrics(Message):
    pids: PidsStat | None = message(1, PidsStat)
    cpu: CPUStat | None = message(2, CPUStat)
    memory: MemoryStat | None = message(4, MemoryStat)
    io: IOStat | None = message(6, IOStat)
    hugetlb: list[HugeTlbStat] = messages(7, HugeTlbStat)
    memory_events: MemoryEvents | None = message(8, MemoryEvents)


#: fields of MemoryStat that come from files of their own; an absent limit file means no limit
_MEMORY_FILES = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}
_LIMITS = ("usage_limit", "swap_limit", "limit")


def _fill(cls: type[Message], counters: Mapping[str, int], prefix: str, names: Mapping[str, str]) -> Any:
    values = {}
    for field in cls._fields:
        absent = UNLIMITED if field.name in _LIMITS else 0
        values[field.name] = counters.get(names.get(field.name, prefix + field.name), absent)
    return cls(**values)


def from_counters(counters: Mapping[str, int]) -> Metrics:
    """Metrics from the agent's counters: `memory.current`, `memory.stat.anon`, `cpu.usage_usec`,
    `pids.current`, `memory.events.oom_kill`, `io.MAJOR:MINOR.rbytes`, ... Unknown names are skipped.
    """
    return Metrics(
        pids=_fill(PidsStat, counters, "pids.", {"limit": "pids.max"}),
        cpu=_fill(CPUStat, counters, "cpu.", {}),
        memory=_fill(MemoryStat, counters, "memory.stat.", _MEMORY_FILES),
        io=IOStat(usage=_io_entries(counters)),
        memory_events=_fill(MemoryEvents, counters, "memory.events.", {}),
    )


def _io_entries(counters: Mapping[str, int]) -> list[IOEntry]:
    devices: dict[str, IOEntry] = {}
    for name, value in counters.items():
        prefix, _, rest = name.partition(".")
        device, _, key = rest.partition(".")
        major, _, minor = device.partition(":")
        if prefix != "io" or not (major.isdecimal() and minor.isdecimal()) or len(device) > 20:
            continue
        entry = devices.setdefault(device, IOEntry(major=int(major), minor=int(minor)))
        if key in ("rbytes", "wbytes", "rios", "wios"):
            setattr(entry, key, value)
    return list(devices.values())


def to_events(metrics: Metrics) -> dict[str, Any]:
    """The `data` object of runc's `events --stats`."""
    cpu, memory = metrics.cpu or CPUStat(), metrics.memory or MemoryStat()
    pids, events = metrics.pids or PidsStat(), metrics.memory_events or MemoryEvents()
    stat_fields = [f.name for f in MemoryStat._fields if f.name not in _MEMORY_FILES]
    return {
        "cpu": {
            "usage": {
                "total": cpu.usage_usec * 1000,
                "kernel": cpu.system_usec * 1000,
                "user": cpu.user_usec * 1000,
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": cpu.throttled_usec * 1000,
            },
        },
        "cpuset": {},
        "memory": {
            "cache": memory.file,
            "usage": {
                "limit": memory.usage_limit,
                "usage": memory.usage,
                "max": memory.max_usage,
                "failcnt": events.oom,
            },
            "swap": {  # with memory in it, as on cgroup v1: runc adds them up too
                "limit": min(memory.usage_limit + memory.swap_limit, UNLIMITED),
                "usage": memory.usage + memory.swap_usage,
                "max": memory.swap_max_usage,
                "failcnt": 0,
            },
            "kernel": {"failcnt": 0},
            "kernelTCP": {"failcnt": 0},
            "raw": {name: getattr(memory, name) for name in stat_fields},
        },
        "pids": {"current": pids.current, "limit": 0 if pids.limit == UNLIMITED else pids.limit},
        "blkio": _blkio(metrics.io.usage if metrics.io else []),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _blkio(entries: list[IOEntry]) -> dict[str, Any]:
    tables: dict[str, list[dict[str, Any]]] = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    columns = (("rbytes", "Read", 0), ("wbytes", "Write", 0), ("rios", "Read", 1), ("wios", "Write", 1))
    for entry in entries:
        for field, op, table in columns:
            rows = tables[("ioServiceBytesRecursive", "ioServicedRecursive")[table]]
            rows.append(
                {"major": entry.major, "minor": entry.minor, "op": op, "value": getattr(entry, field)}
            )
    return tables

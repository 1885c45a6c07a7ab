"""linux.resources of config.json as files of the unified cgroup hierarchy: pure, no system calls.

Values are converted from cgroup v1 terms as runc does (libcontainer/cgroups/fs2, opencontainers/cgroups
utils). Not converted, because the unified hierarchy has nothing like them and runc ignores them too: kernel
memory, swappiness, disableOOMKiller, network class and priorities. linux.resources.devices is a program, see
`devices`.
"""

from __future__ import annotations

from bufferzone.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Settings = list[tuple[str, str]]


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the keys of `new`: absent and null keys stay as they are."""
    merged = dict(old)
    for section, value in new.items():
        if isinstance(value, dict) and isinstance(merged.get(section), dict) and section != "unified":
            merged[section] = {**merged[section], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            merged[section] = value
    return merged


def touched(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What `new` changes, with what else the same files hold: a quota is written with its period, and swap
    is told as memory and swap together.
    """
    merged = merge(old, new)
    found = {section: merged[section] for section in new if merged.get(section) is not None}
    memory = new.get("memory")
    if isinstance(memory, dict) and memory.get("swap") is None and "memory" in found:
        found["memory"] = {key: value for key, value in found["memory"].items() if key != "swap"}
    return found


def settings(resources: dict[str, Any]) -> Settings:
    """[(file, text to write)] in the order to write them; raises `SpecError` on a contradiction."""
    return [
        *_memory(resources.get("memory") or {}),
        *_cpu(resources.get("cpu") or {}),
        *_pids(resources.get("pids") or {}),
        *_block_io(resources.get("blockIO") or {}),
        *[
            (f"hugetlb.{entry.get('pageSize')}.max", str(int(entry.get("limit") or 0)))
            for entry in resources.get("hugepageLimits") or []
        ],
        *_rdma(resources.get("rdma") or {}),
        *_unified(resources.get("unified") or {}),
    ]


def _number(value: int) -> str:
    """-1 is `max`, 0 is unset."""
    return "max" if value < 0 else str(value) if value else ""


def _memory(memory: dict[str, Any]) -> Settings:
    limit, swap = int(memory.get("limit") or 0), int(memory.get("swap") or 0)
    texts = (("memory.low", _number(int(memory.get("reservation") or 0))),)
    found = [("memory.max", _number(limit)), ("memory.swap.max", _swap(limit, swap)), *texts]
    return [(file, text) for file, text in found if text]


def _swap(limit: int, swap: int) -> str:
    """memory.swap.max out of memory + swap."""
    if limit < 0 and swap == 0:
        return "max"
    if swap <= 0:
        return _number(swap)
    if limit <= 0:
        raise SpecError("linux.resources.memory.swap: unable to set swap limit without memory limit")
    if swap < limit:
        raise SpecError("linux.resources.memory.swap: memory+swap limit should be >= memory limit")
    return str(swap - limit)


def _cpu(cpu: dict[str, Any]) -> Settings:
    for key in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(key):
            raise SpecError(f"linux.resources.cpu.{key}: cgroup v2 does not support real-time groups")
    found = []
    shares, quota, period = (
        int(cpu.get("shares") or 0),
        int(cpu.get("quota") or 0),
        int(cpu.get("period") or 0),
    )
    if shares:
        shares = min(max(shares, 2), 262144)
        found.append(("cpu.weight", str(1 + (shares - 2) * 9999 // 262142)))
    if cpu.get("idle") is not None:
        found.append(("cpu.idle", str(int(cpu["idle"]))))
    if quota or period:
        found.append(("cpu.max", f"{quota if quota > 0 else 'max'} {period or 100000}"))
    if cpu.get("burst") is not None:
        found.append(("cpu.max.burst", str(int(cpu["burst"]))))
    for key in ("cpus", "mems"):
        if cpu.get(key):
            found.append((f"cpuset.{key}", str(cpu[key])))
    return found


def _pids(pids: dict[str, Any]) -> Settings:
    if pids.get("limit") is None:
        return []
    limit = int(pids["limit"])
    return [("pids.max", str(limit) if limit > 0 else "max")]


def _block_io(block: dict[str, Any]) -> Settings:
    """`io.bfq.weight|io.weight` means: the first that exists; the second takes the text after the bar."""
    found = []
    weight = int(block.get("weight") or 0)
    if weight:
        found.append(("io.bfq.weight|io.weight", f"{weight}|{1 + (weight - 10) * 9999 // 990}"))
    for entry in block.get("weightDevice") or []:
        if entry.get("weight"):
            found.append(("io.bfq.weight", f"{entry.get('major')}:{entry.get('minor')} {entry['weight']}"))
    for key, name in (
        ("ReadBps", "rbps"),
        ("WriteBps", "wbps"),
        ("ReadIOPS", "riops"),
        ("WriteIOPS", "wiops"),
    ):
        for entry in block.get(f"throttle{key}Device") or []:
            rate = int(entry.get("rate") or 0)
            found.append(("io.max", f"{entry.get('major')}:{entry.get('minor')} {name}={rate or 'max'}"))
    return found


def _rdma(rdma: dict[str, Any]) -> Settings:
    found = []
    for device, limits in rdma.items():
        handles, objects = limits.get("hcaHandles"), limits.get("hcaObjects")
        parts = [f"hca_handle={handles}"] if handles is not None else []
        parts += [f"hca_object={objects}"] if objects is not None else []
        found.append(("rdma.max", " ".join([device, *parts])))
    return found


def _unified(unified: dict[str, Any]) -> Settings:
    found = []
    for file, text in unified.items():
        if "/" in file or file.startswith("."):
            raise SpecError(f"linux.resources.unified: not a file name: {file}")
        found.append((file, str(text)))
    return found

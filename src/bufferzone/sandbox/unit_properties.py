"""Limits of cgroup v2 as properties of a unit of systemd's. Pure.

What only a file can hold (io.bfq.weight) is not among them. Source: systemd.resource-control(5),
org.freedesktop.systemd1(5).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    #: name -> (D-Bus type, value)
    Properties = dict[str, tuple[str, Any]]

#: "no limit", and for a weight the one that it has by itself
_NONE = (1 << 64) - 1
_US = 1_000_000
#: systemd keeps a quota in whole hundredths of a CPU; rounded up, so that the file's own value fits in
_QUOTA_STEP_US = 10_000
_NUMBERS = {
    "memory.max": "MemoryMax",
    "memory.low": "MemoryLow",
    "cpu.weight": "CPUWeight",
    "pids.max": "TasksMax",
    "io.weight": "IOWeight",
}
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
_RATES = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}


def properties_of(settings: Iterable[tuple[str, str, bool]]) -> Properties:
    """The properties that write these files of cgroup v2: rows as `limits.cgroup_v2` makes them."""
    found: Properties = {}
    for file, text, _ in settings:
        if file in _NUMBERS:
            found[_NUMBERS[file]] = ("t", _number(text))
        elif file in _SETS:
            found[_SETS[file]] = ("ay", _mask(text))
        elif file == "cpu.max":
            quota, period = map(_number, text.split())
            found["CPUQuotaPerSecUSec"] = ("t", _per_second(quota, period))
            found["CPUQuotaPeriodUSec"] = ("t", period)
        elif file == "io.max":
            device, key, rate = text.replace("=", " ").split()
            rows = found.setdefault(_RATES[key], ("a(st)", []))[1]
            rows.append((f"/dev/block/{device}", _number(rate)))
    return found


def without(properties: Mapping[str, tuple[str, Any]]) -> Properties:
    """What puts these back to how a new unit has them."""
    low = {"MemoryLow": ("t", 0)}
    return {
        name: low.get(name, (kind, _NONE if kind == "t" else [])) for name, (kind, _) in properties.items()
    }


def _number(text: str) -> int:
    return _NONE if text == "max" else int(text)


def _per_second(quota: int, period: int) -> int:
    if quota == _NONE:
        return _NONE
    return -(-quota * _US // (period * _QUOTA_STEP_US)) * _QUOTA_STEP_US


def _mask(text: str) -> list[int]:
    """A list like `0-3,8` as bytes, the lowest CPU in the lowest bit of the first."""
    mask = 0
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return list(mask.to_bytes((mask.bit_length() + 7) // 8, "little"))

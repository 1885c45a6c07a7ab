"""linux.resources for the host: which limits the cgroup that holds the VM gets, and which the guest's has.

The guest's cgroup has the container's limits exactly. The host's bounds what runs the container: shim,
virtiofsd, QEMU and waiters, with room for their own needs, so that nobody is killed or starved on the host
because the guest uses what it was given. CPUs, memory nodes and block devices are the host's own names, so
they are limited there alone.

Pure, except `apply`. Conversions from cgroup v1 terms as runc does (opencontainers/cgroups fs2, utils).
Source: Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst.
"""

from __future__ import annotations

import os

from bufferzone.errors import CallerError, HostError
from bufferzone.log import passing_over
from bufferzone.oci import cri
from bufferzone.sandbox import unit_properties
from bufferzone.vm import cgroups
from bufferzone.vm.group import group_of
from bufferzone.vm.size import cpus_of, usable_mib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from bufferzone.sandbox.unit_properties import Properties
    from bufferzone.vm.group import Group

    #: (file, text, whether create fails when it cannot be written: nobody else holds this limit)
    Settings = list[tuple[str, str, bool]]

#: of the machine around the guest's memory. Measured under TCG: 66 MiB idle (QEMU 50, shim 12, waiter 4), 2
#: per exec; up to 128 for translated code; the rest is for virtiofsd's inodes, page tables and many execs
MEMORY_MIB = 512
#: CPU time the machine may use beyond the container's: a tenth of a CPU, so that a kill is heard in time
CPU_SHARE = 10
#: tasks: shim, QEMU and virtiofsd idle with 22 and grow to about 150; an exec needs 7 of the host's
TASKS, TASKS_EACH = 256, 8
_MIB = 1 << 20
_THROTTLES = (
    ("ReadBps", "read_bps", "rbps"),
    ("WriteBps", "write_bps", "wbps"),
    ("ReadIOPS", "read_iops", "riops"),
    ("WriteIOPS", "write_iops", "wiops"),
)

#: limits that no update can set to 0: section of linux.resources -> keys
_ZERO_SAYS_NOTHING = {
    "memory": frozenset({"limit", "reservation", "swap"}),
    "cpu": frozenset({"shares", "quota", "period"}),
    "pids": frozenset({"limit"}),
    "blockIO": frozenset({"weight"}),
}


def resources_of(spec: dict[str, Any], pod: Mapping[str, str]) -> dict[str, Any]:
    """linux.resources of a spec, as far as the host's cgroup is ours to limit. `pod`: see `Spec.pod`.

    A pod's cgroup is limited by whoever made the pod; what its first container asks for is not the pod's.
    """
    if cri.is_pod(pod):
        return {}
    return (spec.get("linux") or {}).get("resources") or {}


def cgroup_of(spec: dict[str, Any], container_id: str, *, systemd: bool = False) -> Group:
    """The cgroup for what runs the container; a false one: it stays the caller's. `systemd`: see `group_of`.

    Without linux.cgroupsPath it is named after the container, as with runc, crun and runsc, where there is a
    limit to hold; without one a start does not pay for it. Raises `SpecError`, and what `group_of` does.
    """
    linux = spec.get("linux") or {}
    path = str(linux.get("cgroupsPath") or "")
    if not path and not systemd and cgroup_v1(linux.get("resources") or {}, 0):
        path = f"/{container_id}"
    return group_of(path, container_id, systemd=systemd)


def for_guest(resources: dict[str, Any]) -> dict[str, Any]:
    """The guest's part: without the names of the host's CPUs, memory nodes and disks."""
    kept = {key: value for key, value in resources.items() if key != "blockIO"}
    if isinstance(kept.get("cpu"), dict):
        kept["cpu"] = {key: value for key, value in kept["cpu"].items() if key not in ("cpus", "mems")}
    return kept


def given(changes: dict[str, Any]) -> dict[str, Any]:
    """What an update really asks for. A limit of 0 says "as it is", as with runc: dockerd sends 0 for each
    limit that `docker update` was not told (moby, daemon/update_linux.go), and none may be lost by that.
    """
    kept = dict(changes)
    for section, keys in _ZERO_SAYS_NOTHING.items():
        if isinstance(kept.get(section), dict):
            kept[section] = {k: v for k, v in kept[section].items() if k not in keys or v != 0}
    return kept


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the keys of `new`; absent and null keys stay as they are."""
    merged = dict(old)
    for section, value in new.items():
        if isinstance(value, dict) and isinstance(merged.get(section), dict):
            merged[section] = {**merged[section], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            merged[section] = value
    return merged


def check_update(old: dict[str, Any], new: dict[str, Any], *, vcpus: int, memory_mib: int) -> None:
    """Refuse what the VM, whose size was fixed at its start, cannot give: `CallerError` `vm-size`."""
    limit = int((new.get("memory") or {}).get("limit") or 0)
    most = usable_mib(memory_mib)
    if limit > most * _MIB:
        raise CallerError(
            f"cannot set the memory limit to {limit}: the VM has {memory_mib} MiB, of which a container can"
            f" have {most}",
            hint="the size of a VM is fixed at its start: create the container with the larger limit, or with"
            " annotation bufferzone.memory",
            code="vm-size",
        )
    cpus = cpus_of(merge(old, {"cpu": new.get("cpu") or {}}))
    if "quota" in (new.get("cpu") or {}) and cpus > vcpus and cpus > cpus_of(old):
        raise CallerError(
            f"cannot set the CPU limit to {cpus:g}: the VM has {vcpus}",
            hint="the size of a VM is fixed at its start: create the container with the larger limit, or with"
            " annotation bufferzone.vcpus",
            code="vm-size",
        )


def cgroup_v1(resources: dict[str, Any], memory_mib: int) -> Settings:
    """For the v1 hierarchies; a file belongs to the one that has it. Empty for what was not asked for."""
    cpu, block = resources.get("cpu") or {}, resources.get("blockIO") or {}
    found: Settings = []
    if limit := _memory(resources, memory_mib):
        found.append(("memory.limit_in_bytes", str(limit), False))
    if cpu.get("shares"):
        found.append(("cpu.shares", str(int(cpu["shares"])), False))
    if "quota" in cpu or "period" in cpu:
        quota, period = _quota(cpu)
        found += [("cpu.cfs_period_us", str(period), False), ("cpu.cfs_quota_us", str(quota), False)]
    if tasks := _tasks(resources):
        found.append(("pids.max", tasks, False))
    found += _cpuset(cpu)
    if block.get("weight"):
        found.append(("blkio.bfq.weight", str(int(block["weight"])), True))
    found += [("blkio.bfq.weight_device", text, True) for text in _weights(block)]
    for key, name, _ in _THROTTLES:
        for device, rate in _rates(block, key):
            found.append((f"blkio.throttle.{name}_device", f"{device} {rate}", True))
    return found


def cgroup_v2(resources: dict[str, Any], memory_mib: int) -> Settings:
    """For the unified hierarchy."""
    cpu, block = resources.get("cpu") or {}, resources.get("blockIO") or {}
    found: Settings = []
    if limit := _memory(resources, memory_mib):
        found.append(("memory.max", "max" if limit < 0 else str(limit), False))
    if (reservation := int((resources.get("memory") or {}).get("reservation") or 0)) > 0:
        found.append(("memory.low", str(reservation), False))
    if cpu.get("shares"):
        shares = min(max(int(cpu["shares"]), 2), 262144)
        found.append(("cpu.weight", str(1 + (shares - 2) * 9999 // 262142), False))
    if "quota" in cpu or "period" in cpu:
        quota, period = _quota(cpu)
        found.append(("cpu.max", f"{'max' if quota < 0 else quota} {period}", False))
    if tasks := _tasks(resources):
        found.append(("pids.max", tasks, False))
    found += _cpuset(cpu)
    if block.get("weight"):
        weight = int(block["weight"])
        # the first is the scheduler's, the second the cost model's: whichever the kernel has
        found.append(("io.bfq.weight", str(weight), True))
        found.append(("io.weight", str(1 + (max(weight, 10) - 10) * 9999 // 990), False))
    found += [("io.bfq.weight", text, True) for text in _weights(block)]
    for key, _, name in _THROTTLES:
        for device, rate in _rates(block, key):
            found.append(("io.max", f"{device} {name}={rate or 'max'}", True))
    return found


def _memory(resources: dict[str, Any], memory_mib: int) -> int:
    """Bytes: all of the VM's memory, whose rest the guest's kernel uses; -1 no limit, 0 not asked."""
    limit = int((resources.get("memory") or {}).get("limit") or 0)
    return (memory_mib + memory_mib // 64 + MEMORY_MIB) * _MIB if limit > 0 else limit


def _quota(cpu: dict[str, Any]) -> tuple[int, int]:
    quota, period = int(cpu.get("quota") or 0), int(cpu.get("period") or 0) or 100000
    return (quota + period // CPU_SHARE if quota > 0 else -1), period


def _tasks(resources: dict[str, Any]) -> str:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return ""
    return str(TASKS + TASKS_EACH * int(limit)) if int(limit) > 0 else "max"


def _cpuset(cpu: dict[str, Any]) -> Settings:
    return [(f"cpuset.{key}", str(cpu[key]), True) for key in ("cpus", "mems") if cpu.get(key)]


def _rates(block: dict[str, Any], key: str) -> list[tuple[str, int]]:
    entries = block.get(f"throttle{key}Device") or []
    return [(f"{e.get('major')}:{e.get('minor')}", int(e.get("rate") or 0)) for e in entries]


def _weights(block: dict[str, Any]) -> list[str]:
    """Those of single devices, which the BFQ scheduler alone knows, and must be that of the device."""
    entries = block.get("weightDevice") or []
    return [f"{e.get('major')}:{e.get('minor')} {e['weight']}" for e in entries if e.get("weight")]


def apply(
    cgroup: Group,
    resources: dict[str, Any],
    memory_mib: int,
    log: Callable[[str], None],
    before: dict[str, Any] | None = None,
) -> Callable[[], None]:
    """Limit the cgroup in every hierarchy where it is ours, from the limits `before` to `resources`; returns
    what takes it back. Systemd is told of a scope's: it would write those that it knows at its next reload.

    Raises `HostError` for a limit that only the host can hold and that cannot be set, and nothing has
    changed; others, which the guest holds anyway, are one line in the log.
    """
    found = cgroups.places(cgroup.path) if cgroup.path else []
    places = [place for place in found if cgroups.is_ours(place)]
    writer, unit = _Writer(log), _Unit(cgroup, cgroup_v2(before or {}, memory_mib), log)

    def take_back() -> None:
        unit.take_back()
        writer.take_back()

    if cgroup.path and not found and cgroup_v2(resources, memory_mib):
        log(f"{_gone(cgroup)}; the guest enforces the container's own limits")
    try:
        unit.set(cgroup_v2(resources, memory_mib))
        for place in places:
            unified = os.path.exists(os.path.join(place, "cgroup.controllers"))
            writer.write(place, (cgroup_v2 if unified else cgroup_v1)(resources, memory_mib))
        for name, text, needed in cgroup_v1(resources, memory_mib):
            if needed and not writer.done & _names(name):
                what = f"{_where(name)}: cgroup: cannot set {name} to {text}"
                if cgroup.path and not found:
                    raise HostError(f"{what}: {_gone(cgroup)}", code="cgroup")
                if not places:
                    why = "the container has no cgroup of its own on the host"
                    raise HostError(f"{what}: {why}", hint="set linux.cgroupsPath", code="cgroup")
                raise HostError(f"{what}: the host's controller is not available", code="cgroup")
    except HostError:
        take_back()
        raise
    return take_back


def _gone(cgroup: Group) -> str:
    """Whoever manages the host's cgroups took it away, or there is no place for one."""
    return f"the host has no cgroup {cgroup.path} (any more)"


class _Unit:
    """Tells systemd of limits. What it refuses is a line in the log: the files hold it."""

    def __init__(self, cgroup: Group, before: Settings, log: Callable[[str], None]) -> None:
        self._cgroup, self._log = cgroup, log
        self._before = unit_properties.properties_of(before)
        self._now = self._before

    def set(self, settings: Settings) -> None:
        """These limits instead of those now."""
        self._tell(unit_properties.properties_of(settings))

    def take_back(self) -> None:
        """Those before."""
        self._tell(self._before)

    def _tell(self, wanted: Properties) -> None:
        changes = {**unit_properties.without(self._now), **wanted}
        changed = {name: value for name, value in changes.items() if self._now.get(name) != value}
        if not self._cgroup.unit or not changed:
            return
        try:
            self._cgroup.set_properties(changed)
            self._now = wanted
        except HostError as error:
            self._log(f"{self._cgroup.unit}: {error.line()}; its limits do not outlive a daemon-reload")


def _names(name: str) -> set[str]:
    """The file on cgroup v1, and what it is called on v2."""
    if name.startswith("blkio.throttle."):
        return {name, "io.max"}
    if name == "blkio.bfq.weight_device":
        return {name, "io.bfq.weight"}
    return {name, name.replace("blkio.", "io."), *(("io.weight",) if name.startswith("blkio.bfq.") else ())}


def _where(name: str) -> str:
    """The JSON path of a limit that the host alone can hold."""
    section, _, key = name.partition(".")
    return f"linux.resources.cpu.{key}" if section == "cpuset" else "linux.resources.blockIO"


class _Writer:
    """Writes limits and remembers what was there."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.done: set[str] = set()
        self._log = log
        self._before: list[tuple[str, str]] = []

    def write(self, place: str, settings: Settings) -> None:
        """Write those that the directory has a file for."""
        for name, text, needed in settings:
            path = os.path.join(place, name)
            if not os.path.exists(path):
                continue
            try:
                before = cgroups.read_file(path).strip()
                cgroups.write_file(path, text)
            except OSError as error:
                line = f"cgroup: cannot set {name} to {text}: {(error.strerror or '').lower()}"
                if needed:
                    hint = "this limit names CPUs, memory nodes or block devices of the host"
                    raise HostError(f"{_where(name)}: {line}", hint=hint, code="cgroup") from error
                self._log(f"{line}; the guest enforces the container's own limit")
                continue
            self.done.add(name)
            self._before.append((path, before))

    def take_back(self) -> None:
        """Write what was there, in reverse; a table of devices keeps the lines that were added."""
        for path, text in reversed(self._before):
            with passing_over(f"write {path} as it was", OSError):  # a table, or the cgroup is gone
                cgroups.write_file(path, text)

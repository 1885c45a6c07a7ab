"""How large a VM is: from the settings and from what its containers may use. Pure."""

from __future__ import annotations

import math
import os

from bufferzone.oci import cri
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: what the guest needs for itself (kernel, agent, page tables) on top of what its containers may use
OVERHEAD_MIB = 192
_MIB = 1 << 20


class VmSize(Record):
    """Whole vCPUs, memory in MiB."""

    vcpus: int
    memory_mib: int


def size_for(
    spec: dict[str, Any],
    pod: Mapping[str, str],
    *,
    vcpus: int,
    memory_mib: int,
    host_cpus: int = 0,
    host_mib: int = 0,
) -> VmSize:
    """The VM for `spec`, and for its pod where there is one (`Spec.pod`). `vcpus` and `memory_mib` are the
    settings; `host_cpus` and `host_mib` what the machine has, 0: ask.

    CPUs: as set, else (0) as many as CPU quota and cpuset allow, rounded up, one without a limit. Memory: as
    set; where a memory limit does not fit into that beside the guest, the next of few steps, since every
    size has a template of its own.
    """
    host_cpus = host_cpus or os.cpu_count() or 1
    host_mib = host_mib or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB
    limit, cpus = _limits(spec, pod)
    needed = limit // _MIB + OVERHEAD_MIB if limit > 0 else 0
    if needed > memory_mib:
        memory_mib = max(memory_mib, min(step(needed), host_mib))
    return VmSize(vcpus=vcpus or max(1, min(math.ceil(cpus), host_cpus)), memory_mib=memory_mib)


def step(mib: int) -> int:
    """The next of 512, 768, 1024, 1536, 2048, 3072, 4096, ...: at most half too much, and two per octave.

    Memory that a VM does not use costs the host nothing.
    """
    size = 512
    while size < mib:
        if size * 3 // 2 >= mib:
            return size * 3 // 2
        size *= 2
    return size


def _limits(spec: dict[str, Any], notes: Mapping[str, str]) -> tuple[int, float]:
    """(memory in bytes, CPUs) that the VM's containers may use, 0 without a limit: those of `spec`, or of its
    pod where it is a pod's first. Source of the annotations: containerd internal/cri/annotations.
    """
    resources = (spec.get("linux") or {}).get("resources") or {}
    memory = int((resources.get("memory") or {}).get("limit") or 0)
    allowed = [cpus_of(resources), float(count_of((resources.get("cpu") or {}).get("cpus") or ""))]
    pod = {key: _whole(notes.get(key)) for key in cri.POD_LIMITS}
    if any(pod.values()):
        memory = pod[cri.POD_MEMORY]
        allowed = [cpus_of({"cpu": {"quota": pod[cri.POD_CPU_QUOTA], "period": pod[cri.POD_CPU_PERIOD]}})]
    return memory, min((cpus for cpus in allowed if cpus > 0), default=0.0)


def _whole(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20 else 0


def count_of(cpus: str) -> int:
    """How many CPUs a list like `0-2,7` names; 0 for what is no such list (the kernel refuses it later)."""
    found = 0
    for part in cpus.split(",") if cpus else ():
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            return 0
        if len(first) > 5 or len(last) > 5:
            return 0
        found += max(0, int(last) - int(first) + 1)
    return found


def cpus_of(resources: dict[str, Any]) -> float:
    """The CPUs that quota and period allow; 0 without a limit."""
    cpu = resources.get("cpu") or {}
    quota, period = int(cpu.get("quota") or 0), int(cpu.get("period") or 0) or 100000
    return quota / period if quota > 0 else 0.0


def usable_mib(memory_mib: int) -> int:
    """What containers can have of a VM: all but what kernel and agent take, 64 MiB of 512, and a 64th for the
    kernel's page table of all memory.
    """
    return memory_mib - 64 - memory_mib // 64

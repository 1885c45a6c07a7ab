"""What a config.json of the right shape must also hold: absolute paths, known names, no duplicates.

Source: runtime-spec config.md and config-linux.md; runc's libcontainer/configs/validate for the tolerances.
"""

from __future__ import annotations

import os

from bufferzone.oci.check import check, fail
from bufferzone.oci.schema import HOOK_NAMES, PROCESS, RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_RLIMIT_NAMES = """
AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK
"""
RLIMITS = tuple(f"RLIMIT_{name}" for name in _RLIMIT_NAMES.split())
OTHER_PLATFORMS = ("windows", "solaris", "zos", "freebsd")
_PROPAGATIONS = ("", *(p + s for p in ("", "r") for s in ("shared", "slave", "private", "unbindable")))
#: what the kernel takes for a CPU quota and its period, microseconds
_LEAST_US, _MOST_PERIOD_US = 1000, 1_000_000
#: with less no container came as far as its program: the kernel kills it while it is made
LEAST_MEMORY = 1 << 19
_MOST_NAME = 64
_DOMAINS = ("", "LINUX", "LINUX32")
#: a device's numbers, see makedev(3) and MINORBITS in linux/kdev_t.h
_NUMBERS = {"major": (1 << 12) - 1, "minor": (1 << 20) - 1}
_DEVICE_TYPES = ("b", "c", "u", "p")
#: what an IPC namespace has, see ipc_namespaces(7) and ipc/ipc_sysctl.c
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)
_IDMAPS = frozenset(("idmap", "ridmap"))
_IDMAP_HINT = "make the id-mapped mount on the host and bind that"
#: what a VM does not do, and says so rather than leave it out
_NOT_IN_A_VM = {
    "intelRdt": "the guest has no resctrl",
    "memoryPolicy": "the nodes are the host's",
    "netDevices": "a device of the host cannot enter a VM",
}


def check_version(version: str) -> None:
    """Accept every 1.x, with or without a pre-release suffix."""
    parts = version.split("+")[0].split("-")[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise fail("ociVersion", f"expected a version like 1.2.0, got {version[:40]!r}")
    if parts[0] != "1":
        raise fail("ociVersion", f"unknown version {version[:40]}", "1.0 to 1.3 are supported")


def check_names(spec: dict[str, Any]) -> None:
    """What the kernel takes for hostname and domainname, see uname(2)."""
    for key in ("hostname", "domainname"):
        if len(spec.get(key, "").encode()) > _MOST_NAME:
            raise fail(key, f"longer than {_MOST_NAME} bytes")


def check_process(process: dict[str, Any], path: str = "process") -> None:
    """Check a process object by itself: that of config.json, or the file `exec --process` names."""
    check(process, PROCESS, path)
    if not process.get("args"):
        raise fail(f"{path}.args", "must not be empty")
    cwd = process.get("cwd", "")
    if not cwd.startswith("/"):
        raise fail(f"{path}.cwd", f"expected an absolute path, got {cwd!r}")
    _check_rlimits(process.get("rlimits", []), f"{path}.rlimits")


def _check_rlimits(rlimits: list[dict[str, Any]], path: str) -> None:
    _check_unique((r.get("type", "") for r in rlimits), RLIMITS, path, "type")
    for index, limit in enumerate(rlimits):
        if limit.get("soft", 0) > limit.get("hard", 0):
            raise fail(
                f"{path}[{index}]",
                f"soft limit {limit['soft']} exceeds the hard limit {limit.get('hard', 0)}",
            )


def _check_unique(values: Iterable[str], known: tuple[str, ...], path: str, key: str) -> None:
    seen = set()
    for index, value in enumerate(values):
        if value not in known:
            raise fail(f"{path}[{index}].{key}", f"unknown: {value[:60]!r}", "known: " + ", ".join(known))
        if value in seen:
            raise fail(f"{path}[{index}].{key}", f"appears twice: {value}")
        seen.add(value)


def check_mounts(mounts: list[dict[str, Any]]) -> None:
    """Every mount needs a destination; a relative one counts from / as runc has it, and is rewritten so."""
    for index, mount in enumerate(mounts):
        destination = mount.get("destination", "")
        if not destination:
            raise fail(f"mounts[{index}].destination", "must not be empty")
        if not destination.startswith("/"):
            mount["destination"] = "/" + destination
        if "\n" in destination:
            raise fail(f"mounts[{index}].destination", "contains a line break")
        for key in ("uidMappings", "gidMappings"):
            if mount.get(key):
                raise fail(f"mounts[{index}].{key}", "a VM cannot map the ids of a mount", _IDMAP_HINT)
        if _IDMAPS.intersection(mount.get("options", ())):
            raise fail(f"mounts[{index}].options", "a VM cannot map the ids of a mount", _IDMAP_HINT)


def _check_cgroup(path: str) -> None:
    """Not the root cgroup, whatever detours lead there."""
    if path and not [part for part in os.path.normpath(f"/{path}").split("/") if part]:
        raise fail("linux.cgroupsPath", f"{path!r} is the root cgroup")


def check_hooks(hooks: dict[str, Any]) -> None:
    """Paths are absolute, timeouts positive."""
    for name in HOOK_NAMES:
        for index, hook in enumerate(hooks.get(name, [])):
            path = f"hooks.{name}[{index}]"
            if not hook.get("path", "").startswith("/"):
                raise fail(f"{path}.path", f"expected an absolute path, got {hook.get('path', '')!r}")
            if hook.get("timeout", 1) <= 0:
                raise fail(f"{path}.timeout", f"must be greater than zero, got {hook['timeout']}")


def _check_cpu(resources: dict[str, Any], path: str) -> None:
    """What no kernel takes, before a VM is started for it. Source: Documentation/scheduler/sched-bwc.rst."""
    cpu = resources.get("cpu", {})
    quota, period = cpu.get("quota", 0), cpu.get("period", 0)
    if 0 < quota < _LEAST_US:
        hint = "it is in microseconds; -1 means no limit"
        raise fail(f"{path}.cpu.quota", f"must be at least {_LEAST_US}, got {quota}", hint)
    if period and not _LEAST_US <= period <= _MOST_PERIOD_US:
        reason = f"must be {_LEAST_US} to {_MOST_PERIOD_US}, got {period}"
        raise fail(f"{path}.cpu.period", reason, "it is in microseconds; 0 means 100000")


def _check_devices(devices: list[dict[str, Any]]) -> None:
    """Where each is to be, of which kind, and numbers that the kernel has."""
    for index, device in enumerate(devices):
        where = f"linux.devices[{index}]"
        if not device.get("path", "").startswith("/"):
            raise fail(f"{where}.path", f"expected an absolute path, got {device.get('path', '')!r}")
        if device.get("type", "") not in _DEVICE_TYPES:
            raise fail(f"{where}.type", f"expected b, c, u or p, got {device.get('type', '')!r}")
        for key, most in _NUMBERS.items():
            if not 0 <= device.get(key, 0) <= most:
                raise fail(f"{where}.{key}", f"expected 0 to {most}, got {device[key]}")


def _check_sysctls(sysctls: dict[str, str], namespaces: set[str]) -> None:
    """One of a namespace needs that namespace, named or new, as with runc and crun; it would be set for the
    other containers of the VM too.
    """
    for key in sysctls:
        name = key.replace("/", ".")
        if name == "kernel.hostname":
            raise fail(f"linux.sysctl.{key}", "conflicts with hostname", "set hostname instead")
        if (name in _IPC_SYSCTLS or name.startswith("fs.mqueue.")) and "ipc" not in namespaces:
            raise fail(f"linux.sysctl.{key}", "the container has no ipc namespace of its own")
        if name == "kernel.domainname" and "uts" not in namespaces:
            raise fail(f"linux.sysctl.{key}", "the container has no uts namespace of its own")


def check_linux(linux: dict[str, Any]) -> None:
    """Namespaces, devices, limits, paths and propagation."""
    resources = linux.get("resources", {})
    _check_cpu(resources, "linux.resources")
    memory = resources.get("memory", {}).get("limit", 0)
    if 0 < memory < LEAST_MEMORY:
        hint = "it is in bytes; -1 means no limit"
        raise fail("linux.resources.memory.limit", f"must be at least {LEAST_MEMORY}, got {memory}", hint)
    namespaces = linux.get("namespaces", [])
    _check_unique((n.get("type", "") for n in namespaces), NAMESPACES, "linux.namespaces", "type")
    for index, namespace in enumerate(namespaces):
        path = namespace.get("path", "")
        where = f"linux.namespaces[{index}].path"
        if path and not path.startswith("/"):
            raise fail(where, f"expected an absolute path, got {path!r}")
        if path and namespace["type"] in ("mount", "time"):
            reason = f"a VM cannot join the {namespace['type']} namespace {path!r}"
            raise fail(
                where, reason, "containers of one VM can share network, ipc, uts, pid, user and cgroup"
            )
    _check_devices(linux.get("devices", []))
    for key, reason in _NOT_IN_A_VM.items():
        if linux.get(key):
            raise fail(f"linux.{key}", reason, "leave it out")
    if linux.get("timeOffsets") and not any(entry["type"] == "time" for entry in namespaces):
        raise fail("linux.timeOffsets", "the container has no time namespace of its own")
    _check_sysctls(linux.get("sysctl", {}), {entry["type"] for entry in namespaces})
    for key in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(linux.get(key, [])):
            if not path.startswith("/"):
                raise fail(f"linux.{key}[{index}]", f"expected an absolute path, got {path!r}")
    _check_cgroup(linux.get("cgroupsPath", ""))
    propagation = linux.get("rootfsPropagation", "")
    if propagation not in _PROPAGATIONS:
        raise fail("linux.rootfsPropagation", f"unknown: {propagation!r}")
    _check_personality(linux.get("personality", {}))
    if "seccomp" in linux and not linux["seccomp"].get("defaultAction"):
        raise fail("linux.seccomp.defaultAction", "is missing")


def _check_personality(personality: dict[str, Any]) -> None:
    """Source: config-linux.md, "Personality"; no version has a flag."""
    domain = personality.get("domain", "")
    if domain not in _DOMAINS:
        raise fail("linux.personality.domain", f"unknown: {domain[:60]!r}", "known: LINUX, LINUX32")
    if personality.get("flags"):
        raise fail("linux.personality.flags", "none is known", "leave it out")


def check_resources(resources: Any, path: str = "") -> dict[str, Any]:
    """Check a linux.resources object by itself, as `update` gets it; returns it."""
    check(resources, RESOURCES, path or "resources")
    _check_cpu(resources, path or "resources")
    return dict(resources)

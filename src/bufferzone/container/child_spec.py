"""What a child needs to know to become a container process: decided by the agent before the fork, then
only read.
"""

from __future__ import annotations

from bufferzone.errors import SpecError
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = {
    "user": lp.CLONE_NEWUSER,
    "mount": lp.CLONE_NEWNS,
    "uts": lp.CLONE_NEWUTS,
    "ipc": lp.CLONE_NEWIPC,
    "cgroup": lp.CLONE_NEWCGROUP,
    "pid": lp.CLONE_NEWPID,
    "time": lp.CLONE_NEWTIME,
}
#: name in /proc/PID/ns of each
NAMESPACE_FILES = {
    "user": "user",
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "cgroup": "cgroup",
    "pid": "pid",
    "time": "time",
}


class ChildSpec:
    """One process to make.

    `config` is the container's config.json, `process` its process section or that of an exec. `joins` are
    (descriptor, kind) of namespaces to enter, `unshares` the flags of those to make. `stdio` are three
    descriptors above 2, or none for a terminal. `procs` is the open cgroup.procs to write `0` to. `init_pid`
    is 0 for the container's own process. `seccomp` is (program, flags of seccomp(2)). `locks`: its calls
    for file locks are the agent's to answer.
    """

    __slots__ = (
        "config",
        "id",
        "init_pid",
        "joins",
        "locks",
        "process",
        "procs",
        "seccomp",
        "stdio",
        "unshares",
    )

    def __init__(
        self,
        id: str,
        config: dict[str, Any],
        process: dict[str, Any],
        *,
        joins: list[tuple[int, int]],
        unshares: int,
        stdio: tuple[int, int, int] | None,
        procs: int,
        init_pid: int,
        seccomp: tuple[bytes, int],
        locks: bool,
    ) -> None:
        self.id, self.config, self.process = id, config, process
        self.joins, self.unshares = joins, unshares
        self.stdio, self.procs = stdio, procs
        self.init_pid, self.seccomp, self.locks = init_pid, seccomp, locks

    def descriptors(self) -> list[int]:
        """Every descriptor the child needs, apart from 0, 1, 2 and its channel."""
        return [self.procs, *(fd for fd, _ in self.joins), *(self.stdio or ())]


def namespaces(spec: dict[str, Any]) -> tuple[int, list[tuple[str, int]]]:
    """(flags to unshare, [(path, kind) to join]) of linux.namespaces.

    `network` is accepted and ignored: the containers of a VM share its network, which the host configures.
    A cgroup namespace is made also when none is asked for (callers on cgroup v1 hosts do not): the guest's
    hierarchy is not the host's, and a program looks for its limits at the root, as runc shows them on v1.
    Raises `SpecError` on an unknown or repeated type.
    """
    flags, joins, seen = 0, [], set()
    for entry in (spec.get("linux") or {}).get("namespaces") or []:
        name = str(entry.get("type"))
        if name in seen or (name not in NAMESPACES and name != "network"):
            raise SpecError(f"linux.namespaces: {'repeated' if name in seen else 'unknown'} type: {name}")
        seen.add(name)
        if name == "network":
            continue
        if entry.get("path"):
            joins.append((str(entry["path"]), NAMESPACES[name]))
        else:
            flags |= NAMESPACES[name]
    if "cgroup" not in seen:
        flags |= lp.CLONE_NEWCGROUP
    if not flags & lp.CLONE_NEWNS:
        raise SpecError("linux.namespaces: a container needs a new mount namespace")
    return flags, joins

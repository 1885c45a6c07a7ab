"""Which sandboxes run below a state root, and which processes are theirs. What a process is, its program
says and nobody's record: a record may be what somebody meant.
"""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.audit import held
from bufferzone.audit.held import Held
from bufferzone.errors import BufferzoneError
from bufferzone.record import Record

#: name of a program's file -> what it is in a sandbox
_ROLES = {
    "qemu-system-x86_64": "vmm",
    "firecracker": "vmm",
    "virtiofsd": "virtiofsd",
    "passt": "passt",
    "passt.avx2": "passt",
}
_PASSTS = tuple(f"/usr/{place}/{name}" for place in ("bin", "local/bin") for name in ("passt", "passt.avx2"))
SHIM, WAITER, HELPER = "shim", "waiter", "helper"


class Process(Record):
    """One process of a sandbox: vmm, virtiofsd, passt, shim, waiter, or a helper that nobody knows."""

    role: str
    held: Held


class Sandbox(Record):
    """One shim with all its containers (`ids`). `facts` are the annotations that the shim recorded.
    `unread`: processes that ended or could not be looked at, with the reason.
    """

    ids: tuple[str, ...]
    directory: str
    facts: dict[str, str]
    processes: tuple[Process, ...]
    unread: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first container's id."""
        return self.ids[0]

    def of(self, role: str) -> list[Held]:
        """Its processes of this role."""
        return [process.held for process in self.processes if process.role == role]


def find(root: str) -> list[Sandbox]:
    """Those whose shim lives, by the id of their first container."""
    by_shim: dict[int, list[str]] = {}
    for id in state.list_ids(root):
        shim = state.owner_pid(os.path.join(root, id))
        if shim:
            by_shim.setdefault(shim, []).append(id)
    return [_look(root, shim, ids) for shim, ids in sorted(by_shim.items(), key=lambda item: item[1])]


def _look(root: str, shim: int, ids: list[str]) -> Sandbox:
    pids: dict[int, str] = {shim: SHIM}
    facts: dict[str, str] = {}
    for id in ids:
        directory = os.path.join(root, id)
        try:
            found = state.read_state(directory)
            leftovers = state.read_leftovers(directory)
        except (BufferzoneError, ValueError):
            continue  # it is being made or removed at this moment
        facts.update(found["annotations"])
        for pid, start in leftovers.get("processes", []):
            if state.process_alive(int(pid), int(start)):
                pids.setdefault(int(pid), HELPER)
        if found["pid"]:
            pids.setdefault(int(found["pid"]), WAITER)
    for pid in _children(shim):
        pids.setdefault(pid, HELPER)
    processes, unread = [], []
    for pid, role in pids.items():
        try:
            seen = held.read(pid)
        except OSError as error:
            if isinstance(error, PermissionError):
                unread.append(f"{role} {pid}: {error.strerror}")
            continue
        processes.append(Process(role=_role(role, seen), held=seen))
    return Sandbox(
        ids=tuple(ids),
        directory=os.path.join(root, ids[0]),
        facts=facts,
        processes=tuple(processes),
        unread=tuple(unread),
    )


def _role(recorded: str, seen: Held) -> str:
    if recorded != HELPER:
        return recorded
    # passt has left the root that its program lies in: the path is gone, the file is the same
    is_passt = seen.inode in {held.inode_of(path) for path in _PASSTS} - {(0, 0)}
    return _ROLES.get(os.path.basename(seen.program)) or ("passt" if is_passt else HELPER)


def _children(pid: int) -> list[int]:
    """The children of all threads of a process; none where the kernel does not tell."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it ended, or the kernel has no CONFIG_PROC_CHILDREN
    return found

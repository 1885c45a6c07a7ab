"""Forking a child into the namespaces that only a fork can enter, and what the agent does for it as the
guest's root.

The agent unshares or joins the pid (and time) namespace, forks, and goes back to its own: so the child is
at once pid 1 (or a member) of that namespace and a direct child of the agent, without a helper. A pid
namespace that a new user namespace must own is made by the child itself, whose second child comes to us as
to the nearest reaper. Source: pid_namespaces(7), time_namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import _socket
import os

from bufferzone.container import channel as ch
from bufferzone.container import child
from bufferzone.container.channel import ChildEnd
from bufferzone.container.child_spec import NAMESPACE_FILES, NAMESPACES
from bufferzone.container.kernel_files import write
from bufferzone.errors import SpecError
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.container.child_spec import ChildSpec
    from bufferzone.container.zygote import ZygoteSlot

_BY_FORK = lp.CLONE_NEWPID | lp.CLONE_NEWTIME


def begin(child_spec: ChildSpec, zygotes: ZygoteSlot) -> tuple[int, _socket.socket]:
    """Let a child become the process of `child_spec`: its pid for now, and our end of its channel.

    One that was forked ahead of time, if there is one that can. Raises OSError.
    """
    taken = zygotes.take(child_spec)
    if taken is not None:
        return taken
    ours, theirs = ch.pair()
    try:
        return fork(child_spec, theirs), ours
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


def fork(child_spec: ChildSpec, sock: _socket.socket) -> int:
    """Fork the child that becomes the process of `child_spec`, with `sock` as its channel; return its pid.

    Afterwards the agent is in its own namespaces again, also when the fork failed. Raises OSError.
    """
    in_user = bool(child_spec.unshares & lp.CLONE_NEWUSER) or any(
        kind == lp.CLONE_NEWUSER for _, kind in child_spec.joins
    )
    joins = [(fd, kind) for fd, kind in child_spec.joins if kind & _BY_FORK]
    unshares = 0 if in_user else child_spec.unshares & _BY_FORK
    touched = unshares
    for _, kind in joins:
        touched |= kind
    own = {
        name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in ("pid", "time")
        if touched & NAMESPACES[name]
    }
    try:
        for fd, kind in joins:
            lp.setns(fd, kind)
        if unshares:
            lp.unshare(unshares)
            child.write_offsets(child.time_offsets(child_spec.config))
        pid = os.fork()
    except BaseException:
        _go_back(own)
        raise
    if pid == 0:
        child.main(child_spec, ChildEnd(sock))
    _go_back(own)
    return pid


def _go_back(own: dict[str, int]) -> None:
    for name, fd in own.items():
        lp.setns(fd, NAMESPACES[name])
        os.close(fd)


def namespaces_of(pid: int, spec: dict[str, Any]) -> list[tuple[int, int]]:
    """Descriptors of the namespaces of a container's init, those that the container has for itself."""
    entries = (spec.get("linux") or {}).get("namespaces") or []
    declared = {"cgroup"} | {str(entry.get("type")) for entry in entries}
    wanted = [(name, kind) for name, kind in NAMESPACES.items() if name in declared]
    return open_namespaces([(f"/proc/{pid}/ns/{NAMESPACE_FILES[name]}", kind) for name, kind in wanted])


def write_maps(pid: int, spec: dict[str, Any]) -> None:
    """linux.uidMappings and gidMappings of the user namespace that `pid` has just made.

    Raises OSError or `SpecError`.
    """
    linux = spec.get("linux") or {}
    for key, file in (("uidMappings", "uid_map"), ("gidMappings", "gid_map")):
        rows = linux.get(key) or []
        if not rows:
            raise SpecError(f"linux.{key}: a new user namespace needs a mapping")
        text = "".join(f"{int(r['containerID'])} {int(r['hostID'])} {int(r['size'])}\n" for r in rows)
        write(f"/proc/{pid}/{file}", text)


def open_namespaces(paths: list[tuple[str, int]]) -> list[tuple[int, int]]:
    """(descriptor, kind) for each (path, kind); raises OSError, and nothing is open then."""
    found: list[tuple[int, int]] = []
    try:
        for path, kind in paths:
            found.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind))
    except BaseException:
        for fd, _ in found:
            os.close(fd)
        raise
    return found


def guest_owner(config: dict[str, Any], process: dict[str, Any]) -> tuple[int, int]:
    """The (uid, gid) of a process of the container, as the guest sees them."""
    linux, user = config.get("linux") or {}, process.get("user") or {}
    return (
        guest_id(int(user.get("uid") or 0), linux.get("uidMappings") or []),
        guest_id(int(user.get("gid") or 0), linux.get("gidMappings") or []),
    )


def guest_id(container_id: int, mappings: list[dict[str, Any]]) -> int:
    """A uid or gid of the container as the guest sees it; unchanged without a mapping."""
    for row in mappings:
        offset = container_id - int(row["containerID"])
        if 0 <= offset < int(row["size"]):
            return int(row["hostID"]) + offset
    return container_id

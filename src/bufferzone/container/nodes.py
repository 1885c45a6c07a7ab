"""Device nodes of a container: made in place, or ahead for a user namespace, which can make none.

A node is a number, so what is made here is the guest's device of that number, whether the guest has a node of
that name or not. Source: runtime-spec config-linux.md "Devices", mknod(2), user_namespaces(7).
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import SpecError
from bufferzone.linux import mount as lm
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def make(parent: int, name: str, device: dict[str, Any], owner: tuple[int, int] | None = None) -> None:
    """The node `name` in the directory `parent`, of `owner`, else of whom the device names.

    Raises `SpecError` for an unknown type, and what mknod(2) does.
    """
    kind = str(device.get("type") or "c")
    if kind not in _KINDS:
        raise SpecError(f"linux.devices: {device.get('path')}: unknown type: {kind}")
    mode = device.get("fileMode")
    mode = 0o666 if mode is None else int(mode) & 0o7777
    number = os.makedev(int(device.get("major") or 0), int(device.get("minor") or 0))
    os.mknod(name, _KINDS[kind] | mode, number, dir_fd=parent)
    os.chown(name, *(owner or _owner(device)), dir_fd=parent, follow_symlinks=False)
    os.chmod(name, mode, dir_fd=parent)


def make_ahead(spec: dict[str, Any]) -> dict[int, int]:
    """For a container in a user namespace, before that is entered: the nodes of linux.devices as detached
    mounts, by their place in that list. We are in a mount namespace of our own then, if there are any.
    """
    linux = spec.get("linux") or {}
    devices: list[dict[str, Any]] = linux.get("devices") or []
    if not devices:
        return {}
    lp.unshare(lp.CLONE_NEWNS)
    lm.mount("", "/", flags=lm.MS_PRIVATE | lm.MS_REC)
    scratch = str((spec.get("root") or {}).get("path") or "")
    data = f"size=4k,nr_inodes={len(devices) + 1},mode=700"
    lm.mount("tmpfs", scratch, "tmpfs", lm.MS_NOSUID | lm.MS_NOEXEC, data)
    found = {}
    home = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for index, device in enumerate(devices):
            uid, gid = _owner(device)
            owner = _outside(uid, linux.get("uidMappings")), _outside(gid, linux.get("gidMappings"))
            make(home, str(index), device, owner)
            found[index] = lm.open_tree(str(index), at=home, recursive=False)
    finally:
        os.close(home)
        lm.unmount(scratch, lm.MNT_DETACH)
    return found


def _owner(device: dict[str, Any]) -> tuple[int, int]:
    return int(device.get("uid") or 0), int(device.get("gid") or 0)


def _outside(id: int, rows: list[dict[str, Any]] | None) -> int:
    """What the namespace's `id` is outside of it; -1, which changes nothing, where that is not known."""
    for row in rows or []:
        start, host, size = int(row["containerID"]), int(row["hostID"]), int(row["size"])
        if start <= id < start + size:
            return id - start + host
    return -1

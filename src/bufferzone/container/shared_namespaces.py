"""What a container shares with another one of this VM: `container:ID` in place of a path in its config.json.

A namespace of that name is the other container's own; a mount of the type `shared-mount` is what the
other one has at the same place (its /dev/shm, which belongs to a shared IPC namespace).
"""

from __future__ import annotations

import os

from bufferzone.container.child_spec import NAMESPACE_FILES
from bufferzone.linux import mount as lm
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOUNT = "shared-mount"
_NAME = "container:"


def resolve(spec: dict[str, Any], other: Callable[[str], tuple[int, dict[str, Any]]]) -> None:
    """Replace the names in `spec` by paths below /proc. `other` tells the pid of a container's init and its
    config.json, or raises. With a user namespace come its mappings.
    """
    linux = spec.get("linux") or {}
    for entry in linux.get("namespaces") or []:
        path, file = str(entry.get("path") or ""), NAMESPACE_FILES.get(str(entry.get("type")))
        if path.startswith(_NAME) and file:
            pid, config = other(path.removeprefix(_NAME))
            entry["path"] = f"/proc/{pid}/ns/{file}"
            if file == "user":
                theirs = config.get("linux") or {}
                linux.update({key: theirs.get(key) or [] for key in ("uidMappings", "gidMappings")})
    for entry in spec.get("mounts") or []:
        if entry.get("type") == MOUNT:
            entry["source"] = f"/proc/{other(str(entry['source']).removeprefix(_NAME))[0]}/ns/mnt"


def open_tree(namespace: str, path: str) -> int:
    """A detached copy of the tree at `path` in another mount namespace, from which this process, with one
    thread, comes back. Raises OSError.
    """
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            lp.setns(theirs, lp.CLONE_NEWNS)
        finally:
            os.close(theirs)
        try:
            return lm.open_tree(path, recursive=False)
        finally:
            lp.setns(ours, lp.CLONE_NEWNS)
    finally:
        os.close(ours)

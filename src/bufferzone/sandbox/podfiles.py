"""What a pod's containers get from its sandbox where that is made by the Sandbox API.

containerd itself makes hostname, hosts, resolv.conf and shared memory for a pod with a pause container, and
binds them into each of the others. By the Sandbox API they are the sandbox's to give. Pure.
Source: containerd internal/cri/server/container_create.go, linuxContainerMounts.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLACES = {"/etc/hostname": "hostname", "/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf"}
_MEMORY = "/dev/shm"


def given(spec: dict[str, Any], directory: str) -> dict[str, Any]:
    """`spec` with binds of what is in the pod's `directory`, unless something is mounted there already.

    Of /dev/shm only a volume counts: what else is there is what containerd mounts by default. A container
    with an IPC namespace of its own has a memory of its own.
    """
    linux, mounts = spec.get("linux") or {}, list(spec.get("mounts") or [])
    taken = {entry["destination"].rstrip("/"): index for index, entry in enumerate(mounts)}
    access = "ro" if (spec.get("root") or {}).get("readonly") else "rw"
    for place, name in _PLACES.items():
        if place not in taken:
            mounts.append(_bind(place, os.path.join(directory, name), access))
    shares = any(entry["type"] == "ipc" and entry.get("path") for entry in linux.get("namespaces") or [])
    index = taken.get(_MEMORY)
    if shares and index is not None and mounts[index].get("type") == "tmpfs":
        mounts[index] = _bind(_MEMORY, os.path.join(directory, "shm"), "rw")
    elif shares and index is None:
        mounts.append(_bind(_MEMORY, os.path.join(directory, "shm"), "rw"))
    return {**spec, "mounts": mounts}


def _bind(place: str, source: str, access: str) -> dict[str, Any]:
    options = ["rbind", "rprivate", access]
    return {"destination": place, "type": "bind", "source": source, "options": options}

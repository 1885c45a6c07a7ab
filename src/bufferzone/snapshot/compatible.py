"""Whether a bundle describes the container that was saved: what the guest made once and restoring keeps.

May differ: what the host makes anew or the guest adopts. That is names (hostname, HOSTNAME, cgroup), the
network, annotations, hooks, labels of the host's security modules, where the host keeps the root file system
and the files of volumes, how mounts propagate, their order unless one hides another (Podman changes both in
`restore --import`), and linux.resources, which can be updated. Everything else was decided in the guest when
the container was made: a bundle that promises fewer capabilities than the process has would be a lie.
"""

from __future__ import annotations

import json
import os

from bufferzone.digest import sha256
from bufferzone.oci import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROCESS_FREE = ("terminal", "consoleSize", "selinuxLabel", "apparmorProfile")  # terminal: see `fits`
_LINUX_FREE = ("cgroupsPath", "resources", "namespaces", "intelRdt", "mountLabel")
_IMAGE = "bufferzone.rootfs_image"
_PROPAGATION = {way + kind for way in ("", "r") for kind in ("private", "shared", "slave", "unbindable")}


def parts(spec: dict[str, Any]) -> dict[str, str]:
    """Hashes of what must be equal, by where it is in config.json. Absent and empty are the same."""
    found: dict[str, Any] = {
        f"process.{key}": value for key, value in spec["process"].items() if key not in _PROCESS_FREE
    }
    found["process.env"] = [e for e in spec["process"].get("env") or [] if not e.startswith("HOSTNAME=")]
    linux = spec.get("linux") or {}
    found |= {f"linux.{key}": value for key, value in linux.items() if key not in _LINUX_FREE}
    kinds = {entry["type"] for entry in linux.get("namespaces") or []}
    found["linux.namespaces"] = sorted(kinds - {"network"})
    found["mounts"] = _mounts(spec.get("mounts") or [])
    found["root.readonly"] = spec["root"].get("readonly")
    found["domainname"] = spec.get("domainname")
    found[f"annotations.{_IMAGE}"] = (spec.get("annotations") or {}).get(_IMAGE)
    return {key: _hash(value) for key, value in sorted(found.items()) if value}


def differences(saved: dict[str, str], spec: dict[str, Any]) -> list[str]:
    """Where `spec` differs from the one that `parts` made `saved` of."""
    now = parts(spec)
    return sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))


def _mounts(entries: list[dict[str, Any]]) -> list[list[Any]]:
    """In an order of their own, each with the earlier ones that lie below it: it hides those."""
    places = [os.path.normpath(str(entry.get("destination"))) for entry in entries]
    found = []
    for index, (entry, place) in enumerate(zip(entries, places, strict=True)):
        below = place.rstrip("/") + "/"
        hidden = [other for other in places[:index] if f"{other}/".startswith(below)]
        found.append([place, *_mount(entry), sorted(hidden)])
    return sorted(found, key=json.dumps)


def _mount(entry: dict[str, Any]) -> list[Any]:
    """Kind and options of a mount, without the host's path of a file that is bound."""
    options = sorted(set(entry.get("options") or []) - _PROPAGATION)
    # of ro and rw the last counts, which a set of options does not tell
    return ["bind" if mounts.is_bind(entry) else entry.get("type"), options, mounts.is_read_only(entry)]


def _hash(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

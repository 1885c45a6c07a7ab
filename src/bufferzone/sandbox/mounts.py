"""What becomes of one entry of `mounts`: the guest's own file system, or something of the host, shared.

Decides, does nothing. A bind of the host's /proc, /sys or /dev, or of a path below, means the guest's: no
host object can stand for those in a VM. So do those that are mounted below what is bound. File systems that
are made of host paths (overlay, a disk, a server) are mounted on the host and shared, like any directory.
"""

from __future__ import annotations

import os

from bufferzone.errors import SpecError
from bufferzone.linux import mountoptions
from bufferzone.model import Bind
from bufferzone.oci.mounts import is_bind, is_made_on_the_host, is_read_only, is_read_only_below, is_recursive
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: host path -> type that is mounted anew instead of a bind of it
_ANEW = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/sys/fs/cgroup": "cgroup",
    "/sys/fs/bpf": "bpf",
    "/sys/kernel/debug": "debugfs",
    "/sys/kernel/security": "securityfs",
    "/sys/kernel/tracing": "tracefs",
    "/dev/hugepages": "hugetlbfs",
    "/dev/mqueue": "mqueue",
    "/dev/pts": "devpts",
}
_CGROUP = "/sys/fs/cgroup"
#: propagation that what is mounted below does not get from above; `runbindable` has to be set on each
_OF_THE_TOP = frozenset(("shared", "slave", "private", "unbindable", "runbindable"))
_KEPT = ("ro", "rw", "nosuid", "nodev", "noexec")


class Host:
    """What a decision asks about this machine; as it stands, it knows nothing and looks at no file."""

    def real(self, path: str) -> str:
        """`path` without links, `.` and `..`."""
        return os.path.normpath(path)

    def below(self, path: str) -> list[str]:
        """Where something is mounted below `path`, relative to it, parents first."""
        return [place for place, _ in self.mounted_below(path)]

    def mounted_below(self, path: str) -> list[tuple[str, str]]:
        """What is mounted there: (place relative to `path`, file system type), parents first."""
        return []

    def tmpfs_size(self, path: str) -> int:
        """Bytes of the tmpfs mounted exactly at `path`, or 0."""
        return 0


def decide(
    entry: dict[str, Any], index: int, *, bundle: str, host: Host, name: str
) -> tuple[dict[str, Any], Bind | None]:
    """The guest's form of mounts[index], and what is shared for it as `name`. Raises `SpecError`."""
    source = str(entry.get("source") or "")
    if is_made_on_the_host(entry):
        return _made_on_the_host(entry, source, name)
    if not is_bind(entry):
        return entry, None
    if not source:
        raise SpecError(f"config.json: mounts[{index}].source: missing: a bind mount needs a source")
    if not source.startswith("/"):
        source = f"{bundle}/{source}"
    own = _guest_own(entry, host.real(source)) or _memory(entry, source, host.tmpfs_size)
    return (own, None) if own is not None else _shared(entry, source, name, host)


def _shared(entry: dict[str, Any], source: str, name: str, host: Host) -> tuple[dict[str, Any], Bind]:
    given = list(entry.get("options") or [])
    bind = Bind(
        source=source,
        name=name,
        read_only=is_read_only(entry),
        read_only_below=is_read_only_below(entry),
        recursive=is_recursive(entry),
    )
    place = f"{agent.SHARE_PATH}/{name}"
    made = {**entry, "type": "bind", "source": place, "options": given or ["rbind"]}
    if bind.recursive and (kernels := _kernels_below(entry, source, host)):
        made["kernels"] = kernels
    # the guest mounts what is below when it gets there, and then as read-only and shared as what it came from
    of_the_top = (bind.read_only and not bind.read_only_below) or not _OF_THE_TOP.isdisjoint(given)
    if of_the_top and bind.recursive and (below := host.below(source)):
        made["below"] = below
    return made, bind


def _kernels_below(entry: dict[str, Any], source: str, host: Host) -> list[dict[str, Any]]:
    """Mounts of the guest's own /proc, /sys, cgroups and /dev in the places where the host has its own below
    a bind: `-v /:/host`. The host's are not shared, see `storage/pseudofiles.py`.
    """
    kept = [option for option in entry.get("options") or [] if option in _KEPT]
    kept += ["ro"] if is_read_only(entry) and "ro" not in kept else []
    top, found = host.real(source).rstrip("/"), dict[str, str]()
    for place, kind in host.mounted_below(source):
        cover = next((above for above in found if place.startswith(f"{above}/")), "")
        if not cover and (kind == "devtmpfs" or f"{top}/{place}" == "/dev"):
            found[place] = "bind"
        elif not cover and kind in ("proc", "sysfs", "cgroup", "cgroup2"):
            found[place] = kind.removesuffix("2")
        elif cover and found[cover] == "sysfs" and place == f"{cover}/fs/cgroup":
            found[place] = "cgroup"
    return [
        {
            "destination": f"{entry['destination'].rstrip('/')}/{place}",
            "type": kind,
            "source": "/dev" if kind == "bind" else kind,
            "options": ["rbind", *kept] if kind == "bind" else kept,
        }
        for place, kind in found.items()
    ]


def _made_on_the_host(entry: dict[str, Any], source: str, name: str) -> tuple[dict[str, Any], Bind]:
    given = [str(option) for option in entry.get("options") or []]
    kept = [
        option
        for option in given
        if option in mountoptions.FLAGS
        or option in mountoptions.RECURSIVE
        or option in mountoptions.PROPAGATION
    ]
    read_only = is_read_only(entry)
    bind = Bind(source=source, name=name, read_only=read_only, type=str(entry["type"]), options=tuple(given))
    place = f"{agent.SHARE_PATH}/{name}"
    return {**entry, "type": "bind", "source": place, "options": ["rbind", *kept]}, bind


def _guest_own(entry: dict[str, Any], real: str) -> dict[str, Any] | None:
    """The guest's own file system, or a part of it, that a host path means; None for any other path."""
    kept = [option for option in entry.get("options") or [] if option in _KEPT]
    if real in _ANEW:
        return {**entry, "type": _ANEW[real], "source": _ANEW[real], "options": kept}
    if real.startswith(f"{_CGROUP}/"):
        return _cgroup(entry, kept)
    top, _, rest = real[1:].partition("/")
    process = top == "proc" and rest.partition("/")[0].isdigit()  # a host's process has no like in the guest
    if top not in ("proc", "sys", "dev") or process or real.startswith("/dev/shm/"):
        return None
    if real == "/dev/shm" and entry["destination"].rstrip("/") == "/dev/shm":
        return None  # a size of its own
    return {**entry, "type": "bind", "source": real, "options": list(entry.get("options") or ["rbind"])}


def _cgroup(entry: dict[str, Any], kept: list[str]) -> dict[str, Any]:
    """A hierarchy of cgroup v1, or a part of the host's tree: the guest has one tree, and the container its
    own root in it. Where that is mounted already, a systemd that was to have a writable part gets all of it.
    """
    if not f"{entry['destination']}/".startswith(f"{_CGROUP}/"):
        return {**entry, "type": "cgroup", "source": "cgroup", "options": kept}
    change = ["remount"] if "ro" in kept else ["remount", "rw"]
    return {**entry, "destination": _CGROUP, "type": "cgroup", "source": "cgroup", "options": change}


def _memory(entry: dict[str, Any], source: str, tmpfs_size: Callable[[str], int]) -> dict[str, Any] | None:
    """Shared memory is the guest's: pages of the host cannot be shared by processes of a VM."""
    if entry["destination"].rstrip("/") != "/dev/shm" or not (size := tmpfs_size(source)):
        return None
    kept = [option for option in entry.get("options") or [] if option in _KEPT]
    return {**entry, "type": "tmpfs", "source": "shm", "options": [*kept, "mode=1777", f"size={size}"]}

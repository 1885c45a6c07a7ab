"""Kernel parameters of a container, each written by who owns the namespace that it belongs to.

Every container of a VM is in the VM's network namespace, which belongs to the guest's first user namespace,
so a container with a user namespace of its own could not write there. What belongs to its IPC and UTS
namespaces it can. Source: runtime-spec config-linux.md "Sysctl", user_namespaces(7).
"""

from __future__ import annotations

from bufferzone.container.kernel_files import write
from bufferzone.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: values that are group ids, as the namespace counts them
_GROUPS = "net.ipv4.ping_group_range"


def write_network(linux: dict[str, Any]) -> None:
    """Those of the network, before any namespace is entered; raises `GuestError`."""
    for key, value in (linux.get("sysctl") or {}).items():
        if _is_network(key):
            _write(key, _of_guest(value, linux) if key.replace("/", ".") == _GROUPS else str(value))


def write_rest(linux: dict[str, Any]) -> None:
    """The others, in the container's namespaces; raises `GuestError`."""
    for key, value in (linux.get("sysctl") or {}).items():
        if not _is_network(key):
            _write(key, str(value))


def _is_network(key: str) -> bool:
    return key.replace("/", ".").startswith("net.")


def _of_guest(value: object, linux: dict[str, Any]) -> str:
    """A range of the container's group ids as the guest's; one that no row of the mapping holds whole is cut
    where the row ends.
    """
    rows = linux.get("gidMappings") or []
    try:
        first, last = (int(part) for part in str(value).split())
    except ValueError:
        return str(value)  # the kernel says what it thinks of it
    for row in rows:
        start, host, size = int(row["containerID"]), int(row["hostID"]), int(row["size"])
        if start <= first < start + size:
            return f"{first - start + host} {min(last, start + size - 1) - start + host}"
    return str(value)


def _write(key: str, value: str) -> None:
    try:
        write("/proc/sys/" + key.replace(".", "/"), value)
    except OSError as error:
        text = f"linux.sysctl: write sysctl key {key}: {(error.strerror or '').lower()}"
        raise GuestError(text, code="sysctl-failed") from error

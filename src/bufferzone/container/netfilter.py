"""The tables of iptables, for a container that may use them: what the kernel does not load by itself.

nftables, ipset, WireGuard and the interfaces of `ip link` come when they are used: the kernel asks for their
modules. The older iptables runs modprobe itself, which a container has no modules for; on a host the tables
are there because something else there uses them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODPROBE = "/sbin/modprobe"
MODULES = ("ip_tables", "ip6_tables")
#: not there where a kernel has no modules
LOADED = "/proc/modules"


def load_for(process: dict[str, Any]) -> None:
    """Load them if `process` has CAP_NET_ADMIN and they are not there, as in a VM that began cold.

    What cannot be loaded the program will miss, and say so.
    """
    if "CAP_NET_ADMIN" not in ((process.get("capabilities") or {}).get("bounding") or []):
        return
    for name in MODULES:
        if os.path.isdir(f"/sys/module/{name}") or not os.path.exists(LOADED):
            continue
        try:
            os.waitpid(os.posix_spawn(MODPROBE, [MODPROBE, name], {}), 0)
        except OSError:
            return  # another image

"""What crosses between the guest's loopback and that of the container's network namespace on the host.

The host says of one NIC that it leads there: see the host's `network.loopback`, which lets nothing else with
a loopback address pass. Runs in the VM only.
"""

from __future__ import annotations

import _socket
import errno
import struct

from bufferzone.container.kernel_files import write
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import CREATE, REPLACE, Netlink, attribute, number
from bufferzone.wire.network import RESOLVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.wire.network import Interface

_NEWROUTE, _DELROUTE = 24, 25
_ROUTE = struct.Struct("=BBBBBBBBI")
_LOCAL_TABLE, _STATIC, _LINK_SCOPE = 255, 4, 253


def configure(netlink: Netlink, index: int, interface: Interface) -> None:
    """Make the interface what is said of it, again or anew. Raises OSError."""
    write(f"/proc/sys/net/ipv4/conf/{interface.name}/route_localnet", "1")
    if interface.resolver:
        ours = rtnetlink.Address(local=interface.resolver, prefix=32, scope=_LINK_SCOPE)
        rtnetlink.add_address(netlink, _lo(netlink), ours)
        netlink.request(_NEWROUTE, _route(index) + attribute(7, interface.resolver), CREATE | REPLACE)


def take_back(netlink: Netlink, index: int, interface: Interface) -> None:
    """The interface leads there no more; what is gone is fine. Raises OSError."""
    write(f"/proc/sys/net/ipv4/conf/{interface.name}/route_localnet", "0")
    if interface.resolver:
        try:
            netlink.request(_DELROUTE, _route(index))
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV, errno.ENETDOWN):
                raise
        rtnetlink.remove_address(
            netlink, _lo(netlink), rtnetlink.Address(local=interface.resolver, prefix=32, scope=_LINK_SCOPE)
        )


def _route(index: int) -> bytes:
    """In the table that comes before the main one: that has all of 127.0.0.0/8."""
    head = (_socket.AF_INET, 32, 0, 0, _LOCAL_TABLE, _STATIC, _LINK_SCOPE, rtnetlink.UNICAST, 0)
    return _ROUTE.pack(*head) + attribute(1, RESOLVER) + number(4, index)


def _lo(netlink: Netlink) -> int:
    return next(link.index for link in rtnetlink.links(netlink) if link.type == rtnetlink.LOOPBACK)

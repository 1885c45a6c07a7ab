"""Making virtual links over rtnetlink: a bridge, a pair of Ethernet ends.

Source: ip-link(8), linux/if_link.h, linux/veth.h.
"""

from __future__ import annotations

import struct

from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import CREATE, EXCL, attribute, nested, number, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.linux.netlink import Netlink

_HEAD = struct.Struct("=BxHiII")  # struct ifinfomsg
_MASTER, _LINKINFO, _KIND, _DATA = 10, 18, 1, 2
_BRIDGE_MULTICAST_SNOOPING = 23
_VETH_PEER = 1


def add_bridge(netlink: Netlink, name: str) -> None:
    """A bridge without spanning tree that sends multicast to every port.

    Raises OSError: EEXIST, EOPNOTSUPP.
    """
    data = attribute(_BRIDGE_MULTICAST_SNOOPING, b"\0")
    _add(netlink, rtnetlink.name(name), nested(_LINKINFO, text(_KIND, "bridge"), nested(_DATA, data)))


def add_pair(netlink: Netlink, name: str, peer: str, mtu: int) -> None:
    """`name` and `peer`: what one sends the other receives, wherever they are moved.

    One goes with the other. Raises OSError: EEXIST, EOPNOTSUPP.
    """
    far = _HEAD.pack(0, 0, 0, 0, 0) + rtnetlink.name(peer) + rtnetlink.mtu(mtu)
    info = nested(_LINKINFO, text(_KIND, "veth"), nested(_DATA, attribute(_VETH_PEER, far)))
    _add(netlink, rtnetlink.name(name), rtnetlink.mtu(mtu), info)


def port_of(index: int) -> bytes:
    """For `rtnetlink.set_link`: the bridge that it becomes a port of."""
    return number(_MASTER, index)


def remove(netlink: Netlink, index: int) -> None:
    """Remove a virtual link. Raises OSError."""
    netlink.request(rtnetlink.DELLINK, _HEAD.pack(0, 0, index, 0, 0))


def _add(netlink: Netlink, *attributes: bytes) -> None:
    netlink.request(rtnetlink.NEWLINK, _HEAD.pack(0, 0, 0, 0, 0) + b"".join(attributes), CREATE | EXCL)

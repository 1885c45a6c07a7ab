"""The wire between a tap and its guest as a link with addresses of its own, which both ends know.

Of each NIC there are two in 169.254.98.0/24 (RFC 3927: nobody routes these): N+1 is the tap's, 129+N the
guest's, which it has only where it asks the namespace's resolver. Nothing looks for MACs: both ends are told.
"""

from __future__ import annotations

import _socket
import errno
import struct

from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import CREATE, REPLACE, Netlink, attribute, number

_NET = bytes((169, 254, 98))
#: of no NIC
_MAC = bytes.fromhex("02627a0001")
_NEWROUTE, _DELROUTE = 24, 25
_ROUTE = struct.Struct("=BBBBBBBBI")
_LOCAL_TABLE, _LOCAL, _HOST_SCOPE = 255, 2, 254
LINK_SCOPE = 253
_STATIC = 4  # RTPROT_STATIC


def address(nic: int) -> bytes:
    """The tap's."""
    return _NET + bytes((nic + 1,))


def guest_address(nic: int) -> bytes:
    """The guest's."""
    return _NET + bytes((nic + 129,))


def mac(nic: int) -> bytes:
    """The tap's, as the guest sees it."""
    return _MAC + bytes((nic + 1,))


def is_one(address: bytes) -> bool:
    """Whether an address lies in the net that these are from."""
    return address.startswith(_NET)


def neighbour(address: bytes, nic: int) -> rtnetlink.Neighbour:
    """An address that the guest finds at the tap."""
    return rtnetlink.Neighbour(address=address, mac=mac(nic))


def route_row(destination: bytes, source: bytes = b"") -> rtnetlink.Route:
    """A route of the main table to one IPv4 address over the wire."""
    return rtnetlink.Route(
        family=int(_socket.AF_INET),
        destination=destination,
        prefix=32,
        source=source,
        scope=LINK_SCOPE,
        type=rtnetlink.UNICAST,
        protocol=_STATIC,
    )


def route(netlink: Netlink, index: int, destination: bytes, source: bytes) -> None:
    """A route to a loopback address over the wire: in the table that comes before the main one, since that
    has all of 127.0.0.0/8. Raises OSError.
    """
    head = (_socket.AF_INET, 32, 0, 0, _LOCAL_TABLE, _STATIC, LINK_SCOPE, rtnetlink.UNICAST, 0)
    body = _ROUTE.pack(*head) + attribute(1, destination) + number(4, index) + attribute(7, source)
    netlink.request(_NEWROUTE, body, CREATE | REPLACE)


def set_local(netlink: Netlink, index: int, address: bytes, *, local: bool) -> None:
    """Whether what is sent to `address` in this namespace is for the namespace's own sockets."""
    head = (_socket.AF_INET, 32, 0, 0, _LOCAL_TABLE, rtnetlink.KERNEL, _HOST_SCOPE, _LOCAL, 0)
    body = _ROUTE.pack(*head) + attribute(1, address) + number(4, index)
    try:
        if local:
            netlink.request(_NEWROUTE, body + attribute(7, address), CREATE | REPLACE)
        else:
            netlink.request(_DELROUTE, body)
    except OSError as error:
        # ESRCH: it is so already. Else: the interface, or its address, is gone
        if error.errno not in (errno.ESRCH, errno.ENODEV, errno.EINVAL, errno.ENETDOWN):
            raise

"""Routes from a container's network namespace into its VM, for who calls the container from within there.

What arrives at an interface from outside goes to the VM. What a process in the namespace itself sends to the
interface's address does not arrive anywhere: the kernel takes it for its own, and nobody listens there.
Podman's port handler for ordinary users (rootlessport) is such a process. So the address stops being local
for the kernel, and is routed over the tap instead, from an address that nobody else has:

    process -- LINK ADDRESS, tap -- guest        the answers: guest -- tap, filter for LINK ADDRESS -- process

Only packets for that link-local address come in here; everything else a guest sends goes its usual way, out
of the interface. IPv4 only, as rootlessport is. All but `guest_routes` are for a thread in the
namespace. Source: ip-route(8), tc-u32(8), rtnetlink(7).
"""

from __future__ import annotations

import _socket
import errno
import struct

from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import CREATE, REPLACE, Netlink, attribute, nested, number
from bufferzone.network import tc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.network.interfaces import Interface

#: of each NIC one in this link-local /24 (RFC 3927: nobody routes these), and a MAC of no NIC
_NET = bytes((169, 254, 98))
_MAC = bytes.fromhex("02627a0001")
_NEWROUTE, _DELROUTE = 24, 25
_ROUTE = struct.Struct("=BBBBBBBBI")
_LOCAL_TABLE, _LOCAL, _HOST_SCOPE, _LINK_SCOPE = 255, 2, 254, 253
_STATIC = 4  # RTPROT_STATIC
#: the interface still has the address, and the kernel believes nobody else who sends from it
_ACCEPT_LOCAL = nested(26, nested(_socket.AF_INET, nested(1, number(23, 1))))  # IPV4_DEVCONF_ACCEPT_LOCAL


def add_routes(interface: Interface, tap_name: str, nic: int) -> bool:
    """Let who is in the namespace reach the interface's IPv4 addresses in the VM behind the joined tap.

    `nic` is the number of the VM's NIC. May be called again, after changes. False: there is nothing to reach.
    Raises OSError, `HostError` when the tap is gone.
    """
    own = _own(interface)
    if not own:
        return False
    with Netlink() as netlink:
        index = next((link.index for link in rtnetlink.links(netlink) if link.name == tap_name), 0)
        if not index:
            raise HostError(f"tap {tap_name}: does not exist any more", code="network")
        rtnetlink.set_link(netlink, index, rtnetlink.mac(_mac(nic)), _ACCEPT_LOCAL)
        tc.let_in(netlink, index, _address(nic))
        here = rtnetlink.Address(local=_address(nic), prefix=32, scope=_LINK_SCOPE)
        rtnetlink.add_address(netlink, index, here)
        for address in own:
            neighbour = rtnetlink.Neighbour(address=address, mac=interface.mac)
            rtnetlink.add_neighbour(netlink, index, neighbour)
            rtnetlink.add_route(netlink, index, _route(address, source=_address(nic)))
            _set_local(netlink, interface.index, address, local=False)
    return True


def remove_routes(interface: Interface) -> None:
    """Make the addresses the kernel's own again; what is gone is fine. Raises OSError."""
    with Netlink() as netlink:
        for address in _own(interface):
            _set_local(netlink, interface.index, address, local=True)


def guest_routes(nic: int) -> tuple[rtnetlink.Route, rtnetlink.Neighbour]:
    """What the guest has to know to answer."""
    return _route(_address(nic)), rtnetlink.Neighbour(address=_address(nic), mac=_mac(nic))


def _own(interface: Interface) -> list[bytes]:
    found = [address.local for address in interface.addresses if len(address.local) == 4]
    taken = any(address.startswith(_NET) for address in found)
    return found if interface.up and not taken else []


def _address(nic: int) -> bytes:
    return _NET + bytes((nic + 1,))


def _mac(nic: int) -> bytes:
    return _MAC + bytes((nic + 1,))


def _route(address: bytes, source: bytes = b"") -> rtnetlink.Route:
    return rtnetlink.Route(
        family=int(_socket.AF_INET),
        destination=address,
        prefix=32,
        source=source,
        scope=_LINK_SCOPE,
        type=rtnetlink.UNICAST,
        protocol=_STATIC,
    )


def _set_local(netlink: Netlink, index: int, address: bytes, *, local: bool) -> None:
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

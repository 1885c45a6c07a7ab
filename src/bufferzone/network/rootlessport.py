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

from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink, nested, number
from bufferzone.network import linklocal, tc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.network.interfaces import Interface

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
        rtnetlink.set_link(netlink, index, rtnetlink.mac(linklocal.mac(nic)), _ACCEPT_LOCAL)
        tc.let_in(netlink, index, linklocal.address(nic))
        here = rtnetlink.Address(local=linklocal.address(nic), prefix=32, scope=linklocal.LINK_SCOPE)
        rtnetlink.add_address(netlink, index, here)
        for address in own:
            neighbour = rtnetlink.Neighbour(address=address, mac=interface.mac)
            rtnetlink.add_neighbour(netlink, index, neighbour)
            rtnetlink.add_route(netlink, index, linklocal.route_row(address, source=linklocal.address(nic)))
            linklocal.set_local(netlink, interface.index, address, local=False)
    return True


def remove_routes(interface: Interface) -> None:
    """Make the addresses the kernel's own again; what is gone is fine. Raises OSError."""
    with Netlink() as netlink:
        for address in _own(interface):
            linklocal.set_local(netlink, interface.index, address, local=True)


def guest_routes(nic: int) -> tuple[rtnetlink.Route, rtnetlink.Neighbour]:
    """What the guest has to know to answer."""
    return linklocal.route_row(linklocal.address(nic)), linklocal.neighbour(linklocal.address(nic), nic)


def _own(interface: Interface) -> list[bytes]:
    found = [address.local for address in interface.addresses if len(address.local) == 4]
    taken = any(linklocal.is_one(address) for address in found)
    return found if interface.up and not taken else []

"""The loopback of a container's network namespace and that of its VM, where each needs the other.

The namespace's lies on the host, the container's programs have the guest's. Two things cross over, both on
the wire between tap and guest, where nobody else can be:

    resolver    127.0.0.11 as the guest calls it is the namespace's: Docker answers names there (`resolver`)
    localhost   127.0.0.1 as a process in the namespace calls it is the guest's: `kubectl port-forward`

At the interface, packets from or for a loopback address are left to the namespace's stack, which drops them
as martians: nobody on the network reaches either.
Docker's server itself asks others from within the namespace, so answers to it come in here, not to the guest:
by the ports that the namespace's own sockets have from now on, which are no guest's by default. IPv4 only.
All of it is for a thread in the namespace. Source: ip-sysctl (route_localnet, ip_local_port_range).
"""

from __future__ import annotations

import _socket
import errno

from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink, nested, number
from bufferzone.network import linklocal, tc
from bufferzone.wire.network import RESOLVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.network.interfaces import Interface

LOCALHOST = bytes((127, 0, 0, 1))
_OURS = nested(
    26, nested(_socket.AF_INET, nested(1, number(23, 1), number(26, 1)))
)  # ACCEPT_, ROUTE_LOCALNET
#: the sockets of the namespace: 0xF000 to 0xFFFF, above what Linux gives out by default
_PORTS = "61440 65535"
_DNS = 53
_IP, _SOURCE, _DESTINATION, _PROTOCOL, _FRAGMENT, _SPORT, _DPORT = 0, 12, 16, 9, 6, 20, 22
_LOOPBACK = (b"\xff", b"\x7f")


def has_resolver() -> bool:
    """Whether somebody listens at 127.0.0.11 in the namespace, at whatever port. Raises OSError."""
    with open("/proc/thread-self/net/udp") as file:
        return any(line.split()[1].startswith("0B00007F:") for line in file.readlines()[1:])


def lead_to_localhost(interface: Interface, tap_name: str, nic: int) -> None:
    """From now on 127.0.0.1 is the guest's for who calls it in the namespace. May be called again.

    Raises OSError, `HostError` when the tap is gone.
    """
    with Netlink() as netlink:
        tap = _prepare(netlink, interface, tap_name, nic)
        tc.let_in(netlink, tap, linklocal.address(nic))
        rtnetlink.add_neighbour(netlink, tap, rtnetlink.Neighbour(address=LOCALHOST, mac=interface.mac))
        linklocal.set_local(netlink, _lo(netlink), LOCALHOST, local=False)
        linklocal.route(netlink, tap, LOCALHOST, source=linklocal.address(nic))


def give_back_localhost() -> None:
    """127.0.0.1 is the namespace's own again; call it once the tap has left. Raises OSError."""
    with Netlink() as netlink:
        linklocal.set_local(netlink, _lo(netlink), LOCALHOST, local=True)


def lead_to_resolver(interface: Interface, tap_name: str, nic: int) -> None:
    """From now on what the guest sends to 127.0.0.11:53 arrives at the sockets of the namespace, and their
    answers at the guest. May be called again. Raises OSError, `HostError` when the tap is gone.
    """
    guest = linklocal.guest_address(nic)
    with Netlink() as netlink:
        tap = _prepare(netlink, interface, tap_name, nic)
        match = ((_SOURCE, b"\xff" * 4, guest), (_DESTINATION, b"\xff" * 4, RESOLVER))
        tc.pass_on(netlink, tap, tc.RESOLVE, (*match, (_DPORT, b"\xff\xff", _DNS.to_bytes(2))))
        rtnetlink.add_neighbour(netlink, tap, rtnetlink.Neighbour(address=guest, mac=interface.mac))
        rtnetlink.add_route(netlink, tap, linklocal.route_row(guest))


def let_answers_in(interface: Interface, tap_name: str) -> None:
    """What servers answer to who asks them from within the namespace is for the namespace's own sockets.

    May be called again. Raises OSError, `HostError` when the tap is gone.
    """
    with Netlink() as netlink:
        tap = _index(netlink, tap_name)
        for protocol in (_socket.IPPROTO_UDP, _socket.IPPROTO_TCP):
            answer = (
                (_IP, b"\x0f", b"\x05"),
                (_PROTOCOL, b"\xff", bytes((protocol,))),
                (_FRAGMENT, b"\x1f\xff", bytes(2)),
                (_SPORT, b"\xff\xff", _DNS.to_bytes(2)),
                (_DPORT, b"\xf0\x00", b"\xf0\x00"),
            )
            tc.pass_on(netlink, interface.index, tc.RESOLVE + protocol, answer)
        tc.copy_arp(netlink, interface.index, tap)
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
        file.write(_PORTS)


def _prepare(netlink: Netlink, interface: Interface, tap_name: str, nic: int) -> int:
    """Make the tap the namespace's end of the wire; its index."""
    tap = _index(netlink, tap_name)
    for offset in (_SOURCE, _DESTINATION):  # before anything of ours believes such an address
        tc.pass_on(netlink, interface.index, tc.MARTIAN - offset, ((offset, *_LOOPBACK),))
    rtnetlink.set_link(netlink, tap, rtnetlink.mac(linklocal.mac(nic)), _OURS)
    here = rtnetlink.Address(local=linklocal.address(nic), prefix=32, scope=linklocal.LINK_SCOPE)
    rtnetlink.add_address(netlink, tap, here)
    return tap


def _index(netlink: Netlink, tap_name: str) -> int:
    for link in rtnetlink.links(netlink):
        if link.name == tap_name:
            return link.index
    raise HostError(f"tap {tap_name}: does not exist any more", code="network")


def _lo(netlink: Netlink) -> int:
    for link in rtnetlink.links(netlink):
        if link.type == rtnetlink.LOOPBACK:
            return link.index
    raise OSError(errno.ENODEV, "no loopback interface")

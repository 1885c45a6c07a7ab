"""What is in a network namespace, as values: the interfaces that a VM takes over, with all that belongs to
them.

Refuses, with one line each, what a VM could not show its container as it is: interfaces that are not
Ethernet, more of them than fit, the same MAC or address twice, routes with several next hops.
"""

from __future__ import annotations

import _socket

from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: what a tap carries: 65535 less the Ethernet header (linux/drivers/net/tun.c)
MOST_MTU = 65521
#: the alias of our taps begins with it
MARK = "bufferzone"
_LINK_SCOPE = b"\xfe\x80"


class Interface(Record):
    """An Ethernet interface: `mac` of six bytes, `kind` (`veth`, `tun`), and its addresses, routes of the
    main table and permanent neighbours.
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool
    kind: str = ""
    addresses: tuple[rtnetlink.Address, ...] = ()
    routes: tuple[rtnetlink.Route, ...] = ()
    neighbours: tuple[rtnetlink.Neighbour, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether whoever made it seems to be done: it is up, and has more than the kernel's own address."""
        return self.up and any(not address.local.startswith(_LINK_SCOPE) for address in self.addresses)


def scan(most: int) -> tuple[Interface, ...]:
    """The interfaces of the namespace that this thread is in, at most `most`, in order of their index.

    Raises `HostError` for what a VM cannot take over, OSError when the kernel does not answer.
    """
    with Netlink() as netlink:
        links = [link for link in rtnetlink.links(netlink) if _is_wanted(link)]
        if not links:
            return ()
        addresses = rtnetlink.addresses(netlink)
        routes = rtnetlink.routes(netlink)
        neighbours = rtnetlink.neighbours(netlink)
    found = tuple(
        Interface(
            name=link.name,
            index=link.index,
            mac=link.mac,
            mtu=link.mtu,
            up=bool(link.flags & rtnetlink.UP),
            kind=link.kind,
            addresses=tuple(a for a in addresses if a.index == link.index and _is_lasting(a)),
            routes=tuple(r for r in routes if r.index == link.index),
            neighbours=tuple(n for n in neighbours if n.index == link.index),
        )
        for link in sorted(links, key=lambda link: link.index)
    )
    _check(found, most)
    if any(route.several for route in routes):
        raise HostError("routes with several next hops are not supported", code="network")
    return found


def _is_wanted(link: rtnetlink.Link) -> bool:
    """Not `lo`, not our own taps, not the ports of a bridge or bond, not the kernel's idle tunnels."""
    if link.type == rtnetlink.LOOPBACK or link.master or link.alias.startswith(MARK):
        return False
    if link.type == rtnetlink.ETHERNET:
        return True
    if not link.flags & rtnetlink.UP:
        return False
    raise HostError(
        f"interface {link.name}: not an Ethernet interface",
        hint="take it down, or remove it from the network namespace",
        code="network",
    )


def _is_lasting(address: rtnetlink.Address) -> bool:
    """Not one that the kernel made up for privacy, nor one that somebody else has."""
    six = len(address.local) == 16
    return not (six and address.flags & (rtnetlink.TEMPORARY | rtnetlink.DAD_FAILED))


def _check(found: tuple[Interface, ...], most: int) -> None:
    if len(found) > most:
        names = ", ".join(interface.name for interface in found)
        hint = "connect the container to fewer networks"
        raise HostError(f"too many interfaces for a VM: {names}: at most {most}", hint=hint, code="network")
    for interface in found:
        if interface.mtu > MOST_MTU:
            raise HostError(
                f"interface {interface.name}: MTU {interface.mtu}: a VM's NIC carries at most {MOST_MTU}",
                hint=f"ip link set {interface.name} mtu {MOST_MTU}, in the container's network namespace",
                code="network",
            )
    _check_unique("MAC address", ((i.mac.hex(":"), i.name) for i in found))
    _check_unique(
        "address",
        (
            (_socket.inet_ntop(rtnetlink.family_of(a.local), a.local), i.name)
            for i in found
            for a in i.addresses
            if not a.local.startswith(_LINK_SCOPE)
        ),
    )


def _check_unique(what: str, rows: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for value, name in rows:
        if seen.setdefault(value, name) != name:
            names = f"interfaces {seen[value]} and {name}"
            hint = "a VM has both on one machine: give one of them another, or remove it"
            raise HostError(f"{names}: both have the {what} {value}", hint=hint, code="network")

"""Makes the VM's NICs the interfaces of the container's network namespace: names, MACs, addresses, routes.

The host found these values in that namespace; they are checked for shape here, the rest is the kernel's to
refuse. Runs in the VM only.
"""

from __future__ import annotations

import _socket
import os
import struct

from bufferzone.container.cgroup import write
from bufferzone.container.loop import warn
from bufferzone.errors import GuestError, SpecError
from bufferzone.guest import nic
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.wire.network import MOST_INTERFACES, MOST_ROWS

#: the driver looks at its link in a work queue, and drops packets until then
_CARRIER_S = 1.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.wire.network import Interface


_taken = False


def take_over(interfaces: list[Interface]) -> None:
    """Make the NICs these interfaces, and no other NIC; what an earlier call made of them is forgotten.

    Raises `GuestError` with code `no-nic` while one of them has not been found yet; then nothing was changed.
    """
    global _taken
    check(interfaces)
    if _taken:
        _taken = False
        nic.unbind_all()
    if not interfaces:
        return
    nic.bind_all()
    found = nic.by_mac()
    missing = [interface.nic for interface in interfaces if interface.nic not in found]
    if missing:
        raise GuestError(f"no NIC with the MAC {missing[0]}", code="no-nic")
    _taken = True
    nic.unbind(found[mac][1] for mac in found.keys() - {interface.nic for interface in interfaces})
    with Netlink() as netlink:
        indexes = [found[interface.nic][0] for interface in interfaces]
        _make_way(netlink, interfaces, indexes)
        for interface, index in zip(interfaces, indexes, strict=True):
            try:
                _configure(netlink, index, interface)
            except OSError as error:
                raise GuestError(f"interface {interface.name}: {error.strerror}", code="network") from error
        for interface, index in zip(interfaces, indexes, strict=True):
            _add_routes(netlink, index, interface)
        up = [index for interface, index in zip(interfaces, indexes, strict=True) if interface.up]
        if not rtnetlink.await_running(netlink, up, _CARRIER_S):
            warn("a NIC has no carrier")
    for interface in interfaces:
        if interface.announce:
            _announce(interface)


def _make_way(netlink: Netlink, interfaces: list[Interface], indexes: list[int]) -> None:
    """Rename the NICs that have a name which another is to get: eth0 may become eth1."""
    names = {link.index: link.name for link in rtnetlink.links(netlink)}
    wanted = {interface.name: index for interface, index in zip(interfaces, indexes, strict=True)}
    for index, name in names.items():
        if wanted.get(name, index) != index:
            rtnetlink.set_link(netlink, index, rtnetlink.name(f"nic.{index}"))


def _configure(netlink: Netlink, index: int, interface: Interface) -> None:
    rtnetlink.set_link(
        netlink,
        index,
        rtnetlink.name(interface.name),
        rtnetlink.mac(interface.mac),
        rtnetlink.mtu(interface.mtu),
        rtnetlink.no_own_address(),
    )
    settings = f"/proc/sys/net/ipv6/conf/{interface.name}"
    if os.path.isdir(settings):
        # routes come from the namespace, as they are there: a router's word would add to them
        write(f"{settings}/accept_ra", "0")
    if interface.up:
        rtnetlink.set_link(netlink, index, up=True)
    for row in interface.addresses:
        rtnetlink.add_address(netlink, index, rtnetlink.Address(**row.__dict__))
    for entry in interface.neighbours:
        rtnetlink.add_neighbour(netlink, index, rtnetlink.Neighbour(**entry.__dict__))


def _add_routes(netlink: Netlink, index: int, interface: Interface) -> None:
    """What lies on the link first, since gateways are found through it."""
    for row in sorted(interface.routes, key=lambda row: bool(row.gateway)):
        try:
            rtnetlink.add_route(netlink, index, rtnetlink.Route(**row.__dict__))
        except OSError as error:
            where = f"{row.destination.hex() or 'default'}/{row.prefix}"
            raise GuestError(
                f"interface {interface.name}: route {where}: {error.strerror}", code="network"
            ) from error


def _announce(interface: Interface) -> None:
    """Gratuitous ARP, as RFC 5227 has it, for each IPv4 address."""
    link = _socket.socket(_socket.AF_PACKET, _socket.SOCK_RAW)
    try:
        link.bind((interface.name, 0))
        for row in interface.addresses:
            if len(row.local) == 4:
                arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
                arp += interface.mac + row.local + bytes(6) + row.local
                link.send(b"\xff" * 6 + interface.mac + b"\x08\x06" + arp)
    finally:
        link.close()


def check(interfaces: list[Interface]) -> None:
    """Raise `SpecError` for what is no interface, before anything is done."""
    if len(interfaces) > MOST_INTERFACES:
        raise SpecError(f"{len(interfaces)} interfaces, at most {MOST_INTERFACES}")
    for interface in interfaces:
        name, lengths = interface.name, {4, 16}
        if not 0 < len(name.encode()) < 16 or name in (".", "..") or not _is_plain(name):
            raise SpecError(f"not an interface's name: {name!r}")
        rows = (interface.addresses, interface.routes, interface.neighbours)
        fits = len(interface.mac) == 6 and all(len(part) <= MOST_ROWS for part in rows)
        fits = fits and all(len(row.local) in lengths for row in interface.addresses)
        fits = fits and all(len(row.address) in lengths and len(row.mac) == 6 for row in interface.neighbours)
        ends = {length for row in interface.routes for length in (len(row.destination), len(row.gateway))}
        fits = fits and ends <= {0, *lengths}
        if not fits:
            raise SpecError(f"interface {name}: invalid values")


def _is_plain(name: str) -> bool:
    return name.isprintable() and not set(name) & set("/: ")

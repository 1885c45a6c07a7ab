"""Makes the VM's NICs the interfaces of the container's network namespace: names, MACs, addresses, routes.

The host found these values in that namespace; they are checked for shape here, the rest is the kernel's to
refuse. Runs in the VM only.
"""

from __future__ import annotations

import _socket
import os
import struct

from bufferzone.container.kernel_files import write
from bufferzone.container.loop import warn
from bufferzone.errors import GuestError, SpecError
from bufferzone.guest import loopback, nic
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.wire.network import MOST_INTERFACES, MOST_ROWS

#: the driver looks at its link in a work queue, and drops packets until then
_CARRIER_S = 1.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.wire.network import Interface
    from bufferzone.wire.proto import Message


class _Made:
    """What was made of a NIC: `device` is what its bus calls it; `interface` None: that failed half way."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.interface: Interface | None = None


#: by the NIC's own MAC
_made: dict[str, _Made] = {}


def take_over(interfaces: list[Interface]) -> None:
    """Make the NICs these interfaces, and no other NIC.

    What an earlier call made is changed where it is another by now, and left alone, with what the container
    did to it, where it is not. Raises `GuestError` with code `no-nic` while one of them has not been found
    yet; then none was made.
    """
    check(interfaces)
    present = nic.present() if _made else {}
    kept = _let_go(interfaces, present)
    new = [interface for interface in interfaces if interface.nic not in kept]
    found = _find(new, {made.device for made in kept.values()}) if new else {}
    with Netlink() as netlink:
        for interface in interfaces:
            if made := kept.get(interface.nic):
                _renew(netlink, present[made.device][0], made, interface)
        if new:
            _make(netlink, new, found)


def _let_go(interfaces: list[Interface], present: dict[str, tuple[int, str]]) -> dict[str, _Made]:
    """Take the driver from the NICs that cannot become what they are to be by changes; the others."""
    if not _made:
        return {}
    wanted = {interface.nic: interface for interface in interfaces}
    for mac, made in list(_made.items()):
        old, new = made.interface, wanted.get(mac)
        is_here = old is not None and present.get(made.device, (0, ""))[1] == old.name
        if not is_here or old is None or new is None or (old.name, old.mac) != (new.name, new.mac):
            del _made[mac]
    nic.unbind_all(but={made.device for made in _made.values()})
    return dict(_made)


def _find(interfaces: list[Interface], others: set[str]) -> dict[str, int]:
    """The index of each NIC that is to become one of these interfaces; `others` are devices in use.

    Those that nobody wants lose their driver. Raises `GuestError` with code `no-nic`.
    """
    nic.bind_all()
    found = nic.by_mac(but=others)
    missing = [interface.nic for interface in interfaces if interface.nic not in found]
    if missing:
        raise GuestError(f"no NIC with the MAC {missing[0]}", code="no-nic")
    for interface in interfaces:
        _made[interface.nic] = _Made(nic.device_of(found[interface.nic][1]))
    nic.unbind(found[mac][1] for mac in found.keys() - {interface.nic for interface in interfaces})
    return {interface.nic: found[interface.nic][0] for interface in interfaces}


def _make(netlink: Netlink, interfaces: list[Interface], found: dict[str, int]) -> None:
    indexes = [found[interface.nic] for interface in interfaces]
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
        _made[interface.nic].interface = interface
        if interface.announce:
            _announce(interface)


def _renew(netlink: Netlink, index: int, made: _Made, interface: Interface) -> None:
    old, made.interface = made.interface, None
    if old is not None and old != interface:
        try:
            change(netlink, index, old, interface)
        except OSError as error:
            raise GuestError(f"interface {interface.name}: {error.strerror}", code="network") from error
    made.interface = interface


def change(netlink: Netlink, index: int, old: Interface, new: Interface) -> None:
    """Make the interface what is `new`, where it was made `old`: MTU, state, addresses, routes, neighbours.

    Connections outlive it where their address does. Raises OSError or `GuestError`; then some is done.
    """
    if new.mtu != old.mtu:
        rtnetlink.set_link(netlink, index, rtnetlink.mtu(new.mtu))
    for row in _gone(old.neighbours, new.neighbours):
        rtnetlink.remove_neighbour(netlink, index, rtnetlink.Neighbour(**row.__dict__))
    for row in _gone(old.routes, new.routes):
        rtnetlink.remove_route(netlink, index, rtnetlink.Route(**row.__dict__))
    if (old.resolver, old.localnet) != (new.resolver, new.localnet):
        loopback.take_back(netlink, index, old)
    for row in _gone(old.addresses, new.addresses):
        rtnetlink.remove_address(netlink, index, rtnetlink.Address(**row.__dict__))
    rtnetlink.set_link(netlink, index, up=new.up)
    # all of them: with an address, or while it was down, the kernel removes others
    _add_rows(netlink, index, new)
    _add_routes(netlink, index, new)


def _gone(old: Sequence[Message], new: Sequence[Message]) -> list[Message]:
    """The rows that are no more."""
    left = {tuple(row.__dict__.values()) for row in new}
    return [row for row in old if tuple(row.__dict__.values()) not in left]


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
    _add_rows(netlink, index, interface)


def _add_rows(netlink: Netlink, index: int, interface: Interface) -> None:
    for row in interface.addresses:
        rtnetlink.add_address(netlink, index, rtnetlink.Address(**row.__dict__))
    if interface.localnet or interface.resolver:
        loopback.configure(netlink, index, interface)
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
        fits = fits and len(interface.resolver) in (0, 4)
        fits = fits and all(len(row.local) in lengths for row in interface.addresses)
        fits = fits and all(len(row.address) in lengths and len(row.mac) == 6 for row in interface.neighbours)
        ends = {length for row in interface.routes for length in (len(row.destination), len(row.gateway))}
        fits = fits and ends <= {0, *lengths}
        if not fits:
            raise SpecError(f"interface {name}: invalid values")


def _is_plain(name: str) -> bool:
    return name.isprintable() and not set(name) & set("/: ")

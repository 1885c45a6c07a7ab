"""What the guest is told of its network: the interfaces of the container's namespace, with what is theirs.

IP addresses are packed bytes, 4 or 16; MAC addresses are six bytes. Values are those of rtnetlink.
"""

from __future__ import annotations

from bufferzone.wire.proto import Message, blob, boolean, messages, string, uint

MOST_INTERFACES = 4
MOST_ROWS = 4096  # addresses, routes and neighbours of one interface, each
#: the MAC of the NIC that every VM has from the start, until the interface it becomes gives it another
FIRST_MAC = "02:62:7a:00:00:01"

#: where Docker answers names, in the container's network namespace
RESOLVER = bytes((127, 0, 0, 11))


def nic_mac(number: int) -> str:
    """The MAC that the VM's NIC of that number, from 0, shows by itself: nobody else's on any link."""
    return f"{FIRST_MAC[:-2]}{number + 1:02x}"


class Address(Message):
    """One address; `peer` is the other end of a point-to-point link."""

    local: bytes = blob(1)
    prefix: int = uint(2)
    peer: bytes = blob(3)
    broadcast: bytes = blob(4)
    scope: int = uint(5)


class Route(Message):
    """One route of the main table; an empty destination is the default route of `family` (AF_*)."""

    family: int = uint(1)
    destination: bytes = blob(2)
    prefix: int = uint(3)
    gateway: bytes = blob(4)
    source: bytes = blob(5)
    metric: int = uint(6)
    scope: int = uint(7)
    type: int = uint(8)
    protocol: int = uint(9)
    onlink: int = uint(10)
    mtu: int = uint(11)


class Neighbour(Message):
    """One permanent entry."""

    address: bytes = blob(1)
    mac: bytes = blob(2)


class Interface(Message):
    """One NIC: `nic` is the MAC it shows by itself, the rest what it becomes.

    `announce`: it tells the link its IPv4 addresses, for a back end that learns the MAC from what it sees.
    `localnet`: loopback addresses are believed there. `resolver`: `RESOLVER` is reached there from this
    address, empty: it is not.
    """

    nic: str = string(1)
    name: str = string(2)
    mac: bytes = blob(3)
    mtu: int = uint(4)
    up: bool = boolean(5)
    addresses: list[Address] = messages(6, Address)
    routes: list[Route] = messages(7, Route)
    neighbours: list[Neighbour] = messages(8, Neighbour)
    announce: bool = boolean(9)
    localnet: bool = boolean(10)
    resolver: bytes = blob(11)


class SetNetworkRequest(Message):
    """Make the guest's NICs these interfaces, and no other; fails with code `no-nic` while one is not there
    yet.
    """

    interfaces: list[Interface] = messages(1, Interface)
